"""The vLLM engine where vLLM is not: one sentence. Where it is, `make check-vllm` compares it with transformers."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from test_queries import tiny_case
from tiny_model import make_prompts, tiny_model, tiny_tokenizer

from gloss_utils import generation, language_models
from gloss_utils.generation import Strategy, generate
from gloss_utils.queries import fingerprint_model
from tools import at_scale, vllm_engine
from tools.vllm_engine import VllmModel


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_error_names_the_way_out(tmp_path):
    with pytest.raises(
        ModuleNotFoundError, match=r"not installed here: use engine='transformers'.*requirements-vllm"
    ):
        vllm_engine.load(tiny_case(tmp_path)[0].paths, "tiny-llama")


class StandIn:
    """Stands in for `vllm.LLM`: transformers' beams and samples of the tiny model, in vLLM's types."""

    def _write(self, prompts, strategy, seeds):
        tokenizer = tiny_tokenizer()
        for prompt, seed in zip(prompts, seeds):
            inputs = tokenizer.pad({"input_ids": [prompt["prompt_token_ids"]]}, return_tensors="pt")
            with torch.inference_mode():
                if strategy.temperature:
                    tokens, scores = generation._draw_samples(tiny_model(), tokenizer, inputs, strategy, [seed])
                else:
                    tokens, scores = generation._search_beams(tiny_model(), tokenizer, inputs, strategy, None)
            yield prompt["prompt_token_ids"], tokens[0].tolist(), scores[0].tolist()

    def beam_search(self, prompts, params, lora_request):
        strategy = Strategy("stand-in", params.beam_width, length_penalty=params.length_penalty)
        return [
            SimpleNamespace(
                sequences=[
                    SimpleNamespace(tokens=start + ids, cum_logprob=score) for ids, score in zip(tokens, scores)
                ]
            )
            for start, tokens, scores in self._write(prompts, strategy, prompts)
        ]

    def generate(self, prompts, settings, lora_request, use_tqdm):
        strategy = Strategy("stand-in", settings[0].n, settings[0].temperature, settings[0].top_k, settings[0].top_p)
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(token_ids=tuple(ids), cumulative_logprob=score)
                    for ids, score in zip(tokens, scores)
                ]
            )
            for _, tokens, scores in self._write(prompts, strategy, [one.seed for one in settings])
        ]


@pytest.fixture
def served(monkeypatch):
    """A model as `vllm_engine.load` gives it, with modules that stand in for vLLM's."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", SimpleNamespace(BeamSearchParams=SimpleNamespace))
    return VllmModel(StandIn(), None)


@pytest.mark.parametrize("strategy", ["beam5", "beam5mean", "temp0.5", "calrec32"])
def test_prompts_settings_and_answers_go_through_unchanged(served, strategy):
    """Same prompts, seeds and clean texts as transformers', in the order of the prompts, batch by batch."""
    expected = generate(tiny_model(), tiny_tokenizer(), make_prompts(), strategy)
    found = {}
    for rows, results in served.generate_batches(tiny_tokenizer(), make_prompts(), strategy, batch_size=3):
        found |= dict(zip(rows, results))
    for row, theirs in enumerate(expected):
        assert found[row].texts == theirs.texts
        assert found[row].scores == pytest.approx(theirs.scores, abs=1e-3)


def test_a_worker_of_ray_writes_with_vllm_where_it_is_asked_to(served, tmp_path, monkeypatch):
    """The whole worker, from a row of the work file to a part of lists, with vLLM's stand-in inside."""
    prepared, task = tiny_case(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # this process has other tests to run
    monkeypatch.setattr(at_scale.splits, "load_prepared", lambda *_: prepared)
    monkeypatch.setattr(
        language_models, "read_run", lambda *_: {"settings": {"max_seq_length": 1024, "truncation": "left"}}
    )
    monkeypatch.setattr(language_models, "find_adapter", lambda *_: tmp_path)
    monkeypatch.setattr(language_models, "load_tokenizer", lambda *_: tiny_tokenizer())
    monkeypatch.setattr(language_models, "load_finetuned", None)  # a second model must not be loaded
    monkeypatch.setattr(vllm_engine, "load", lambda *_: served)
    job = at_scale.Job(users="", out=str(tmp_path / "lists"), engine="vllm", k=3)
    seen = [prepared.catalog["asin"][items].tolist() for items in task.seen_items]
    row = {"number": 0, "reviewer_id": task.reviewer_ids.tolist(), "ptext": task.prompts, "seen_asins": seen}
    at_scale.Worker(job)({name: np.array([value], dtype=object) for name, value in row.items()})
    written = pq.read_table(job.part(0)).to_pylist()
    for record, expected in zip(written, generate(tiny_model(), tiny_tokenizer(), task.prompts), strict=True):
        assert record["generated_sequences"] == expected.texts
    assert any(record["asins"] for record in written)


def test_constrained_beams_are_not_for_this_engine(served):
    with pytest.raises(ValueError, match="needs engine='transformers'"):
        next(served.generate_batches(tiny_tokenizer(), make_prompts(), "constrained5"))


def test_another_adapter_is_another_model(tmp_path):
    """The base is in another process: queries files tell models apart by the adapter."""
    marks = []
    for value in (0.0, 1.0):
        save_file({"lora_A": torch.full((2, 3), value)}, tmp_path / "adapter_model.safetensors")
        marks.append(fingerprint_model(VllmModel(None, SimpleNamespace(lora_path=tmp_path))))
    assert marks[0] != marks[1]


@pytest.mark.parametrize("rank, room", [(4, 8), (16, 16), (48, 64)])
def test_room_is_made_for_the_adapters_rank(tmp_path, rank, room):
    """The engine was opened for rank 16 whatever the adapter had, and refused a wider one."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))
    assert vllm_engine.lora_rank(tmp_path) == room


def test_a_rank_beyond_vllm_is_one_sentence(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 1024}))
    with pytest.raises(ValueError, match="the adapter's rank is 1024, vLLM takes at most 512"):
        vllm_engine.lora_rank(tmp_path)
