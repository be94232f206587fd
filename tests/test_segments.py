"""Segments: the paper's thresholds, and intervals that decide what may be marked."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from gloss_utils import metrics


def users(recall, name="u"):
    """Per-user metrics with one metric."""
    return pd.DataFrame(
        {"reviewer_id": [f"{name}{i}" for i in range(len(recall))], "recall@5": np.array(recall, float)}
    )


def test_thresholds_belong_to_the_segment_below():
    """Section 4.2.3: n <= l, l < n <= h, n > h."""
    lengths = np.array([3, 5, 6, 13, 14, 15, 200])
    assert metrics.assign_segments(lengths, (5, 14)).tolist() == ["cold-start"] * 2 + ["regular"] * 3 + ["power"] * 2
    assert metrics.assign_segments(lengths, metrics.THRESHOLDS["toys"]).tolist()[4] == "power"


def test_thresholds_that_make_no_three_segments_are_refused():
    with pytest.raises(ValueError, match="first must be the smaller"):
        metrics.assign_segments(np.array([5]), (14, 5))


def test_length_counts_the_test_item():
    """A regression: counted without it, 32 % cold-start users would become 50 %."""
    interactions = pd.DataFrame({"reviewer_id": ["b", "a", "a", "a", "b", "b", "b"], "asin": list("1234567")})
    prepared = SimpleNamespace(interactions=interactions, dataset="toy")
    assert metrics.history_lengths(prepared, ["a", "b"]).tolist() == [3, 4]
    with pytest.raises(ValueError, match="user 'nobody' has no interactions in 'toy'"):
        metrics.history_lengths(prepared, ["a", "nobody"])


def test_mean_difference_is_welch():
    """Two groups by hand: means 3 and 1, variances 2 and 2, three and three people."""
    difference, low, high = metrics.mean_difference(np.array([1.586, 3, 4.414]), np.array([-0.414, 1, 2.414]))
    error = 1.96 * np.sqrt(2 / 3 + 2 / 3)
    np.testing.assert_allclose([difference, low, high], [2, 2 - error, 2 + error], atol=1e-3)


def test_best_is_marked_only_where_the_interval_supports_it():
    names = np.repeat(metrics.SEGMENTS, 400)
    clear = users(np.concatenate([np.tile([1, 0], 200), np.tile([0, 0, 0, 1], 100), np.tile([0, 0, 0, 1], 100)]))
    table = metrics.by_segment(clear, names).set_index("segment")
    assert table["best"].to_dict() == {"overall": False, "cold-start": True, "regular": False, "power": False}
    assert table.loc["cold-start", "value"] == 0.5 and table.loc["overall", "num_users"] == 1200
    assert table.loc["cold-start", "low"] < 0.5 < table.loc["cold-start", "high"]

    close = users(np.concatenate([np.tile([1, 0], 200), np.tile([1, 0], 200), [1], np.tile([1, 0], 199), [1]]))
    assert not metrics.by_segment(close, names)["best"].any()
