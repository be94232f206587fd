"""The vLLM engine where vLLM is not: one sentence. Where it is, `make check-vllm` compares it with transformers."""

import importlib.util

import pytest
from test_queries import tiny_case
from tiny_model import make_prompts, tiny_tokenizer

from gloss_utils import vllm_engine
from gloss_utils.generation import generate
from gloss_utils.strategies import STRATEGIES
from gloss_utils.vllm_engine import VllmModel


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_error_names_the_way_out(tmp_path):
    with pytest.raises(
        ModuleNotFoundError, match=r"not installed here: use engine='transformers'.*requirements-vllm"
    ):
        vllm_engine.load(tiny_case(tmp_path)[0].paths, "tiny-llama")


class Recorded:
    """Stands in for `vllm.LLM`: answers every prompt with its own tokens, so that the order can be seen."""

    def beam_search(self, prompts, settings, lora_request, use_tqdm):
        beam = type("Beam", (), {})
        outputs = []
        for prompt in prompts:
            beams = []
            for score in (-1.0, -2.0):
                beams.append(beam())
                beams[-1].tokens = prompt["prompt_token_ids"] + tiny_tokenizer()("Title: Rose")["input_ids"]
                beams[-1].cum_logprob = score - len(prompt["prompt_token_ids"])
            outputs.append(type("Output", (), {"sequences": beams}))
        return outputs


def test_results_come_in_the_order_of_the_prompts(monkeypatch):
    parameters = type("Module", (), {"BeamSearchParams": lambda **settings: settings})
    monkeypatch.setitem(__import__("sys").modules, "vllm", parameters)
    monkeypatch.setitem(__import__("sys").modules, "vllm.sampling_params", parameters)
    model = VllmModel(Recorded(), tiny_tokenizer(), None, 0)
    results = generate(model, None, make_prompts(), "beam5", engine="vllm", batch_size=3)
    lengths = [len(tiny_tokenizer()(prompt)["input_ids"]) for prompt in make_prompts()]
    assert [result.scores[0] for result in results] == [-1.0 - length for length in lengths]
    assert all(result.texts == ["Title: Rose"] * 2 for result in results)


def test_constrained_beams_are_not_for_this_engine():
    model = VllmModel(None, tiny_tokenizer(), None, 0)
    with pytest.raises(ValueError, match="needs engine='transformers'"):
        generate(model, None, make_prompts(), STRATEGIES["constrained5"], engine="vllm")
