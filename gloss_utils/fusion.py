"""Add signals up into one ranking, with weights chosen on users whose test item is not touched."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from .baselines import hide_seen
from .choices import check
from .hits import Hits, blocks, top_k
from .signals import Signal
from .splits import Prepared, Task, load_task, training_histories, user_bounds

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
        used = {check(name, signals, "signal"): weight for name, weight in weights.items() if weight}
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
    columns = [candidates.names.index(check(name, candidates.names, "signal")) for name in names]
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


def hold_out_more(prepared: Prepared, extra_users: int = 3000, seed: int = 42) -> tuple[list[np.ndarray], Task]:
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
