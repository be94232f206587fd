"""From prompts to texts: beams, samples, CALRec's samples, catalog-constrained beams.

A text's score is its total log-probability under the model, end-of-text token included, without a second pass.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface, GenerationConfig, LogitsProcessor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .paths import check_choice, check_number, digest
from .prompts import NEXT_ITEM, truncate_prompt

NO_BEAM = -1e8  # transformers marks a beam that does not exist with -1e9
MAX_PADDING = 0.2  # of a batch's tokens
SHARED = "shared_prompt"  # the attention below, by the name under which transformers knows it


@dataclass(frozen=True)
class Strategy:
    """How texts are drawn from the model. The defaults are the paper's (section 4.1.4) and the primer's."""

    name: str  # what files and tables call it
    num_texts: int = 5  # texts per user; beam search keeps as many beams
    temperature: float = 0.0  # 0 is beam search; above 0, independent samples at this temperature
    top_k: int = 50  # a sample's next token is among so many of the likeliest...
    top_p: float = 0.95  # ...and among the likeliest that together hold this probability
    max_new_tokens: int = 50  # limit of the answer
    # Beams are ranked by log-probability / length ** length_penalty. 0 is our choice; transformers' default is 1.
    length_penalty: float = 0.0
    constrained: bool = False  # every beam is the text of a catalog item
    deduplicate: bool = False  # keep each text once, likeliest first (CALRec)

    def __post_init__(self) -> None:
        for name in ("num_texts", "max_new_tokens", "top_k"):
            check_number(getattr(self, name), f"strategy '{self.name}': {name}", 1)
        for name, most in (("temperature", 100), ("top_p", 1), ("length_penalty", 100)):
            check_number(getattr(self, name), f"strategy '{self.name}': {name}", 0, most, whole=False)
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
    """Look a strategy up by name, or pass one's own through; an unknown name is a ValueError."""
    return strategy if isinstance(strategy, Strategy) else STRATEGIES[check_choice(strategy, STRATEGIES, "strategy")]


class Generated(NamedTuple):
    """One user's texts (an empty string where the model ended at once) and their total log-probabilities."""

    texts: list[str]
    scores: list[float]


class CatalogTrie:
    """Which token may follow which beginning of a catalog text, as nested dicts in `root`: {token: {token: {}}}."""

    def __init__(self, texts: Iterable[str], tokenizer) -> None:
        texts = sorted(set(texts))
        if not texts:
            raise ValueError("the catalog is empty: there is nothing to constrain the beams to")
        # Encoded behind `### Next item:` as in training, whose own tokens are then taken off again: some
        # tokenizers start a text differently from how they continue one.
        offset = len(tokenizer(NEXT_ITEM, add_special_tokens=False)["input_ids"])
        encoded = tokenizer([NEXT_ITEM + text for text in texts], add_special_tokens=False)["input_ids"]
        self.eos_token_id = tokenizer.eos_token_id
        self.root: dict[int, dict] = {}
        for ids in encoded:
            node = self.root
            for token in [*ids[offset:], self.eos_token_id]:
                node = node.setdefault(token, {})
        self.longest = max(map(len, encoded)) - offset + 1

    def allowed(self, tokens: Iterable[int]) -> list[int]:
        """Tokens that may come after `tokens`; the end-of-text token alone where no text begins so."""
        node = self.root
        for token in tokens:
            node = node.get(token, {})
        return list(node) or [self.eos_token_id]

    def after(self, prompt_length: int) -> Callable[[int, torch.Tensor], list[int]]:
        """The trie as `generate(prefix_allowed_tokens_fn=…)` takes it, behind prompts of `prompt_length` tokens."""
        # transformers masks after the softmax, so a beam's score stays its log-probability among all texts.
        return lambda batch_id, input_ids: self.allowed(input_ids[prompt_length:].tolist())


class UserSampler(LogitsProcessor):
    """Sample with temperature, top-k and top-p, and sum the drawn tokens' log-probabilities in `scores`.

    Each user has a random stream: `generate(do_sample=True)` draws for the whole batch from one, so that a user's
    texts change with its neighbours. The largest of logits / temperature + Gumbel noise has the same distribution.
    Summed here, because for `compute_transition_scores` every step's logits would have to be kept.
    """

    def __init__(self, strategy: Strategy, seeds: list[int], eos_token_id: int, device) -> None:
        self.strategy, self.eos_token_id = strategy, eos_token_id
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.scores = torch.zeros(len(seeds) * strategy.num_texts, device=device)
        self.running = torch.ones_like(self.scores, dtype=torch.bool)

    def __call__(self, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return scores [rows, vocabulary] in which only the drawn token is possible."""
        likeliest, tokens = (logits / self.strategy.temperature).topk(min(self.strategy.top_k, logits.shape[-1]))
        probabilities = likeliest.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        likeliest = likeliest.masked_fill(before >= self.strategy.top_p, -torch.inf)
        drawn = tokens.gather(1, (likeliest + self._gumbel(likeliest)).argmax(-1, keepdim=True))
        self.scores += torch.where(self.running, logits.log_softmax(-1).gather(1, drawn).squeeze(1), 0.0)
        self.running &= drawn.squeeze(1) != self.eos_token_id
        return torch.full_like(logits, -torch.inf).scatter(1, drawn, 0.0)

    def _gumbel(self, like: torch.Tensor) -> torch.Tensor:
        parts = like.new_empty(like.shape).split(self.strategy.num_texts)
        return -torch.cat([part.exponential_(generator=own) for part, own in zip(parts, self.streams)]).log()


def user_seed(seed: int, prompt: str) -> int:
    """The seed of one user's random stream, 32 bits."""
    return int(digest([seed, prompt])[:8], 16)


def encode_prompts(
    tokenizer, prompts: list[str], max_seq_length: int, max_new_tokens: int, truncation: str = "left"
) -> list[list[int]]:
    """Token ids, cut to `max_seq_length - max_new_tokens`: `left`, as in the paper, or by whole items (`oldest`)."""
    limit = max_seq_length - max_new_tokens
    if limit < 1:
        raise ValueError(f"{max_seq_length=} leaves no room for a prompt beside {max_new_tokens=}: raise the first")
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    encoded = tokenizer(prompts)["input_ids"] if prompts else []  # all at once: few are too long
    for number, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"prompt {number} is empty: build it with prompts.build_prompt")
        if len(ids) > limit:
            encoded[number] = truncate_prompt(prompts[number], tokenizer, limit, truncation)
    return encoded


def plan_batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Group prompts of similar length, longest first: a batch that does not fit in memory then fails at once.

    In place of transformers' `LengthGroupedSampler`, which fills every batch: here one is closed early where another
    prompt would make padding more than `MAX_PADDING` of it.
    """
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
    """The first line of what was decoded after `### Next item:`."""
    return decoded.strip().split("\n", 1)[0].strip()


def generate(model, tokenizer, prompts: list[str], strategy: str | Strategy = "beam5", **options) -> list[Generated]:
    """Write texts for every prompt, in the prompts' order; `options` are those of `generate_batches`."""
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
    truncation: str = "left",
    trie: CatalogTrie | None = None,
) -> Iterator[tuple[list[int], list[Generated]]]:
    """Yield (prompt numbers, their results) batch by batch; prompts as from `encode_prompts`.

    A user's texts do not depend on the batch, so a resumed run or another batch size gives the same texts (up to
    rounding: two beams of almost equal score may swap). `batch_size` counts users of five texts each; there are
    fewer in a batch where a strategy writes more.
    """
    strategy = get_strategy(strategy)
    check_number(batch_size, "batch_size", 1)
    if strategy.constrained and trie is None:
        raise ValueError(f"strategy '{strategy.name}' needs trie=CatalogTrie(catalog.text, tokenizer)")
    if strategy.constrained:  # an item's text must not be cut off
        strategy = replace(strategy, max_new_tokens=max(strategy.max_new_tokens, trie.longest))
    encoded = encode_prompts(tokenizer, prompts, max_seq_length, strategy.max_new_tokens, truncation)
    model.eval()
    users = max(1, batch_size * 5 // max(5, strategy.num_texts))
    for rows in plan_batches([len(ids) for ids in encoded], users):
        inputs = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            if strategy.temperature:
                seeds = [user_seed(seed, prompts[row]) for row in rows]
                tokens, scores = _draw_samples(model, tokenizer, inputs, strategy, seeds)
            else:
                tokens, scores = _search_beams(model, tokenizer, inputs, strategy, trie)
        texts = [tokenizer.batch_decode(user, skip_special_tokens=True) for user in tokens.tolist()]
        yield rows, [keep_texts(decoded, user, strategy) for decoded, user in zip(texts, scores.float().tolist())]


class SharedPrompt(DynamicLayer):
    """One layer's cache of which the prompts stand once per user, and only the texts' own tokens per text.

    In place of transformers' own: that holds a prompt once per text and copies it three times for every token (adding
    the token, reordering the beams, repeating grouped heads), which took most of the time of a small model.
    """

    def __init__(self, read: DynamicLayer) -> None:
        super().__init__()
        self.prompt = read.keys, read.values  # each [users, key heads, prompt tokens, head size]

    def update(self, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a token to every text."""
        keys, values = super().update(*args, **kwargs)
        keys.prompt = self.prompt  # to `attend`, which is handed tensors and no cache
        return keys, values

    def get_seq_length(self) -> int:
        """Tokens of the prompt and of the text so far."""
        return self.prompt[0].shape[-2] + super().get_seq_length()


def attend(module, query, key, value, attention_mask, scaling=None, **options):
    """Attend as transformers' `sdpa` does, to a shared prompt and a text's own tokens in one softmax.

    All queries of a user with the same key head (5 texts x 3 query heads in SmolLM2) are multiplied with that head's
    prompt at once. `query` is [texts of all users, query heads, 1, head size].
    """
    if not hasattr(key, "prompt"):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    keys, values = key.prompt
    users, heads, length, size = keys.shape
    texts = len(query) // users
    query, own_keys, own_values = (part.reshape(users, texts, heads, -1, size) for part in (query, key, value))
    far = torch.einsum("utkgd,ukpd->utkgp", query, keys)  # user, text, key head, query head of it, prompt token
    near = query @ own_keys.transpose(3, 4)
    weights = torch.cat([far, near], dim=-1) * scaling
    if attention_mask is not None:
        weights = weights.masked_fill(~attention_mask.view(users, texts, 1, 1, -1), -torch.inf)
    far, near = weights.softmax(-1, dtype=torch.float32).to(query.dtype).split([length, near.shape[-1]], dim=-1)
    found = torch.einsum("utkgp,ukpd->utkgd", far, values) + near @ own_values
    return found.reshape(users * texts, 1, -1, size), None


AttentionInterface.register(SHARED, attend)
AttentionMaskInterface.register(SHARED, sdpa_mask)


def read_prompts_once(model, inputs) -> dict:
    """Read prompts padded on the left up to their last token, into a cache for any number of texts of each.

    `generate` alone repeats a prompt for each text before it reads it, and so it is left to do where the attention
    is not transformers' `sdpa` over all tokens (Unsloth; a model with a sliding window).
    """
    mask = inputs["attention_mask"]
    if hasattr(model, "for_inference") or mask.shape[1] < 2:
        return {}
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    if plain and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(SHARED)  # a model that cannot switch keeps what it has
    if model.config._attn_implementation != SHARED:
        return {}
    read = model(
        input_ids=inputs["input_ids"][:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, :-1],
        use_cache=True,
        logits_to_keep=1,
    ).past_key_values
    return {"past_key_values": Cache(layers=[SharedPrompt(layer) for layer in read.layers])}


def _search_beams(model, tokenizer, inputs, strategy, trie):
    """Beam search through transformers. Returns tokens [batch, texts, new] and scores [batch, texts]."""
    length, beams = inputs["input_ids"].shape[1], strategy.num_texts
    beam = {"num_beams": beams, "num_return_sequences": beams, "length_penalty": strategy.length_penalty}
    beam |= {"return_dict_in_generate": True, "output_scores": True}  # else there are no sequences_scores
    found = model.generate(
        **inputs,
        **read_prompts_once(model, inputs),
        generation_config=_settings(tokenizer, strategy, **beam),
        prefix_allowed_tokens_fn=trie.after(length) if strategy.constrained else None,
    )
    tokens, scores = found.sequences[:, length:], found.sequences_scores
    if strategy.length_penalty:  # back from the mean to the total
        scores = scores * (found.beam_indices >= 0).sum(-1) ** strategy.length_penalty
    return tokens.view(-1, beams, tokens.shape[1]), scores.view(-1, beams)


def _draw_samples(model, tokenizer, inputs, strategy, seeds):
    """Independent samples. Returns tokens [batch, texts, new] and scores [batch, texts]."""
    copies = strategy.num_texts
    sampler = UserSampler(strategy, seeds, tokenizer.eos_token_id, model.device)
    repeated = {name: tensor.repeat_interleave(copies, dim=0) for name, tensor in inputs.items()}
    cache = read_prompts_once(model, inputs)
    settings = _settings(tokenizer, strategy)
    found = model.generate(**repeated, **cache, generation_config=settings, logits_processor=[sampler])
    tokens = found[:, inputs["input_ids"].shape[1] :]
    return tokens.view(-1, copies, tokens.shape[1]), sampler.scores.view(-1, copies)


def _settings(tokenizer, strategy: Strategy, **more) -> GenerationConfig:
    """What both share: no draw by transformers (for samples, `UserSampler` has drawn already)."""
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return GenerationConfig(do_sample=False, max_new_tokens=strategy.max_new_tokens, **ends, **more)


def keep_texts(decoded: list[str], scores: list[float], strategy: Strategy) -> Generated:
    """Clean a user's texts, drop beams that do not exist, and deduplicate where the strategy asks for it."""
    pairs = [(clean_text(text), score) for text, score in zip(decoded, scores) if score > NO_BEAM]
    if strategy.deduplicate:  # one text may be spelt in several ways: the likeliest stays
        pairs = sorted(dict(sorted(pairs, key=lambda pair: pair[1])).items(), key=lambda pair: -pair[1])
    return Generated([text for text, _ in pairs], [score for _, score in pairs])
