"""The indexes against plain formulas and plain sorts, and their behaviour at the edges."""

import math
import re

import numpy as np
import pytest

from gloss_utils import retrieval as hits_module
from gloss_utils.dense import build_index
from gloss_utils.retrieval import BM25Index, DenseIndex, HybridIndex, merge, top_k

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


@pytest.mark.parametrize("k1, b", [(1.5, 0.75), (0.9, 0.4)])
@pytest.mark.parametrize("query", ["Title: Rose Soap", "rose rose water", "comb beard", "unknown mint"])
def test_bm25_is_the_formula(query, k1, b):
    found = BM25Index(TEXTS, k1=k1, b=b).scores([query])[0]
    np.testing.assert_allclose(found, plain_bm25(TEXTS, query, k1, b), rtol=1e-5)


def test_a_common_word_is_scored_as_any_other(monkeypatch):
    """Common words take a path of their own; the scores must not tell."""
    query = ["title rose soap"]
    expected = BM25Index(TEXTS).scores(query)
    monkeypatch.setattr("gloss_utils.retrieval.COMMON_SHARE", 2.0)
    np.testing.assert_allclose(BM25Index(TEXTS).scores(query), expected, rtol=1e-6)


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


@pytest.mark.parametrize("name", NAMES)
def test_equal_texts_come_in_item_order_with_equal_scores(name):
    """sgemm gives equal columns scores that differ in the last bit; then the higher item could come first."""
    texts = [f"Title: thing number{number % 61}" for number in range(400)]
    found = build_index(name, texts).search(["Title: thing number7"], 6)
    expected = [number for number in range(400) if number % 61 == 7][:6]
    assert found.items.tolist() == [expected]
    assert len(set(found.scores[0].tolist())) == 1


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_query_has_no_hits(name):
    found = build_index(name, TEXTS).search(["", "rose", "  \n"], 2)
    assert (found.items[[0, 2]] == -1).all() and np.isneginf(found.scores[[0, 2]]).all()
    assert (found.items[1] >= 0).all()
    assert build_index(name, TEXTS).search([], 3).items.shape == (0, 3)


@pytest.mark.parametrize("name", NAMES)
def test_k_beyond_the_catalog_pads(name):
    found = build_index(name, TEXTS).search(["Title: Rose Soap"], 9)
    assert sorted(found.items[0, :5]) == [0, 1, 2, 3, 4]
    assert (found.items[0, 5:] == -1).all() and np.isneginf(found.scores[0, 5:]).all()
    assert found.items.dtype == np.int64 and found.scores.dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_one_sentence(name):
    with pytest.raises(ValueError, match="catalog is empty"):
        build_index(name, [])
    with pytest.raises(ValueError, match="k=0"):
        build_index(name, TEXTS).search(["rose"], 0)
    with pytest.raises(ValueError, match="one string"):
        build_index(name, TEXTS).search("rose", 2)


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match="unknown retriever 'bm52': did you mean 'bm25'"):
        build_index("bm52", TEXTS)
    with pytest.raises(ValueError, match="unknown dense engine 'hnws': did you mean 'hnsw'"):
        DenseIndex(TEXTS, engine="hnws")
    with pytest.raises(ValueError, match="unknown BM25 engine"):
        BM25Index(TEXTS, engine="lucene")


@pytest.mark.parametrize("name", NAMES)
def test_blocks_do_not_change_the_hits(name, monkeypatch):
    queries = [f"{text} {extra}" for text in TEXTS for extra in ("", "mint", "water")]
    index = build_index(name, TEXTS)
    whole = index.search(queries, 4)
    monkeypatch.setattr(hits_module, "BLOCK_CELLS", 10)  # two queries at a time
    cut = index.search(queries, 4)
    assert (cut.items == whole.items).all()
    np.testing.assert_allclose(cut.scores, whole.scores, rtol=1e-5, atol=1e-6)


def test_dense_search_is_a_plain_sort_of_cosines():
    index = DenseIndex(TEXTS, dtype="float32")
    queries = ["a comb of wood", "something for the shower"]
    cosines = index.encode_queries(queries) @ index.vectors.T
    expected = np.lexsort((np.tile(np.arange(len(TEXTS)), (2, 1)), -cosines.round(5)))
    assert index.search(queries, 5).items.tolist() == expected.tolist()


def test_e5_prefixes_are_put_before_the_texts():
    plain = DenseIndex(TEXTS, dtype="float32")
    prefixed = DenseIndex(TEXTS, query_prefix="query: ", item_prefix="passage: ", dtype="float32")
    by_hand = DenseIndex(["passage: " + text for text in TEXTS], dtype="float32")
    np.testing.assert_allclose(prefixed.vectors, by_hand.vectors, atol=1e-5)
    expected = by_hand.encode_queries(["query: " + TEXTS[0]])
    np.testing.assert_allclose(prefixed.encode_queries([TEXTS[0]]), expected, atol=1e-5)
    assert not np.allclose(prefixed.vectors, plain.vectors, atol=1e-3)


def test_merge_scales_each_side_and_adds():
    """Worked by hand: side one gives 1, 0.5, 0 to items 2, 0, 1; side two gives 1, 0 to items 0, 3."""
    one = hits_module.Hits(np.array([[2, 0, 1]]), np.array([[30.0, 20.0, 10.0]], dtype=np.float32))
    two = hits_module.Hits(np.array([[0, 3, -1]]), np.array([[0.9, 0.1, -np.inf]], dtype=np.float32))
    found = merge([one, two], num_items=5, k=5)
    assert found.items.tolist() == [[0, 2, 1, 3, -1]]
    np.testing.assert_allclose(found.scores[0, :4], [1.5, 1.0, 0.0, 0.0], atol=1e-6)


def test_merge_of_a_side_without_hits_is_the_other_side():
    one = hits_module.Hits(np.array([[1, 0]]), np.array([[3.0, 1.0]], dtype=np.float32))
    none = hits_module.no_hits(1, 2)
    assert merge([none, one], num_items=3, k=2).items.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    "build",
    [BM25Index, DenseIndex, lambda texts: DenseIndex(texts, engine="hnsw"), HybridIndex],
    ids=["bm25", "dense", "hnsw", "hybrid"],
)
def test_save_and_load(build, tmp_path):
    index = build(TEXTS)
    index.save(tmp_path / "index")
    again = type(index).load(tmp_path / "index", TEXTS)
    queries = TEXTS + ["mint water", ""]
    for before, after in zip(index.search(queries, 4), again.search(queries, 4)):
        np.testing.assert_array_equal(before, after)
    assert again.settings == index.settings


def test_an_index_refuses_another_catalog(tmp_path):
    BM25Index(TEXTS).save(tmp_path / "index")
    with pytest.raises(ValueError, match="built on another catalog"):
        BM25Index.load(tmp_path / "index", TEXTS[::-1])
    with pytest.raises(ValueError, match="holds a BM25Index"):
        DenseIndex.load(tmp_path / "index", TEXTS)
    with pytest.raises(FileNotFoundError, match="no index in"):
        BM25Index.load(tmp_path / "nothing", TEXTS)


def test_hnsw_finds_what_exact_search_finds():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    from gloss_utils.dense import build_hnsw, search_hnsw

    approximate = search_hnsw(build_hnsw(vectors), vectors[:100], 10, effort=200)
    exact = top_k(vectors[:100] @ vectors.T, 10)
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(approximate.items, exact.items)])
    assert shared > 0.95
    assert (approximate.items[:, 0] == np.arange(100)).all()
