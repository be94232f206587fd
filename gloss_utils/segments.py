"""Users by the length of their history: cold-start, regular, power (paper, section 4.2.3 and appendix C)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .metrics import summarize
from .splits import Prepared

SEGMENTS = ("cold-start", "regular", "power")
DEFAULT_THRESHOLDS = (5, 14)  # the paper's for Beauty; its others follow
THRESHOLDS = {"beauty": DEFAULT_THRESHOLDS, "toys": (5, 13), "sports": (5, 13)}


def history_lengths(prepared: Prepared, reviewer_ids: Sequence[str]) -> np.ndarray:
    """Count each user's whole sequence, int64 [num_users]; the test item counts too, as in Table 5's shares."""
    counts = prepared.interactions["reviewer_id"].value_counts().reindex(list(reviewer_ids))
    if counts.isna().any():
        raise ValueError(f"user '{counts.index[counts.isna()][0]}' has no interactions in '{prepared.dataset}'")
    return counts.to_numpy(dtype=np.int64)


def assign(lengths: np.ndarray, thresholds: tuple[int, int] = DEFAULT_THRESHOLDS) -> np.ndarray:
    """Name each user's segment: n <= low is cold-start, n > high is power, the rest is regular.

    >>> assign(np.array([5, 6, 14, 15])).tolist()
    ['cold-start', 'regular', 'regular', 'power']
    """
    low, high = thresholds
    if not low < high:
        raise ValueError(f"thresholds ({low}, {high}): the first must be the smaller one")
    # side="left": a length equal to a threshold belongs to the segment below it
    return np.array(SEGMENTS)[np.searchsorted(thresholds, lengths, side="left")]


def by_segment(per_user: pd.DataFrame, segments: np.ndarray) -> pd.DataFrame:
    """Mean and 95 % interval of each metric, overall and per segment: one row each, with `num_users` and `best`.

    `best` marks the highest mean, where its difference to each other segment has an interval above zero.
    """
    groups = {"overall": per_user, **{name: per_user[segments == name] for name in SEGMENTS}}
    parts = [summarize(group).assign(segment=name) for name, group in groups.items() if len(group)]
    table = pd.concat(parts, ignore_index=True)
    best = {metric: _supported_best(per_user[metric], segments) for metric in table["metric"].unique()}
    table["best"] = table["segment"] == table["metric"].map(best)
    return table[["segment", "metric", "value", "low", "high", "num_users", "best"]]


def _supported_best(values: pd.Series, segments: np.ndarray) -> str | None:
    groups = {name: values[segments == name].to_numpy() for name in SEGMENTS if (segments == name).sum() > 1}
    best = max(groups, key=lambda name: groups[name].mean(), default=None)
    others = [group for name, group in groups.items() if name != best]
    supported = others and all(mean_difference(groups[best], group)[1] > 0 for group in others)
    return best if supported else None


def mean_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """mean(a) - mean(b) of two groups of different people, then low and high of its 95 % interval (Welch)."""
    difference = float(np.mean(a) - np.mean(b))
    error = 1.96 * float(np.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)))
    return difference, difference - error, difference + error
