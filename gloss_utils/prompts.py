"""What the language model reads: the text of an item, the prompt around a history, and how a long prompt is cut.

The template is the one in the authors' code, to the letter: spaces before two of the line ends, and
`**only one**` between asterisks, which the paper and the primer lose when they print it (the primer
shows a stray backtick instead). A model fine-tuned by the authors has only ever seen this variant.
"""

import bisect
from collections.abc import Sequence

MAX_TITLE_WORDS = 25  # as the authors' code cuts
ITEM_PREFIX = "Title: "
PROMPT_HEADER = (
    "Below is a customer's purchase history on Amazon, listed in chronological order (earliest to latest). \n"
    "Each item is represented by the following format: Title: <item title> \n"
    "Based on this history, predict **only one** item the customer is most likely to purchase next"
    " in the same format.\n\n"
    "### Purchase history:\n"
)
NEXT_ITEM = "\n\n### Next item:\n"


def item_text(title: str, max_words: int = MAX_TITLE_WORDS) -> str:
    """Write an item as the model sees it."""
    return ITEM_PREFIX + " ".join(title.split()[:max_words])


def build_prompt(item_texts: Sequence[str]) -> str:
    """Put a history, earliest item first, into the template, up to the place where the next item goes (`ptext`)."""
    if len(item_texts) == 0:
        raise ValueError("a prompt needs at least one item: this history is empty")
    return _fill(item_texts)


def build_training_text(item_texts: Sequence[str]) -> str:
    """Put a history into the template with its last item as the answer (`text`).

    A validation user with three items has one left to train on: its history is empty, as in the authors' files.
    """
    if len(item_texts) == 0:
        raise ValueError("a training text needs at least one item: this history is empty")
    return _fill(item_texts[:-1]) + item_texts[-1]


def _fill(item_texts: Sequence[str]) -> str:
    return PROMPT_HEADER + "\n".join(item_texts) + NEXT_ITEM


def split_prompt(prompt: str) -> tuple[str, list[str]]:
    """Take a prompt apart again: the answer after `### Next item:` and the item texts before it."""
    history, _, answer = prompt.removeprefix(PROMPT_HEADER).partition(NEXT_ITEM)
    return answer, history.split("\n")


def fit_history(item_texts: Sequence[str], tokenizer, max_tokens: int) -> list[str]:
    """Keep the most recent items whose prompt fits into `max_tokens`, BOS included; at least the last one."""

    def fits(first: int) -> bool:
        return len(tokenizer(build_prompt(item_texts[first:]))["input_ids"]) <= max_tokens

    first = bisect.bisect_left(range(len(item_texts) - 1), True, key=fits)  # shorter prompts fit once one does
    return list(item_texts[first:])


def truncate_prompt(prompt: str, tokenizer, max_tokens: int, truncation: str = "left") -> list[int]:
    """Cut a prompt to `max_tokens` token ids, BOS included.

    `left` cuts the instruction away first, as the paper does; `oldest` drops whole items instead.
    """
    ids = tokenizer(prompt)["input_ids"]
    if len(ids) > max_tokens and truncation == "oldest":
        ids = tokenizer(build_prompt(fit_history(split_prompt(prompt)[1], tokenizer, max_tokens)))["input_ids"]
    cut = ids[-max_tokens:]
    if len(cut) < len(ids) and ids[0] == tokenizer.bos_token_id:
        cut[0] = ids[0]  # generation's tokenizer keeps BOS when it truncates, so training does too
    return cut
