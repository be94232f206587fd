"""Sentence vectors: the right parameters, each text once, cached, close to full precision; and their search."""

import shutil

import numpy as np
import pytest

from gloss_utils import dense
from gloss_utils.dense import DenseIndex, encode

TEXTS = ["Title: Rose Soap", "Title: Mint Toner", "Title: Rose Soap", "Title: A Wooden Comb for Beards, 2 Pack"]


@pytest.fixture
def full_precision(monkeypatch):
    monkeypatch.setattr(dense, "fast_dtype", lambda: "float32")


def test_vectors_are_unit_rows_in_the_order_asked():
    vectors = encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors[0] == vectors[2]).all() and encode([]).shape == (0, 384)
    assert encode(TEXTS[:2])[0] @ vectors[0] > 0.999


def test_full_precision_is_what_sentence_transformers_gives(full_precision):
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(dense.minilm_directory())).encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(encode(TEXTS), expected, atol=1e-5)


def test_bfloat16_stays_close_to_float32(prepared, monkeypatch):
    texts, vectors = prepared.catalog["text"].tolist()[:200], {}
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setattr(dense, "fast_dtype", lambda dtype=dtype: dtype)
        vectors[dtype] = encode(texts)
    full, half = vectors.values()
    assert (full * half).sum(axis=1).min() > 0.999
    assert np.abs(full @ full.T - half @ half.T).max() < 0.02


def test_vectors_are_cached_by_content(tmp_path, monkeypatch):
    first = encode(TEXTS, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(dense, "_encode_distinct", lambda *args: pytest.fail("encoded again"))
    np.testing.assert_array_equal(encode(TEXTS, cache_dir=tmp_path), first)
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        encode(TEXTS[:1], cache_dir=tmp_path)


def test_parameters_that_are_not_upstreams_are_refused(tmp_path, monkeypatch):
    directory = tmp_path / "model"
    directory.mkdir()
    shutil.copy(dense.minilm_directory() / "model.safetensors", directory)
    monkeypatch.setattr(dense.importlib.resources, "files", lambda package: tmp_path)
    assert dense.minilm_directory() == directory
    with open(directory / "model.safetensors", "r+b") as file:
        file.seek(1000)
        file.write(b"x")
    with pytest.raises(ValueError, match="not upstream's"):
        dense.minilm_directory()


def test_encoders_that_cannot_be_had(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="unknown encoder 'minilmm': did you mean 'minilm'"):
        encode(["a"], encoder="minilmm")
    with pytest.raises(ValueError, match="'nobody/no-such-encoder' cannot be loaded"):
        encode(["a"], encoder="nobody/no-such-encoder")


def test_dense_search_is_a_plain_sort_of_cosines(full_precision):
    index = DenseIndex(TEXTS)
    queries = ["a comb of wood", "something for the shower", TEXTS[1]]
    cosines = encode(queries) @ encode(TEXTS).T
    expected = np.lexsort((np.tile(np.arange(len(TEXTS)), (3, 1)), -cosines.round(5)))
    assert index.search(queries, 4).items.tolist() == expected.tolist()


def test_e5_prefixes_are_put_before_the_texts(full_precision):
    prefixed = DenseIndex(TEXTS, query_prefix="query: ", item_prefix="passage: ")
    np.testing.assert_allclose(prefixed.vectors, encode(["passage: " + text for text in TEXTS]), atol=1e-5)
    np.testing.assert_allclose(prefixed.encode_queries([TEXTS[0]]), encode(["query: " + TEXTS[0]]), atol=1e-5)
    assert not np.allclose(prefixed.vectors, encode(TEXTS), atol=1e-3)
