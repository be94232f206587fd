"""Parameters and memory, counted beforehand, against the published figures; one question to the hub."""

import weakref

import httpx
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gloss_utils import resources


@pytest.mark.parametrize(("model", "millions"), [("llama-3.2-1b", 11), ("llama-3.2-3b", 24), ("llama-3.1-8b", 42)])
def test_trainable_parameters_are_the_papers(model, millions):
    counts = resources.count_parameters(resources.llama_config(model), rank=16)
    assert round(counts["adapter"] / 1e6) == millions


def test_parameters_by_hand():
    """Llama-3.2-1B: sixteen layers; query and output 2048 × 2048, key and value 2048 × 512, MLP 2048 × 8192."""
    counts = resources.count_parameters(resources.llama_config("llama-3.2-1b"), rank=16)
    assert counts["projections"] == 16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    assert counts["adapter"] == 16 * 16 * (2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192))
    assert counts["other"] == 128_256 * 2048 + 33 * 2048  # tied: the head is the embedding


def test_counting_agrees_with_a_real_model():
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=100,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    counts = resources.count_parameters(config, rank=4)
    real = sum(parameter.numel() for parameter in LlamaForCausalLM(config).parameters())
    assert counts["projections"] + counts["other"] == real


def test_estimate_is_near_the_published_peaks():
    """With texts of 512 tokens the estimate is under each of the primer's peaks, and not under half of it."""
    table = resources.memory_table(tokens=512)
    assert (table["total"] < table["primer_peak"]).all()
    assert (table["total"] > 0.5 * table["primer_peak"]).all()
    assert table["total"].tolist() == pytest.approx(table.iloc[:, 3:-2].sum(axis=1).tolist())


def test_longer_texts_cost_activations_only():
    config = resources.llama_config("llama-3.2-1b")
    short, long = (resources.estimate_memory(config, tokens=tokens) for tokens in (256, 1024))
    assert long["kept activations"] == pytest.approx(4 * short["kept activations"])
    assert long["projections, 4 bit"] == short["projections, 4 bit"]


def test_unknown_llama_lists_the_known():
    with pytest.raises(ValueError, match=r"did you mean 'llama-3\.2-1b'"):
        resources.llama_config("llama-3.2-1")


def test_memory_rises_with_what_is_allocated():
    before = resources.memory()["resident_mib"]
    kept = torch.ones(100 * resources.MIB // 4)
    assert resources.memory()["resident_mib"] - before > 80
    del kept


def test_free_memory_collects_models_that_refer_to_themselves():
    model = torch.nn.Linear(2, 2)
    model.hooks = [model]  # a cycle, as between a trainer and its model
    gone = weakref.ref(model)
    del model
    assert gone() is not None
    resources.free_memory()
    assert gone() is None


def test_a_directory_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(resources.HfApi, "model_info", lambda *a, **k: pytest.fail("the hub was asked"))
    resources.check_reachable(str(tmp_path))


@pytest.mark.parametrize("error", [httpx.ConnectError("no route"), ValueError("not an id")])
def test_what_the_hub_does_not_give_is_an_os_error_at_once(monkeypatch, error):
    """Without a network, loading a Llama failed only after 2 minutes 47 seconds of retries: the hub is asked once."""
    asked = []

    def refuse(self, source, timeout):
        asked.append((source, timeout))
        raise error

    monkeypatch.setattr(resources.HfApi, "model_info", refuse)
    with pytest.raises(OSError, match=str(error)):
        resources.check_reachable("nobody/no-such-model-of-this-course")
    assert asked == [("nobody/no-such-model-of-this-course", resources.TIMEOUT)]


@pytest.mark.parametrize("source", ["./models/typo/dir", "../typo", "models/my model"])
def test_a_mistyped_directory_is_an_os_error_and_asks_nobody(source):
    """The cache look-up refused such a name with a ValueError of its own, before anything was caught."""
    with pytest.raises(OSError, match="Repo id"):
        resources.check_reachable(source)
