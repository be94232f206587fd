"""Per-user metrics, intervals, paired differences, segments, results on disk, and the papers' tables."""

import io
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock

from .paths import PROJECT_ROOT, check_number, digest, read_file, slug, write_atomically
from .splits import Prepared, Task

SYSTEM_KEYS = ["model", "strategy", "retriever", "policy"]
RESULT_KEYS = ["dataset", "split", *SYSTEM_KEYS, "metric"]
BOOTSTRAP_RESAMPLES = 1000
# Users by the length of their history (paper, section 4.2.3 and appendix C)
SEGMENTS = ("cold-start", "regular", "power")
DEFAULT_THRESHOLDS = (5, 14)  # the paper's for Beauty; its others follow
THRESHOLDS = {"beauty": DEFAULT_THRESHOLDS, "toys": (5, 13), "sports": (5, 13)}
PAPER = PROJECT_ROOT / "data" / "paper_results.csv"
MEASURED = PROJECT_ROOT / "data" / "measured_results.csv"


def evaluate(
    ranked: np.ndarray, targets: np.ndarray, ks: Sequence[int] = (5, 10), reviewer_ids: Sequence[str] | None = None
) -> pd.DataFrame:
    """Score each user's list of item numbers, [num_users, width], best first, -1 pads: see `score_ranks`.

    >>> evaluate(np.array([[3, 7, 1]]), np.array([7]), ks=(1, 3)).round(4).to_dict("records")
    [{'recall@1': 0.0, 'ndcg@1': 0.0, 'recall@3': 1.0, 'ndcg@3': 0.6309, 'mrr': 0.5}]
    """
    ranked, targets = np.asarray(ranked), np.asarray(targets)
    if ranked.ndim != 2 or len(ranked) != len(targets):
        raise ValueError(f"ranked must be [num_users, k]: got {ranked.shape} for {len(targets)} targets")
    for name, values in (("ranked", ranked), ("targets", targets)):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} must be item numbers (int): got {values.dtype}, see `prepared.item_numbers`")
    hit = (ranked == targets[:, None]) & (ranked >= 0)
    return score_ranks(np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0), ks, reviewer_ids)


def score_ranks(
    ranks: np.ndarray, ks: Sequence[int] = (5, 10), reviewer_ids: Sequence[str] | None = None
) -> pd.DataFrame:
    """Turn the target's rank in each user's list (0: not in it) into recall@k, ndcg@k and mrr, one row per user.

    Recall@k is 1 if the rank is at most k, NDCG@k is 1 / log2(rank + 1) there, MRR is 1 / rank over the whole list.
    """
    ranks = np.asarray(ranks)
    for k in ks:
        check_number(k, "a cutoff of ks", 1)
    columns = {} if reviewer_ids is None else {"reviewer_id": np.asarray(reviewer_ids, dtype=object)}
    for k in ks:
        within = (ranks > 0) & (ranks <= k)
        columns[f"recall@{k}"] = within.astype(float)
        columns[f"ndcg@{k}"] = np.where(within, 1.0 / np.log2(np.maximum(ranks, 1) + 1.0), 0.0)
    columns["mrr"] = np.where(ranks > 0, 1.0 / np.maximum(ranks, 1), 0.0)
    return pd.DataFrame(columns)


def metric_columns(per_user: pd.DataFrame) -> list[str]:
    return [column for column in per_user.columns if column != "reviewer_id"]


def _bootstrap_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Means of resampled users, [BOOTSTRAP_RESAMPLES, num_columns].

    Not scipy.stats.bootstrap, which draws every user every time: users with equal rows are interchangeable, so
    drawing how often each distinct row occurs is the same bootstrap, fast for any number of users.
    """
    rows, counts = np.unique(values, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=BOOTSTRAP_RESAMPLES)
    return draws @ rows / len(values)


def summarize(per_user: pd.DataFrame, seed: int = 42) -> pd.DataFrame:
    """Mean and 95 % bootstrap interval over users: metric, value, low, high, num_users."""
    names = metric_columns(per_user)
    if per_user.empty:
        raise ValueError("there are no users to summarize")
    values = per_user[names].to_numpy(dtype=float)
    low, high = np.quantile(_bootstrap_means(values, seed), [0.025, 0.975], axis=0)
    summary = {"metric": names, "value": values.mean(axis=0), "low": low, "high": high}
    return pd.DataFrame(summary).assign(num_users=len(values))


def compare(per_user_a: pd.DataFrame, per_user_b: pd.DataFrame, seed: int = 42) -> pd.DataFrame:
    """Paired difference a - b on the same users, with its 95 % bootstrap interval, for each metric that both have."""
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


def history_lengths(prepared: Prepared, reviewer_ids: Sequence[str]) -> np.ndarray:
    """Count each user's whole sequence, int64 [num_users]; the test item counts too, as in Table 5's shares."""
    counts = prepared.interactions["reviewer_id"].value_counts().reindex(list(reviewer_ids))
    if counts.isna().any():
        raise ValueError(f"user '{counts.index[counts.isna()][0]}' has no interactions in '{prepared.dataset}'")
    return counts.to_numpy(dtype=np.int64)


def assign_segments(lengths: np.ndarray, thresholds: tuple[int, int] = DEFAULT_THRESHOLDS) -> np.ndarray:
    """Name each user's segment: n <= low is cold-start, n > high is power, the rest is regular."""
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
    return best if others and all(mean_difference(groups[best], group)[1] > 0 for group in others) else None


def mean_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """mean(a) - mean(b) of two groups of different people, then low and high of its 95 % interval (Welch)."""
    difference = float(np.mean(a) - np.mean(b))
    error = 1.96 * float(np.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)))
    return difference, difference - error, difference + error


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


# The words of `name_system`; what is not here is its own name.
WORDS = {
    "none": "",
    "random": "random items",
    "popularity-weighted": "random by popularity",
    "most-popular": "most popular",
    "repeat-last": "last item again",
    "lis": "LIS",
    "star": "STAR",
    "sasrec": "SASRec",
    "beam5": "5 beams",
    "beam5mean": "5 beams by mean log-probability",
    "constrained5": "5 constrained beams",
    "calrec32": "32 samples",
    "bm25": "BM25",
    "minilm": "MiniLM",
    "keep-seen": "seen kept",
    "drop-seen": "seen dropped",
    "drop-query": "query dropped",
    "score": "by score",
    "beam_order": "beam order",
    "unseen": "one unseen item per text",
    "round_robin": "round robin",
    "rrf": "reciprocal rank fusion",
    "calrec": "CALRec-style",
}


def name_system(system: System) -> str:
    """Name a system in words. GLoSS is the paper's own: beams, the best hit of each by score, seen items kept.

    >>> name_system(System("tiny-llama", "beam5", "dense-minilm", "score"))
    'GLoSS (tiny-llama) · MiniLM'
    """
    if system.model == "fusion":  # its policy says all; its retriever is the encoder of the text signal
        return system.policy
    encoder = system.retriever.removeprefix("dense-").removeprefix("hybrid-")
    retriever = ("BM25 + " if system.retriever.startswith("hybrid-") else "") + WORDS.get(encoder, encoder)
    if (system.strategy, system.policy) == ("beam5", "score"):
        return f"GLoSS ({system.model}) · {retriever}"
    policy, dropped, _ = system.policy.partition("-drop-seen")
    words = (system.model, system.strategy.replace("temp", "samples at "), retriever, policy, dropped[1:])
    return " · ".join(WORDS.get(word, word) for word in words if word not in ("none", ""))


def name_systems(results: pd.DataFrame) -> pd.Series:
    """Name the system of each row of results.csv."""
    names = [name_system(System(*map(str, row))) for row in results[SYSTEM_KEYS].itertuples(index=False)]
    return pd.Series(names, index=results.index, dtype=object)


def upsert_rows(path: Path, rows: pd.DataFrame, keys: Sequence[str]) -> None:
    """Put rows into a CSV file for those that agree in all `keys`; others keep their digits. Writers take turns."""
    with FileLock(Path(tempfile.gettempdir()) / f"gloss-{digest(str(path.resolve()))}.lock"):
        if path.exists() and b"\n" in path.read_bytes():  # without one, a stop left nothing whole
            read = partial(read_results, keys=keys, dtype=str, keep_default_na=False)
            old = read_file(path, read, "delete it and run notebooks 02, 05 and 07")
            replaced = pd.MultiIndex.from_frame(rows[keys].astype(str))
            old = old[~pd.MultiIndex.from_frame(old[keys]).isin(replaced)]
            rows = pd.concat([old, rows]) if len(old) else rows
        write_atomically(path, lambda temporary: rows.to_csv(temporary, index=False))


def save_results(
    prepared: Prepared,
    split: str,
    system: System,
    ranked: np.ndarray,
    scores: np.ndarray | None,
    task: Task,
    ks: Sequence[int] = (5, 10),
) -> pd.DataFrame:
    """Write a system's ranking, its per-user metrics (returned), and its summary into results.csv.

    `ranked` and `scores` are [num_users, k], -1 pads; without scores 1 / rank is kept. `ks` are the cutoffs.
    """
    per_user = evaluate(ranked, task.targets, ks, task.reviewer_ids)
    paths = prepared.paths
    ranking = _ranking_table(prepared, np.asarray(ranked), scores, task)
    write_atomically(paths.ranking(split, system.name), lambda path: ranking.to_parquet(path, index=False))
    write_atomically(paths.metrics(split, system.name), lambda path: per_user.to_parquet(path, index=False))
    about = {"dataset": prepared.dataset, "split": split, **asdict(system)}
    summary = summarize(per_user).assign(**about)[[*RESULT_KEYS, "value", "low", "high", "num_users"]]
    upsert_rows(paths.results, summary, RESULT_KEYS[:-1])  # whatever metrics an earlier run had
    return per_user


def _ranking_table(prepared: Prepared, ranked: np.ndarray, scores: np.ndarray | None, task: Task) -> pd.DataFrame:
    users, places = np.nonzero(ranked >= 0)
    values = 1.0 / (places + 1) if scores is None else np.asarray(scores)[users, places]
    ids = np.asarray(task.reviewer_ids, dtype=object)
    asins = prepared.catalog["asin"].to_numpy()[ranked[users, places]]
    return pd.DataFrame(
        {"reviewer_id": ids[users], "rank": places + 1, "asin": asins, "score": values.astype(np.float32)}
    )


def load_metrics(prepared: Prepared, split: str, system: System) -> pd.DataFrame:
    """Read the per-user metrics that `save_results` wrote."""
    return prepared.paths.read(prepared.paths.metrics(split, system.name), "metrics", pd.read_parquet)


def read_results(path: Path, keys: Sequence[str] = RESULT_KEYS, **options) -> pd.DataFrame:
    """Read the whole lines of a results.csv; a KeyError names a key column that its header lacks."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # of a line that was cut short, the runner runs the notebook again
    table = pd.read_csv(io.StringIO(whole), **options)
    itemgetter(*keys)(table)
    return table


def load_results(prepared: Prepared) -> pd.DataFrame:
    """Read results.csv."""
    return prepared.paths.read(prepared.paths.results, "results", read_results)


def load_paper() -> pd.DataFrame:
    """Read the papers' tables: table, method, group, dataset, metric, value, source, grade, comparable, note."""
    return pd.read_csv(PAPER, dtype={"table": str}, keep_default_na=False)


def load_measured(dataset: str) -> pd.DataFrame:
    """Read our results on a real dataset: the columns of results.csv, then command, source, date and note."""
    table = pd.read_csv(MEASURED, keep_default_na=False)
    return table[table["dataset"] == dataset].reset_index(drop=True)
