"""The papers' tables and our own results, side by side where that is fair."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from .paths import PROJECT_ROOT, slug, write_atomically

RESULT_KEYS = ["dataset", "split", "model", "strategy", "retriever", "policy", "metric"]
BOOTSTRAP_RESAMPLES = 1000
MEASURED = PROJECT_ROOT / "data" / "measured_results.csv"
REAL_DATA_SOURCE = "Amazon 2014 rebuilt from public derivatives; titles matched automatically"


def evaluate(
    ranked: np.ndarray,
    targets: np.ndarray,
    ks: Sequence[int] = (5, 10),
    reviewer_ids: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Score a ranked list per user.

    Recall@k is 1 if the target is among the first k, NDCG@k is 1 / log2(rank + 1) there, else 0. MRR is
    1 / rank over the list as given. A list shorter than k is scored on what it has.

    Args:
        ranked: int64 [num_users, width], item numbers best first; -1 pads.
        targets: int64 [num_users].
        ks: cut-offs.
        reviewer_ids: [num_users], kept as a column when given.

    Returns:
        DataFrame, one row per user: [reviewer_id,] recall@k, ndcg@k for each k, mrr.

    >>> evaluate(np.array([[3, 7, 1]]), np.array([7]), ks=(1, 3)).round(4).to_dict("records")
    [{'recall@1': 0.0, 'ndcg@1': 0.0, 'recall@3': 1.0, 'ndcg@3': 0.6309, 'mrr': 0.5}]
    """
    ranked, targets = np.asarray(ranked), np.asarray(targets)
    if ranked.ndim != 2 or len(ranked) != len(targets):
        raise ValueError(f"ranked must be [num_users, k]: got {ranked.shape} for {len(targets)} targets")
    hit = (ranked == targets[:, None]) & (ranked >= 0)
    rank = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0)
    columns = {}
    for k in ks:
        within = (rank > 0) & (rank <= k)
        columns[f"recall@{k}"] = within.astype(float)
        columns[f"ndcg@{k}"] = np.where(within, 1.0 / np.log2(np.maximum(rank, 1) + 1.0), 0.0)
    columns["mrr"] = np.where(rank > 0, 1.0 / np.maximum(rank, 1), 0.0)
    per_user = pd.DataFrame(columns)
    if reviewer_ids is not None:
        per_user.insert(0, "reviewer_id", np.asarray(reviewer_ids, dtype=object))
    return per_user


def metric_columns(per_user: pd.DataFrame) -> list[str]:
    return [column for column in per_user.columns if column != "reviewer_id"]


def _bootstrap_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Means of resampled users, [BOOTSTRAP_RESAMPLES, num_columns].

    Users with equal rows are interchangeable, so drawing how often each *distinct* row occurs is the same
    bootstrap, and there are only a handful of them: fast for any number of users.
    """
    rows, counts = np.unique(values, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(values), counts / len(values), size=BOOTSTRAP_RESAMPLES)
    return draws @ rows / len(values)


def summarize(per_user: pd.DataFrame, seed: int = 42) -> pd.DataFrame:
    """Mean of every metric, with a 95 % bootstrap interval over users.

    Returns:
        DataFrame: metric, value, low, high, num_users.
    """
    names = metric_columns(per_user)
    if per_user.empty:
        raise ValueError("there are no users to summarize")
    values = per_user[names].to_numpy(dtype=float)
    low, high = np.quantile(_bootstrap_means(values, seed), [0.025, 0.975], axis=0)
    summary = {"metric": names, "value": values.mean(axis=0), "low": low, "high": high}
    return pd.DataFrame(summary).assign(num_users=len(values))


def compare(per_user_a: pd.DataFrame, per_user_b: pd.DataFrame, seed: int = 42) -> pd.DataFrame:
    """Difference a - b of every metric both have, on the same users, with a paired 95 % interval.

    Where the interval excludes zero, the difference is one.

    Returns:
        DataFrame: metric, a, b, difference, low, high, num_users.

    Raises:
        ValueError: the two are not of the same users.
    """
    per_user_b = _same_users(per_user_a, per_user_b)
    names = [name for name in metric_columns(per_user_a) if name in per_user_b.columns]
    a, b = (table[names].to_numpy(dtype=float) for table in (per_user_a, per_user_b))
    low, high = np.quantile(_bootstrap_means(a - b, seed), [0.025, 0.975], axis=0)
    table = {"metric": names, "a": a.mean(axis=0), "b": b.mean(axis=0), "difference": (a - b).mean(axis=0)}
    return pd.DataFrame(table | {"low": low, "high": high}).assign(num_users=len(a))


def _same_users(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Return `b` in the order of `a`'s users."""
    if "reviewer_id" in a and "reviewer_id" in b:
        b = b.set_index("reviewer_id")
        if len(a) != len(b) or not a["reviewer_id"].isin(b.index).all():
            raise ValueError("the two systems were not measured on the same users: keep the common ones first")
        return b.loc[a["reviewer_id"]].reset_index()
    if len(a) != len(b):
        raise ValueError(f"{len(a)} users against {len(b)}: a paired comparison needs the same users")
    return b


@dataclass(frozen=True)
class System:
    """What produced a ranking, in the four words that results.csv uses."""

    model: str
    strategy: str = "none"
    retriever: str = "none"
    policy: str = "none"

    @property
    def name(self) -> str:
        """The name of its files: model__strategy__retriever__policy."""
        return "__".join(slug(part) for part in (self.model, self.strategy, self.retriever, self.policy))


def save_results(
    prepared: "Prepared",  # noqa: F821
    split: str,
    system: System,
    ranked: np.ndarray,
    scores: np.ndarray | None,
    task: "Task",  # noqa: F821
    ks: tuple[int, ...] = (5, 10),
) -> pd.DataFrame:
    """Write a system's ranking and per-user metrics, and put its summary into results.csv.

    Args:
        prepared: the dataset.
        split: "test" or "validation".
        system: what made the ranking.
        ranked: int64 [num_users, k]; -1 pads.
        scores: float [num_users, k]; None where the system has none (1 / rank is kept).
        task: whose users and targets these are.
        ks: cut-offs; leave out those that the lists are too short for.

    Returns:
        The per-user metrics.
    """
    per_user = evaluate(ranked, task.targets, ks, reviewer_ids=task.reviewer_ids)
    ranking = _ranking_table(prepared, np.asarray(ranked), scores, task)
    paths = prepared.paths
    write_atomically(paths.ranking(split, system.name), lambda path: ranking.to_parquet(path, index=False))
    write_atomically(paths.metrics(split, system.name), lambda path: per_user.to_parquet(path, index=False))
    about = {"dataset": prepared.dataset, "split": split, "model": system.model, "strategy": system.strategy}
    about |= {"retriever": system.retriever, "policy": system.policy}
    _upsert(paths.results, summarize(per_user).assign(**about))
    return per_user


def _ranking_table(prepared, ranked: np.ndarray, scores: np.ndarray | None, task) -> pd.DataFrame:
    users, places = np.nonzero(ranked >= 0)
    values = 1.0 / (places + 1) if scores is None else np.asarray(scores)[users, places]
    ids = np.asarray(task.reviewer_ids, dtype=object)
    asins = prepared.catalog["asin"].to_numpy()[ranked[users, places]]
    return pd.DataFrame(
        {"reviewer_id": ids[users], "rank": places + 1, "asin": asins, "score": values.astype(np.float32)}
    )


def _upsert(path: Path, rows: pd.DataFrame) -> None:
    """Replace a system's rows of results.csv, whatever metrics it had, and keep the others."""
    rows, system = rows[RESULT_KEYS + ["value", "low", "high", "num_users"]], RESULT_KEYS[:-1]
    if path.exists():
        old = pd.read_csv(path)
        rows = pd.concat([_without(old, rows, system), rows])
    write_atomically(path, lambda target: rows.to_csv(target, index=False))


def _without(old: pd.DataFrame, new: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The rows of `old` whose keys are not among those of `new`."""
    replaced = pd.MultiIndex.from_frame(new[keys].astype(str))
    return old[~pd.MultiIndex.from_frame(old[keys].astype(str)).isin(replaced)]


def load_metrics(prepared: "Prepared", split: str, system: System) -> pd.DataFrame:  # noqa: F821
    """Read the per-user metrics that `record` wrote."""
    path = prepared.paths.metrics(split, system.name)
    return pd.read_parquet(prepared.paths.require(path, "metrics"))


def load_results(prepared: "Prepared") -> pd.DataFrame:  # noqa: F821
    """Read results.csv."""
    return pd.read_csv(prepared.paths.require(prepared.paths.results, "results"))


def append_measured(
    rows: pd.DataFrame, command: str, note: str = "", path: Path = MEASURED, source: str = REAL_DATA_SOURCE
) -> None:
    """Put results on real data into data/measured_results.csv, with where they come from.

    Args:
        rows: as in results.csv.
        command: what to run to get them again.
        note: anything a reader should know.
    """
    rows = rows.assign(command=command, source=source, date=date.today().isoformat(), note=note)
    rows = rows[RESULT_KEYS + ["value", "low", "high", "num_users", "command", "source", "date", "note"]]
    old = pd.read_csv(path, keep_default_na=False) if path.exists() else rows.iloc[:0]
    old = _without(old, rows, RESULT_KEYS)
    write_atomically(path, lambda target: pd.concat([old, rows]).to_csv(target, index=False))


PAPER = PROJECT_ROOT / "data" / "paper_results.csv"
SYSTEM = ["model", "strategy", "retriever", "policy"]
VALUES = ["value", "low", "high", "num_users", "command", "source", "date", "note"]
FLOOR = ("random", "most-popular", "popularity-weighted", "repeat-last")
OVERALL_TABLES = ("1", "2", "8", "field")  # one row per system; the others split by retriever, segment, strategy
TEST_USERS = {"beauty": 22_363, "toys": 19_406, "sports": 35_597}  # the paper's Table 4
# How a policy says that ties were not in the field's order, or that it reads that order off as a signal.
OTHER_TIES = "shuffled|reverse|after_last"


def load_paper() -> pd.DataFrame:
    """Read the papers' tables: table, method, group, dataset, metric, value, source, grade, comparable, note."""
    return pd.read_csv(PAPER, dtype={"table": str}, keep_default_na=False)


def load_measured(dataset: str) -> pd.DataFrame:
    """Read our results on a real dataset, with command, source, date and note; empty where there are none."""
    if not MEASURED.exists():
        return pd.DataFrame(columns=[*RESULT_KEYS, *VALUES])
    table = pd.read_csv(MEASURED, keep_default_na=False)
    return table[table["dataset"] == dataset].reset_index(drop=True)


def name_systems(results: pd.DataFrame) -> pd.Series:
    """One readable name per row out of model, strategy, retriever and policy; "none" is left out."""
    rows = results[SYSTEM].astype(str).itertuples(index=False)
    names = [" · ".join(part for part in row if part not in ("none", "nan", "")) for row in rows]
    return pd.Series(names, index=results.index, dtype=object)


def published(paper: pd.DataFrame, dataset: str, metric: str) -> pd.DataFrame:
    """Every published system once, on one dataset and metric.

    A system that several tables print is taken from the first of them; the tables agree (there is a test).
    """
    rows = paper[(paper["dataset"] == dataset) & (paper["metric"] == metric) & paper["table"].isin(OVERALL_TABLES)]
    return rows.drop_duplicates("method").reset_index(drop=True)


def same_protocol(measured: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Keep our rows that may stand beside the papers': all test users, ties by asin and not used as a signal."""
    rows = measured[(measured["split"] == "test") & (measured["metric"] == metric)]
    everyone = rows["num_users"].astype(float) >= 0.99 * rows["dataset"].map(TEST_USERS)
    return rows[everyone & ~rows["policy"].str.contains(OTHER_TIES)].reset_index(drop=True)


def worth_drawing(ours: pd.DataFrame) -> pd.DataFrame:
    """Keep the best of each kind of system, LIS as the paper runs it, and STAR with transitions.

    Args:
        ours: from `same_protocol`. The floor (chance, popularity, the last item again) is left to the tables.
    """
    rows = ours[~ours["model"].isin(FLOOR)].sort_values("value", ascending=False)
    named = (rows["policy"] == "STAR + ½ next") | ((rows["retriever"] == "bm25") & (rows["policy"] == "keep-seen"))
    return rows[~rows["model"].duplicated() | named].reset_index(drop=True)


def side_by_side(paper: pd.DataFrame, measured: pd.DataFrame, groups: list[str]) -> pd.DataFrame:
    """Stack published systems of some groups and our own, for `plotting.scoreboard`.

    Args:
        paper: from `published`; rows that are not comparable are left out.
        measured: from `same_protocol`.
        groups: of the paper's systems.
    """
    theirs = paper[paper["group"].isin(groups) & (paper["comparable"] == "yes")]
    theirs = theirs.assign(label=theirs["method"], kind=theirs["group"])
    ours = measured.assign(label=name_systems(measured), kind="ours, this repository")
    columns = ["label", "kind", "value", "low", "high"]
    parts = [part.reindex(columns=columns).astype(dict.fromkeys(columns[2:], float)) for part in (theirs, ours)]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)
