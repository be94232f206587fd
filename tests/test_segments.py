"""Segments: the paper's thresholds, and intervals that decide what may be marked."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from gloss_utils import segments


def users(recall, name="u"):
    """Per-user metrics with one metric."""
    return pd.DataFrame(
        {"reviewer_id": [f"{name}{i}" for i in range(len(recall))], "recall@5": np.array(recall, float)}
    )


def test_thresholds_belong_to_the_segment_below():
    """Section 4.2.3: n <= l, l < n <= h, n > h."""
    lengths = np.array([3, 5, 6, 13, 14, 15, 200])
    assert segments.assign(lengths, (5, 14)).tolist() == ["cold-start"] * 2 + ["regular"] * 3 + ["power"] * 2
    assert segments.assign(lengths, segments.thresholds_for("toys")).tolist()[4] == "power"


def test_thresholds_that_make_no_three_segments_are_refused():
    with pytest.raises(ValueError, match="first must be the smaller"):
        segments.assign(np.array([5]), (14, 5))
    with pytest.raises(ValueError, match="first must be the smaller"):
        segments.quantile_thresholds(np.full(100, 5))


def test_thresholds_by_rule():
    """A regression: users of one length have no quantiles, and do not need them under the paper's rule."""
    alike = np.full(12, 5)
    assert segments.thresholds_by("paper", "sports", alike) == (5, 13)
    assert segments.thresholds_by("quantile", "sports", np.arange(1, 11)) == (3, 9)
    with pytest.raises(ValueError, match="unknown rule for THRESHOLDS 'quantiles': did you mean 'quantile'"):
        segments.thresholds_by("quantiles", "sports", alike)


def test_length_counts_the_test_item():
    """A regression: counted without it, 32 % cold-start users would become 50 %."""
    interactions = pd.DataFrame({"reviewer_id": ["b", "a", "a", "a", "b", "b", "b"], "asin": list("1234567")})
    prepared = SimpleNamespace(interactions=interactions, dataset="toy")
    assert segments.history_lengths(prepared, ["a", "b"]).tolist() == [3, 4]
    with pytest.raises(ValueError, match="user 'nobody' has no interactions in 'toy'"):
        segments.history_lengths(prepared, ["a", "nobody"])


def test_shares_by_hand():
    table = segments.shares(np.array([3, 5, 6, 16]), (5, 14)).set_index("segment")
    assert table["users"].tolist() == [2, 1, 1]
    assert table["interactions"].tolist() == [8, 6, 16]
    np.testing.assert_allclose(table["user_share"], [50, 25, 25])
    np.testing.assert_allclose(table["interaction_share"], [100 * 8 / 30, 20, 100 * 16 / 30])


def test_an_empty_segment_has_no_mean():
    table = segments.shares(np.array([3, 4, 9]), (5, 14)).set_index("segment")
    assert table.loc["power", "users"] == 0 and np.isnan(table.loc["power", "mean_length"])


def test_quantile_thresholds_make_the_shares():
    lengths = np.arange(1, 101)
    assert segments.quantile_thresholds(lengths, 0.3, 0.1) == (30, 90)
    assert segments.shares(lengths, (30, 90))["users"].tolist() == [30, 60, 10]


def test_mean_difference_is_welch():
    """Two groups by hand: means 3 and 1, variances 2 and 2, three and three people."""
    difference, low, high = segments.mean_difference(np.array([1.586, 3, 4.414]), np.array([-0.414, 1, 2.414]))
    error = 1.96 * np.sqrt(2 / 3 + 2 / 3)
    np.testing.assert_allclose([difference, low, high], [2, 2 - error, 2 + error], atol=1e-3)


def test_best_is_marked_only_where_the_interval_supports_it():
    names = np.repeat(segments.SEGMENTS, 400)
    clear = users(np.concatenate([np.tile([1, 0], 200), np.tile([0, 0, 0, 1], 100), np.tile([0, 0, 0, 1], 100)]))
    table = segments.by_segment(clear, names).set_index("segment")
    assert table["best"].to_dict() == {"overall": False, "cold-start": True, "regular": False, "power": False}
    assert table.loc["cold-start", "value"] == 0.5 and table.loc["overall", "num_users"] == 1200
    assert table.loc["cold-start", "low"] < 0.5 < table.loc["cold-start", "high"]

    close = users(np.concatenate([np.tile([1, 0], 200), np.tile([1, 0], 200), [1], np.tile([1, 0], 199), [1]]))
    assert not segments.by_segment(close, names)["best"].any()


def test_segment_table_has_tables_6_and_7s_layout():
    names = np.repeat(["cold-start", "regular"], 300)
    good = users(np.repeat([0.0, 1.0], 300))
    table = segments.segment_table({"GLoSS": good, "LIS": users(np.zeros(600))}, names, "recall@5")
    assert table.index.tolist() == ["GLoSS", "LIS"]
    assert table.loc["GLoSS", "regular"] == "1.0000 [1.0000, 1.0000]*"
    assert "*" not in "".join(table.loc["LIS"])
