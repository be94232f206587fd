"""The split of chapter 09: nothing after the date is counted, encoded or numbered."""

import ast
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from gloss_utils import baselines, fusion, rankers, splits
from gloss_utils.paths import PROJECT_ROOT

DAY = 86_400


@pytest.fixture(scope="module")
def measuring():
    """benchmarks/measure_time_split.py, which imports its neighbour."""
    sys.path.insert(0, str(PROJECT_ROOT / "benchmarks"))
    try:
        import measure_time_split

        yield measure_time_split
    finally:
        sys.path.remove(str(PROJECT_ROOT / "benchmarks"))


def store(seed: int, changed: bool = False):
    """Sixty users with purchases on 100 days; `changed` draws all items from day 60 on anew, and adds users then."""
    rng = np.random.default_rng(seed)
    days = [np.sort(rng.choice(100, 8, replace=False)) for _ in range(60)]
    items = [rng.permutation(40)[:8] for _ in days]
    rows = [(f"u{user:03d}", day, item) for user in range(60) for day, item in zip(days[user], items[user])]
    if changed:
        rng = np.random.default_rng(seed + 1)
        rows = [(user, day, item if day < 60 else rng.integers(40)) for user, day, item in rows]
        rows += [(f"a{user:03d}", day, rng.integers(40)) for user in range(20) for day in (70, 75, 80)]
    interactions = pd.DataFrame(rows, columns=["reviewer_id", "day", "item"])
    interactions["asin"] = [f"B{item:03d}" for item in interactions["item"]]
    interactions["timestamp"] = interactions["day"] * DAY
    catalog = pd.DataFrame({"asin": [f"B{item:03d}" for item in rng.permutation(40)]})
    catalog["title"] = "item " + catalog["asin"]
    catalog["text"] = "Title: " + catalog["title"]
    return splits.order_ties(interactions[["reviewer_id", "asin", "timestamp"]]), catalog


def vectors_of(catalog: pd.DataFrame) -> np.ndarray:
    """A vector per title that does not depend on where the title stands."""
    return np.stack([np.random.default_rng(int(asin[1:])).normal(size=8) for asin in catalog["asin"]]).astype(
        np.float32
    )


def fit(measuring, interactions, catalog):
    past = measuring.split_at(interactions, catalog, 60.0 * DAY)
    vectors = vectors_of(past.catalog)
    weights = measuring.weights_by_date(past, interactions, vectors, 0.7)
    signals = fusion.fit_signals(list(past.histories.values()), vectors, fusion.FUSION, past.days)
    together = baselines.cooccurrence(list(past.histories.values()), len(vectors))
    lists = {"fused": fusion.fuse(signals, weights, past.test).items}
    lists["star"] = baselines.star(past.test, vectors, together).items
    return past, weights, lists


def test_nothing_after_the_date_is_counted_or_numbered(measuring):
    """All later purchases are exchanged and users added: numbers, counts, weights and lists stay what they were."""
    (before, weights, lists), (after, other_weights, other_lists) = (
        fit(measuring, *store(7, changed)) for changed in (False, True)
    )
    assert (before.test.targets != after.test.targets).any() and len(after.newcomers) == 20
    assert before.catalog["asin"].tolist() == after.catalog["asin"].tolist()
    assert list(before.histories) == list(after.histories)
    np.testing.assert_array_equal(before.counts, after.counts)
    assert weights == other_weights
    for name, items in lists.items():
        np.testing.assert_array_equal(items, other_lists[name])


def test_targets_are_next_purchases_and_histories_end_before_the_date(measuring):
    interactions, catalog = store(3)
    past = measuring.split_at(interactions, catalog, 60.0 * DAY)
    asin = past.catalog["asin"]
    for user, seen, target, day in zip(
        past.test.reviewer_ids, past.test.seen_items, past.test.targets, past.test_days
    ):
        own = interactions[interactions["reviewer_id"] == user]
        assert asin[seen].tolist() == own["asin"][own["timestamp"] < 60 * DAY].tolist()
        following = own[own["timestamp"] >= 60 * DAY].iloc[0]
        assert (asin[target], day) == (following["asin"], following["timestamp"] / DAY)


def test_the_chapter_splits_as_the_benchmark_does(measuring, prepared):
    """What the reader builds by hand in section 9.2, on the sample store."""
    cells = nbformat.read(PROJECT_ROOT / "notebooks" / "09_in_the_shop.ipynb", as_version=4).cells
    cells = [cell.source for cell in cells if cell.cell_type == "code"]
    first = next(place for place, source in enumerate(cells) if source.startswith("past, future ="))
    last = next(place for place, source in enumerate(cells) if source.startswith("histories, days ="))
    interactions = prepared.interactions.assign(day=prepared.interactions["timestamp"] // DAY)
    date = interactions["day"].quantile(0.8) // 1
    chapter = {"np": np, "pd": pd, "splits": splits, "baselines": baselines, "prepared": prepared}
    chapter |= {"interactions": interactions, "date": date}
    for source in cells[first : last + 1]:
        exec(compile(ast.parse(source), "chapter 09", "exec"), chapter)
    past = measuring.split_at(prepared.interactions, prepared.catalog, date * DAY)
    assert chapter["catalog"]["asin"].tolist() == past.catalog["asin"].tolist()
    np.testing.assert_array_equal(chapter["counts"], past.counts)
    assert chapter["test"].reviewer_ids.tolist() == past.test.reviewer_ids.tolist()
    np.testing.assert_array_equal(chapter["test"].targets, past.test.targets)
    np.testing.assert_array_equal(chapter["bought_on"], past.test_days)
    assert len(past.test) > 100


def test_long_tail_is_what_is_not_needed_for_half_of_the_purchases(measuring):
    counts = np.array([1, 6, 2, 3])  # 12 purchases: item 1 makes up half of them
    assert measuring.long_tail(counts).tolist() == [True, False, True, True]


def test_overlap_counts_common_items_not_common_places(measuring):
    same = np.array([[1, 2], [2, 1]])
    assert measuring.overlap(same, pairs=50) == 1.0
    assert measuring.overlap(np.array([[1, -1], [2, -1]]), pairs=50) == 0.0
    assert measuring.overlap(np.array([[1, 2], [1, 3]]), pairs=50) == 0.5


def test_sasrec_is_read_from_the_chapter_that_teaches_it(measuring):
    made = measuring.lesson("07_beyond_text", *measuring.TAUGHT, num_items=5, SEED=1)
    signal, log = made.train_sasrec([np.array([0, 1, 2])] * 70, epochs=1)
    assert signal.model.num_items == 5 and len(log) == 1
    with pytest.raises(ValueError, match="no such_cell"):
        measuring.lesson("07_beyond_text", "such_cell")


def test_zeros_take_the_own_vectors_of_what_nobody_bought_and_nothing_else(measuring):
    titles = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    signal = rankers.SASRecSignal(rankers.SASRec(5, titles, width=4))
    before = signal.model.items.weight.detach().clone()
    zeroed = measuring.at_zero(signal, [np.array([0, 2]), np.array([4])]).model
    changed = (zeroed.items.weight != before).any(dim=1)
    assert changed.tolist() == [False, True, False, True, False, False]  # the last row pads
    torch.testing.assert_close(zeroed.table()[1], signal.model.titles(torch.tensor(titles[1])))
    assert torch.equal(signal.model.items.weight, before)


def test_a_dataset_without_dates_is_refused(measuring, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["measure_time_split.py", "--dataset", "toys"])
    with pytest.raises(SystemExit, match="positions in a user's history, not dates"):
        measuring.main()


def test_the_store_cut_at_the_date_asks_the_course_for_next_purchases(measuring, prepared, tmp_path):
    """The chapters then learn from nothing later, and their test targets are chapter 09's, for two items or more."""
    import measure_course_by_date

    by_date, again = measure_course_by_date.cut(prepared, 0.8, tmp_path / "cut")
    interactions, date = prepared.interactions, measuring.find_date(prepared.interactions, 0.8)
    past = measuring.split_at(interactions, prepared.catalog, date)
    asins = past.catalog["asin"].to_numpy()
    expected = {
        str(user): (asins[seen].tolist(), asins[target])
        for user, seen, target in zip(past.test.reviewer_ids, past.test.seen_items, past.test.targets)
        if len(seen) > 1
    }
    task, own = splits.load_task(by_date), by_date.catalog["asin"].to_numpy()
    found = {
        str(user): (own[seen].tolist(), own[target])
        for user, seen, target in zip(task.reviewer_ids, task.seen_items, task.targets)
        if user in again
    }
    assert found == expected and len(found) == len(again) > 20
    known = interactions[interactions["timestamp"] < date]
    learned = {tuple(pair) for pair in known[["reviewer_id", "asin"]].to_numpy()}
    users = splits.user_bounds(by_date.interactions)[0]
    histories = splits.training_histories(by_date)
    assert all((user, own[item]) in learned for user, items in zip(users, histories) for item in items)
    assert set(by_date.catalog["asin"]) == set(prepared.catalog["asin"]), "what nobody has bought stands on the shelf"
    assert splits.load_prepared(str(tmp_path / "cut")).fingerprint == by_date.fingerprint
