"""Users by the length of their history: cold-start, regular, power (paper, section 4.2.3 and appendix C)."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from .metrics import REAL_DATA_SOURCE, summarize
from .paths import check_choice, write_atomically
from .splits import Prepared

SEGMENTS = ("cold-start", "regular", "power")
# The thresholds that the paper states, which are not the ones that its Table 5 was made with for Toys and
# Sports: the printed shares of power users there are those of "more than 14".
THRESHOLDS = {"beauty": (5, 14), "toys": (5, 13), "sports": (5, 13)}
DEFAULT_THRESHOLDS = (5, 14)
RULES = ("paper", "quantile")
NORMAL_95 = 1.96  # standard errors
MEASURED_COLUMNS = ["dataset", "system", "segment", "metric", "value", "low", "high", "num_users", "best"]


def thresholds_for(dataset: str) -> tuple[int, int]:
    """The paper's (low, high) for its three data sets; Beauty's for any other.

    >>> thresholds_for("sports")
    (5, 13)
    """
    return THRESHOLDS.get(dataset, DEFAULT_THRESHOLDS)


def quantile_thresholds(lengths: np.ndarray, cold_start: float = 0.3, power: float = 0.1) -> tuple[int, int]:
    """Thresholds that make these shares of one's own data, as nearly as whole lengths allow.

    Args:
        lengths: int [num_users].
        cold_start, power: wanted shares, 0 to 1.

    Raises:
        ValueError: the two thresholds fall together: the lengths are too much alike for three segments.
    """
    low, high = np.quantile(lengths, [cold_start, 1 - power], method="inverted_cdf").astype(int).tolist()
    return _checked((low, high))


def thresholds_by(rule: str, dataset: str, lengths: np.ndarray) -> tuple[int, int]:
    """The thresholds by one of the two rules.

    Args:
        rule: `paper` (see `thresholds_for`) or `quantile` (see `quantile_thresholds`).
        dataset: its name.
        lengths: int [num_users]; only `quantile` looks at them.

    Raises:
        ValueError: an unknown rule, or lengths too much alike for quantiles.
    """
    check_choice(rule, RULES, "rule for THRESHOLDS")
    return thresholds_for(dataset) if rule == "paper" else quantile_thresholds(lengths)


def history_lengths(prepared: Prepared, reviewer_ids: Sequence[str]) -> np.ndarray:
    """Count each user's whole sequence, the test item included: that count gives Table 5's shares.

    Returns:
        int64 [num_users], in the order of `reviewer_ids`.

    Raises:
        ValueError: a user is not in the data.
    """
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


def shares(lengths: np.ndarray, thresholds: tuple[int, int] = DEFAULT_THRESHOLDS) -> pd.DataFrame:
    """Users and interactions per segment, beside the paper's Table 5.

    Returns:
        segment, users, user_share, interactions, interaction_share, mean_length; shares in percent.
    """
    lengths = np.asarray(lengths)
    segments = assign(lengths, thresholds)
    members = [lengths[segments == name] for name in SEGMENTS]
    return pd.DataFrame(
        {
            "segment": SEGMENTS,
            "users": [len(part) for part in members],
            "user_share": [100 * len(part) / len(lengths) for part in members],
            "interactions": [int(part.sum()) for part in members],
            "interaction_share": [100 * part.sum() / lengths.sum() for part in members],
            "mean_length": [part.mean() if len(part) else np.nan for part in members],
        }
    )


def by_segment(per_user: pd.DataFrame, segments: np.ndarray) -> pd.DataFrame:
    """Mean and 95 % interval of each metric, overall and per segment.

    Args:
        per_user: one row per user, from `metrics.evaluate`.
        segments: each row's segment.

    Returns:
        segment, metric, value, low, high, num_users, best. `best` marks the segment with the highest mean,
        and only where its lead over each of the others is an interval above zero.
    """
    groups = {"overall": per_user, **{name: per_user[segments == name] for name in SEGMENTS}}
    parts = [summarize(group).assign(segment=name) for name, group in groups.items() if len(group)]
    table = pd.concat(parts, ignore_index=True)
    best = {metric: _supported_best(per_user[metric], segments) for metric in table["metric"].unique()}
    table["best"] = table["segment"] == table["metric"].map(best)
    return table[["segment", "metric", "value", "low", "high", "num_users", "best"]]


def _supported_best(values: pd.Series, segments: np.ndarray) -> str | None:
    """The best segment, if the data can tell it from every other one."""
    groups = {name: values[segments == name].to_numpy() for name in SEGMENTS if (segments == name).sum() > 1}
    best = max(groups, key=lambda name: groups[name].mean(), default=None)
    if best is None or len(groups) < 2:
        return None
    leads = [mean_difference(groups[best], group)[1] > 0 for name, group in groups.items() if name != best]
    return best if all(leads) else None


def mean_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """The difference of the means of two groups of different people, with its 95 % interval (Welch).

    Returns:
        mean(a) - mean(b), low, high.
    """
    difference = float(np.mean(a) - np.mean(b))
    error = NORMAL_95 * float(np.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)))
    return difference, difference - error, difference + error


def paper_table(systems: Mapping[str, pd.DataFrame], segments: np.ndarray, metric: str) -> pd.DataFrame:
    """Tables 6 and 7's layout, with intervals: one row per system, `*` at a best segment that is one.

    Args:
        systems: per-user metrics by name, all on the users of `segments`, in their order.
        segments: each user's segment.
        metric: a column of the per-user tables.
    """
    rows = {}
    for name, per_user in systems.items():
        table = by_segment(per_user, segments).query("metric == @metric").set_index("segment")
        rows[name] = {
            segment: f"{row.value:.4f} [{row.low:.4f}, {row.high:.4f}]{'*' if row.best else ''}"
            for segment, row in table.iterrows()
        }
    return pd.DataFrame.from_dict(rows, orient="index").fillna("no users")


def by_length(per_user: pd.DataFrame, lengths: np.ndarray, metric: str, min_users: int = 30) -> pd.DataFrame:
    """A metric by exact history length; neighbouring lengths are pooled until `min_users` are together.

    Returns:
        length (the users' mean), shortest, longest, value, low, high, num_users: one row per point.
    """
    group = pool_lengths(lengths, min_users)
    rows = []
    for number in np.unique(group):
        members = group == number
        summary = summarize(per_user.loc[members, ["reviewer_id", metric]]).iloc[0]
        own = np.asarray(lengths)[members]
        rows.append(
            {"length": own.mean(), "shortest": own.min(), "longest": own.max()}
            | {key: summary[key] for key in ("value", "low", "high", "num_users")}
        )
    return pd.DataFrame(rows)


def pool_lengths(lengths: np.ndarray, min_users: int) -> np.ndarray:
    """Number the groups of neighbouring lengths that hold at least `min_users` users each.

    >>> pool_lengths(np.array([3, 3, 4, 5, 5, 9]), min_users=2).tolist()
    [0, 0, 1, 1, 1, 1]
    """
    values, counts = np.unique(lengths, return_counts=True)
    groups, size, number = [], 0, 0
    for count in counts.tolist():
        if size >= min_users:
            size, number = 0, number + 1
        groups.append(number)
        size += count
    if number and size < min_users:  # too few are left at the end: they join their neighbours
        groups = [min(group, number - 1) for group in groups]
    return np.array(groups)[np.searchsorted(values, lengths)]


def save_measured(table: pd.DataFrame, dataset: str, path: Path) -> None:
    """Put a real data set's segments into a file of measured results, with source and date.

    Args:
        table: from `by_segment`, with a column `system`.
        dataset: its rows from earlier runs are replaced.
        path: the CSV file.
    """
    about = {"dataset": dataset, "source": REAL_DATA_SOURCE, "date": date.today().isoformat()}
    rows = table.assign(**about)[[*MEASURED_COLUMNS, "source", "date"]].round(6)
    if path.exists():
        old = pd.read_csv(path)
        rows = pd.concat([old[old["dataset"] != dataset], rows], ignore_index=True)
    write_atomically(path, lambda temporary: rows.to_csv(temporary, index=False))


def _checked(thresholds: tuple[int, int]) -> tuple[int, int]:
    low, high = thresholds
    if not low < high:
        raise ValueError(f"thresholds ({low}, {high}): the first must be the smaller one")
    return low, high
