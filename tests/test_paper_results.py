"""The papers' tables as data: complete, and the same numbers wherever a table repeats another."""

import pandas as pd
import pytest

from gloss_utils.paths import PROJECT_ROOT

PATH = PROJECT_ROOT / "data" / "paper_results.csv"
COLUMNS = ["table", "method", "group", "dataset", "metric", "value", "source", "grade", "comparable", "note"]


@pytest.fixture(scope="module")
def paper():
    return pd.read_csv(PATH, dtype={"table": str}, keep_default_na=False)


def value(paper, table, method, dataset, metric, group=None):
    rows = paper.query("table == @table and method == @method and dataset == @dataset and metric == @metric")
    rows = rows if group is None else rows[rows["group"] == group]
    assert len(rows) == 1
    return rows["value"].item()


def test_columns_and_words(paper):
    assert list(paper.columns) == COLUMNS
    assert set(paper["grade"]) == {"A", "B", "C"}
    assert set(paper["comparable"]) == {"yes", "no", "unclear"}
    assert set(paper["dataset"]) == {"beauty", "toys", "sports"}
    assert not paper.duplicated(["table", "method", "group", "dataset", "metric"]).any()
    assert paper["value"].between(0, 0.15).all()


def test_every_table_has_all_its_cells(paper):
    cells = paper.groupby("table").size().to_dict()
    # table 1: 9 systems x 6, less ActionPiece on Toys; table 2: 7 x 6, less GPT4Rec's 5 and LlamaRec's 4
    assert {name: cells[name] for name in "123678"} == {"1": 52, "2": 33, "3": 54, "6": 36, "7": 36, "8": 30}
    assert cells["primer strategies"] == 12 and cells["primer test"] == 12


def test_spot_checks_against_the_paper(paper):
    assert value(paper, "1", "GLoSS-8B", "beauty", "recall@5") == 0.0681
    assert value(paper, "1", "ActionPiece", "sports", "ndcg@5") == 0.0205
    assert value(paper, "2", "P5", "toys", "ndcg@5") == 0.0567
    assert value(paper, "6", "GLoSS-3B", "beauty", "recall@5", "long") == 0.1065
    assert value(paper, "8", "LIS-BM25", "toys", "ndcg@5") == 0.0267


def test_tables_agree_with_each_other(paper):
    """Tables 2, 3, 6 and 7 print GLoSS's overall numbers again; a slip of the pen shows here."""
    for row in paper.query("table == '1' and method.str.startswith('GLoSS')").itertuples():
        assert value(paper, "2", row.method, row.dataset, row.metric) == row.value
        assert value(paper, "3", row.method, row.dataset, row.metric, "e5-small-v2") == row.value
        segments = "6" if row.metric == "recall@5" else "7"
        assert value(paper, segments, row.method, row.dataset, row.metric, "overall") == row.value
    for row in paper.query("table == '8' and not method.str.startswith('LIS')").itertuples():
        assert value(paper, "1", row.method, row.dataset, row.metric) == row.value


def test_overall_lies_between_the_segments(paper):
    for (_, _, _), rows in paper[paper["table"].isin(["6", "7"])].groupby(["table", "method", "dataset"]):
        by_segment = rows.set_index("group")["value"]
        parts = by_segment[["short", "medium", "long"]]
        assert parts.min() <= by_segment["overall"] <= parts.max()


def test_what_is_not_comparable_says_why(paper):
    assert (paper.loc[paper["comparable"] != "yes", "note"].str.len() > 10).all()
    assert (paper.loc[paper["grade"] == "C", "comparable"] == "unclear").all()
    assert paper.query("method == 'SASRec'")["note"].str.contains("weak").all()
