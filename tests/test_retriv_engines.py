"""retriv must find what our indexes find."""

import numpy as np
import pytest

from gloss_utils.retrieval import BM25Index, DenseIndex, HybridIndex

PAIRS = {
    "bm25": (BM25Index, {}),
    "dense": (DenseIndex, {"dtype": "float32"}),
    "hybrid": (HybridIndex, {"dtype": "float32"}),
}


def assert_same_items(ours, theirs, tolerance=1e-4):
    """Equal lists, but for neighbours whose scores are equal to rounding."""
    np.testing.assert_array_equal(ours.items >= 0, theirs.items >= 0)
    found = ours.items >= 0
    np.testing.assert_allclose(ours.scores[found], theirs.scores[found], atol=tolerance, rtol=tolerance)
    for row in np.flatnonzero((ours.items != theirs.items).any(axis=1)):
        last = ours.scores[row][found[row]].min()
        clear = (ours.scores[row] > last + tolerance) & found[row]
        assert set(ours.items[row][clear]) <= set(theirs.items[row])


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_retriv_agrees(name, prepared):
    build, ours_options = PAIRS[name]
    texts = prepared.catalog["text"].tolist()[:300]
    queries = texts[:40] + ["a soap with mint", "rose", "qqqq zzzz", ""]
    ours = build(texts, **ours_options).search(queries, 10)
    theirs = build(texts, engine="retriv").search(queries, 10)
    assert_same_items(ours, theirs)


@pytest.mark.real_data
@pytest.mark.slow
def test_retrivs_bm25_agrees_on_real_titles(real_raw_dir, tmp_path):
    from gloss_utils import raw_data

    prepared = raw_data.prepare("beauty", raw_dir=real_raw_dir, data_dir=tmp_path, progress=False)
    texts = prepared.catalog["text"].tolist()
    queries = texts[::100]
    assert_same_items(BM25Index(texts).search(queries, 10), BM25Index(texts, engine="retriv").search(queries, 10))
