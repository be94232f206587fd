"""Users by the length of their history: cold-start, regular, power (paper, section 4.2.3 and appendix C)."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .metrics import summarize
from .paths import check_choice
from .splits import Prepared

SEGMENTS = ("cold-start", "regular", "power")
THRESHOLDS = {"beauty": (5, 14), "toys": (5, 13), "sports": (5, 13)}  # as the paper states them
DEFAULT_THRESHOLDS = (5, 14)
RULES = ("paper", "quantile")
NORMAL_95 = 1.96  # standard errors


def thresholds_for(dataset: str) -> tuple[int, int]:
    """The paper's (low, high) for its three data sets; Beauty's for any other."""
    return THRESHOLDS.get(dataset, DEFAULT_THRESHOLDS)


def quantile_thresholds(lengths: np.ndarray, cold_start: float = 0.3, power: float = 0.1) -> tuple[int, int]:
    """Thresholds that make these shares (0 to 1) of one's own data, as nearly as whole lengths allow."""
    low, high = np.quantile(lengths, [cold_start, 1 - power], method="inverted_cdf").astype(int).tolist()
    return _checked((low, high))


def thresholds_by(rule: str, dataset: str, lengths: np.ndarray) -> tuple[int, int]:
    """The thresholds by a rule: `paper` (`thresholds_for`) or `quantile` (`quantile_thresholds` of the lengths)."""
    check_choice(rule, RULES, "rule for THRESHOLDS")
    return thresholds_for(dataset) if rule == "paper" else quantile_thresholds(lengths)


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
    # side="left": a length equal to a threshold belongs to the segment below it
    return np.array(SEGMENTS)[np.searchsorted(_checked(thresholds), lengths, side="left")]


def _checked(thresholds: tuple[int, int]) -> tuple[int, int]:
    low, high = thresholds
    if not low < high:
        raise ValueError(f"thresholds ({low}, {high}): the first must be the smaller one")
    return low, high


def shares(lengths: np.ndarray, thresholds: tuple[int, int] = DEFAULT_THRESHOLDS) -> pd.DataFrame:
    """Table 5's columns: segment, users, user_share, interactions, interaction_share, mean_length; in percent."""
    table = pd.DataFrame({"segment": assign(lengths, thresholds), "length": lengths}).groupby("segment")["length"]
    table = table.agg(users="size", interactions="sum", mean_length="mean").reindex(SEGMENTS)
    table[["users", "interactions"]] = table[["users", "interactions"]].fillna(0).astype(int)
    table["user_share"] = 100 * table["users"] / len(lengths)
    table["interaction_share"] = 100 * table["interactions"] / np.sum(lengths)
    columns = ["users", "user_share", "interactions", "interaction_share", "mean_length"]
    return table[columns].rename_axis("segment").reset_index()


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
    error = NORMAL_95 * float(np.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)))
    return difference, difference - error, difference + error


def segment_table(systems: Mapping[str, pd.DataFrame], segments: np.ndarray, metric: str) -> pd.DataFrame:
    """Tables 6 and 7's layout, a row per system of per-user metrics; `*` at a best segment that the data support."""
    rows = {}
    for name, per_user in systems.items():
        table = by_segment(per_user, segments).query("metric == @metric")
        rows[name] = {
            row.segment: f"{row.value:.4f} [{row.low:.4f}, {row.high:.4f}]{'*' if row.best else ''}"
            for row in table.itertuples()
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system").fillna("no users")
