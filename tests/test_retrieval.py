"""The indexes against plain formulas, plain sorts and retriv, and their behaviour at the edges."""

import math
import re

import numpy as np
import pytest
import retriv_oracle

from gloss_utils import dense, retrieval
from gloss_utils.dense import build_index
from gloss_utils.retrieval import BM25Index, Hits, HybridIndex, merge, seen_mask, top_k

TEXTS = [
    "Title: Rose Soap",
    "Title: Rose Toner with rose water",
    "Title: Mint Soap",
    "Title: Rose Soap",  # the same text as item 0
    "Title: Wooden Comb for the beard",
]
NAMES = ("bm25", "dense", "hybrid")


def plain_bm25(texts, query, k1=1.5, b=0.75):
    """BM25 as the formula says (Lucene's variant), one text at a time."""
    stop = {"with", "for", "the"}
    split = lambda text: [word for word in re.findall(r"\w\w+", text.lower()) if word not in stop]  # noqa: E731
    docs = [split(text) for text in texts]
    mean_length = sum(map(len, docs)) / len(docs)
    scores = []
    for doc in docs:
        score = 0.0
        for word in split(query):
            having = sum(word in other for other in docs)
            idf = math.log(1 + (len(docs) - having + 0.5) / (having + 0.5))
            score += idf * doc.count(word) / (doc.count(word) + k1 * (1 - b + b * len(doc) / mean_length))
        scores.append(score)
    return scores


@pytest.mark.parametrize("common_share", [0.2, 2.0])  # a common word takes a path of its own, or none does
@pytest.mark.parametrize("k1, b", [(1.5, 0.75), (0.9, 0.4)])
def test_bm25_is_the_formula(k1, b, common_share, monkeypatch):
    monkeypatch.setattr(retrieval, "COMMON_SHARE", common_share)
    for query in ("Title: Rose Soap", "rose rose water", "comb beard", "unknown mint"):
        found = BM25Index(TEXTS, k1=k1, b=b).scores([query])[0]
        np.testing.assert_allclose(found, plain_bm25(TEXTS, query, k1, b), rtol=1e-5)


def test_stemmer_and_stop_words_are_options():
    assert (BM25Index(TEXTS).search(["soaps"], 5).items == -1).all()
    assert BM25Index(TEXTS, stemmer="english").search(["soaps"], 3).items.tolist() == [[0, 2, 3]]
    assert BM25Index(TEXTS).search(["the"], 1).items.tolist() == [[-1]]
    assert BM25Index(TEXTS, stop_words=None).search(["the"], 1).items.tolist() == [[4]]


@pytest.mark.parametrize("k", [1, 3, 17, 40, 60])
def test_top_k_is_a_plain_stable_sort(k):
    scores = np.random.default_rng(0).integers(0, 6, (50, 40)).astype(np.float32)  # full of ties
    found = top_k(scores, k)
    for row, items, values in zip(scores, found.items, found.scores):
        expected = sorted(range(40), key=lambda item: (-row[item], item))[:k]
        assert items.tolist() == expected + [-1] * (k - len(expected))
        assert values[: len(expected)].tolist() == row[expected].tolist()


def test_top_k_leaves_out_what_is_not_above_the_floor():
    found = top_k(np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=np.float32), 2, floor=0.0)
    assert found.items.tolist() == [[1, -1], [-1, -1]]
    assert found.scores[0, 0] == 2.0 and np.isneginf(found.scores[1]).all()


def test_seen_mask_by_hand():
    items = np.array([[3, 1, -1], [1, 2, 3]])
    assert seen_mask(items, [np.array([1, -1]), [3, 9]]).tolist() == [[False, True, False], [False, False, True]]
    assert not seen_mask(items, [[], []]).any()


@pytest.mark.parametrize("seen", [[[1, -2], []], [[1.0], []], [["a"], []]])
def test_seen_that_holds_no_item_numbers_is_refused(seen):
    """A number below -1 hid an item of another user's row."""
    with pytest.raises(ValueError, match="seen holds something else than item numbers"):
        seen_mask(np.array([[1], [2]]), [np.array(part) for part in seen])


@pytest.mark.parametrize("name", NAMES)
def test_equal_texts_come_in_item_order_with_equal_scores(name):
    """sgemm gives equal columns scores that differ in the last bit; then the higher item could come first."""
    texts = [f"Title: thing number{number % 61}" for number in range(400)]
    found = build_index(name, texts).search(["Title: thing number7"], 6)
    expected = [number for number in range(400) if number % 61 == 7][:6]
    assert found.items.tolist() == [expected]
    assert len(set(found.scores[0].tolist())) == 1


@pytest.mark.parametrize("name", NAMES)
def test_queries_and_k_at_the_edges(name):
    index = build_index(name, TEXTS)
    found = index.search(["", "rose", "  \n"], 2)
    assert (found.items[[0, 2]] == -1).all() and np.isneginf(found.scores[[0, 2]]).all()
    assert (found.items[1] >= 0).all() and index.search([], 3).items.shape == (0, 3)
    beyond = index.search(["Title: Rose Soap"], 9)
    assert sorted(beyond.items[0, :5]) == [0, 1, 2, 3, 4]
    assert (beyond.items[0, 5:] == -1).all() and np.isneginf(beyond.scores[0, 5:]).all()
    assert beyond.items.dtype == np.int64 and beyond.scores.dtype == np.float32


def test_bad_input_is_one_sentence():
    with pytest.raises(ValueError, match="catalog is empty"):
        BM25Index([])
    with pytest.raises(ValueError, match="k is 0"):
        BM25Index(TEXTS).search(["rose"], 0)
    with pytest.raises(ValueError, match="one string"):
        BM25Index(TEXTS).search("rose", 2)
    with pytest.raises(ValueError, match="unknown retriever 'bm52': did you mean 'bm25'"):
        build_index("bm52", TEXTS)
    with pytest.raises(ValueError, match="over different catalogs"):
        HybridIndex(BM25Index(TEXTS), BM25Index(TEXTS[::-1]))


@pytest.mark.parametrize("name", NAMES)
def test_blocks_do_not_change_the_hits(name, monkeypatch):
    queries = [f"{text} {extra}" for text in TEXTS for extra in ("", "mint", "water")]
    index = build_index(name, TEXTS)
    whole = index.search(queries, 4)
    monkeypatch.setattr(retrieval, "BLOCK_CELLS", 10)  # two queries at a time
    cut = index.search(queries, 4)
    assert (cut.items == whole.items).all()
    np.testing.assert_allclose(cut.scores, whole.scores, rtol=1e-5, atol=0.02)  # bfloat16 in other batches


def test_merge_scales_each_side_and_adds():
    """Worked by hand: side one gives 1, 0.5, 0 to items 2, 0, 1; side two gives 1, 0 to items 0, 3."""
    one = Hits(np.array([[2, 0, 1]]), np.array([[30.0, 20.0, 10.0]], dtype=np.float32))
    two = Hits(np.array([[0, 3, -1]]), np.array([[0.9, 0.1, -np.inf]], dtype=np.float32))
    found = merge([one, two], num_items=5, k=5)
    assert found.items.tolist() == [[0, 2, 1, 3, -1]]
    np.testing.assert_allclose(found.scores[0, :4], [1.5, 1.0, 0.0, 0.0], atol=1e-6)
    none = retrieval.no_hits(1, 2)
    assert merge([none, one], num_items=3, k=2).items.tolist() == [[2, 0]]


def assert_same_items(ours: Hits, theirs: list[dict[int, float]], k: int, tolerance: float = 1e-4):
    """The same scores by rank, and the same items but where scores are equal to rounding."""
    for items, scores, run in zip(ours.items, ours.scores, theirs):
        best = sorted(run.values(), reverse=True)[:k]
        assert (items >= 0).sum() == len(best)
        np.testing.assert_allclose(scores[: len(best)], best, atol=tolerance, rtol=tolerance)
        assert all(
            abs(run[item] - score) <= tolerance * max(1, score) for item, score in zip(items[items >= 0], scores)
        )


@pytest.mark.slow
def test_retriv_finds_the_same(prepared, monkeypatch):
    monkeypatch.setattr(dense, "fast_dtype", lambda: "float32")
    texts = prepared.catalog["text"].tolist()[:200]
    queries = texts[:20] + ["a soap with mint", "rose", "qqqq zzzz", ""]
    theirs = {name: run(texts, queries, 200) for name, run in retriv_oracle.RUNS.items()}
    theirs["hybrid"] = retriv_oracle.merged_run(list(theirs.values()), 200)
    for name, run in theirs.items():
        assert_same_items(build_index(name, texts).search(queries, 10), run, 10)


@pytest.mark.real_data
@pytest.mark.slow
def test_retrivs_bm25_agrees_on_real_titles(real):
    prepared = real("beauty")
    texts = prepared.catalog["text"].tolist()
    queries = texts[::100]
    theirs = retriv_oracle.sparse_run(texts, queries, len(texts))
    assert_same_items(BM25Index(texts).search(queries, 10), theirs, 10)
