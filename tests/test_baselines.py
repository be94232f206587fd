"""The baselines against plain Python and worked by hand."""

import numpy as np
import pytest

from gloss_utils import baselines
from gloss_utils.metrics import evaluate
from gloss_utils.retrieval import BM25Index
from gloss_utils.splits import Task, load_task, training_histories


@pytest.fixture(scope="module")
def sample(prepared):
    return load_task(prepared, "test"), BM25Index(prepared.catalog["text"])


def plain_lis(task, index, k, drop):
    """LIS one user at a time: score everything, sort, drop."""
    lists = []
    for seen in task.seen_items:
        scores = index.scores([index.texts[seen[-1]]])[0]
        dropped = {"none": set(), "query": {seen[-1]}, "seen": set(seen)}[drop]
        order = sorted(np.flatnonzero(scores > 0), key=lambda item: (-scores[item], item))
        lists.append([item for item in order if item not in dropped][:k])
    return lists


@pytest.mark.parametrize("drop", baselines.DROPS)
def test_lis_is_a_plain_search(drop, sample):
    task, index = sample
    task = task.take(np.arange(0, len(task), 25))
    ranked = baselines.lis(task, index, k=10, drop=drop)
    expected = plain_lis(task, index, 10, drop)
    assert [row[row >= 0].tolist() for row in ranked] == expected


def test_a_long_history_of_look_alikes_still_fills_the_list():
    """A user who had seen the first forty hits got an empty list from a search of a fixed depth."""
    texts = [f"rose soap {number}" for number in range(60)] + ["mint"]
    seen = np.arange(40)
    task = Task(np.array(["u"]), [""], [seen], np.array([59]))
    ranked = baselines.lis(task, BM25Index(texts), k=10, drop="seen")
    assert (ranked >= 0).all() and not np.isin(ranked, seen).any()


def test_dropping_seen_items_never_hurts_here(sample):
    task, index = sample
    recall = [
        evaluate(baselines.lis(task, index, drop=drop), task.targets)["recall@10"].mean() for drop in baselines.DROPS
    ]
    assert recall[0] < recall[1] <= recall[2] + 1e-9
    kept = baselines.lis(task, index, k=5, drop="none")
    last = np.array([seen[-1] for seen in task.seen_items])
    assert (kept == last[:, None]).any(axis=1).mean() > 0.9  # LIS finds its own query


def test_unknown_drop():
    with pytest.raises(ValueError, match="unknown drop 'sen': did you mean 'seen'"):
        baselines.lis(Task(np.array([]), [], [], np.array([])), None, drop="sen")


def test_most_popular_by_hand(toy):
    task = load_task(toy, "test")
    counts = np.array([3, 5, 0, 5, 1, 0, 0])
    assert baselines.most_popular(task, counts, k=3).tolist() == [[1, 3, 0]] * 4
    # u1 has a1, a2 (numbers 0, 1); u2 has a4, a5, a6 (3, 4, 5)
    unseen = baselines.most_popular(task, counts, k=3, drop="seen")
    assert unseen[0].tolist() == [3, 4, -1]
    assert unseen[1].tolist() == [1, 0, -1]


def test_cooccurrence_by_hand():
    """Items 0 and 1 share one of their two buyers each: 1 / sqrt(2 * 2)."""
    nobody = np.array([], dtype=np.int64)  # a history may be empty: the order of the users does not matter
    histories = [nobody, np.array([1, 0]), np.array([0, 2]), np.array([1, 1]), nobody]
    together = baselines.cooccurrence(histories, 4).toarray()
    assert (baselines.cooccurrence(histories[::-1], 4) != baselines.cooccurrence(histories, 4)).nnz == 0
    assert together[0, 1] == pytest.approx(0.5) and together[1, 0] == pytest.approx(0.5)
    assert together[0, 2] == pytest.approx(1 / np.sqrt(2))
    assert together.diagonal().sum() == 0 and together[3].sum() == 0


def test_cooccurrence_of_many_items_is_its_formula():
    """25,000 items are scaled in three parts; most of them nobody bought."""
    rng, num_items = np.random.default_rng(0), 25_000
    sold = np.sort(rng.permutation(num_items)[:4000])
    histories = [rng.choice(sold, rng.integers(0, 7)) for _ in range(3000)]
    together = baselines.cooccurrence(histories, num_items)
    buyers = [set() for _ in range(num_items)]
    for user, items in enumerate(histories):
        for item in items:
            buyers[item].add(user)
    rows, columns = together.nonzero()
    assert {(int(row) // 10_000) for row in rows} == {0, 1, 2} and (rows != columns).all()
    for row, column in zip(rows[::50], columns[::50]):
        cosine = len(buyers[row] & buyers[column]) / np.sqrt(len(buyers[row]) * len(buyers[column]))
        assert together[row, column] == pytest.approx(cosine, rel=1e-6)
    pairs = {(one, other) for items in histories for one in items for other in items if one != other}
    assert len(rows) == len(pairs)


def test_star_is_its_formula(prepared):
    task = load_task(prepared, "test").take(np.arange(0, 300, 10))
    vectors = np.random.default_rng(0).standard_normal((len(prepared.catalog), 16)).astype(np.float32)
    together = baselines.cooccurrence(training_histories(prepared), len(vectors))
    found = baselines.star(task, vectors, together, k=10)
    cooc = together.toarray()
    for user, seen in enumerate(task.seen_items):
        recent = seen[-3:][::-1]
        score = sum(0.7**age * (0.5 * vectors @ vectors[j] + 0.5 * cooc[:, j]) for age, j in enumerate(recent))
        score = score / len(recent)
        score[seen] = -np.inf
        np.testing.assert_allclose(found.scores[user], np.sort(score)[::-1][:10], atol=1e-5)
        np.testing.assert_allclose(score[found.items[user]], found.scores[user], atol=1e-5)


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize(
    "dataset, num_users, kept, dropped",
    [("beauty", 22363, (0.0422, 0.0222), (0.0482, 0.0345)), ("sports", 35597, (0.0211, 0.0110), (0.0244, 0.0169))],
)
def test_lis_on_real_data(real, dataset, num_users, kept, dropped):
    prepared = real(dataset)
    task, index = load_task(prepared, "test"), BM25Index(prepared.catalog["text"])
    assert len(task) == num_users
    for drop, expected in (("none", kept), ("seen", dropped)):
        means = evaluate(baselines.lis(task, index, drop=drop), task.targets).mean()
        assert (means["recall@5"], means["ndcg@5"]) == pytest.approx(expected, abs=0.0003)
