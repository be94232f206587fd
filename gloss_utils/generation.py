"""From prompts to texts: beams, temperature samples, CALRec's scored samples, catalog-constrained beams.

Every text comes with its total log-probability under the model, taken from the generation itself: no second
pass, and no division by the length (a short title is not a better title per token, it is a likelier one).
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from .paths import check_choice
from .prompts import NEXT_ITEM, truncate_prompt


@dataclass(frozen=True)
class Strategy:
    """How texts are drawn from the model. The defaults are the paper's (section 4.1.4) and the primer's.

    Attributes:
        name: what files and tables call it.
        num_texts: texts drawn per user; beam search keeps as many beams.
        temperature: 0 is beam search; above 0, independent samples at this temperature.
        top_k: a sample's next token is among the `top_k` likeliest...
        top_p: ...and among the likeliest that together hold this much probability.
        max_new_tokens: the answer's limit, in tokens.
        length_penalty: beams are ranked by log-probability / length ** length_penalty. At 0 the beam score
            is the total log-probability and the search is exact about when to stop; 1 is transformers'
            default, the mean per token.
        constrained: every beam is the text of a catalog item.
        deduplicate: keep each text once, likeliest first (CALRec).
    """

    name: str
    num_texts: int = 5
    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 0.95
    max_new_tokens: int = 50
    length_penalty: float = 0.0
    constrained: bool = False
    deduplicate: bool = False

    def __post_init__(self) -> None:
        if self.num_texts < 1 or self.max_new_tokens < 1 or self.temperature < 0:
            raise ValueError(
                f"strategy '{self.name}': num_texts and max_new_tokens must be 1 or more, temperature 0 or more"
            )
        if self.constrained and self.temperature:
            raise ValueError(f"strategy '{self.name}': constrained generation is beam search, set temperature to 0")


STRATEGIES = {
    strategy.name: strategy
    for strategy in [
        Strategy("beam5"),
        Strategy("beam5mean", length_penalty=1.0),
        Strategy("temp0.1", temperature=0.1),
        Strategy("temp0.2", temperature=0.2),
        Strategy("temp0.5", temperature=0.5),
        Strategy("calrec32", num_texts=32, temperature=0.5, deduplicate=True),
        Strategy("constrained5", constrained=True),
    ]
}


def get_strategy(strategy: str | Strategy) -> Strategy:
    """Look a strategy up by name, or pass one's own through.

    Raises:
        ValueError: the name is unknown.
    """
    return strategy if isinstance(strategy, Strategy) else STRATEGIES[check_choice(strategy, STRATEGIES, "strategy")]


class UserSampler(LogitsProcessor):
    """Sample with temperature, top-k and top-p, each user from a random stream of its own.

    `generate(do_sample=True)` draws for the whole batch from one stream, so a user's texts change with its
    neighbours. Here the draw is made visible: add Gumbel noise to the logits / temperature and take the
    largest, which is a sample from their softmax. The chosen token's log-probability under the unmodified
    model is summed on the way, so the samples' likelihoods cost nothing and no step's scores are kept.

    Attributes:
        scores: total log-probability per row so far, [batch * texts].
    """

    def __init__(self, strategy: Strategy, seeds: list[int], eos_token_id: int, device) -> None:
        self.strategy = strategy
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.eos_token_id = eos_token_id
        rows = len(seeds) * strategy.num_texts
        self.scores = torch.zeros(rows, device=device)
        self.running = torch.ones(rows, dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return scores [rows, vocabulary] in which only the drawn token is possible."""
        likeliest, tokens = (logits / self.strategy.temperature).topk(min(self.strategy.top_k, logits.shape[-1]))
        probabilities = likeliest.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        likeliest = likeliest.masked_fill(before >= self.strategy.top_p, -torch.inf)
        drawn = tokens.gather(1, (likeliest + self._gumbel(likeliest)).argmax(-1, keepdim=True))
        log_probability = logits.log_softmax(-1).gather(1, drawn).squeeze(1)
        self.scores += torch.where(self.running, log_probability, 0.0)
        self.running &= drawn.squeeze(1) != self.eos_token_id
        return torch.full_like(logits, -torch.inf).scatter(1, drawn, 0.0)

    def _gumbel(self, like: torch.Tensor) -> torch.Tensor:
        shape = (self.strategy.num_texts, like.shape[-1])
        noise = [torch.empty(shape, device=like.device).exponential_(generator=stream) for stream in self.streams]
        return -torch.cat(noise).log()


class CatalogTrie:
    """Which token may follow which beginning of a catalog text.

    Args:
        texts: the catalog's item texts.
        tokenizer: the model's.

    Attributes:
        allowed: from the tokens so far to the tokens that continue some text; the end-of-text token where a
            text is complete.

    Raises:
        ValueError: the catalog is empty.
    """

    def __init__(self, texts: Iterable[str], tokenizer) -> None:
        texts = sorted(set(texts))
        if not texts:
            raise ValueError("the catalog is empty: there is nothing to constrain the beams to")
        # Encoded behind `### Next item:` as in training, whose own tokens are then taken off again: some
        # tokenizers start a text differently from how they continue one.
        offset = len(tokenizer(NEXT_ITEM, add_special_tokens=False)["input_ids"])
        encoded = tokenizer([NEXT_ITEM + text for text in texts], add_special_tokens=False)["input_ids"]
        following: dict[tuple[int, ...], set[int]] = {}
        for ids in encoded:
            answer = [*ids[offset:], tokenizer.eos_token_id]
            for position, token in enumerate(answer):
                following.setdefault(tuple(answer[:position]), set()).add(token)
        self.allowed = {prefix: sorted(tokens) for prefix, tokens in following.items()}
        self.longest = max(map(len, encoded)) - offset + 1

    def processor(self, prompt_length: int) -> LogitsProcessor:
        """The trie as transformers wants it, for prompts of `prompt_length` tokens."""
        return TrieProcessor(self.allowed, prompt_length)


class TrieProcessor(LogitsProcessor):
    """Set every token that does not continue a catalog text to minus infinity.

    The allowed tokens' log-probabilities stay as the model gave them, so a beam's score is still the text's
    log-probability among all texts, comparable with free beams.
    """

    def __init__(self, allowed: dict[tuple[int, ...], list[int]], prompt_length: int) -> None:
        self.allowed = allowed
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Mask scores [rows, vocabulary]; a row whose text has left the trie keeps nothing."""
        rows, columns = [], []
        for row, so_far in enumerate(input_ids[:, self.prompt_length :].tolist()):
            tokens = self.allowed.get(tuple(so_far), ())
            rows += [row] * len(tokens)
            columns += tokens
        kept = torch.tensor([rows, columns], dtype=torch.long, device=scores.device)
        masked = torch.full_like(scores, -torch.inf)
        masked[kept[0], kept[1]] = scores[kept[0], kept[1]]
        return masked


NO_BEAM = -1e8  # transformers marks a beam that does not exist with -1e9
MAX_PADDING = 0.2  # of a batch's tokens


@dataclass(frozen=True)
class Generated:
    """One user's texts, best first for beams.

    Attributes:
        texts: the answers; an empty string where the model ended at once.
        scores: their total log-probabilities, natural logarithm, end-of-text token included.
    """

    texts: list[str]
    scores: list[float]


def encode_prompts(
    tokenizer, prompts: list[str], max_seq_length: int, max_new_tokens: int, truncation: str = "left"
) -> list[list[int]]:
    """Turn prompts into token ids, leaving room for the answer.

    What does not fit is cut off at the oldest end of the text, never the last items and never `### Next item:`.

    Args:
        max_seq_length: tokens of prompt and answer together (the paper's 1,024).
        max_new_tokens: tokens of the answer (50).
        truncation: as in training: `left`, as in the paper, or `oldest`, which drops whole items.

    Raises:
        ValueError: no room is left for the prompt, or a prompt is empty.
    """
    if max_seq_length <= max_new_tokens:
        raise ValueError(
            f"max_seq_length={max_seq_length} leaves no room for a prompt beside "
            f"max_new_tokens={max_new_tokens}: raise the first"
        )
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    limit = max_seq_length - max_new_tokens
    encoded = tokenizer(prompts)["input_ids"] if prompts else []  # all at once: few are too long
    encoded = [
        ids if len(ids) <= limit else truncate_prompt(prompt, tokenizer, limit, truncation)
        for prompt, ids in zip(prompts, encoded)
    ]
    for number, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"prompt {number} is empty: build it with prompts.build_prompt")
    return encoded


def plan_batches(lengths: list[int], batch_size: int, bucket: bool = True) -> list[list[int]]:
    """Group prompts of similar length, longest first, so that little of a batch is padding.

    Longest first means that a batch that does not fit in memory fails at once, not after an hour. A batch is
    closed early where one more prompt would make padding more than `MAX_PADDING` of it: a few long histories
    then do not stretch everybody else's.

    >>> plan_batches([3, 9, 4, 8], batch_size=2)
    [[1, 3], [2, 0]]
    >>> plan_batches([100, 9, 8], batch_size=3)
    [[0], [1, 2]]
    """
    if not bucket:
        rows = list(range(len(lengths)))
        return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    batches: list[list[int]] = []
    used = 0  # tokens in the last batch that are not padding
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        room = batches and len(batches[-1]) < batch_size
        if room and used + lengths[row] >= (1 - MAX_PADDING) * lengths[batches[-1][0]] * (len(batches[-1]) + 1):
            batches[-1].append(row)
            used += lengths[row]
        else:
            batches.append([row])
            used = lengths[row]
    return batches


def clean_text(decoded: str) -> str:
    """The answer in what was decoded after `### Next item:`: its first line.

    >>> clean_text(" Title: Rose Soap\\nTitle: Run-on")
    'Title: Rose Soap'
    """
    return decoded.strip().split("\n", 1)[0].strip()


def generate(model, tokenizer, prompts: list[str], strategy: str | Strategy = "beam5", **options) -> list[Generated]:
    """Write texts for every prompt; results in the order of the prompts.

    Args:
        model: a causal language model of transformers, with or without a PEFT adapter.
        tokenizer: its tokenizer.
        prompts: texts that end with `### Next item:` and a line break.
        strategy: a name in `STRATEGIES`, or a `Strategy`.
        options: see `generate_batches`.

    Returns:
        One `Generated` per prompt.
    """
    results: list[Generated | None] = [None] * len(prompts)
    for rows, batch in generate_batches(model, tokenizer, prompts, strategy, **options):
        for row, generated in zip(rows, batch):
            results[row] = generated
    return results


def generate_batches(
    model,
    tokenizer,
    prompts: list[str],
    strategy: str | Strategy = "beam5",
    *,
    batch_size: int = 32,
    max_seq_length: int = 1024,
    seed: int = 42,
    trie=None,
    bucket: bool = True,
    share_prompt: bool | None = None,
    truncation: str = "left",
    engine: str = "transformers",
) -> Iterator[tuple[list[int], list[Generated]]]:
    """Yield (prompt numbers, their results) batch by batch.

    A user's texts do not depend on the batch: padding is masked, and samples come from a random stream of
    the user's own, seeded by `seed` and the prompt. So a resumed run, or another batch size, gives the same
    texts (up to rounding: two beams of almost equal score may swap).

    Args:
        batch_size: users per batch of five texts each; fewer where a strategy writes more texts, since memory
            goes with the texts.
        max_seq_length: tokens of prompt and answer together.
        seed: of the samples; beams need none.
        trie: a `constrained.CatalogTrie`, which constrained strategies need.
        bucket: sort users by prompt length before cutting batches.
        share_prompt: read each prompt once and share it among its texts. None: wherever the engine allows it
            (Unsloth's inference mode brings a cache of its own).
        truncation: of prompts that are too long, see `encode_prompts`.
        engine: `transformers`, or `vllm` with a `vllm_engine.VllmModel` for a model.

    Raises:
        ValueError: a constrained strategy without a trie, or a batch size under 1.
    """
    strategy = get_strategy(strategy)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: at least one user per batch")
    if check_choice(engine, ("transformers", "vllm"), "engine") == "vllm":
        from . import vllm_engine

        yield from vllm_engine.generate_batches(
            model, prompts, strategy, batch_size, max_seq_length, seed, truncation
        )
        return
    if strategy.constrained and trie is None:
        raise ValueError(f"strategy '{strategy.name}' needs trie=CatalogTrie(catalog.text, tokenizer)")
    if share_prompt is None:
        share_prompt = not hasattr(model, "for_inference")
    if strategy.constrained:  # an item's text must not be cut off
        strategy = replace(strategy, max_new_tokens=max(strategy.max_new_tokens, trie.longest))
    encoded = encode_prompts(tokenizer, prompts, max_seq_length, strategy.max_new_tokens, truncation)
    write = _search_beams if strategy.temperature == 0 else _draw_samples
    model.eval()
    users = max(1, batch_size * 5 // max(5, strategy.num_texts))
    for rows in plan_batches([len(ids) for ids in encoded], users, bucket):
        inputs = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt").to(model.device)
        seeds = [zlib.crc32(f"{seed}:{prompts[row]}".encode()) for row in rows]
        with torch.inference_mode():
            tokens, scores = write(model, tokenizer, inputs, strategy, seeds, trie, share_prompt)
        yield rows, _collect(tokenizer, tokens, scores, strategy)


def read_prompts_once(model, inputs, copies: int):
    """Run the prompts through the model and copy the result, instead of running every copy.

    transformers repeats a prompt for each of its beams before reading it; with long prompts and short
    answers that repetition is most of the work. The last token is left for `generate` to read.

    Args:
        inputs: `input_ids` and `attention_mask`, [batch, length], padded on the left.
        copies: texts per prompt.

    Returns:
        A cache of [batch * copies, length - 1] positions.
    """
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = model(
        input_ids=inputs["input_ids"][:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=positions[:, :-1],
        use_cache=True,
        logits_to_keep=1,
    ).past_key_values
    cache.batch_repeat_interleave(copies)
    return cache


def _search_beams(model, tokenizer, inputs, strategy, seeds, trie, share_prompt):
    """Beam search through transformers. Returns tokens [batch, texts, new] and scores [batch, texts].

    transformers gives the beams' scores only together with every step's [batch * texts, vocabulary] scores:
    1 GB for eight users of a Llama-3, nothing to speak of for `tiny-llama`.
    """
    length = inputs["input_ids"].shape[1]
    beams = strategy.num_texts
    settings = GenerationConfig(
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=strategy.length_penalty,
        do_sample=False,
        max_new_tokens=strategy.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        return_dict_in_generate=True,
        output_scores=True,
    )
    cache = {"past_key_values": read_prompts_once(model, inputs, beams)} if share_prompt and length > 1 else {}
    processors = LogitsProcessorList([trie.processor(length)] if strategy.constrained else [])
    found = model.generate(**inputs, **cache, generation_config=settings, logits_processor=processors)
    tokens = found.sequences[:, length:]
    scores = found.sequences_scores
    if strategy.length_penalty:  # back from the mean to the total
        scores = scores * (found.beam_indices >= 0).sum(-1) ** strategy.length_penalty
    return tokens.view(-1, beams, tokens.shape[1]), scores.view(-1, beams)


def _draw_samples(model, tokenizer, inputs, strategy, seeds, trie, share_prompt):
    """Independent samples. Returns tokens [batch, texts, new] and scores [batch, texts]."""
    copies = strategy.num_texts
    length = inputs["input_ids"].shape[1]
    sampler = UserSampler(strategy, seeds, tokenizer.eos_token_id, model.device)
    settings = GenerationConfig(
        do_sample=False,  # the sampler chooses; see there
        max_new_tokens=strategy.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    cache = {"past_key_values": read_prompts_once(model, inputs, copies)} if share_prompt and length > 1 else {}
    repeated = {name: tensor.repeat_interleave(copies, dim=0) for name, tensor in inputs.items()}
    found = model.generate(
        **repeated, **cache, generation_config=settings, logits_processor=LogitsProcessorList([sampler])
    )
    tokens = found[:, length:]
    return tokens.view(-1, copies, tokens.shape[1]), sampler.scores.view(-1, copies)


def _collect(tokenizer, tokens: torch.Tensor, scores: torch.Tensor, strategy: Strategy) -> list[Generated]:
    """Decode [batch, texts, new] tokens into one result per user."""
    decoded = [tokenizer.batch_decode(user, skip_special_tokens=True) for user in tokens.tolist()]
    return [keep_texts(texts, user, strategy) for texts, user in zip(decoded, scores.float().tolist())]


def keep_texts(decoded: list[str], scores: list[float], strategy: Strategy) -> Generated:
    """Clean a user's texts, drop beams that do not exist, and deduplicate where the strategy asks for it."""
    pairs = [(clean_text(text), score) for text, score in zip(decoded, scores) if score > NO_BEAM]
    if strategy.deduplicate:  # one text may be spelt in several ways: the likeliest stays
        pairs = sorted(dict(sorted(pairs, key=lambda pair: pair[1])).items(), key=lambda pair: -pair[1])
    return Generated([text for text, _ in pairs], [score for _, score in pairs])
