"""Faults in what notebooks 03 and 04 make (base, adapter, run, log, queries), and in their settings."""

import dataclasses
import json
import math
import shutil
import sys
from types import SimpleNamespace

import injected
import pytest
from injected import Fault, cut, empty, refused, rows
from safetensors.torch import load_file, save_file
from tiny_model import tiny_model, tiny_tokenizer

from gloss_utils import (
    finetuning,
    generation,
    language_models,
    queries,
    resources,
    splits,
    tiny_llama,
)
from gloss_utils.finetuning import TrainingSettings
from gloss_utils.generation import Strategy
from gloss_utils.recommender import Recommender
from gloss_utils.tiny_llama import Recipe
from tools import finetune as finetune_tool
from tools import vllm_engine

MODEL = "tiny-llama"
SMALL = Recipe(vocab_size=400, hidden_size=64, num_layers=1, mlp_size=128, epochs=1, block_length=32)
QUICK = TrainingSettings(epochs=1, batch_size=4, gradient_accumulation=1, warmup_steps=0, learning_rate=5e-3, rank=4)


def opened(root):
    return splits.load_prepared(f"{root}/")


def pretrain(root, seed=42):
    prepared = opened(root)
    recipe = Recipe(**{**finetuning.asdict(SMALL), "seed": seed})
    tiny_llama.pretrain_base(prepared.catalog["text"], prepared.paths.base_model(MODEL), recipe)


def finetune(root, **options):
    return finetuning.finetune(opened(root), MODEL, QUICK, **options)


def write_queries(root, **options):
    prepared = opened(root)
    task = splits.load_task(prepared)
    options = {"max_seq_length": 400} | options
    return queries.generate_split(
        prepared, task, tiny_model(), tiny_tokenizer(), Strategy("beam5", 2, max_new_tokens=3), **options
    )


def load_queries(root):
    prepared = opened(root)
    return queries.load_queries(prepared.paths.queries(MODEL, "beam5", "test"), prepared)


def load(root):
    return language_models.load_finetuned(opened(root).paths, MODEL)


def load_vllm(root):
    """As with vLLM installed; its engine is not reached where the model is refused."""

    def start(**options):
        raise AssertionError("the engine was started with a model that does not fit")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=start))
        patch.setitem(sys.modules, "vllm.lora.request", SimpleNamespace(LoRARequest=None))
        return vllm_engine.load(opened(root).paths, MODEL)


@pytest.fixture(scope="module")
def trained_template(store_template, tmp_path_factory):
    root = injected.copy(store_template, tmp_path_factory.mktemp("trained") / "store")
    pretrain(root)
    finetune(root)
    write_queries(root)
    return root


@pytest.fixture
def trained(trained_template, tmp_path):
    return injected.copy(trained_template, tmp_path / "store")


def at(name, change):
    return lambda root: change(root / "models" / MODEL / name)


def in_queries(change):
    return lambda root: change(root / "queries" / MODEL / "beam5_test.json")


def text(content, encoding="utf-8"):
    return lambda path: path.write_text(content, encoding=encoding)


def gone(path):
    path.unlink()


def whole(root):
    """Nothing is broken: the call is what is wrong."""


def drop_tensor(path):
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)


def shift_tensor(path):
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1}, path, metadata={"format": "pt"})


def without(*keys):
    """A run.json that lacks some keys, of the settings too."""

    def change(path):
        run = json.loads(path.read_text())
        kept = {key: value for key, value in run.items() if key not in keys}
        if "settings" in kept:
            kept["settings"] = {key: value for key, value in run["settings"].items() if key not in keys}
        path.write_text(json.dumps(kept))

    return change


def cut_adapter_to_rank_2(path):
    save_file(
        {name: (t[:2] if "lora_A" in name else t[:, :2]).contiguous() for name, t in load_file(path).items()}, path
    )


def prepared_anew(root):
    injected.prepare(root, tie_order="reverse")
    injected.prepare(injected.write_tables(root, *injected.own_tables(9)))


def recommender_of(*names, **more):
    return lambda root: Recommender.load(f"{root}/", *names, **more)


NO_TEXTS = json.dumps([{"reviewer_id": "u1", "asin": "i1", "seen_asins": [], "generated_sequences": None}])
ADAPTER = r"adapter is damaged or no such file .*: delete it and run notebook 03 with DATASET=store"
RUN = r"run\.json is damaged .*: delete it and run notebook 03 with DATASET=store"
RUN_AGAIN = "delete it and run notebook 03 with DATASET=store"
BASE = r"base is damaged or no such file .*: delete it and run notebook 03"


@rows(
    Fault("adapter cut", at("adapter/adapter_model.safetensors", cut), load, ADAPTER),
    Fault("adapter empty", at("adapter/adapter_model.safetensors", empty), load, ADAPTER),
    Fault(
        "adapter lacks a tensor",
        at("adapter/adapter_model.safetensors", drop_tensor),
        load,
        r"adapter is damaged .* of .* parameters are there",
    ),
    Fault(
        "adapter of another rank",
        at("adapter/adapter_model.safetensors", cut_adapter_to_rank_2),
        load,
        r"parameters are there.*run notebook 03",
    ),
    Fault("adapter without parameters", at("adapter/adapter_model.safetensors", gone), load, ADAPTER),
    Fault("adapter's settings cut", at("adapter/adapter_config.json", cut), load, ADAPTER),
    Fault("adapter's settings gone", at("adapter/adapter_config.json", gone), load, ADAPTER),
    Fault("tokenizer cut", at("adapter/tokenizer.json", cut), load, ADAPTER),
    Fault("tokenizer empty", at("adapter/tokenizer.json", empty), load, ADAPTER),
    Fault(
        "adapter gone",
        at("adapter", shutil.rmtree),
        load,
        r"no adapter for 'store' .*: run notebook 03 with DATASET=store",
    ),
    Fault("run.json cut", at("run.json", cut), load, RUN),
    Fault("run.json empty", at("run.json", empty), load, RUN),
    Fault("run.json gone", at("run.json", gone), load, "no adapter for 'store' .*run notebook 03"),
    Fault(
        "run.json without its settings",
        at("run.json", without("settings")),
        load,
        rf"it has no 'settings'\): {RUN_AGAIN}",
    ),
    Fault("run.json without a setting", at("run.json", without("method")), load, rf"no 'method'\): {RUN_AGAIN}"),
    Fault("run.json without a base", at("run.json", without("model")), load, rf"no 'model'\): {RUN_AGAIN}"),
    Fault("run.json without an engine", at("run.json", without("engine")), load, rf"no 'engine'\): {RUN_AGAIN}"),
    Fault(
        "run.json without a count",
        at("run.json", without("trainable_parameters")),
        load,
        rf"it has no 'trainable_parameters'\): {RUN_AGAIN}",
    ),
    Fault("run.json that is a list", at("run.json", text("[1]")), load, RUN),
    Fault("run.json without keys, a recommender", at("run.json", text("{}")), recommender_of(MODEL), RUN),
    Fault(
        "base altered, for vLLM",
        at("base/model.safetensors", shift_tensor),
        load_vllm,
        f"'{MODEL}' was trained on another base model than is there now: run notebook 03 again",
    ),
    Fault("other data, for vLLM", prepared_anew, load_vllm, f"'{MODEL}' was trained on another data than is there"),
    Fault(
        "adapter lacks a tensor, for vLLM",
        at("adapter/adapter_model.safetensors", drop_tensor),
        load_vllm,
        r"adapter is damaged .* of .* parameters are there",
    ),
    Fault("run.json without keys, for vLLM", at("run.json", text("{}")), load_vllm, RUN),
    Fault(
        "base cut",
        at("base/model.safetensors", cut),
        load,
        "was trained on another base model than is there now: run notebook 03 again",
    ),
    Fault(
        "base altered",
        at("base/model.safetensors", shift_tensor),
        load,
        "was trained on another base model than is there now",
    ),
    Fault(
        "base pretrained again",
        lambda root: pretrain(root, seed=7),
        load,
        f"'{MODEL}' was trained on another base model",
    ),
    Fault("base gone", at("base", shutil.rmtree), load, r"another base model|no base model for 'store'"),
    Fault("base's tokenizer cut", at("base/tokenizer.json", cut), load, BASE),
    Fault("base's settings cut", at("base/config.json", cut), load, BASE),
    Fault("base empty, to train on", at("base/model.safetensors", empty), finetune, BASE),
    Fault(
        "other data under a model",
        prepared_anew,
        load,
        f"'{MODEL}' was trained on another data than is there now|trained on other data",
    ),
    Fault("other data under a recommender", prepared_anew, recommender_of(MODEL), "was trained on"),
    Fault(
        "training log empty",
        at("training_log.csv", empty),
        lambda root: finetuning.read_log(root / "models" / MODEL / "training_log.csv"),
        r"training_log\.csv is damaged .*: run notebook 03 again",
    ),
    Fault(
        "a misspelt model", whole, recommender_of("tiny-lama"), "unknown model 'tiny-lama': did you mean 'tiny-llama'"
    ),
    Fault(
        "a misspelt strategy",
        whole,
        recommender_of(strategy="beem5"),
        "unknown strategy 'beem5': did you mean 'beam5'",
    ),
    Fault("a misspelt retriever", whole, recommender_of(retriever="bm52"), "unknown retriever 'bm52': did you mean"),
    Fault(
        "a misspelt encoder", whole, recommender_of(retriever="dense", encoder="minilmm"), "unknown encoder 'minilmm'"
    ),
    Fault(
        "a misspelt base",
        whole,
        lambda root: language_models.load_base("llama-3.2-1", opened(root).paths),
        r"unknown model 'llama-3\.2-1': did you mean 'llama-3\.2-1b'",
    ),
    Fault(
        "a misspelt engine",
        whole,
        lambda root: language_models.choose_engine("unslot"),
        "unknown engine 'unslot': did you mean 'unsloth'",
    ),
    Fault(
        "a model that was never trained",
        whole,
        recommender_of("llama-3.2-1b"),
        r"no adapter for 'store' .*run notebook 03",
    ),
    Fault(
        "queries cut", in_queries(cut), load_queries, r"beam5_test\.json is damaged .*: delete it and run notebook 04"
    ),
    Fault("queries empty", in_queries(empty), load_queries, r"beam5_test\.json is damaged"),
    Fault("queries in UTF-16", in_queries(text("[]", "utf-16")), load_queries, r"beam5_test\.json is damaged"),
    Fault("queries gone", in_queries(gone), load_queries, "no queries for 'store' .*: run notebook 04"),
    Fault("queries that are no list", in_queries(text("{}")), load_queries, "holds no list of users"),
    Fault("queries that are numbers", in_queries(text("[1]")), load_queries, "user 0 lacks reviewer_id"),
    Fault(
        "texts that are none",
        in_queries(text(NO_TEXTS)),
        load_queries,
        r"beam5_test\.json: generated_sequences of user 0 is no list of texts",
    ),
    Fault(
        "queries of other data",
        lambda root: injected.prepare(root, tie_order="shuffled", max_users=11),
        load_queries,
        r"beam5_test\.json was made from other data than what is prepared now: run notebook 04",
    ),
    Fault(
        "queries of another store",
        lambda root: injected.prepare(injected.write_tables(root, *injected.own_tables(prefix="x"))),
        load_queries,
        r"100% of its targets are not in the catalog of 'store': it was made from other data",
    ),
)
def test_models_that_are_refused(fault, trained):
    fault.inject(trained)
    refused(lambda: fault.call(trained), fault.sentence, trained)


OWN = "own--base"


def train_on_a_directory(root):
    """A base in a directory of one's own, as MODEL may be."""
    if not (root / "own" / "base").exists():
        shutil.copytree(root / "models" / MODEL / "base", root / "own" / "base")
    finetuning.finetune(opened(root), f"{root}/own/base", QUICK, name=OWN)


def load_own(root):
    return language_models.load_finetuned(opened(root).paths, OWN)


def test_a_base_of_ones_own_that_was_altered(trained):
    """Only the bases that the course makes were compared."""
    train_on_a_directory(trained)
    right = load_own(trained)[0].state_dict()
    shift_tensor(trained / "own" / "base" / "model.safetensors")
    refused(lambda: load_own(trained), f"'{OWN}' was trained on another base model than is there now", trained)
    shutil.rmtree(trained / "own")
    train_on_a_directory(trained)
    again = load_own(trained)[0].state_dict()
    assert all((again[name] == right[name]).all() for name in right)


@pytest.mark.parametrize("cached", [True, False], ids=["another revision", "nothing cached"])
def test_another_revision_of_a_base_of_the_hub(cached, trained, monkeypatch, tmp_path):
    """The hub's models may change under their name; the cache knows which revision it holds."""
    run = trained / "models" / MODEL / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"model": "nobody/nothing", "base model": "1a2b"}))
    found = str(tmp_path / "snapshots" / "3c4d" / "config.json") if cached else None
    monkeypatch.setattr(language_models, "try_to_load_from_cache", lambda source, name: found)
    if cached:
        refused(lambda: load(trained), f"'{MODEL}' was trained on another base model than is there now", trained)
    else:
        paths = opened(trained).paths
        assert language_models.check_finetuned(paths, MODEL)[0] == paths.adapter(MODEL), "unknown is not another"


FULL = dataclasses.replace(QUICK, method="full", learning_rate=1e-4)


@pytest.mark.parametrize(
    ("name", "damage", "sentence"),
    [
        ("model.safetensors", drop_tensor, r"adapter is damaged .* of .* parameters are there\): delete it and run"),
        ("model.safetensors", cut, ADAPTER),
        ("config.json", cut, ADAPTER),
        ("tokenizer.json", cut, ADAPTER),
    ],
    ids=["a tensor gone", "cut", "settings cut", "tokenizer cut"],
)
def test_a_whole_model_that_is_not_whole(name, damage, sentence, trained):
    """Of a model whose every parameter was trained, a missing tensor was drawn at random without a word."""
    finetuning.finetune(opened(trained), MODEL, FULL)
    path = trained / "models" / MODEL / "adapter" / name
    right = path.read_bytes()
    damage(path)
    refused(lambda: load(trained), sentence, trained)
    finetuning.finetune(opened(trained), MODEL, FULL)
    load(trained)
    assert path.read_bytes() == right


def test_a_whole_model_is_not_for_vllm(trained):
    finetuning.finetune(opened(trained), MODEL, FULL)
    refused(lambda: load_vllm(trained), f"'{MODEL}' is no adapter but a whole model .*engine='transformers'", trained)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--profile", "smple"], "unknown profile 'smple': did you mean 'sample'"),
        (["--set", "TRAIN_EPOCH", "3"], "unknown parameter 'TRAIN_EPOCH': did you mean 'TRAIN_EPOCHS'"),
        (["--set", "TRAIN_EPOCHS", "0"], "epochs is 0: it must be a whole number from 1 up"),
        (["--set", "TRAIN_EPOCHS", "three"], "parameter TRAIN_EPOCHS takes int, not 'three'"),
        (["--set", "LEARNING_RATE", "nan"], "parameter LEARNING_RATE takes float, not 'nan'"),
        (["--set", "GRADIENT_ACCUMULATION", "0"], "gradient_accumulation is 0: it must be a whole number"),
        (["--set", "METHOD", "qlor"], "unknown method 'qlor': did you mean 'qlora'"),
        (["--set", "ENGINE", "unslot"], "unknown engine 'unslot': did you mean 'unsloth'"),
        (["--set", "VOCAB_SIZE", "10"], "vocab_size is 10: it must be a whole number from 300 up"),
        (["--set", "BASE_EPOCHS", "0"], "epochs is 0: it must be a whole number from 1 up"),
        (["--dataset", "sampel"], "unknown DATASET 'sampel': did you mean 'sample'"),
        (["--dataset", ".."], r"unknown DATASET '\.\.': give a name, or a directory of its own"),
        (["--dataset", "./nowhere"], "no interactions for 'nowhere' .*run notebook 01"),
        (["--model", "tiny-lama"], "unknown model 'tiny-lama': did you mean 'tiny-llama'"),
        (["--name", ".."], r"'\.\.' is no name for a folder of its own"),
        (["--name", "."], r"'\.' is no name for a folder of its own"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_of_the_tool_that_fine_tunes(arguments, sentence, store, monkeypatch):
    """A misspelt engine was noticed after pretraining; `--name ..` wrote into the dataset's own folder."""
    monkeypatch.setattr(tiny_llama, "pretrain_base", lambda *given: None)
    before = injected.files(store)
    with pytest.raises(SystemExit, match=f"^error: {sentence}"):
        finetune_tool.main(arguments if "--dataset" in arguments else ["--dataset", f"{store}/", *arguments])
    assert injected.files(store) == before


def texts_of(root):
    return [record["generated_sequences"] for record in load_queries(root)]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("beam5_test.run.json", cut),
        ("beam5_test.run.json", empty),
        ("beam5_test.run.json", lambda path: path.write_text("[1]")),
        ("beam5_test.json", gone),
        ("beam5_test.partial.jsonl", lambda path: path.write_text('{"settings": {}}\n{"sec')),
        ("beam5_test.partial.jsonl", lambda path: path.write_bytes(b"\xff\xfe\x00")),
    ],
    ids=["cost cut", "cost empty", "cost of another kind", "texts gone", "other partial texts", "partial bytes"],
)
def test_damaged_texts_are_written_again(name, damage, trained, trained_template):
    folder = trained / "queries" / MODEL
    if "partial" in name:
        (folder / "beam5_test.run.json").unlink()
    damage(folder / name)
    write_queries(trained)
    assert texts_of(trained) == texts_of(trained_template)
    assert not (folder / "beam5_test.partial.jsonl").exists()


def test_texts_of_other_data_are_written_again(trained):
    """The texts counted as up to date, and were then refused: the reader went round in a circle."""
    injected.prepare(trained, tie_order="reverse")
    write_queries(trained)
    assert len(load_queries(trained)) == 12


def test_a_model_trained_again_is_the_same(trained, trained_template):
    """After a refusal the remedy is to run notebook 03 again: base and adapter then come out as they were."""
    shutil.rmtree(trained / "models")
    pretrain(trained)
    finetune(trained)
    load(trained)
    for name in ("base/model.safetensors", "adapter/adapter_model.safetensors"):
        there, here = (root / "models" / MODEL / name for root in (trained_template, trained))
        assert there.read_bytes() == here.read_bytes(), name


def test_a_stamp_that_is_cut(tmp_path):
    (tmp_path / "run.json").write_text('{"model": "tin')
    refused(
        lambda: finetuning.check_stamp(tmp_path / "run.json", {"settings": {}}),
        r"run\.json is damaged .*: set RESUME to False",
        tmp_path,
    )


NAN, INF = math.nan, math.inf
SETTINGS = {
    "epochs": [0, -1, 1.5, "3", None, True],
    "rank": [0, 2.5, "8"],
    "alpha": [0, None],
    "batch_size": [0, "4"],
    "gradient_accumulation": [0],
    "max_seq_length": [1, "1024"],
    "patience": [0],
    "max_steps": [-1, 0.5],
    "evaluations": [-1],
    "validation_users": [-1],
    "warmup_steps": [-1, 1.5],
    "seed": [-1, "42"],
    "learning_rate": [0.0, -1e-4, NAN, INF, "1e-4"],
    "dropout": [-0.1, 1.0, NAN],
    "weight_decay": [-1, NAN],
    "user_share": [0, 1.01, NAN, "all"],
}
RECIPE = {
    "epochs": [0, 1.5],
    "vocab_size": [100],
    "num_layers": [0, "4"],
    "block_length": [0],
    "batch_size": [0],
    "learning_rate": [0, NAN],
    "hidden_size": [0],
    "seed": [-1],
}
STRATEGY = {
    "num_texts": [0, 2.5, "5"],
    "max_new_tokens": [0],
    "temperature": [-1, NAN, "0.2"],
    "top_k": [0],
    "top_p": [1.5, NAN],
    "length_penalty": [INF],
}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (kind, name, value)
        for kind, table in ((TrainingSettings, SETTINGS), (Recipe, RECIPE), (Strategy, STRATEGY))
        for name, values in table.items()
        for value in values
    ],
)
def test_numbers_out_of_range(kind, name, value):
    """`TRAIN_EPOCHS 0` trained one step, and replaced a good adapter."""
    needed = {"name": "mine"} if kind is Strategy else {}
    refused(
        lambda: kind(**needed, **{name: value}),
        rf"{name} is {injected.re.escape(repr(value))}: it must be a (whole )?number from",
    )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: TrainingSettings(method="qlor"), "unknown method 'qlor': did you mean 'qlora'"),
        (lambda: TrainingSettings(truncation="right"), "unknown truncation 'right': .*Known: left, oldest"),
        (lambda: TrainingSettings(loss_on="anser"), "unknown loss_on 'anser': did you mean 'answer'"),
        (lambda: TrainingSettings(order="by_lenght"), "unknown order 'by_lenght': did you mean 'by_length'"),
        (lambda: Recipe(hidden_size=100), "must be multiples of 64"),
        (lambda: generation.get_strategy("beem5"), "unknown strategy 'beem5': did you mean 'beam5'"),
        (lambda: generation.get_strategy(None), "unknown strategy 'None': Known: beam5"),
        (lambda: generation.generate(None, None, [], batch_size=0), "batch_size is 0: it must be a whole number"),
        (lambda: generation.generate(None, None, [], batch_size="8"), "batch_size is '8': it must be a whole number"),
        (lambda: generation.CatalogTrie([], None), "the catalog is empty"),
        (lambda: tiny_llama.train_tokenizer([]), "no item texts to train a tokenizer on: the catalog is empty"),
    ],
)
def test_settings_that_are_refused(call, sentence):
    refused(call, sentence)


@pytest.mark.parametrize("cached", [{"config.json"}, {"config.json", "model.safetensors.index.json", "part-1"}])
def test_half_a_model_in_the_cache_and_no_network(cached, monkeypatch, tmp_path):
    """Loading went on asking for the other half for more than 300 seconds."""
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part-1", "b": "part-2"}}))

    def dead(self, source, timeout):
        raise resources.httpx.ConnectError("no route")

    monkeypatch.setattr(
        resources, "try_to_load_from_cache", lambda source, name: str(tmp_path / name) if name in cached else None
    )
    monkeypatch.setattr(resources.HfApi, "model_info", dead)
    refused(
        lambda: language_models.load("nobody/nothing"),
        r"model 'nobody/nothing' is not on this disk .*MODEL=tiny-llama",
    )
