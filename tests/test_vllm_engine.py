"""The vLLM engine where vLLM is not: one sentence. Where it is, `make check-vllm` compares it with transformers."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from test_queries import tiny_case
from tiny_model import make_prompts, tiny_model, tiny_tokenizer

from gloss_utils import vllm_engine
from gloss_utils.generation import STRATEGIES, Strategy, generate
from gloss_utils.vllm_engine import BeamSearch, VllmModel


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_error_names_the_way_out(tmp_path):
    with pytest.raises(
        ModuleNotFoundError, match=r"not installed here: use engine='transformers'.*requirements-vllm"
    ):
        vllm_engine.load(tiny_case(tmp_path)[0].paths, "tiny-llama")


class TransformersAsVllm:
    """Stands in for `vllm.LLM`: one step of every prompt, with the tiny model's own log-probabilities."""

    def generate(self, prompts, settings, lora_request, use_tqdm):
        results = []
        for prompt in prompts:
            with torch.inference_mode():
                logits = tiny_model()(input_ids=torch.tensor([prompt["prompt_token_ids"]])).logits[0, -1]
            best = logits.log_softmax(-1).topk(settings["logprobs"])
            step = {
                token: SimpleNamespace(logprob=value)
                for token, value in zip(best.indices.tolist(), best.values.tolist())
            }
            results.append(SimpleNamespace(outputs=[SimpleNamespace(logprobs=[step])]))
        return results


@pytest.mark.parametrize("strategy", ["beam5", "beam5mean"])
def test_beam_search_by_steps_is_that_of_transformers(monkeypatch, strategy):
    """vLLM's own beam search kept titles that break off; ours must find what transformers finds, in its order."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **settings: settings))
    model = VllmModel(TransformersAsVllm(), tiny_tokenizer(), None, 0)
    expected = generate(tiny_model(), tiny_tokenizer(), make_prompts(), strategy)
    found = generate(model, None, make_prompts(), strategy, engine="vllm", batch_size=3)
    for ours, theirs in zip(found, expected):
        assert ours.texts == theirs.texts
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-3)


def test_a_search_ends_at_the_limit():
    search = BeamSearch(Strategy("two", num_texts=2, max_new_tokens=2), eos_token_id=1)
    search.advance([{5: -0.1, 6: -2.0, 1: -9.0, 7: -8.0}])
    assert not search.closed and [tokens for _, tokens in search.running] == [[5], [6]]
    search.advance([{5: -0.5, 6: -1.0, 1: -9.0, 7: -8.0}, {5: -0.5, 6: -1.0, 1: -9.0, 7: -8.0}])
    assert search.closed and search.best() == [([5, 5], pytest.approx(-0.6)), ([5, 6], pytest.approx(-1.1))]


def test_constrained_beams_are_not_for_this_engine():
    model = VllmModel(None, tiny_tokenizer(), None, 0)
    with pytest.raises(ValueError, match="needs engine='transformers'"):
        generate(model, None, make_prompts(), STRATEGIES["constrained5"], engine="vllm")


@pytest.mark.parametrize("rank, room", [(4, 8), (16, 16), (48, 64)])
def test_room_is_made_for_the_adapters_rank(tmp_path, rank, room):
    """The engine was opened for rank 16 whatever the adapter had, and refused a wider one."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))
    assert vllm_engine.lora_rank(tmp_path) == room


def test_a_rank_beyond_vllm_is_one_sentence(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 1024}))
    with pytest.raises(ValueError, match="the adapter's rank is 1024, vLLM takes at most 512"):
        vllm_engine.lora_rank(tmp_path)
