"""Late fusion: several signals score the catalog, and their weighted sum ranks it.

Signals are fitted on the training histories (and the catalog's titles); the weights are fitted on validation users.
No test item takes part in either.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from threading import Lock
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

from . import baselines
from .baselines import STAR_DECAY, STAR_HISTORY, hide_seen, interaction_matrix, item_rows
from .paths import check_choice, check_number
from .retrieval import Hits, blocks, top_k
from .splits import Prepared, Task, load_task, training_histories, user_bounds

FUSION = (
    "text",  # titles close to those of the last three items: STAR's one half
    "cooccurrence",  # bought by the same users: its other half
    "random_walk",  # two hops: to the buyers of an item, to what they bought, and once more
    "transitions",  # a Markov chain: what followed the last item
    "two_step",  # what followed what followed it
    "skip_transitions",  # what came up to six purchases after one of the last five
    "time_decayed",  # what came within days of them, recent purchases first
    "popularity",
)

# Set by hand on Beauty, before Toys; by which users' results is not recorded. Chapter 07 varies four of them.
WALK_NEIGHBOURS = 100  # random_walk keeps an item's closest items only, which is ten times faster
WALK_HISTORY = 5  # random_walk and skip_transitions start from so many items; STAR's 3 is the paper's
SKIP_REACH = 6  # skip_transitions: up to how many purchases later an item still follows
TIME_REACH = 20  # time_decayed: the same, further, since the days between decide there
TIME_DAYS = 10.0  # time_decayed: an item that followed so many days later counts 1/e of one on the same day
TIME_HISTORY, TIME_RANK_DECAY = 10, 0.9  # time_decayed starts from more items, since their age decides there
AGE_DAYS, AGE_FLOOR = 60.0, 0.05  # time_decayed: a user's item counts floor + exp(-age / days)
CANDIDATES = 50  # items per signal on which weights are fitted: about as many as can matter for a list of ten
EXTRA_SHARE = 0.2  # at most one user in five gives up an item for the choice of weights
BLAS, LOCK = ThreadpoolController(), Lock()  # how many threads numpy and scipy take is the whole process's matter
THREADS = 4  # blocks of users ranked at once; each holds a few score matrices


class Signal(Protocol):
    """Anything that scores the whole catalog for some users."""

    def score(self, task: Task) -> np.ndarray:
        """Return a new float32 [num_users, num_items]: higher is better, 0 is "nothing known"."""


@dataclass(frozen=True)
class ItemSignal:
    """Scores from a user's last items: their weights times matrices, then a power."""

    matrices: tuple  # to multiply by in turn, the first [num_items, …], the last […, num_items]
    length: int = 1  # how many of the last items count
    decay: float = STAR_DECAY  # factor per item further back
    power: float = 0.5  # the root tames the long tail of counts; 1 leaves a cosine as it is

    def profile(self, task: Task) -> sp.csr_matrix:
        """The weights of each user's items, float32 [num_users, num_items]."""
        return baselines.recency_weights(task, self.matrices[0].shape[0], self.length, self.decay)

    def score(self, task: Task) -> np.ndarray:
        scores = self._spread(self.profile(task))
        if self.power != 1:
            np.maximum(scores, 0, out=scores)
            scores **= np.float32(self.power)
        return scores

    def _spread(self, weights: sp.csr_matrix) -> np.ndarray:
        scores = reduce(lambda rows, matrix: rows @ matrix, self.matrices, weights)
        return scores.toarray() if sp.issparse(scores) else scores

    def main_purchase(self, task: Task, item: int) -> int:
        """Which purchase of the task's one user, with its weight, gives this item its highest score."""
        weights = self.profile(task)
        purchases = (weights.data, (np.arange(weights.nnz), weights.indices))
        scores = self._spread(sp.csr_matrix(purchases, (weights.nnz, weights.shape[1])))
        return int(weights.indices[scores[:, item].argmax()])


@dataclass(frozen=True)
class TimeDecayed(ItemSignal):
    """Items also count less the longer they are ago, seen from the day of the user's last known purchase."""

    days: Mapping[str, np.ndarray] | None = None  # `splits.purchase_days`; only the dates of seen items are read

    def profile(self, task: Task) -> sp.csr_matrix:
        recent = [items[-self.length :] for items in task.seen_items]
        users = zip(task.reviewer_ids, task.seen_items)
        weights = np.concatenate([self._weights(self.days[str(user)][: len(items)]) for user, items in users])
        return item_rows(recent, weights, self.matrices[0].shape[0])

    def _weights(self, days: np.ndarray) -> np.ndarray:
        days = days[-self.length :]
        return (AGE_FLOOR + np.exp((days - days[-1]) / AGE_DAYS)) * self.decay ** np.arange(len(days))[::-1]


@dataclass(frozen=True)
class Popularity:
    """The logarithm of how often an item was bought (int64 [num_items]), the same for everyone."""

    counts: np.ndarray

    def score(self, task: Task) -> np.ndarray:
        return np.broadcast_to(np.log1p(self.counts).astype(np.float32), (len(task), len(self.counts)))


@dataclass(frozen=True)
class GeneratedTexts:
    """How close an item's title is to the closest text that a model generated for the user."""

    texts: Mapping[str, np.ndarray]  # per reviewer id, unit vectors float32 [num_texts, dimensions], best beam first
    vectors: np.ndarray  # of the catalog, float32 [num_items, dimensions]
    fade: float = 0.9  # factor per later text
    power: float = 4.0  # above 1, near misses count less beside exact titles

    def score(self, task: Task) -> np.ndarray:
        scores = np.zeros((len(task), len(self.vectors)), dtype=np.float32)
        for row, reviewer_id in enumerate(task.reviewer_ids):
            if len(self.texts.get(reviewer_id, ())):
                scores[row] = self.score_texts(reviewer_id).max(axis=0)
        return scores

    def score_texts(self, reviewer_id: str) -> np.ndarray:
        """How close the catalog is to each text of a user, float32 [num_texts, num_items]."""
        beams = self.texts[reviewer_id]
        return np.maximum(beams @ self.vectors.T, 0) ** self.power * self.fade ** np.arange(len(beams))[:, None]


class WeightedSum:
    """A weighted sum of signals, itself a signal; a signal without a weight is not scored."""

    def __init__(self, signals: Mapping[str, Signal], weights: Mapping[str, float]):
        used = {check_choice(name, signals, "signal"): weight for name, weight in weights.items() if weight}
        for name, weight in used.items():
            check_number(weight, f"the weight of '{name}'", -1e9, 1e9, whole=False)
        if not used:
            raise ValueError("every weight is zero: give at least one signal a weight")
        self.parts = [(np.float32(weight), signals[name]) for name, weight in used.items()]

    def score(self, task: Task) -> np.ndarray:
        return sum(weight * signal.score(task) for weight, signal in self.parts)


def transitions(
    histories: Sequence, num_items: int, reach: int = 1, decay: float = STAR_DECAY, days: Sequence | None = None
) -> sp.csr_matrix:
    """Count how often an item was followed by another, float32 [num_items, num_items].

    Args:
        reach: up to how many purchases later; each further one counts `decay` times less.
        days: when each item of these histories was bought; a pair then counts less by the days between (`TIME_DAYS`).
    """
    items, users = np.concatenate(histories), np.repeat(np.arange(len(histories)), [*map(len, histories)])
    dates, pairs = np.zeros(len(items)) if days is None else np.concatenate(days), []
    check_number(len(dates), "the number of dates", len(items), len(items))
    for distance in range(1, reach + 1):
        first = np.flatnonzero(users[distance:] == users[:-distance])  # both are the same user's
        weights = np.full(len(first), decay ** (distance - 1), dtype=np.float32)
        if days is not None:
            weights *= np.exp((dates[first] - dates[first + distance]) / TIME_DAYS).astype(np.float32)
        pairs.append((weights, items[first], items[first + distance]))
    weights, before, after = map(np.concatenate, zip(*pairs))
    return sp.csr_matrix((weights, (before, after)), (num_items, num_items))


def normalize_rows(matrix: sp.csr_matrix, power: float = 1.0) -> sp.csr_matrix:
    """Divide every row by its sum (to a power); an empty row stays empty."""
    # scikit-learn's normalize() knows L1, L2 and max, not the root of a sum
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    return (sp.diags(np.where(sums > 0, sums, 1) ** -power, dtype=np.float32) @ matrix).tocsr()


def normalize_symmetric(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Divide by the roots of the row's and of the column's sum, so that popular items count less."""
    return normalize_rows(normalize_rows(matrix, 0.5).T.tocsr(), 0.5).T.tocsr()


def keep_best(matrix: sp.csr_matrix, per_row: int = WALK_NEIGHBOURS) -> sp.csr_matrix:
    """Keep the largest entries of every row; equal ones go to the lower column."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    kept = order[np.arange(len(rows)) - matrix.indptr[rows] < per_row]
    return sp.csr_matrix((matrix.data[kept], (rows[kept], matrix.indices[kept])), matrix.shape)


def random_walk(histories: Sequence[np.ndarray], num_items: int) -> sp.csr_matrix:
    """One hop of a random walk: from an item to its buyers, to what they bought; the closest items only."""
    bought = interaction_matrix(histories, num_items)
    return keep_best(normalize_rows(bought.T.tocsr()) @ normalize_rows(bought))


def fit_signals(
    histories: Sequence[np.ndarray], vectors: np.ndarray, names: Sequence[str] = FUSION, days: Mapping | None = None
) -> dict[str, Signal]:
    """Fit the named signals on `splits.training_histories` and the titles' unit vectors.

    `time_decayed` needs `days`, from `splits.purchase_days`, with its users in the order of the histories.
    """
    num_items = len(vectors)

    def after(reach: int, **options) -> sp.csr_matrix:
        return normalize_symmetric(transitions(histories, num_items, reach, **options))

    def time_decayed() -> TimeDecayed:
        if len(days or ()) != len(histories):
            counts = f"dates of {len(histories)} histories, got {len(days or ())}"
            raise ValueError(f"time_decayed needs the {counts}: pass days=splits.purchase_days(prepared)")
        known = [dates[: len(items)] for dates, items in zip(days.values(), histories)]
        return TimeDecayed((after(TIME_REACH, decay=1.0, days=known),), TIME_HISTORY, TIME_RANK_DECAY, days=days)

    fits = {
        "text": lambda: ItemSignal((vectors, vectors.T), STAR_HISTORY, power=1),
        "cooccurrence": lambda: ItemSignal((baselines.cooccurrence(histories, num_items),), STAR_HISTORY),
        "random_walk": lambda: ItemSignal((random_walk(histories, num_items),) * 2, WALK_HISTORY),
        "transitions": lambda: ItemSignal((normalize_rows(transitions(histories, num_items)),)),
        "two_step": lambda: ItemSignal((normalize_rows(transitions(histories, num_items)),) * 2),
        "skip_transitions": lambda: ItemSignal((after(SKIP_REACH),), WALK_HISTORY),
        "time_decayed": time_decayed,
        "popularity": lambda: Popularity(baselines.item_counts(histories, num_items)),
    }
    return {name: fits[check_choice(name, FUSION, "signal")]() for name in names}


def fuse(signals: Mapping, weights: Mapping, task: Task, k: int = 10, hidden: Sequence | None = None) -> Hits:
    """Rank the catalog by the weighted sum of signals, k items per user, without the `hidden` ones or the history."""
    total = WeightedSum(signals, weights)

    def rank(part: Task, hide: Sequence) -> Hits:
        scores = total.score(part)
        hide_seen(scores, hide)
        return top_k(scores, k)

    return rank_blocks(rank, task, hidden, total)


def rank_blocks(rank: Callable, task: Task, hidden: Sequence | None, signal: Signal, matrices: int = 1) -> Hits:
    """Join what `rank(users, hidden items)`, which holds so many matrices of scores, finds for blocks of users."""
    hidden = task.seen_items if hidden is None else hidden
    with LOCK, BLAS.limit(limits=1, user_api="blas"):  # beside the pool's threads, its own only wait for each other
        if len(task) == 1:  # to hand out work of a millisecond takes longer than to do it
            return rank(task, hidden)
        order = np.argsort([len(items) for items in task.seen_items], kind="stable")  # SASRec pads to the longest
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:  # numpy and scipy let go of the GIL
            rows = (order[rows] for rows in row_blocks(task, signal, matrices))
            parts = pool.map(lambda part: rank(task.take(part), [hidden[row] for row in part]), rows)
            return Hits(*(np.concatenate(part)[np.argsort(order)] for part in zip(*parts)))


def row_blocks(task: Task, signal: Signal, matrices: int = 1):
    """Cut the users so that a block's scores stay small: memory does not grow with the number of users."""
    num_items = signal.score(task.take(np.arange(1))).shape[1]
    return (np.arange(len(task))[rows] for rows in blocks(len(task), num_items * matrices))


class Candidates(NamedTuple):
    """Each user's candidate items, the held-out one among them, and what the signals say of them."""

    names: tuple[str, ...]  # of the signals
    features: np.ndarray  # float32 [num_rows, num_signals], a row per user and candidate item
    starts: np.ndarray  # int64 [num_users], each user's first row
    bought: np.ndarray  # int64 [num_users], the row of the held-out item
    users: np.ndarray  # int64 [num_users], positions in the task


def nominate(signals: Mapping[str, Signal], task: Task, hidden: Sequence | None = None, per_signal: int = CANDIDATES):
    """Each signal's best items for each user, without the `hidden` ones or the history.

    Returns users (positions in the task, ascending) and items, int64 [num_rows], what each signal says of them,
    float32 [num_rows, num_signals], and the number of items in the catalog.
    """
    scores = [np.require(signal.score(task), requirements="W") for signal in signals.values()]
    num_items = scores[0].shape[1]
    wanted = np.zeros((len(task), num_items + 1), dtype=bool)  # the last column takes empty ranks
    for score in scores:
        hide_seen(score, task.seen_items if hidden is None else hidden)
        np.put_along_axis(wanted, top_k(score, per_signal, floor=0.0).items, True, axis=1)
    users, items = np.nonzero(wanted[:, :-1])
    return users, items, np.stack([score[users, items] for score in scores], axis=1), num_items


def gather_candidates(signals: Mapping[str, Signal], task: Task, per_signal: int = CANDIDATES) -> Candidates:
    """Collect each signal's best unseen items, for the users whose held-out item is then among them.

    The signals must be fitted without these held-out items; the users are validation users, never test users.
    """
    parts = []
    for rows in row_blocks(task, next(iter(signals.values()))):
        part = task.take(rows)
        users, items, features, _ = nominate(signals, part, per_signal=per_signal)
        bought = items == part.targets[users]
        kept = np.isin(users, users[bought])
        parts.append((rows[users[kept]], features[kept], bought[kept]))
    users, features, bought = map(np.concatenate, zip(*parts))
    if not len(users):
        raise ValueError(f"no held-out item of {len(task)} users is among the candidates: raise `per_signal`")
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    return Candidates(tuple(signals), features, starts, np.flatnonzero(bought), users[starts])


def choose_weights(candidates: Candidates, names: Sequence[str] = (), shrink: float = 1e-3) -> dict[str, float]:
    """Minimize the softmax cross-entropy of the users' held-out items among their candidates; no weight is negative.

    scikit-learn's LogisticRegression has neither a softmax over each user's own candidates nor bounds.
    `shrink` is an L2 penalty on the weights, in units of each signal's standard deviation.
    """
    names = tuple(names or candidates.names)
    columns = [candidates.names.index(check_choice(name, candidates.names, "signal")) for name in names]
    features = candidates.features[:, columns].astype(np.float64)
    scale = features.std(axis=0)
    scale[scale < 1e-9] = np.inf  # a constant tells no candidates apart: its weight is 0
    features /= scale
    starts, bought, num_users = candidates.starts, candidates.bought, len(candidates.starts)
    user = np.repeat(np.arange(num_users), np.diff([*starts, len(features)]))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = features @ weights
        scores -= np.maximum.reduceat(scores, starts)[user]
        exponentials = np.exp(scores)
        total = np.add.reduceat(exponentials, starts)
        value = np.log(total).mean() - scores[bought].mean() + shrink * weights @ weights
        expected = (exponentials / total[user]) @ features
        return value, (expected - features[bought].sum(axis=0)) / num_users + 2 * shrink * weights

    best = minimize(loss, np.full(len(names), 0.1), jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(names)).x
    return dict(zip(names, (best / scale).round(4).tolist()))


def extend_validation(
    prepared: Prepared, extra_users: int = 3000, seed: int = 42, share: float = EXTRA_SHARE
) -> tuple[list[np.ndarray], Task]:
    """Add drawn users to the validation users, the last item of whose training part is then held out too.

    At most this `share` of all users is drawn. Returns the training histories without these items, and the task.
    """
    histories, validation = training_histories(prepared), load_task(prepared, "validation")
    reviewer_ids = user_bounds(prepared.interactions)[0].astype(str)
    free = np.array([len(items) > 1 for items in histories]) & ~np.isin(reviewer_ids, validation.reviewer_ids)
    count = min(extra_users, int(len(histories) * share), int(free.sum()))
    drawn = np.sort(np.random.default_rng(seed).permutation(np.flatnonzero(free))[:count])
    seen = [histories[user][:-1] for user in drawn]
    targets = np.concatenate([validation.targets, [histories[user][-1] for user in drawn]]).astype(np.int64)
    for user, items in zip(drawn, seen):
        histories[user] = items
    reviewer_ids = np.concatenate([validation.reviewer_ids, reviewer_ids[drawn]])
    return histories, Task(reviewer_ids, validation.prompts + [""] * count, validation.seen_items + seen, targets)
