"""The table of texts, on a case worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from tiny_model import TITLES, tiny_tokenizer

from gloss_utils.queries import describe_texts, text_table

CATALOG = pd.DataFrame({"asin": ["B0", "B1", "B2"], "text": TITLES[:3]})
RECORDS = [
    {
        "reviewer_id": "R0",
        "asin": "B2",
        "seen_asins": ["B0"],
        "generated_sequences": [TITLES[0], TITLES[2], TITLES[2], "Title: Rose Hat"],
        "sequence_scores": [-1.0, -2.0, -2.0, -5.0],
    },
    {"reviewer_id": "R1", "asin": "B1", "seen_asins": ["B0", "B2"], "generated_sequences": [""]},
]


def test_the_hand_worked_case():
    table = text_table(RECORDS, CATALOG, tiny_tokenizer())
    assert table["is_item"].tolist() == [True, True, True, False, False]
    assert table["is_seen"].tolist() == [True, False, False, False, False]
    assert table["is_target"].tolist() == [False, True, True, False, False]
    assert table["position"].tolist() == [1, 2, 3, 4, 1]
    assert table["tokens"].iloc[4] == 0 and np.isnan(table["score"].iloc[4])
    summary = describe_texts(table)
    assert summary["texts per user"] == pytest.approx(2.5)
    assert summary["distinct per user"] == pytest.approx(2.0)
    assert summary["exact item"] == pytest.approx(3 / 5)
    assert summary["seen item"] == pytest.approx(1 / 5)
    assert summary["empty"] == pytest.approx(1 / 5)


def test_a_text_at_the_limit_is_counted():
    table = text_table(RECORDS, CATALOG, tiny_tokenizer())
    longest = int(table["tokens"].max())
    assert describe_texts(table, max_new_tokens=longest + 1)["at the limit"] > 0
    assert describe_texts(table, max_new_tokens=longest + 2)["at the limit"] == 0


def test_no_texts_at_all():
    assert text_table([], CATALOG, tiny_tokenizer()).empty
