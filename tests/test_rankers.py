"""SASRec as a signal, trees over candidates, and what is saved of both."""

import lightgbm as lgb
import numpy as np
import pytest
import torch

from gloss_utils import fusion, rankers, splits
from gloss_utils.paths import write_atomically
from gloss_utils.splits import Task

NUM_ITEMS = 40


def vectors(num_items=NUM_ITEMS):
    drawn = np.random.default_rng(5).normal(size=(num_items, 6)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def make_model(titles=True, seed=1):
    torch.manual_seed(seed)
    return rankers.SASRec(NUM_ITEMS, vectors() if titles else None, width=8).eval()


def make_task(num_users=12, seed=2):
    rng = np.random.default_rng(seed)
    seen = [rng.permutation(NUM_ITEMS)[: rng.integers(1, 7)] for _ in range(num_users)]
    return Task(np.arange(num_users).astype(str), [""] * num_users, seen, np.full(num_users, -1))


class Fixed:
    """A signal with given scores."""

    def __init__(self, scores):
        self.scores = scores

    def score(self, task):
        return self.scores[task.reviewer_ids.astype(int)]


def make_signals(task, seed=3):
    rng = np.random.default_rng(seed)
    scores = rng.random((2, len(task), NUM_ITEMS)).astype(np.float32)
    scores[1][scores[1] < 0.6] = 0  # nothing known
    return {"a": Fixed(scores[0]), "b": Fixed(scores[1])}


def make_trees(num_columns=5):
    rng = np.random.default_rng(0)
    table = rng.random((400, num_columns))
    data = lgb.Dataset(table, (table[:, 1] > 0.5).astype(int), group=[20] * 20)
    return lgb.train({"objective": "lambdarank", "min_data_in_leaf": 5, "verbose": -1, "seed": 1}, data, 5)


@torch.inference_mode()
def test_a_state_knows_nothing_of_later_items_and_nothing_of_padding():
    model, items = make_model(), torch.tensor([[3, 1, 4, 15, 9]])
    whole = model(items)
    torch.testing.assert_close(model(items[:, :3]), whole[:, :3], rtol=1e-4, atol=1e-5)
    padded = rankers.pad([items[0].numpy(), np.array([3, 1])], NUM_ITEMS)
    assert padded.shape == (2, 5) and (padded[1, 2:] == NUM_ITEMS).all()
    torch.testing.assert_close(model(padded)[1, :2], whole[0, :2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("titles", [True, False])
def test_a_user_alone_scores_as_among_others(titles):
    signal, task = rankers.SASRecSignal(make_model(titles)), make_task()
    together = signal.score(task)
    assert together.shape == (len(task), NUM_ITEMS)
    for user in range(len(task)):
        np.testing.assert_allclose(signal.score(task.take(np.array([user])))[0], together[user], rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_only_the_last_fifty_items_are_read():
    model = make_model()
    long = np.tile(np.arange(NUM_ITEMS), 2)
    task = Task(np.array(["0", "1"]), [""] * 2, [long, long[-50:]], np.array([-1, -1]))
    scores = rankers.SASRecSignal(model).score(task)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-5)


def test_candidates_by_hand():
    """An item that a signal scores above zero is a candidate, unless it was bought; each gets its columns."""
    task = Task(np.array(["0"]), [""], [np.array([5])], np.array([0]))
    signals = {"a": Fixed(np.float32([[4, 2, 0, 0, 0, 9]])), "b": Fixed(np.float32([[0, 0, 0, 0.5, 0, 0]]))}
    users, items, said, num_items = fusion.nominate(signals, task)
    assert users.tolist() == [0, 0, 0] and items.tolist() == [0, 1, 3] and num_items == 6
    np.testing.assert_allclose(said, [[4, 0], [2, 0], [0, 0.5]])
    columns = rankers.describe(users, said, np.array([1, 1, 1]))
    np.testing.assert_allclose(columns[:, 2:4], [[1, 0], [0.5, 0], [0, 1]], atol=1e-6)
    assert fusion.nominate(signals, task, [np.array([0])])[1].tolist() == [1, 3, 5], "what is hidden is as was asked"


def test_an_items_vector_is_its_own_plus_its_titles():
    titles = np.eye(3, 4, dtype=np.float32)
    model = rankers.SASRec(3, titles, width=2, heads=1)
    expected = model.items.weight[:3] + torch.tensor(titles) @ model.titles.weight.T
    torch.testing.assert_close(model.table()[:3], expected)
    assert torch.equal(model.table()[3], model.items.weight[3])  # the row that pads has no title


def test_columns_by_hand():
    features = np.array([[2, 0], [4, -1], [5, 3]], dtype=np.float32)
    columns = rankers.describe(np.array([0, 0, 7]), features, np.array([9, 9, 4]))
    expected = [[2, 0, 0.5, 0, 9], [4, -1, 1, -1, 9], [5, 3, 1, 1, 4]]
    np.testing.assert_allclose(columns, expected, rtol=1e-6)


@pytest.mark.parametrize("cells", [8_000_000, 160])  # one block of users; blocks of two, on several threads
@pytest.mark.parametrize("hidden", [False, True])
def test_learned_lists_are_a_plain_sort_of_sum_plus_trees(hidden, cells, monkeypatch):
    monkeypatch.setattr("gloss_utils.retrieval.BLOCK_CELLS", cells)
    task, trees, weights = make_task(), make_trees(), {"a": 0.5, "b": 2.0}
    signals = make_signals(task)
    hide = [np.array([user, user + 1]) for user in range(len(task))] if hidden else None
    hits = rankers.rank_learned(trees, signals, weights, task, k=6, hidden=hide)
    for user in range(len(task)):
        out = hide[user] if hidden else task.seen_items[user]
        rows = np.array([signal.scores[user] for signal in signals.values()])
        allowed = np.setdiff1d(np.arange(NUM_ITEMS), out)
        candidates = [item for item in allowed if (rows[:, item] > 0).any()]
        said = rows[:, candidates].T
        shares = said / (np.abs(said).max(axis=0) + 1e-9)
        columns = np.column_stack([said, shares, np.full(len(said), len(task.seen_items[user]))])
        scores = 0.5 * said[:, 0] + 2 * said[:, 1] + trees.predict(columns.astype(np.float32))
        order = sorted(range(len(candidates)), key=lambda row: (-np.float32(scores[row]), candidates[row]))[:6]
        np.testing.assert_allclose(hits.scores[user], scores[order], rtol=1e-5)
        assert hits.items[user].tolist() == [candidates[row] for row in order]


def test_nobody_to_nominate_gives_an_empty_list():
    task = make_task(3)
    nothing = {"a": Fixed(np.zeros((3, NUM_ITEMS), dtype=np.float32))}
    hits = rankers.rank_learned(make_trees(3), nothing, {"a": 1.0}, task, k=4)
    assert (hits.items == -1).all()


@pytest.fixture
def trained(prepared):
    """Untrained parameters, which save and load as trained ones do."""
    titles = np.random.default_rng(1).normal(size=(len(prepared.catalog), 384)).astype(np.float32)
    torch.manual_seed(4)
    return rankers.SASRecSignal(rankers.SASRec(len(prepared.catalog), titles)), titles


def test_what_is_saved_scores_the_same(prepared, trained):
    signal, titles = trained
    trees, weights = make_trees(), {"learned ranking": {"sasrec": 1.0}}
    rankers.save(prepared, signal, trees, weights, "minilm")
    found = rankers.load(prepared, "minilm")
    some = splits.load_task(prepared).take(np.arange(20))
    np.testing.assert_array_equal(found.signal(titles).score(some), signal.score(some))
    assert found.signal(titles).model.titles is None, "titles are mapped once, not for every user who is served"
    columns = np.random.default_rng(2).random((50, 5))
    np.testing.assert_array_equal(found.trees.predict(columns), trees.predict(columns))
    assert found.about["weights"] == weights


def test_a_new_item_has_its_title_and_changes_no_other_score(prepared, trained):
    signal, titles = trained
    found = rankers.Trained(signal.model.state_dict(), make_trees(), {})
    grown = found.signal(np.concatenate([titles, titles[:1]]))
    some = splits.load_task(prepared).take(np.arange(20))
    before, after = signal.score(some), grown.score(some)
    assert after.shape[1] == before.shape[1] + 1
    np.testing.assert_allclose(after[:, :-1], before, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        expected = signal.model.titles(torch.tensor(titles[:1]))[0]
    torch.testing.assert_close(grown.model.table()[-2], expected)


def test_other_data_another_encoder_and_damage_are_one_sentence(prepared, trained):
    rankers.save(prepared, trained[0], make_trees(), {}, "minilm")
    with pytest.raises(ValueError, match=r"\A[^\n]*encoder 'minilm', not 'e5'[^\n]*run notebook 07 with[^\n]*\Z"):
        rankers.load(prepared, "e5")
    about = prepared.paths.ranker / rankers.FILES[2]
    write_atomically(about, lambda path: path.write_text('{"data": "other", "encoder": "minilm"}'))
    with pytest.raises(ValueError, match=r"\A[^\n]*trained on data 'other'[^\n]*\Z"):
        rankers.load(prepared, "minilm")
    about.unlink()
    with pytest.raises(ValueError, match=r"\A[^\n]*ranker is damaged or no such file[^\n]*run notebook 07[^\n]*\Z"):
        rankers.load(prepared, "minilm")


def test_a_dataset_without_a_trained_ranking_names_the_notebook(toy):
    with pytest.raises(FileNotFoundError, match=r"\Ano trained ranking for [^\n]*run notebook 07 with DATASET="):
        rankers.load(toy, "minilm")
