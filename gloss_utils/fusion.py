"""Add signals up into one ranking, with weights chosen on users whose test item is not touched."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from scipy.linalg import lapack
from scipy.optimize import minimize

from .baselines import (
    STAR_DECAY,
    STAR_HISTORY,
    cooccurrence,
    hide_seen,
    interaction_matrix,
    item_counts,
    item_rows,
    recency_weights,
)
from .paths import check_choice
from .retrieval import Hits, blocks, top_k
from .splits import Prepared, Task, load_task, training_histories, user_bounds

EASE_PENALTY = 200.0  # pulls the weights of rarely bought items to zero
AHEAD_REACH = 6  # how many purchases later still counts as "bought after"
SOON_REACH = 20  # the same, where what counts is how many days later
SOON_DAYS = 10.0  # a purchase so many days later tells a third as much (1/e) as one on the same day
FRESH_DAYS = 60.0  # likewise, for how long ago an item of the user was bought
OLD_SHARE = 0.05  # what an item tells however long ago it was bought
WALK_NEIGHBOURS = 100  # a walk goes on to an item's closest ones only, which is ten times faster
WALK_HISTORY = 5  # items that walks and "ahead" start from


class Signal(Protocol):
    """Anything that scores the whole catalog for some users."""

    def score(self, task: Task) -> np.ndarray:
        """Return float32 [num_users, num_items]: higher is better, 0 is "nothing known"."""


@dataclass(frozen=True)
class ItemSignal:
    """Scores from a user's last items: weights times matrices, then a root.

    Attributes:
        chain: matrices to go through, the first of [num_items, …], the last of […, num_items].
        length: how many of the last items speak.
        decay: how much less each earlier one counts.
        power: 0.5 takes the root of a count-like score; 1 leaves a cosine as it is.
    """

    chain: tuple
    length: int = 1
    decay: float = STAR_DECAY
    power: float = 0.5

    @property
    def matrices(self) -> tuple:
        """What must be kept in memory."""
        return self.chain

    def score(self, task: Task) -> np.ndarray:
        recent = recency_weights(task, self.chain[0].shape[0], self.length, self.decay)
        scores = reduce(lambda row, matrix: row @ matrix, self.chain, recent)
        scores = scores.toarray() if sp.issparse(scores) else scores
        if self.power != 1:
            np.maximum(scores, 0, out=scores)
            scores **= np.float32(self.power)
        return scores


@dataclass(frozen=True)
class SoonAfter:
    """What others bought within days of the user's items, which count less the longer ago they were bought.

    "Now" is the day of the user's last known purchase, so nothing of the held-out item is used.

    Attributes:
        following: float32 [num_items, num_items], from `transitions` with days.
        days: per reviewer id, the dates of all purchases (`splits.purchase_days`); only those of seen items are read.
        length: how many of the last items speak.
        decay: how much less each earlier one counts, beside its age.
    """

    following: sp.csr_matrix
    days: Mapping[str, np.ndarray]
    length: int = 10
    decay: float = 0.9

    @property
    def matrices(self) -> tuple:
        """What must be kept in memory."""
        return (self.following,)

    def score(self, task: Task) -> np.ndarray:
        recent = [items[-self.length :] for items in task.seen_items]
        weights = [
            self._weights(self.days[str(reviewer_id)][: len(items)])
            for reviewer_id, items in zip(task.reviewer_ids, task.seen_items)
        ]
        listening = item_rows(recent, np.concatenate(weights), self.following.shape[0])
        scores = (listening @ self.following).toarray()
        return np.sqrt(scores, out=scores)

    def _weights(self, days: np.ndarray) -> np.ndarray:
        days = days[-self.length :]
        fresh = OLD_SHARE + np.exp((days - days[-1]) / FRESH_DAYS)
        return fresh * self.decay ** np.arange(len(days))[::-1]


@dataclass(frozen=True)
class Popularity:
    """The logarithm of how often an item was bought, the same for everyone.

    Attributes:
        counts: int64 [num_items], in the training part.
    """

    counts: np.ndarray

    def score(self, task: Task) -> np.ndarray:
        return np.broadcast_to(np.log1p(self.counts).astype(np.float32), (len(task), len(self.counts)))


@dataclass(frozen=True)
class AfterLast:
    """1 for the items whose asin comes after that of the user's last one.

    This is no taste. Dates are whole days and the field orders a day's purchases by asin, so the held-out
    item of a busy last day has a higher asin than the one before. Under shuffled ties it knows nothing.

    Attributes:
        asin_rank: [num_items], each item's place in asin order: `catalog["asin"].rank().to_numpy()`.
    """

    asin_rank: np.ndarray

    def score(self, task: Task) -> np.ndarray:
        last = np.array([items[-1] for items in task.seen_items])
        return (self.asin_rank > self.asin_rank[last][:, None]).astype(np.float32)


@dataclass(frozen=True)
class GeneratedTexts:
    """How close an item's title is to the closest text that a model wrote for the user.

    Attributes:
        texts: per reviewer id, unit vectors float32 [num_texts, dimensions] in beam order.
        vectors: of the catalog, float32 [num_items, dimensions].
        fade: how much less each later text counts.
        power: above 1, near misses count less beside exact titles.
    """

    texts: Mapping[str, np.ndarray]
    vectors: np.ndarray
    fade: float = 0.9
    power: float = 4.0

    def score(self, task: Task) -> np.ndarray:
        scores = np.zeros((len(task), len(self.vectors)), dtype=np.float32)
        for row, reviewer_id in enumerate(task.reviewer_ids):
            beams = self.texts.get(reviewer_id)
            if beams is not None and len(beams):
                close = np.maximum(beams @ self.vectors.T, 0) ** self.power
                scores[row] = (close * self.fade ** np.arange(len(beams))[:, None]).max(axis=0)
        return scores


def transitions(
    histories: Sequence[np.ndarray],
    num_items: int,
    reach: int = 1,
    decay: float = STAR_DECAY,
    days: Sequence[np.ndarray] | None = None,
) -> sp.csr_matrix:
    """Count how often an item was followed by another, float32 [num_items, num_items].

    Args:
        histories: item numbers per user in time order, of the training part only.
        num_items: of the catalog.
        reach: up to how many purchases later.
        decay: how much less each further purchase counts.
        days: when each item was bought; then a follower fades with the days between (`SOON_DAYS`).
    """
    before, after, weights = [], [], []
    for distance in range(1, reach + 1):
        before += [items[:-distance] for items in histories]
        after += [items[distance:] for items in histories]
        pairs = sum(max(0, len(items) - distance) for items in histories)
        weights.append(np.full(pairs, decay ** (distance - 1), dtype=np.float32))
        if days is not None:
            between = np.concatenate([dates[distance:] - dates[:-distance] for dates in days])
            weights[-1] *= np.exp(-between / SOON_DAYS).astype(np.float32)
    cells = (np.concatenate(weights), (np.concatenate(before), np.concatenate(after)))
    return sp.csr_matrix(cells, (num_items, num_items))


def by_rows(matrix: sp.csr_matrix, power: float = 1.0) -> sp.csr_matrix:
    """Divide every row by its sum (to a power); an empty row stays empty."""
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    return (sp.diags(np.where(sums > 0, sums, 1) ** -power, dtype=np.float32) @ matrix).tocsr()


def keep_best(matrix: sp.csr_matrix, per_row: int = WALK_NEIGHBOURS) -> sp.csr_matrix:
    """Keep the largest entries of every row; equal ones go to the lower column."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    kept = order[np.arange(len(rows)) - matrix.indptr[rows] < per_row]
    return sp.csr_matrix((matrix.data[kept], (rows[kept], matrix.indices[kept])), matrix.shape)


def ease(histories: Sequence[np.ndarray], num_items: int, penalty: float = EASE_PENALTY) -> np.ndarray:
    """EASE: the item-to-item weights that best rebuild every user's row from its other items.

    Closed form, no training loop: with P the inverse of (XᵀX + penalty), the weights are -P[i, j] / P[j, j],
    and 0 on the diagonal. One matrix of num_items² float32 is held, and inverted in place.

    Source: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data" (WWW 2019).
    """
    bought = interaction_matrix(histories, num_items)
    weights = (bought.T @ bought).toarray()
    weights[np.diag_indices(num_items)] += penalty
    # the matrix is symmetric, so LAPACK may work in its transpose: a Fortran array without a copy
    factor, failed = lapack.spotrf(weights.T, lower=1, clean=0, overwrite_a=1)
    if failed:
        raise ValueError(f"EASE cannot invert its matrix with penalty={penalty}: take a positive one")
    inverse = lapack.spotri(factor, lower=1, overwrite_c=1)[0].T  # only its upper triangle is filled
    for start in range(0, num_items, 1024):
        rows = slice(start, start + 1024)
        block = inverse[rows, rows]
        block[:] = np.triu(block) + np.triu(block, 1).T
        inverse[start + 1024 :, rows] = inverse[rows, start + 1024 :].T
    diagonal = inverse.diagonal().copy()
    inverse /= -diagonal
    inverse[np.diag_indices(num_items)] = 0
    return inverse


def by_both(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Divide by the roots of the row's and of the column's sum, so that popular items do not drown the rest."""
    return by_rows(by_rows(matrix, 0.5).T.tocsr(), 0.5).T.tocsr()


def _text(histories, vectors, days):
    return ItemSignal((vectors, vectors.T), STAR_HISTORY, power=1)


def _together(histories, vectors, days):
    return ItemSignal((cooccurrence(histories, len(vectors)),), STAR_HISTORY)


def _walk(histories, vectors, days):
    bought = interaction_matrix(histories, len(vectors))
    there_and_back = by_rows(bought.T.tocsr()) @ by_rows(bought)  # from an item to its buyers to their items
    return ItemSignal((keep_best(there_and_back),) * 2, WALK_HISTORY)


def _next(histories, vectors, days):
    return ItemSignal((by_rows(transitions(histories, len(vectors))),))


def _two_step(histories, vectors, days):
    return ItemSignal((by_rows(transitions(histories, len(vectors))),) * 2)


def _ahead(histories, vectors, days):
    return ItemSignal((by_both(transitions(histories, len(vectors), AHEAD_REACH)),), WALK_HISTORY)


def _soon(histories, vectors, days):
    if days is None or len(days) != len(histories):
        raise ValueError(
            f"signal 'soon' needs the dates of {len(histories)} histories, "
            f"got {0 if days is None else len(days)}: pass days=splits.purchase_days(prepared)"
        )
    known = [dates[: len(items)] for dates, items in zip(days.values(), histories)]
    followers = transitions(histories, len(vectors), SOON_REACH, decay=1.0, days=known)
    return SoonAfter(by_both(followers), days)


def _ease(histories, vectors, days):
    return ItemSignal((ease(histories, len(vectors)),), STAR_HISTORY)


# The default sum: all but EASE, which is large.
FUSION = ("text", "together", "walk", "next", "two_step", "ahead", "soon", "popularity")

# What there is to choose from; each is built from the training part and the catalog's vectors alone.
SIGNALS = {
    "text": _text,  # STAR's half: titles close to those of the last three items
    "together": _together,  # STAR's other half: bought by the same users
    "walk": _walk,  # to the buyers of an item, to what they bought, and once more
    "next": _next,  # what followed the last item
    "two_step": _two_step,  # what followed what followed it
    "ahead": _ahead,  # what came up to six purchases after one of the last five
    "soon": _soon,  # what came within days of them, where a purchase of long ago says little
    "ease": _ease,  # a linear model of whole histories, in closed form; num_items² memory
    "popularity": lambda histories, vectors, days: Popularity(item_counts(histories, len(vectors))),
}


def fit_signals(
    histories: Sequence[np.ndarray],
    vectors: np.ndarray,
    names: Sequence[str],
    days: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Signal]:
    """Count what the named signals need.

    Args:
        histories: from `splits.training_histories`.
        vectors: unit vectors of the catalog's texts, float32 [num_items, dimensions].
        names: of `SIGNALS`.
        days: from `splits.purchase_days`, its users in the order of the histories; `soon` needs it.

    Raises:
        ValueError: a name is not known, or `soon` is asked for without days.
    """
    return {name: SIGNALS[check_choice(name, SIGNALS, "signal")](histories, vectors, days) for name in names}


PER_SIGNAL = 50  # items that each signal may bring in when weights are chosen
THREADS = 4  # blocks of users ranked at once; each holds a few score matrices
EXTRA_SHARE = 5  # at most one user in five gives up an item for the choice of weights


def fuse(signals: Mapping[str, Signal], weights: Mapping[str, float], task: Task, k: int = 10) -> Hits:
    """Rank the catalog by the weighted sum of signals; items of the history are not recommended.

    Args:
        signals: by name.
        weights: by name; a signal without one is not asked.
        task: whom to recommend to.
        k: items per user.

    Raises:
        ValueError: a weight names a signal that is not there.
    """
    total = Sum(signals, weights)

    def rank(rows: np.ndarray) -> Hits:
        part = task.take(rows)
        scores = total.score(part)
        hide_seen(scores, part.seen_items)
        return top_k(scores, k)

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:  # numpy and scipy let go of the GIL
        parts = list(pool.map(rank, _row_blocks(task, total)))
    return Hits(*map(np.concatenate, zip(*parts)))


class Sum:
    """A weighted sum of signals, itself a signal."""

    def __init__(self, signals: Mapping[str, Signal], weights: Mapping[str, float]):
        used = {check_choice(name, signals, "signal"): weight for name, weight in weights.items() if weight}
        if not used:
            raise ValueError("every weight is zero: give at least one signal a weight")
        self.parts = [(np.float32(weight), signals[name]) for name, weight in used.items()]

    def score(self, task: Task) -> np.ndarray:
        return sum(weight * signal.score(task) for weight, signal in self.parts)


def _row_blocks(task: Task, signal: Signal):
    """Cut the users so that a block's scores stay small: memory does not grow with the number of users."""
    num_items = signal.score(task.take(np.arange(1))).shape[1]
    return (np.arange(len(task))[rows] for rows in blocks(len(task), num_items))


@dataclass(frozen=True)
class Candidates:
    """What the choice of weights looks at: each user's candidate items, the held-out one among them.

    Attributes:
        names: of the signals.
        features: float32 [num_rows, num_signals], a row per user and candidate item.
        starts: int64 [num_users], each user's first row.
        bought: int64 [num_users], the row of the held-out item.
    """

    names: tuple[str, ...]
    features: np.ndarray
    starts: np.ndarray
    bought: np.ndarray


def gather_candidates(signals: Mapping[str, Signal], task: Task, per_signal: int = PER_SIGNAL) -> Candidates:
    """Let each signal bring in its best items, for the users whose held-out item is then among them.

    Args:
        signals: by name, built without the held-out items of these users.
        task: users whose targets may be looked at: validation, never test.
        per_signal: items per user and signal.

    Raises:
        ValueError: no signal finds any user's item.
    """
    tables, lengths, place = [], [], []
    for rows in _row_blocks(task, next(iter(signals.values()))):
        part = task.take(rows)
        scores = [np.array(signal.score(part)) for signal in signals.values()]
        found = np.concatenate([_best_unseen(score, part, per_signal) for score in scores], axis=1)
        for user, target in enumerate(part.targets):
            items = np.unique(found[user][found[user] >= 0])
            if target in items:
                tables.append(np.stack([score[user, items] for score in scores], axis=1))
                place.append(int(np.searchsorted(items, target)))
                lengths.append(len(items))
    if not tables:
        raise ValueError(f"no held-out item of {len(task)} users is among the candidates: raise `per_signal`")
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return Candidates(tuple(signals), np.concatenate(tables), starts, starts + place)


def choose_weights(
    candidates: Candidates, names: Sequence[str] | None = None, shrink: float = 1e-3
) -> dict[str, float]:
    """Find the weights under which the users' held-out items are likeliest.

    A softmax over a user's candidates is a distribution; the weights maximize the probability of the item
    that was bought. None is negative. The problem is convex and has as many unknowns as there are signals.

    Args:
        candidates: from `gather_candidates`.
        names: the signals to use; None for all.
        shrink: pulls weights that do not matter to zero.
    """
    names = tuple(names or candidates.names)
    columns = [candidates.names.index(check_choice(name, candidates.names, "signal")) for name in names]
    features = candidates.features[:, columns].astype(np.float64)
    scale = features.std(axis=0)
    scale[scale < 1e-9] = np.inf  # what is the same for all candidates tells nothing: its weight is 0
    features /= scale
    starts, bought, num_users = candidates.starts, candidates.bought, len(candidates.starts)
    user = np.repeat(np.arange(num_users), np.diff([*starts, len(features)]))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = features @ weights
        scores -= np.maximum.reduceat(scores, starts)[user]
        chance = np.exp(scores)
        total = np.add.reduceat(chance, starts)
        surprise = np.log(total).mean() - scores[bought].mean() + shrink * weights @ weights
        expected = (chance / total[user]) @ features
        return surprise, (expected - features[bought].sum(axis=0)) / num_users + 2 * shrink * weights

    first = np.full(len(names), 0.1)
    best = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(names)).x
    return dict(zip(names, (best / scale).round(4).tolist()))


def _best_unseen(scores: np.ndarray, task: Task, k: int) -> np.ndarray:
    scores = scores.copy()
    hide_seen(scores, task.seen_items)
    return top_k(scores, k, floor=0.0).items


def extend_validation(prepared: Prepared, extra_users: int = 3000, seed: int = 42) -> tuple[list[np.ndarray], Task]:
    """Make a larger validation task out of the training part.

    The validation users are few. So more users are drawn, and the last item of their training part is held
    out too. The test items of all users stay out of it.

    Args:
        prepared: the dataset.
        extra_users: how many to draw beside the validation users; at most one user in five.
        seed: of the draw.

    Returns:
        the training histories without these items, in sorted-reviewer order, and the task.
    """
    histories = training_histories(prepared)
    validation = load_task(prepared, "validation")
    reviewer_ids = user_bounds(prepared.interactions)[0].astype(str)
    free = np.array([len(items) > 1 for items in histories]) & ~np.isin(reviewer_ids, validation.reviewer_ids)
    count = min(extra_users, len(histories) // EXTRA_SHARE, int(free.sum()))
    drawn = np.sort(np.random.default_rng(seed).permutation(np.flatnonzero(free))[:count])
    seen, targets = [histories[user][:-1] for user in drawn], [histories[user][-1] for user in drawn]
    for user, items in zip(drawn, seen):
        histories[user] = items
    return histories, Task(
        np.concatenate([validation.reviewer_ids, reviewer_ids[drawn]]),
        validation.prompts + [""] * count,
        validation.seen_items + seen,
        np.concatenate([validation.targets, np.array(targets, dtype=np.int64)]),
    )
