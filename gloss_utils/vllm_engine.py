"""Generation through vLLM: paged attention and continuous batching, for large models on a GPU.

The same prompts in token ids, the same strategies, the same scores. vLLM is not in `requirements.txt`: it wants an
environment of its own (`requirements-vllm.txt`), and `make check-vllm` shows there that its beams are transformers'.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .generation import Generated, Strategy, encode_prompts, keep_texts, plan_batches
from .paths import DatasetPaths

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # `max_lora_rank` takes no other number


@dataclass(frozen=True)
class VllmModel:
    """A base in vLLM with its adapter.

    Attributes:
        engine: `vllm.LLM`.
        tokenizer: the adapter's.
        adapter: `vllm.lora.request.LoRARequest`, or None for the base alone.
        fingerprint: of the adapter's files, for queries files.
    """

    engine: Any
    tokenizer: Any
    adapter: Any
    fingerprint: int


def load(paths: DatasetPaths, model: str, max_seq_length: int = 1024, **options) -> VllmModel:
    """Open a base and its adapter in vLLM.

    Args:
        paths: the dataset's.
        model: a name; the base is `paths.base_model(model)` where it was made here, else a Hugging Face id.
        max_seq_length: tokens of prompt and answer together.
        options: passed on to `vllm.LLM` (`dtype`, `gpu_memory_utilization`, …).

    Raises:
        ModuleNotFoundError: vLLM is not installed here.
        FileNotFoundError: notebook 03 has not run for this model.
    """
    try:
        from vllm import LLM
        from vllm.lora.request import LoRARequest
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "engine 'vllm' needs vLLM, which is not installed here: use engine='transformers', or run in the "
            "environment of requirements-vllm.txt (`make check-vllm` builds it): "
            ".venv-vllm/bin/python -m gloss_utils.course --only 04 -p GENERATION_ENGINE vllm"
        ) from error
    from .language_models import load_tokenizer, locate

    if not torch.cuda.is_available():
        # A prompt that is read in pieces makes vLLM rewind the user's random stream, which CPU generators cannot.
        options.setdefault("enable_chunked_prefill", False)
    adapter = paths.require(paths.adapter(model), "adapter")
    weights = adapter / "adapter_model.safetensors"
    engine = LLM(
        model=locate(model, paths, quantize=False),
        max_model_len=max_seq_length,
        enable_lora=True,
        max_lora_rank=lora_rank(adapter),
        **options,
    )
    return VllmModel(
        engine,
        load_tokenizer(str(adapter)),
        LoRARequest("adapter", 1, str(adapter)),
        zlib.crc32(weights.read_bytes()),
    )


def lora_rank(adapter: Path) -> int:
    """The largest rank that vLLM has to make room for: the adapter's, or the next one that vLLM knows.

    Args:
        adapter: PEFT's directory.

    Raises:
        ValueError: the rank is above all that vLLM knows.
    """
    rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
    enough = [known for known in VLLM_RANKS if known >= rank]
    if not enough:
        raise ValueError(f"the adapter's rank is {rank}, vLLM takes at most {VLLM_RANKS[-1]}: train a narrower one")
    return enough[0]


def generate_batches(
    model: VllmModel,
    prompts: list[str],
    strategy: Strategy,
    batch_size: int,
    max_seq_length: int,
    seed: int,
    truncation: str = "left",
) -> Iterator[tuple[list[int], list[Generated]]]:
    """As `generation.generate_batches`. vLLM schedules on its own; the batches are for saving what is done.

    Raises:
        ValueError: a constrained strategy, which this engine does not have.
    """
    if strategy.constrained:
        raise ValueError(f"strategy '{strategy.name}' needs engine='transformers': vLLM gets no catalog trie here")
    encoded = encode_prompts(model.tokenizer, prompts, max_seq_length, strategy.max_new_tokens, truncation)
    write = _search_beams if strategy.temperature == 0 else _draw_samples
    for rows in plan_batches([len(ids) for ids in encoded], batch_size):
        inputs = [{"prompt_token_ids": encoded[row]} for row in rows]
        seeds = [zlib.crc32(f"{seed}:{prompts[row]}".encode()) for row in rows]
        found = write(model, inputs, strategy, seeds)
        yield rows, [_to_generated(model.tokenizer, pairs, strategy) for pairs in found]


def _search_beams(model: VllmModel, inputs: list[dict], strategy: Strategy, seeds: list[int]) -> list[list]:
    """Beam search. Returns (new tokens, total log-probability) pairs per prompt, best first.

    Not `LLM.beam_search`: that one lets a text end wherever the end is among a beam's ten likeliest tokens, so
    that titles which break off crowd out whole ones (a short text has a high total), and it runs to the last
    token. Here the rule is transformers': a text may end where its end is among the likeliest continuations
    of all beams together, and the search stops when no beam can overtake.
    """
    from vllm import SamplingParams

    one_step = SamplingParams(max_tokens=1, temperature=0.0, logprobs=2 * strategy.num_texts, detokenize=False)
    searches = [BeamSearch(strategy, model.tokenizer.eos_token_id) for _ in inputs]
    for _ in range(strategy.max_new_tokens):
        waiting = [number for number, search in enumerate(searches) if not search.closed]
        prompts = [
            {"prompt_token_ids": inputs[number]["prompt_token_ids"] + tokens}
            for number in waiting
            for _, tokens in searches[number].running
        ]
        if not prompts:
            break
        outputs = iter(model.engine.generate(prompts, one_step, lora_request=model.adapter, use_tqdm=False))
        for number in waiting:
            steps = [next(outputs).outputs[0].logprobs[0] for _ in searches[number].running]
            searches[number].advance([{token: entry.logprob for token, entry in step.items()} for step in steps])
    return [search.best() for search in searches]


class BeamSearch:
    """One prompt's beam search, by transformers' rules.

    Attributes:
        running: (total log-probability, new tokens) per open beam, best first.
        ended: (rank score, total, new tokens) per finished text, best first.
        closed: no open beam can overtake the finished texts any more.
    """

    def __init__(self, strategy: Strategy, eos_token_id: int) -> None:
        self.strategy, self.eos_token_id = strategy, eos_token_id
        self.running: list[tuple[float, list[int]]] = [(0.0, [])]
        self.ended: list[tuple[float, float, list[int]]] = []
        self.closed = False

    def advance(self, steps: list[dict[int, float]]) -> None:
        """Take one step: `steps` has the log-probabilities of each running beam's likeliest next tokens."""
        beams = self.strategy.num_texts
        candidates = [
            (total + log_probability, [*tokens, token])
            for (total, tokens), step in zip(self.running, steps)
            for token, log_probability in step.items()
        ]
        candidates = sorted(candidates, key=lambda candidate: -candidate[0])[: 2 * beams]
        last = len(candidates[0][1]) == self.strategy.max_new_tokens
        for total, tokens in candidates[:beams]:
            if last or tokens[-1] == self.eos_token_id:
                self.ended.append((self._rank(total, len(tokens)), total, tokens))
        self.ended = sorted(self.ended, key=lambda text: -text[0])[:beams]
        self.running = [beam for beam in candidates if beam[1][-1] != self.eos_token_id][:beams]
        best = self._rank(self.running[0][0], len(self.running[0][1]))
        self.closed = last or (len(self.ended) == beams and best <= self.ended[-1][0])

    def best(self) -> list[tuple[list[int], float]]:
        """Finished texts, best first: their tokens and totals."""
        return [(tokens, total) for _, total, tokens in self.ended]

    def _rank(self, total: float, length: int) -> float:
        return total / length**self.strategy.length_penalty


def _draw_samples(model: VllmModel, inputs: list[dict], strategy: Strategy, seeds: list[int]) -> list[list]:
    """Independent samples, each user from a seed of its own. Returns pairs as `_search_beams`."""
    from vllm import SamplingParams

    settings = [
        SamplingParams(
            n=strategy.num_texts,
            temperature=strategy.temperature,
            top_k=strategy.top_k,
            top_p=strategy.top_p,
            max_tokens=strategy.max_new_tokens,
            logprobs=0,  # the drawn token's own, before temperature, top-k and top-p
            seed=seed,
        )
        for seed in seeds
    ]
    outputs = model.engine.generate(inputs, settings, lora_request=model.adapter, use_tqdm=False)
    return [[(text.token_ids, text.cumulative_logprob) for text in output.outputs] for output in outputs]


def _to_generated(tokenizer, pairs: list, strategy: Strategy) -> Generated:
    decoded = tokenizer.batch_decode([list(tokens) for tokens, _ in pairs], skip_special_tokens=True)
    return keep_texts(decoded, [score for _, score in pairs], strategy)
