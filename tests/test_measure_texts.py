"""What is measured of generated texts on real data: benchmarks/measure_texts.py and its neighbours."""

import sys

import numpy as np
import pytest

from gloss_utils import splits
from gloss_utils.metrics import System
from gloss_utils.paths import PROJECT_ROOT
from gloss_utils.retrieval import BM25Index, Hits


@pytest.fixture(scope="module")
def benchmarks():
    """The folder of the scripts on the path, since they import each other."""
    sys.path.insert(0, str(PROJECT_ROOT / "benchmarks"))
    try:
        import measure_texts
        import rank_published

        yield measure_texts, rank_published
    finally:
        sys.path.remove(str(PROJECT_ROOT / "benchmarks"))


@pytest.fixture
def written(toy, benchmarks):
    """Users of the toy shop with texts: a title, a seen title, and one that is no title but finds the target."""
    task = splits.load_task(toy).take(np.arange(2))  # u1 bought a1, a2, then a3; u2 bought a4, a5, a6, then a7
    texts = [["Title: Rose Creams Cream", "Title: Rose Soap"], ["Title: Mint Comb Mint", "Title: Rose Toner"]]
    records = [{"reviewer_id": user, "generated_sequences": own} for user, own in zip(task.reviewer_ids, texts)]
    return benchmarks[0].Written(task, records, None)


def test_texts_are_described_by_catalog_and_history(toy, written, benchmarks):
    assert benchmarks[0].describe(toy, written) == "exact titles 50.0%, seen items 25.0%, 2 distinct first texts"


def test_examples_are_no_titles_and_say_what_each_search_finds(toy, written, benchmarks):
    index = BM25Index(toy.catalog["text"].tolist())
    examples = benchmarks[0].find_examples(toy, written, {"bm25": index, "dense-minilm": index})
    assert examples["text"].tolist() == ["Title: Rose Creams Cream", "Title: Mint Comb Mint"]
    assert examples["target"].tolist() == ["Rose Cream", "Wooden Comb"]
    assert examples["bm25"].tolist()[0] == "Rose Cream"


def test_equal_votes_prefer_what_both_lists_hold(benchmarks):
    lists = [Hits(np.array([items]), np.zeros((1, 3))) for items in ([4, 7, 1], [9, 7, 2])]
    assert benchmarks[0].equal_votes(*lists)[0, :3].tolist() == [7, 4, 9]


def test_a_row_of_texts_is_compared_under_its_own_rule(benchmarks):
    """Seen items dropped on one side only would have flattered the texts."""
    rule = benchmarks[0].same_rule
    assert rule(System("m", "beam5", "bm25", "score")) == System("lis", retriever="bm25", policy="keep-seen")
    assert rule(System("m", "beam5", "bm25", "unseen")) == System("lis", retriever="bm25", policy="drop-seen")


def test_no_count_holds_a_target_that_is_measured(toy, benchmarks):
    """The published users of Toys are mostly not our validation users: their targets are in our training part."""
    task = splits.load_task(toy).take(np.arange(2))
    task = splits.Task(task.reviewer_ids, task.prompts, [items[:1] for items in task.seen_items], task.targets)
    before = splits.training_histories(toy)
    after = benchmarks[1].without_targets(toy, list(before), task)
    assert [items.tolist() for items in after[:2]] == [[0], [3]]
    assert all(np.array_equal(a, b) for a, b in zip(before[2:], after[2:]))
