"""Memory and time: on paper against the published figures, and in the log of a run that was cut off."""

import weakref

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gloss_utils import finetuning, resources


@pytest.mark.parametrize(("model", "millions"), [("llama-3.2-1b", 11), ("llama-3.2-3b", 24), ("llama-3.1-8b", 42)])
def test_trainable_weights_are_the_papers(model, millions):
    counts = resources.count_weights(resources.llama_config(model), rank=16)
    assert round(counts["adapter"] / 1e6) == millions


def test_weights_by_hand():
    """Llama-3.2-1B: sixteen layers; query and output 2048 × 2048, key and value 2048 × 512, MLP 2048 × 8192."""
    counts = resources.count_weights(resources.llama_config("llama-3.2-1b"), rank=16)
    assert counts["projections"] == 16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    assert counts["adapter"] == 16 * 16 * (2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192))
    assert counts["other"] == 128_256 * 2048 + 33 * 2048  # tied: the head is the embedding


def test_counting_allocates_nothing_and_agrees_with_a_real_model():
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=100,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    counts = resources.count_weights(config, rank=4)
    real = sum(weight.numel() for weight in LlamaForCausalLM(config).parameters())
    assert counts["projections"] + counts["other"] == real


def test_estimate_is_near_the_published_peaks():
    """With texts of 512 tokens the sheet is under each published peak, and not under half of it."""
    table = resources.paper_table(tokens=512)
    assert (table["total"] < table["paper_peak"]).all()
    assert (table["total"] > 0.5 * table["paper_peak"]).all()
    assert table["total"].tolist() == pytest.approx(table[list(resources.PARTS)].sum(axis=1).tolist())


def test_longer_texts_cost_activations_only():
    config = resources.llama_config("llama-3.2-1b")
    short, long = (resources.estimate_memory(config, tokens=tokens) for tokens in (256, 1024))
    assert long["kept activations"] == pytest.approx(4 * short["kept activations"])
    assert long["projections, 4 bit"] == short["projections, 4 bit"]


def test_unknown_llama_lists_the_known():
    with pytest.raises(ValueError, match=r"did you mean 'llama-3\.2-1b'"):
        resources.llama_config("llama-3.2-1")


def test_memory_grows_with_what_is_allocated():
    before = resources.memory()["resident_mib"]
    kept = torch.ones(100 * resources.MIB // 4)
    assert resources.memory()["resident_mib"] - before > 80
    del kept


def test_log_of_a_killed_run_is_read_without_its_torn_line(tmp_path):
    path = tmp_path / "training_log.csv"
    pd.DataFrame(columns=finetuning.LOG_COLUMNS).to_csv(path, index=False)
    with open(path, "a") as file:
        file.write("1,0.5,train,2.5,0.001,0.1,100.0,,,300.0\n2,1.0,validation,2.25,,,,,,301.0\n3,1.5,tra")
    log = finetuning.read_log(path)
    assert log["step"].tolist() == [1, 2]
    assert log["loss"].tolist() == [2.5, 2.25]


def test_free_memory_collects_models_that_refer_to_themselves():
    model = torch.nn.Linear(2, 2)
    model.hooks = [model]  # a cycle, as between a trainer and its model
    gone = weakref.ref(model)
    del model
    assert gone() is not None
    resources.free_memory()
    assert gone() is None
