"""What generated texts are like: one row per text, ready for a group-by."""

from collections.abc import Sequence

import numpy as np
import pandas as pd


def text_table(records: Sequence[dict], catalog: pd.DataFrame, tokenizer) -> pd.DataFrame:
    """Lay the texts of a queries file out as a table.

    Args:
        records: from `queries.load_queries`.
        catalog: `asin, title, text`.
        tokenizer: the one that wrote them, for their length.

    Returns:
        One row per text: reviewer_id, position (1 is the first), text, score (total log-probability; NaN where
        the file has none), is_item (it is a catalog text to the letter), is_seen (one that the user has),
        is_target (the text of the held-out item), tokens (end-of-text not counted).
    """
    text_of = dict(zip(catalog["asin"], catalog["text"]))
    catalog_texts = set(catalog["text"])
    rows = []
    for record in records:
        seen = {text_of.get(asin) for asin in record["seen_asins"]}
        texts = record["generated_sequences"]
        scores = record.get("sequence_scores") or [np.nan] * len(texts)
        target = text_of.get(record["asin"])
        for position, (text, score) in enumerate(zip(texts, scores), start=1):
            found = (text in catalog_texts, text in seen, text == target)
            rows.append((record["reviewer_id"], position, text, score, *found))
    columns = ["reviewer_id", "position", "text", "score", "is_item", "is_seen", "is_target"]
    table = pd.DataFrame(rows, columns=columns)
    table["tokens"] = count_tokens(table["text"], tokenizer)
    return table


def count_tokens(texts: Sequence[str], tokenizer) -> list[int]:
    """Tokens per text, without special ones."""
    texts = list(texts)
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []


def describe_texts(table: pd.DataFrame, max_new_tokens: int = 50) -> pd.Series:
    """Sum a table of texts up in one row.

    Args:
        table: from `text_table`.
        max_new_tokens: the limit that the texts were written under.

    Returns:
        Texts and distinct texts per user; shares of texts that are a catalog text, name a seen item, are
        empty, or ran into the limit (between 0 and 1); the longest text in tokens.
    """
    users = table.groupby("reviewer_id")["text"]
    return pd.Series(
        {
            "texts per user": users.size().mean(),
            "distinct per user": users.nunique().mean(),
            "exact item": table["is_item"].mean(),
            "seen item": table["is_seen"].mean(),
            "empty": (table["text"] == "").mean(),
            "at the limit": (table["tokens"] >= max_new_tokens - 1).mean(),
            "longest, tokens": table["tokens"].max(),
        }
    )
