"""Metrics against ranx and by hand, intervals against a plain bootstrap, and the files."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from gloss_utils import metrics
from gloss_utils.metrics import System, append_measured, compare, evaluate, save_results, summarize


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


def test_users_must_match_the_targets():
    with pytest.raises(ValueError, match=r"ranked must be \[num_users, k\]"):
        evaluate(np.array([[1], [2]]), np.array([1]))


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


def test_intervals_stay_fast_for_many_users():
    """A resample per user and per metric took minutes for 22,363 users; the distinct rows take a moment."""
    import time

    ranks = np.random.default_rng(0).integers(1, 40, 22363)
    ranked = np.where(ranks[:, None] == np.arange(1, 11), 1, 0)
    per_user = evaluate(ranked, np.ones(22363, dtype=int))
    start = time.perf_counter()
    summarize(per_user)
    compare(per_user, per_user.iloc[::-1].reset_index(drop=True))
    assert time.perf_counter() - start < 3


def test_system_names_are_file_names():
    assert (
        System("unsloth/Llama-3.2-1B", "beam5", "bm25", "score").name == "unsloth--Llama-3.2-1B__beam5__bm25__score"
    )
    assert System("random").name == "random__none__none__none"


def test_record_writes_and_replaces(toy):
    from gloss_utils.splits import load_task

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


def test_record_leaves_out_cut_offs_that_the_lists_are_too_short_for(toy):
    """A column @10 of five-item lists reads like Recall@10; rows of an earlier run with it must go too."""
    from gloss_utils.splits import load_task

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


def test_measured_rows_carry_their_provenance(tmp_path):
    path = tmp_path / "measured.csv"
    summary = summarize(evaluate(np.array([[1], [2]]), np.array([1, 2])))
    keys = dict(dataset="beauty", split="test", model="lis", strategy="none", retriever="bm25", policy="keep-seen")
    append_measured(summary.assign(**keys), command="make bench", note="first", path=path)
    append_measured(summary.assign(**keys, value=0.5), command="make bench", note="second", path=path)
    table = pd.read_csv(path)
    assert len(table) == 5 and table["note"].unique().tolist() == ["second"]
    assert table["command"].unique().tolist() == ["make bench"] and "public derivatives" in table["source"][0]
    columns = "dataset,split,model,strategy,retriever,policy,metric,value,low,high,num_users,command,source,date,note"
    assert list(table.columns) == columns.split(",")
