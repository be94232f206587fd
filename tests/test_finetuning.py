"""Fine-tuning: what the model reads and is asked for, the same path for every base, and runs that survive a kill."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM
from trl import SFTConfig

from gloss_utils import finetuning, language_models, prompts, resources, tiny_llama
from gloss_utils.finetuning import TrainingSettings
from gloss_utils.generation import encode_prompts

ITEMS = ["Title: Rose Soap", "Title: Rose Toner", "Title: Mint Cream", "Title: Wooden Comb"]
TEXT = prompts.build_training_text(ITEMS)
SMALL = tiny_llama.Recipe(vocab_size=400, hidden_size=64, num_layers=2, mlp_size=128, epochs=4, block_length=32)
QUICK = TrainingSettings(epochs=4, batch_size=2, gradient_accumulation=1, warmup_steps=1, learning_rate=5e-3)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_llama.train_tokenizer(ITEMS, vocab_size=400)


@pytest.fixture
def shop(toy):
    """The toy shop with a base model pretrained on its seven items."""
    tiny_llama.pretrain_base(toy.catalog["text"], toy.paths.base_model("tiny-llama"), SMALL)
    return toy


def test_text_ends_with_eos_and_every_token_is_a_target(tokenizer):
    row = finetuning.tokenize_text(TEXT, tokenizer, TrainingSettings())
    assert row["input_ids"][-1] == tokenizer.eos_token_id
    assert row["labels"] == row["input_ids"]
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == TEXT


def test_without_eos_the_text_just_stops(tokenizer):
    row = finetuning.tokenize_text(TEXT, tokenizer, TrainingSettings(add_eos=False))
    assert tokenizer.eos_token_id not in row["input_ids"]


def test_loss_on_the_answer_hides_the_prompt_only(tokenizer):
    row = finetuning.tokenize_text(TEXT, tokenizer, TrainingSettings(loss_on="answer"))
    asked = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(asked) == ITEMS[-1] + tokenizer.eos_token
    assert len(row["labels"]) == len(row["input_ids"])


def test_left_truncation_cuts_the_instruction_first(tokenizer):
    whole = finetuning.tokenize_text(TEXT, tokenizer, TrainingSettings())["input_ids"]
    limit = len(whole) - 6
    cut = finetuning.tokenize_text(TEXT, tokenizer, TrainingSettings(max_seq_length=limit))["input_ids"]
    assert cut == [tokenizer.bos_token_id] + whole[1 - limit :]


@pytest.mark.parametrize("truncation", ["left", "oldest"])
def test_a_cut_prompt_is_the_same_in_training_and_in_generation(tokenizer, truncation):
    """Training cut BOS off with the instruction, generation kept it; and generation knew no `oldest`."""
    prompt, _, _ = TEXT.rpartition(ITEMS[-1])
    whole = encode_prompts(tokenizer, [prompt], 1000, 10)[0]
    for room in range(2, len(whole) + 2):
        cut = encode_prompts(tokenizer, [prompt], room + 10, 10, truncation)[0]
        assert cut == prompts.truncate_prompt(prompt, tokenizer, room, truncation)
        plain = tokenizer(prompt, truncation=True, max_length=room)["input_ids"]  # transformers cuts left here
        assert cut == plain or truncation == "oldest"


def test_dropping_the_oldest_items_keeps_the_instruction(tokenizer):
    whole = finetuning.tokenize_text(TEXT, tokenizer, TrainingSettings())["input_ids"]
    settings = TrainingSettings(max_seq_length=len(whole) - 1, truncation="oldest")
    cut = finetuning.tokenize_text(TEXT, tokenizer, settings)["input_ids"]
    assert tokenizer.decode(cut, skip_special_tokens=True) == prompts.build_training_text(ITEMS[1:])


@pytest.mark.parametrize("truncation", ["left", "oldest"])
@pytest.mark.parametrize("limit", range(2, 40, 3))
def test_no_text_is_longer_than_the_limit(tokenizer, truncation, limit):
    settings = TrainingSettings(max_seq_length=limit, truncation=truncation)
    row = finetuning.tokenize_text(TEXT, tokenizer, settings)
    assert len(row["input_ids"]) == len(row["labels"]) <= limit


def test_a_text_that_is_not_in_the_template_is_one_sentence(tokenizer):
    with pytest.raises(ValueError, match="Next item"):
        finetuning.tokenize_text("Rose Soap", tokenizer, TrainingSettings())


@pytest.mark.parametrize("texts", [400, 403])
def test_a_short_last_batch_stays_the_last(texts):
    """It was shuffled into the middle, and every batch behind it was made of two groups of lengths."""
    lengths = torch.randperm(texts, generator=torch.Generator().manual_seed(3)).tolist()
    order = list(finetuning.SeededOrder(lengths, batch_size=8, seed=1))
    spreads = [max(batch) - min(batch) for batch in np.split(np.array(lengths)[order], range(8, texts, 8))[:-1]]
    assert max(spreads) < texts / 4


def test_order_by_length_is_a_seeded_permutation_with_little_padding():
    lengths = [(7 * number) % 101 for number in range(400)]
    order = finetuning.SeededOrder(lengths, batch_size=8, seed=1)
    first = list(order)
    assert sorted(first) == list(range(400)) and first == list(order)
    order.set_epoch(1)
    assert list(order) != first

    def padded(rows):
        return sum(8 * max(lengths[row] for row in rows[start : start + 8]) for start in range(0, 400, 8))

    assert padded(first) < 0.8 * padded(range(400))


@pytest.mark.parametrize("wrong", [{"method": "qlor"}, {"truncation": "right"}, {"loss_on": "x"}, {"order": "y"}])
def test_misspelt_setting_lists_the_choices(wrong):
    with pytest.raises(ValueError, match="Known: "):
        TrainingSettings(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},  # trained one step, and replaced a good adapter
        {"rank": 0},
        {"batch_size": 0},
        {"patience": 0},
        {"max_seq_length": 1},
        {"max_steps": -1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"dropout": 1.0},
        {"user_share": 0.0},
        {"user_share": 1.5},
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_runs(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*: it must"):
        TrainingSettings(**wrong)


@pytest.mark.parametrize(
    ("changed", "steps", "every"),
    [
        ({}, 30, 10),  # 19 texts, 2 per step, 3 epochs; once per epoch
        ({"evaluations": 4}, 30, 7),
        ({"max_steps": 12, "evaluations": 3}, 12, 4),
        ({"max_steps": 1000}, 30, 10),
        ({"gradient_accumulation": 4}, 9, 3),
    ],
)
def test_steps_and_evaluations_are_known_beforehand(changed, steps, every):
    settings = replace(QUICK, epochs=3, **changed)
    arguments = SFTConfig(**finetuning.trainer_arguments(settings, "somewhere", num_texts=19))
    assert (arguments.max_steps, arguments.eval_steps, arguments.save_steps) == (steps, every, every)


def test_validation_users_are_a_seeded_sample(prepared):
    some = finetuning.choose_texts(prepared, "validation", replace(QUICK, validation_users=5))
    texts = prepared.splits["validation"]["text"][:]
    assert len(some) == 5 and set(some) <= set(texts)
    assert some == finetuning.choose_texts(prepared, "validation", replace(QUICK, validation_users=5))
    assert finetuning.choose_texts(prepared, "validation", QUICK) == texts
    assert len(finetuning.choose_texts(prepared, "train", replace(QUICK, user_share=0.1))) < len(texts) * 10


def test_the_defaults_are_the_papers():
    paper = TrainingSettings()
    assert (paper.rank, paper.alpha, paper.dropout, paper.learning_rate) == (16, 16, 0.0, 1e-4)
    assert (paper.epochs, paper.batch_size, paper.gradient_accumulation, paper.patience) == (10, 4, 4, 3)
    assert (paper.warmup_steps, paper.weight_decay, paper.max_seq_length) == (300, 0.01, 1024)
    assert (paper.truncation, paper.loss_on, paper.add_eos, paper.method) == ("left", "text", True, "qlora")


def test_four_bits_as_in_qlora():
    config = language_models.nf4_config(torch.float32)
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant


def test_auto_engine_without_a_gpu_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert language_models.choose_engine("auto") == (
        "transformers",
        "there is no GPU here, and Unsloth does not import without one",
    )
    with pytest.raises(ValueError, match="no GPU here"):
        language_models.choose_engine("unsloth")
    with pytest.raises(ValueError, match="did you mean 'unsloth'"):
        language_models.choose_engine("unsloht")


def test_auto_engine_on_a_gpu_takes_unsloth_if_it_is_installed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(language_models.importlib.util, "find_spec", lambda name: object())
    assert language_models.choose_engine("auto")[0] == "unsloth"
    monkeypatch.setattr(language_models.importlib.util, "find_spec", lambda name: None)
    name, reason = language_models.choose_engine("auto")
    assert name == "transformers" and "requirements-gpu.txt" in reason


def test_the_unsloth_path_asks_for_the_same_adapter(monkeypatch):
    """Unsloth does not import here, so a stand-in records what it would be asked for."""
    asked = {}
    stand_in = types.SimpleNamespace(get_peft_model=lambda model, **options: asked.update(options) or model)
    monkeypatch.setitem(sys.modules, "unsloth", types.SimpleNamespace(FastLanguageModel=stand_in))
    monkeypatch.setattr(language_models, "choose_engine", lambda engine: ("unsloth", "a test"))
    language_models.add_adapter(object(), rank=8)
    assert asked["r"] == 8 and asked["lora_alpha"] == 16 and asked["bias"] == "none"
    assert asked["target_modules"] == list(resources.PROJECTIONS)


def test_names_of_models(toy, tmp_path):
    assert language_models.locate("llama-3.2-1b", toy.paths) == "unsloth/Llama-3.2-1B-bnb-4bit"
    assert language_models.locate("llama-3.2-1b", toy.paths, quantize=False) == "unsloth/Llama-3.2-1B"
    assert language_models.locate("someone/some-model", toy.paths) == "someone/some-model"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert language_models.locate(str(tmp_path / "mine"), toy.paths) == str(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"did you mean 'llama-3\.2-1b'"):
        language_models.locate("lama-3.2-1b", toy.paths)
    with pytest.raises(FileNotFoundError, match="run notebook 03"):
        language_models.locate("tiny-llama", toy.paths)
    with pytest.raises(FileNotFoundError, match="run notebook 03"):
        language_models.load_finetuned(toy.paths, "tiny-llama")


def test_a_llama_without_a_network_says_what_to_do(toy, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"hf download.*MODEL=tiny-llama") as caught:
        language_models.load_base("llama-3.2-1b", toy.paths)
    assert "\n" not in str(caught.value)


def test_a_mistyped_model_directory_says_what_to_do(toy):
    with pytest.raises(FileNotFoundError, match=r"model '\./models/typo/dir' is not on this disk") as caught:
        language_models.load_base("./models/typo/dir", toy.paths)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recorded", "gpu", "expected"),
    [
        ("transformers", True, "transformers"),  # asked for in notebook 03, although Unsloth is here
        ("unsloth", True, "unsloth"),
        ("unsloth", False, "transformers"),  # trained elsewhere
    ],
)
def test_a_model_is_loaded_with_the_engine_that_trained_it(monkeypatch, recorded, gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(language_models.importlib.util, "find_spec", lambda name: object())
    assert language_models.engine_of({"engine": [recorded, "a reason"]}) == expected


@pytest.mark.parametrize(("engine", "expected"), [("auto", "transformers"), ("unsloth", "unsloth")])
def test_auto_follows_the_run_and_a_name_does_not(toy, monkeypatch, engine, expected):
    """With a GPU and Unsloth here, a run of transformers was loaded with Unsloth."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(language_models.importlib.util, "find_spec", lambda name: object())
    settings = {"method": "full", "max_seq_length": 1024}
    run = {"model": "tiny-llama", "settings": settings, "engine": ["transformers", "asked for"]}
    run["trainable_parameters"] = 0
    toy.paths.adapter("mine").mkdir(parents=True)
    toy.paths.base_model("tiny-llama").mkdir(parents=True)
    toy.paths.run_json("mine").write_text(json.dumps(run))
    asked = []
    monkeypatch.setattr(
        language_models,
        "load",
        lambda source, quantize, engine, length: asked.append(engine) or [types.SimpleNamespace()] * 2,
    )
    monkeypatch.setattr(language_models, "for_generation", lambda model, tokenizer: (model, tokenizer))
    language_models.load_finetuned(toy.paths, "mine", engine)
    assert asked == [expected]


def test_padding_token_is_not_eos(shop):
    _, tokenizer = language_models.load_base("tiny-llama", shop.paths)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(shop.paths.base_model("tiny-llama"))
    model, tokenizer = language_models.load_base("tiny-llama", shop.paths)
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"
    assert model.config.pad_token_id == tokenizer.pad_token_id != model.generation_config.eos_token_id


def test_four_bit_base_with_an_adapter_of_the_right_size(shop):
    full = AutoModelForCausalLM.from_pretrained(shop.paths.base_model("tiny-llama")).num_parameters()
    base, _ = language_models.load_base("tiny-llama", shop.paths)
    model = language_models.add_adapter(base, rank=4)
    attention = 2 * 4 * (64 + 64) + 2 * 4 * (64 + 32)  # q and o; k and v have half the heads
    adapter = 2 * (attention + 3 * 4 * (64 + 128))
    assert model.get_nb_trainable_parameters() == (adapter, full + adapter)
    projection = base.model.layers[0].mlp.gate_proj.base_layer.weight
    assert projection.dtype == torch.uint8 and projection.numel() == 64 * 128 // 2
    assert all("lora_" in name for name, weight in model.named_parameters() if weight.requires_grad)


def test_finetune_lowers_the_loss_and_everything_needed_later_is_saved(shop):
    log = finetuning.finetune(shop, "tiny-llama", QUICK)
    assert list(log.columns) == list(finetuning.LOG_COLUMNS)
    validation = log.loc[log["split"] == "validation", "loss"]
    assert len(validation) == 4 and validation.iloc[-1] < validation.iloc[0]
    train = log[log["split"] == "train"]
    assert train["step"].tolist() == list(range(1, 9))
    assert (train["step_seconds"] > 0).all() and (train["resident_mib"] > 50).all()
    run = json.loads(shop.paths.run_json("tiny-llama").read_text())
    assert run["settings"]["learning_rate"] == 5e-3 and run["versions"]["trl"] and len(run["data_fingerprint"]) == 16
    assert run["best_step"] == run["steps"] == 8 and run["trainable_parameters"] < run["all_parameters"] / 2
    assert not (shop.paths.model("tiny-llama") / "checkpoints").exists()

    model, tokenizer = language_models.load_finetuned(shop.paths, "tiny-llama")
    assert not model.training
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("left", "left")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == model.generation_config.eos_token_id


def test_loaded_model_is_the_trained_one(shop):
    """The validation loss of the model loaded from disk is the one in the log."""
    log = finetuning.finetune(shop, "tiny-llama", QUICK)
    model, tokenizer = language_models.load_finetuned(shop.paths, "tiny-llama")
    row = finetuning.tokenize_text(shop.splits["validation"]["text"][0], tokenizer, QUICK)
    ids = torch.tensor([row["input_ids"]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=resources.has_fast_bf16()):
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss == pytest.approx(log.loc[log["split"] == "validation", "loss"].min(), abs=0.02)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_other_methods_train_and_load(shop, method):
    log = finetuning.finetune(shop, "tiny-llama", TrainingSettings(**{**vars(QUICK), "method": method}))
    validation = log.loc[log["split"] == "validation", "loss"]
    assert validation.iloc[-1] < validation.iloc[0]
    model, _ = language_models.load_finetuned(shop.paths, "tiny-llama")
    assert not any(weight.dtype == torch.uint8 for weight in model.parameters())


def test_gradients_still_reach_the_first_layer_after_an_evaluation(shop):
    """bitsandbytes repacked the weights at the first evaluation on a CPU, and the base stopped passing gradients."""
    base, tokenizer = language_models.load_base("tiny-llama", shop.paths)
    model = language_models.add_adapter(base, QUICK.rank, QUICK.alpha)
    language_models.keep_trainable(model)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])

    def gradient_of_first_layer():
        model.train()
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return model.base_model.model.model.layers[0].self_attn.v_proj.lora_B["default"].weight.grad.clone()

    before = gradient_of_first_layer()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    assert before.abs().sum() > 0
    torch.testing.assert_close(gradient_of_first_layer(), before)


def test_same_seed_same_curve(shop):
    curves = [finetuning.finetune(shop, "tiny-llama", QUICK)["loss"].tolist() for _ in range(2)]
    assert curves[0] == curves[1]


def test_early_stopping_keeps_the_best_step(shop):
    """A learning rate that breaks the model: the run stops early, and the adapter is not the last one."""
    settings = TrainingSettings(**{**vars(QUICK), "epochs": 30, "learning_rate": 2.0, "patience": 2})
    log = finetuning.finetune(shop, "tiny-llama", settings)
    validation = log[log["split"] == "validation"]
    run = json.loads(shop.paths.run_json("tiny-llama").read_text())
    assert len(validation) < 30
    assert run["best_validation_loss"] == pytest.approx(validation["loss"].min())
    assert run["best_step"] < run["steps"]


def test_a_half_written_checkpoint_is_left_aside(toy):
    """A run killed while it saved could not be resumed: its newest checkpoint had no trainer state."""
    assert finetuning.last_checkpoint(toy.paths, "none yet") is None
    folder = toy.paths.model("mine") / "checkpoints"
    for step, state in ((4, '{"max_steps": 8}'), (6, '{"max_st'), (8, None)):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        if state:
            (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert finetuning.last_checkpoint(toy.paths, "mine") == str(folder / "checkpoint-4")
    assert [path.name for path in folder.iterdir()] == ["checkpoint-4"]


KILLED_RUN = """
import pickle, sys
import torch
torch.set_num_threads(1)
from gloss_utils import finetuning
from gloss_utils.finetuning import TrainingSettings
prepared = pickle.load(open(sys.argv[1], "rb"))
finetuning.finetune(prepared, "tiny-llama", TrainingSettings(**eval(sys.argv[2])))
"""


@pytest.fixture
def one_thread():
    """Sums in one order, so that two processes agree; given back even if the test fails."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class StoppedShort(Exception):
    """What a test raises in the place of a kill."""


def stop_at(monkeypatch, shop, settings: TrainingSettings, step: int) -> None:
    """Begin a run and cut it off behind a step, after its checkpoint if it has one there."""

    def stop(self, args, state, control, **kwargs):
        if state.global_step == step + 1:
            raise StoppedShort

    with monkeypatch.context() as patched, pytest.raises(StoppedShort):
        patched.setattr(finetuning.TrainingLog, "on_step_end", stop)
        finetuning.finetune(shop, "tiny-llama", settings)


def test_a_run_is_not_resumed_with_other_settings_base_or_data(shop, monkeypatch):
    """A resumed run took the old parameters and wrote the new settings down, without a word."""
    stop_at(monkeypatch, shop, QUICK, step=2)
    with pytest.raises(ValueError, match="had loss_on 'text', this one has 'answer': set it back"):
        finetuning.finetune(shop, "tiny-llama", replace(QUICK, loss_on="answer"), resume=True)
    fewer = replace(shop, splits=shop.splits | {"train": shop.splits["train"].select([0, 1])})
    with pytest.raises(ValueError, match="had data_fingerprint"):
        finetuning.finetune(fewer, "tiny-llama", QUICK, resume=True)
    tiny_llama.pretrain_base(shop.catalog["text"], shop.paths.base_model("tiny-llama"), replace(SMALL, seed=7))
    with pytest.raises(ValueError, match="had base model"):
        finetuning.finetune(shop, "tiny-llama", QUICK, resume=True)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(shop, monkeypatch):
    """Only its stamp was there: a base pretrained again differed from it, and the run was refused for nothing."""
    stop_at(monkeypatch, shop, QUICK, step=1)
    tiny_llama.pretrain_base(shop.catalog["text"], shop.paths.base_model("tiny-llama"), replace(SMALL, seed=7))
    assert len(finetuning.finetune(shop, "tiny-llama", QUICK, resume=True))


def test_patience_survives_a_kill(shop, monkeypatch):
    """A resumed run forgot how often the validation loss had not fallen, and went on longer than the first would."""
    settings = replace(QUICK, epochs=12, evaluations=12, patience=3, learning_rate=1e-12)  # it never gets better
    whole = finetuning.finetune(shop, "tiny-llama", settings)
    evaluated = whole.loc[whole["split"] == "validation", "step"]
    assert 4 <= len(evaluated) < 12, "it must stop early, and not at the first chance"
    stop_at(monkeypatch, shop, settings, step=evaluated.iloc[-2])
    resumed = finetuning.finetune(shop, "tiny-llama", settings, resume=True)
    assert resumed["step"].max() == whole["step"].max()


@pytest.mark.slow
@pytest.mark.parametrize("order", ["by_length", "shuffled"])
def test_a_killed_run_resumes_to_the_same_curve(shop, tmp_path, one_thread, order):
    """SIGKILL between two checkpoints; the resumed log equals that of a run that was left alone."""
    settings = TrainingSettings(**{**vars(QUICK), "epochs": 20, "evaluations": 4, "order": order})
    whole = finetuning.finetune(shop, "tiny-llama", settings)
    (tmp_path / "prepared.pickle").write_bytes(pickle.dumps(shop))
    arguments = [sys.executable, "-c", KILLED_RUN, str(tmp_path / "prepared.pickle"), repr(vars(settings))]
    log = shop.paths.training_log("tiny-llama")
    log.unlink()
    process = subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) > 12):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cut_off = finetuning.read_log(log)
    assert 5 < cut_off["step"].max() < whole["step"].max(), "the run ended before it could be killed"

    resumed = finetuning.finetune(shop, "tiny-llama", settings, resume=True)
    columns = ["step", "split", "loss", "learning_rate"]
    pd.testing.assert_frame_equal(resumed[columns], whole[columns], rtol=1e-4)


def test_log_of_a_killed_run_is_read_without_its_torn_line(tmp_path):
    path = tmp_path / "training_log.csv"
    pd.DataFrame(columns=finetuning.LOG_COLUMNS).to_csv(path, index=False)
    with open(path, "a") as file:
        file.write("1,0.5,train,2.5,0.001,0.1,100.0,,,300.0\n2,1.0,validation,2.25,,,,,,301.0\n3,1.5,tra")
    log = finetuning.read_log(path)
    assert log["step"].tolist() == [1, 2]
    assert log["loss"].tolist() == [2.5, 2.25]
