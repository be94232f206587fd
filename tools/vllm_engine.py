"""Generation by vLLM, with paged attention and continuous batching: for large models on a GPU.

The prompts' token ids and the scores are those of `gloss_utils.generation`. Samples come from the same distribution
but other random streams. Beams follow another rule: `LLM.beam_search` lets a text end wherever the end is among a
beam's likeliest 2 × num_texts tokens, transformers only where it is among the likeliest continuations of all beams
together. So vLLM's beams hold more titles that break off early, and its files are not those of transformers.
vLLM wants an environment of its own (`requirements-vllm.txt`); `make check-vllm` compares the two there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gloss_utils.generation import (
    Generated,
    Strategy,
    encode_prompts,
    get_strategy,
    keep_texts,
    plan_batches,
    user_seed,
)
from gloss_utils.language_models import check_finetuned, locate
from gloss_utils.paths import DatasetPaths, read_json

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # `max_lora_rank` takes no other number


@dataclass(frozen=True)
class VllmModel:
    """A base in vLLM (`vllm.LLM`) with its adapter (`vllm.lora.request.LoRARequest`)."""

    engine: Any
    adapter: Any

    def named_parameters(self):
        """The adapter's, which tell one model from another; the base is in another process."""
        return load_file(Path(self.adapter.lora_path) / "adapter_model.safetensors").items()

    def generate_batches(
        self,
        tokenizer,
        prompts: list[str],
        strategy: str | Strategy = "beam5",
        *,
        batch_size: int = 32,
        max_seq_length: int = 1024,
        seed: int = 42,
        truncation: str = "left",
        trie=None,
    ) -> Iterator[tuple[list[int], list[Generated]]]:
        """As `generation.generate_batches`. vLLM schedules on its own; the batches are for saving what is done."""
        strategy = get_strategy(strategy)
        if strategy.constrained:
            raise ValueError(
                f"strategy '{strategy.name}' needs engine='transformers': vLLM gets no catalog trie here"
            )
        encoded = encode_prompts(tokenizer, prompts, max_seq_length, strategy.max_new_tokens, truncation)
        for rows in plan_batches([len(ids) for ids in encoded], batch_size):
            inputs = [{"prompt_token_ids": encoded[row]} for row in rows]
            if strategy.temperature:
                found = _draw_samples(self, inputs, strategy, [user_seed(seed, prompts[row]) for row in rows])
            else:
                found = _search_beams(self, inputs, strategy)
            decoded = [tokenizer.batch_decode([ids for ids, _ in user], skip_special_tokens=True) for user in found]
            yield rows, [keep_texts(texts, [s for _, s in user], strategy) for texts, user in zip(decoded, found)]


def load(paths: DatasetPaths, model: str, max_seq_length: int = 1024, **options) -> VllmModel:
    """Open a base and its adapter in vLLM; `options` go to `vllm.LLM` (`dtype`, `gpu_memory_utilization`, …)."""
    try:
        from vllm import LLM
        from vllm.lora.request import LoRARequest
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "engine 'vllm' needs vLLM, which is not installed here: use engine='transformers', or run in the "
            "environment of requirements-vllm.txt (`make check-vllm` builds it): "
            ".venv-vllm/bin/python -m tools.course --only 04 -p GENERATION_ENGINE vllm"
        ) from error
    if not torch.cuda.is_available():
        # A prompt that is read in pieces makes vLLM rewind the user's random stream, which CPU generators cannot.
        options.setdefault("enable_chunked_prefill", False)
    adapter, run = check_finetuned(paths, model)
    if run["settings"]["method"] == "full":
        raise ValueError(f"'{model}' is no adapter but a whole model (method 'full'): use engine='transformers'")
    engine = LLM(
        model=locate(run["model"], paths, quantize=False),
        max_model_len=max_seq_length,
        enable_lora=True,
        max_lora_rank=lora_rank(adapter),
        **options,
    )
    return VllmModel(engine, LoRARequest("adapter", 1, str(adapter)))


def lora_rank(adapter: Path) -> int:
    """The rank that vLLM has to make room for: the adapter's, or the next one that vLLM knows."""
    rank = read_json(adapter / "adapter_config.json")["r"]
    enough = [known for known in VLLM_RANKS if known >= rank]
    if not enough:
        raise ValueError(f"the adapter's rank is {rank}, vLLM takes at most {VLLM_RANKS[-1]}: train a narrower one")
    return enough[0]


def _search_beams(model: VllmModel, inputs: list[dict], strategy: Strategy) -> list[list]:
    """Beam search by `LLM.beam_search`. Returns (new tokens, total log-probability) pairs per prompt, best first."""
    from vllm.sampling_params import BeamSearchParams

    settings = BeamSearchParams(
        beam_width=strategy.num_texts, max_tokens=strategy.max_new_tokens, length_penalty=strategy.length_penalty
    )
    outputs = model.engine.beam_search(inputs, settings, lora_request=model.adapter)
    return [
        [(beam.tokens[len(prompt["prompt_token_ids"]) :], beam.cum_logprob) for beam in output.sequences]
        for prompt, output in zip(inputs, outputs)
    ]


def _draw_samples(model: VllmModel, inputs: list[dict], strategy: Strategy, seeds: list[int]) -> list[list]:
    """Independent samples, each user from a seed of its own. Returns pairs as `_search_beams`."""
    from vllm import SamplingParams

    common = {"n": strategy.num_texts, "temperature": strategy.temperature, "max_tokens": strategy.max_new_tokens}
    common |= {"top_k": strategy.top_k, "top_p": strategy.top_p}
    common |= {"logprobs": 0}  # the drawn token's own, before temperature, top-k and top-p
    settings = [SamplingParams(seed=seed, **common) for seed in seeds]
    outputs = model.engine.generate(inputs, settings, lora_request=model.adapter, use_tqdm=False)
    return [[(list(text.token_ids), text.cumulative_logprob) for text in output.outputs] for output in outputs]
