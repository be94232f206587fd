"""Catalog-constrained beams: a trie over the catalog's texts, so that every beam is an item."""

from collections.abc import Iterable

import torch
from transformers import LogitsProcessor

from .prompts import NEXT_ITEM


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
