"""What the language model reads: the text of an item, and the prompt around a history.

The template is the one in the authors' code, to the letter: spaces before two of the line ends, and
`**only one**` between asterisks, which the paper and the primer lose when they print it (the primer
shows a stray backtick instead). A model fine-tuned by the authors has only ever seen this variant.
"""

from collections.abc import Sequence

MAX_TITLE_WORDS = 25  # the authors' cut, appendix B
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
    """Write an item as the model sees it.

    Args:
        title: the cleaned title.
        max_words: words kept of it.

    >>> item_text("Rose Toner 150 ml", max_words=2)
    'Title: Rose Toner'
    """
    return ITEM_PREFIX + " ".join(title.split()[:max_words])


def build_prompt(item_texts: Sequence[str]) -> str:
    """Put a history into the template, up to the place where the next item goes (`ptext`).

    Args:
        item_texts: texts of the items bought, earliest first.

    Raises:
        ValueError: the history is empty.
    """
    if len(item_texts) == 0:
        raise ValueError("a prompt needs at least one item: this history is empty")
    return _fill(item_texts)


def build_training_text(item_texts: Sequence[str]) -> str:
    """Put a history into the template with its last item as the answer (`text`).

    Args:
        item_texts: item texts, earliest first; the last one is the answer. A validation user with three
            items has one left to train on: its history is empty, as in the authors' files.

    Raises:
        ValueError: no item at all.
    """
    if len(item_texts) == 0:
        raise ValueError("a training text needs at least one item: this history is empty")
    return _fill(item_texts[:-1]) + item_texts[-1]


def _fill(item_texts: Sequence[str]) -> str:
    return PROMPT_HEADER + "\n".join(item_texts) + NEXT_ITEM


def split_prompt(prompt: str) -> tuple[str, list[str]]:
    """Take a prompt apart again: the answer after `### Next item:` and the item texts before it.

    >>> split_prompt(build_training_text(["Title: a", "Title: b", "Title: c"]))
    ('Title: c', ['Title: a', 'Title: b'])
    """
    history, _, answer = prompt.removeprefix(PROMPT_HEADER).partition(NEXT_ITEM)
    return answer, history.split("\n")


def keep_recent_items(item_texts: Sequence[str], token_counts: Sequence[int], max_tokens: int) -> list[str]:
    """Drop the oldest items until the rest fits, so that the instruction stays whole.

    The paper truncates on the left instead, which cuts the instruction away first.

    Args:
        item_texts: texts of the items, earliest first.
        token_counts: tokens of each text, its line end included.
        max_tokens: tokens that the history may take.

    Returns:
        The longest run of last items that fits; at least the last one.

    >>> keep_recent_items(["a", "b", "c"], [5, 5, 5], 11)
    ['b', 'c']
    """
    if not item_texts:
        return []
    first, room = len(item_texts) - 1, max_tokens - token_counts[-1]
    while first > 0 and token_counts[first - 1] <= room:
        first -= 1
        room -= token_counts[first]
    return list(item_texts[first:])


def truncate_prompt(prompt: str, tokenizer, max_tokens: int, truncation: str = "left") -> list[int]:
    """Fit a prompt into a number of tokens.

    Args:
        prompt: a history in the template.
        tokenizer: of the model.
        max_tokens: room for the prompt, BOS included.
        truncation: `left`, as the paper, or `oldest`.
    """
    ids = tokenizer(prompt)["input_ids"]
    if len(ids) <= max_tokens:
        return ids
    if truncation == "oldest":
        _, items = split_prompt(prompt)
        counts = [len(tokenizer("\n" + item, add_special_tokens=False)["input_ids"]) for item in items]
        room = max_tokens - (len(ids) - sum(counts))
        ids = tokenizer(build_prompt(keep_recent_items(items, counts, room)))["input_ids"]
    cut = ids[-max_tokens:]
    if len(cut) < len(ids) and ids[0] == tokenizer.bos_token_id:
        cut[0] = ids[0]  # generation's tokenizer keeps BOS when it truncates, so training does too
    return cut
