"""Metrics against ranx and by hand, intervals against a plain bootstrap, the files, and the papers' tables."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gloss_utils import metrics
from gloss_utils.metrics import (
    System,
    compare,
    evaluate,
    name_system,
    save_results,
    score_ranks,
    summarize,
    upsert_rows,
)
from gloss_utils.splits import load_task


def test_worked_by_hand():
    ranked = np.array([[4, 7, 9], [1, 2, 3], [8, -1, -1]])
    table = evaluate(ranked, np.array([9, 5, 8]), ks=(2, 3))
    assert table["recall@2"].tolist() == [0, 0, 1]
    assert table["recall@3"].tolist() == [1, 0, 1]
    assert table["ndcg@3"].tolist() == [1 / math.log2(4), 0, 1]
    assert table["mrr"].tolist() == [1 / 3, 0, 1]


RANX = """
import json, sys, ranx
lists, targets, names = json.load(sys.stdin)
qrels = ranx.Qrels({f"{user:04d}": {str(target): 1} for user, target in enumerate(targets)})
run = {f"{user:04d}": {str(item): -place for place, item in enumerate(row)} for user, row in enumerate(lists)}
scores = ranx.evaluate(qrels, ranx.Run(run), names, return_mean=False)
print(json.dumps({name: list(map(float, scores[name])) for name in names}))
"""


def test_equal_to_ranx():
    """In a process of its own without numba's compiler, which takes longer than the whole test otherwise."""
    rng = np.random.default_rng(1)
    ranked = np.stack([rng.permutation(30)[:10] for _ in range(200)])
    targets = rng.integers(0, 30, 200)
    ours = evaluate(ranked, targets)
    question = json.dumps([ranked.tolist(), targets.tolist(), list(ours.columns)])
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", RANX], input=question, capture_output=True, text=True, env=environment, check=True
    )
    theirs = json.loads(answer.stdout.splitlines()[-1])
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-9, rtol=0)
    assert ours["mrr"].mean() > 0.05  # the lists do hold targets


def test_padding_is_never_a_hit_and_short_lists_are_scored_as_they_are():
    table = evaluate(np.array([[3, -1]]), np.array([-1]))
    assert table.to_numpy().sum() == 0
    table = evaluate(np.array([[3, 5]]), np.array([5]))
    assert table["recall@5"].tolist() == [1] and table["recall@10"].tolist() == [1]
    assert list(table.columns) == ["recall@5", "ndcg@5", "recall@10", "ndcg@10", "mrr"]
    assert evaluate(np.array([[3]]), np.array([3]), reviewer_ids=["u"])["reviewer_id"].tolist() == ["u"]


@pytest.mark.parametrize(
    ("ranked", "targets", "message"),
    [
        ([[1], [2]], [1], r"ranked must be \[num_users, k\]"),
        ([[1], [2]], ["1", "2"], "targets must be item numbers"),
        ([[1.0], [np.nan]], [1, 2], "ranked must be item numbers"),
    ],
)
def test_lists_and_targets_that_cannot_match_are_refused(ranked, targets, message):
    """Strings and floats compared with item numbers were no hit at all, without a word."""
    with pytest.raises(ValueError, match=message):
        evaluate(np.array(ranked), np.array(targets))


def test_ranks_alone_give_the_same_metrics():
    ranked, targets = np.array([[4, 7, 9], [1, 2, 3], [8, -1, -1]]), np.array([9, 5, 8])
    pd.testing.assert_frame_equal(
        evaluate(ranked, targets, reviewer_ids=list("abc")), score_ranks([3, 0, 1], (5, 10), list("abc"))
    )


def _plain_bootstrap(values, resamples=4000):
    rng = np.random.default_rng(7)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    return np.quantile(means, [0.025, 0.975])


def test_interval_is_that_of_a_plain_bootstrap():
    rng = np.random.default_rng(3)
    ranks = rng.integers(1, 30, 400)
    ranked = np.where(ranks[:, None] == np.arange(1, 11), 1, 0)
    per_user = evaluate(ranked, np.ones(400, dtype=int))
    summary = summarize(per_user).set_index("metric")
    for name in ("recall@10", "ndcg@5", "mrr"):
        low, high = _plain_bootstrap(per_user[name].to_numpy())
        row = summary.loc[name]
        assert row["value"] == pytest.approx(per_user[name].mean())
        assert row["low"] == pytest.approx(low, abs=0.15 * (high - low))
        assert row["high"] == pytest.approx(high, abs=0.15 * (high - low))
    assert summary["num_users"].unique().tolist() == [400]


def test_summary_is_the_same_every_time():
    per_user = evaluate(np.arange(50)[:, None], np.arange(50) % 7)
    pd.testing.assert_frame_equal(summarize(per_user), summarize(per_user))
    with pytest.raises(ValueError, match="no users"):
        summarize(per_user.iloc[:0])


def test_a_paired_comparison_uses_the_pairs():
    """Two systems that differ in one way for every user: the interval has no width."""
    a = pd.DataFrame({"reviewer_id": list("abcd"), "mrr": [0.5, 0.6, 0.1, 0.2]})
    b = a.assign(mrr=a["mrr"] - 0.1).sample(frac=1, random_state=0)
    row = compare(a, b).iloc[0]
    assert row["difference"] == pytest.approx(0.1) and row["low"] == pytest.approx(0.1)
    assert row["high"] == pytest.approx(0.1) and row["num_users"] == 4
    with pytest.raises(ValueError, match="same users"):
        compare(a, b.iloc[:3])
    with pytest.raises(ValueError, match="same users"):
        compare(a.drop(columns="reviewer_id"), b.drop(columns="reviewer_id").iloc[:3])


def test_system_names_are_file_names():
    assert (
        System("unsloth/Llama-3.2-1B", "beam5", "bm25", "score").name == "unsloth--Llama-3.2-1B__beam5__bm25__score"
    )
    assert System("random").name == "random__none__none__none"


def test_results_are_written_and_replaced(toy):
    task = load_task(toy, "test")
    system = System("repeat-last")
    ranked = np.array([[0, 1], [1, -1], [2, 3], [4, 5]])
    per_user = save_results(toy, "test", system, ranked, None, task)
    save_results(toy, "test", System("other"), ranked, np.ones((4, 2)), task)
    save_results(toy, "test", system, ranked[:, ::-1], None, task)  # again: its rows are replaced
    results = metrics.load_results(toy)
    assert len(results) == 10 and set(results["model"]) == {"repeat-last", "other"}
    assert list(results.columns) == metrics.RESULT_KEYS + ["value", "low", "high", "num_users"]
    ranking = pd.read_parquet(toy.paths.ranking("test", system.name))
    assert list(ranking.columns) == ["reviewer_id", "rank", "asin", "score"]
    assert ranking[ranking["reviewer_id"] == "u1"]["asin"].tolist() == ["a2", "a1"]
    assert ranking["rank"].min() == 1 and len(ranking) == 7  # the pad is no row
    again = metrics.load_metrics(toy, "test", System("other"))
    pd.testing.assert_frame_equal(again, per_user)


def test_cutoffs_that_the_lists_are_too_short_for_can_be_left_out(toy):
    """A column @10 of five-item lists reads like Recall@10; rows of an earlier run with it must go too."""
    task, system = load_task(toy, "test"), System("short")
    ranked = np.array([[0, 1], [1, -1], [2, 3], [4, 5]])
    save_results(toy, "test", system, ranked, None, task)
    per_user = save_results(toy, "test", system, ranked, None, task, ks=(5,))
    assert list(per_user.columns) == ["reviewer_id", "recall@5", "ndcg@5", "mrr"]
    assert metrics.load_results(toy)["metric"].tolist() == ["recall@5", "ndcg@5", "mrr"]


def test_missing_results_name_the_notebook(toy):
    with pytest.raises(FileNotFoundError, match="run notebook 02"):
        metrics.load_results(toy)
    with pytest.raises(FileNotFoundError, match="run notebook"):
        metrics.load_metrics(toy, "test", System("nobody"))


def test_upsert_keeps_the_digits_of_what_stays(tmp_path):
    """Rows that stay are copied as text: read as numbers, 0.10 came back as 0.1 and files changed by themselves."""
    path = tmp_path / "rows.csv"
    path.write_text("name,kind,value\na,x,0.10\nb,none,0.20\na,y,\n")
    upsert_rows(path, pd.DataFrame({"name": ["b", "c"], "kind": ["none", "x"], "value": [0.5, 1]}), ["name", "kind"])
    assert path.read_text() == "name,kind,value\na,x,0.10\na,y,\nb,none,0.5\nc,x,1.0\n"


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (System("random"), "random items"),
        (System("star", retriever="dense-minilm"), "STAR · MiniLM"),
        (System("lis", retriever="hybrid-e5-small-v2", policy="keep-seen"), "LIS · BM25 + e5-small-v2 · seen kept"),
        (System("fusion", retriever="minilm", policy="fused"), "fused"),
        (System("m/x", "beam5", "bm25", "score"), "GLoSS (m/x) · BM25"),
        (System("m", "beam5", "bm25", "score-drop-seen"), "m · 5 beams · BM25 · by score · seen dropped"),
        (System("m", "temp0.5", "bm25", "score"), "m · samples at 0.5 · BM25 · by score"),
    ],
)
def test_systems_have_names_in_words(system, words):
    """GLoSS is the paper's configuration alone: beams, by score, seen items kept."""
    assert name_system(system) == words


def test_no_two_measured_systems_share_a_name():
    rows = pd.concat(map(metrics.load_measured, ("beauty", "sports")))[metrics.SYSTEM_KEYS].drop_duplicates()
    assert metrics.name_systems(rows).is_unique


# The papers' tables as data: complete, and the same numbers wherever a table repeats another.


@pytest.fixture(scope="module")
def paper():
    return metrics.load_paper()


def value(paper, table, method, dataset, metric, group=None):
    rows = paper.query("table == @table and method == @method and dataset == @dataset and metric == @metric")
    rows = rows if group is None else rows[rows["group"] == group]
    assert len(rows) == 1
    return rows["value"].item()


def test_columns_and_words(paper):
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


def test_published_ranks_have_the_papers_means(paper):
    for dataset in ("beauty", "toys", "sports"):
        ranks = pd.read_csv(metrics.PAPER.parent / "published_ranks" / f"ranks_{dataset}.csv.gz")
        for size in "138":
            means = score_ranks(ranks[f"llama-{size}b e5-small-v2"]).mean().round(4)
            for metric in ("recall@5", "ndcg@5"):
                assert abs(means[metric] - value(paper, "1", f"GLoSS-{size}B", dataset, metric)) < 2e-4


# What is kept as measured on real data: benchmarks/keep_measured.py.


@pytest.fixture(scope="module")
def keep_measured():
    path = metrics.PROJECT_ROOT / "benchmarks" / "keep_measured.py"
    spec = importlib.util.spec_from_file_location("keep_measured", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_whole_categories_in_the_fields_order_are_kept(toy, keep_measured):
    """A sample of 1,500 users of Toys once passed for everyone."""
    assert "is no real category" in keep_measured.refusal(toy)
    real = replace(toy, dataset="beauty", report=pd.DataFrame({"step": ["raw"]}))
    assert keep_measured.refusal(real) == ""
    sample = pd.DataFrame({"step": ["raw", "a sample of 1,500 users"]})
    assert "MAX_USERS 0" in keep_measured.refusal(replace(real, report=sample))
    backwards = toy.interactions.assign(timestamp=0).iloc[::-1].sort_values("reviewer_id", kind="stable")
    assert "TIE_ORDER asin" in keep_measured.refusal(replace(real, interactions=backwards.reset_index(drop=True)))


def test_pairs_are_of_the_users_of_both(keep_measured):
    ours, theirs = score_ranks([1, 0, 2, 1], (5,), list("dabc")), score_ranks([0, 0, 1], (5,), list("cbe"))
    row = keep_measured.pair(ours, theirs).set_index("metric").loc["recall@5"]
    assert (row["a"], row["b"], row["better"], row["both"], row["num_users"]) == (1, 0, 1, 0, 2)
