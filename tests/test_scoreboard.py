"""What may stand beside what."""

import pandas as pd

from gloss_utils import metrics


def make_rows(**changes):
    row = {"dataset": "beauty", "split": "test", "model": "lis", "strategy": "none", "retriever": "bm25"}
    row |= {"policy": "none", "metric": "ndcg@5", "value": 0.03, "low": 0.02, "high": 0.04, "num_users": 22_363}
    return pd.DataFrame([row | changes])


def test_other_ties_other_users_and_other_splits_stay_out():
    rows = [
        make_rows(),
        make_rows(policy="fused, shuffled ties"),
        make_rows(model="tiny-llama", num_users=20),
        make_rows(split="validation", num_users=900),
        make_rows(metric="recall@5"),
    ]
    kept = metrics.same_protocol(pd.concat(rows, ignore_index=True), "ndcg@5")
    assert metrics.name_systems(kept).tolist() == ["lis · bm25"]


def test_every_published_system_once():
    rows = metrics.published(metrics.load_paper(), "beauty", "ndcg@5").set_index("method")
    assert rows.index.is_unique
    assert rows.loc["GLoSS-8B", "value"] == 0.0442 and rows.loc["TIGER", "group"] == "semantic ID"
    assert "GPT4Rec" not in rows.index  # it prints no NDCG@5


def test_what_is_not_comparable_is_not_drawn():
    paper = metrics.published(metrics.load_paper(), "toys", "ndcg@5")
    table = metrics.side_by_side(paper, make_rows(), ["LLM-based", "GLoSS"])
    assert "P5" not in set(table["label"]) and {"GLoSS-8B", "lis · bm25"} <= set(table["label"])
    assert table["low"].notna().sum() == 1  # papers print no interval


def test_nothing_measured_is_an_empty_table(monkeypatch, tmp_path):
    monkeypatch.setattr(metrics, "MEASURED", tmp_path / "none.csv")
    empty = metrics.load_measured("toys")
    assert empty.empty and {"model", "value", "note"} <= set(empty.columns)
    assert metrics.name_systems(metrics.same_protocol(empty, "ndcg@5")).tolist() == []


def ours(**columns):
    rows = {"dataset": "toys", "split": "test", "metric": "ndcg@5", "strategy": "none", "retriever": "bm25"}
    return pd.DataFrame(columns).assign(**rows)


def test_a_sample_of_users_does_not_stand_beside_the_papers():
    """Everyone was the largest number in the file: alone on Toys, a sample of 1,500 passed for everyone."""
    rows = ours(
        model=["tiny-llama", "lis"], policy=["unseen", "drop-seen"], value=[0.1, 0.2], num_users=[1500, 19406]
    )
    assert metrics.same_protocol(rows, "ndcg@5")["model"].tolist() == ["lis"]
    assert metrics.same_protocol(rows[:1], "ndcg@5").empty


def test_what_is_drawn_of_ours():
    rows = ours(
        model=["lis", "lis", "lis", "random", "fusion", "fusion"],
        policy=["keep-seen", "drop-seen", "drop-query", "none", "fused", "STAR + ½ next"],
        value=[0.2, 0.4, 0.3, 0.0, 0.6, 0.5],
    )
    assert metrics.worth_drawing(rows)["policy"].tolist() == ["fused", "STAR + ½ next", "drop-seen", "keep-seen"]
