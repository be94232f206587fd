"""From the hits of a user's generated texts to one ranked list.

A policy reads a grid: for each user a few texts, and for each text its hits, best first. Where `seen` is given, the
user's seen items leave the grid first, so the next hit of the same text moves up. `score` without `seen` is the
ranking of the authors' code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .paths import check_choice, check_number
from .retrieval import MAX_HITS, Hits, seen_mask

CALREC_WEIGHT = 0.5  # notebook 05 chooses it on validation users
RRF_CONSTANT = 60.0  # Cormack, Clarke & Büttcher (SIGIR 2009): their value, not tuned here

Ranked = tuple[np.ndarray, np.ndarray]  # items int64 [num_users, k] and scores float64 [num_users, k]


@dataclass(frozen=True)
class Grid:
    """The hits of all users, one plane per user."""

    items: np.ndarray  # int64 [num_users, texts, hits], best hit first, -1 pads
    scores: np.ndarray  # float64, same shape; -inf where there is no item
    log_probs: np.ndarray | None = None  # float64 [num_users, texts]
    weight: float = CALREC_WEIGHT  # of the log-probability in `calrec`


def stack_queries(records: Sequence[dict]) -> tuple[list[str], int, np.ndarray | None]:
    """Lay the texts of a queries file (`queries.load_queries`) out as `rank_items` wants them.

    Returns:
        The texts, as many for every user and padded with ""; the texts per user; float64 log-probabilities
        [num_texts] (-inf for a pad), or None where a record has none.
    """
    width = max((len(record["generated_sequences"]) for record in records), default=0) or 1
    texts, log_probs = [], []
    for record in records:
        missing = width - len(record["generated_sequences"])
        texts += [*record["generated_sequences"], *[""] * missing]
        log_probs += [*(record.get("sequence_scores") or []), *[-np.inf] * missing]
    return texts, width, np.array(log_probs) if len(log_probs) == len(texts) else None


def make_grid(hits, queries_per_user: int, seen=None, query_scores=None, weight: float = CALREC_WEIGHT) -> Grid:
    """Give each user a plane of (texts, hits), the likeliest text first, without seen items; see `rank_items`."""
    items, scores = np.asarray(hits.items), np.asarray(hits.scores, dtype=np.float64)
    check_number(queries_per_user, "queries_per_user", 1)
    if len(items) % queries_per_user:
        raise ValueError(f"{len(items)} queries cannot be split into {queries_per_user} per user")
    if not np.issubdtype(items.dtype, np.integer) or not np.isfinite(scores[items >= 0]).all():
        raise ValueError("hits are not item numbers with finite scores: pass what an index's search returned")
    check_number(weight, "weight", 0, 1, whole=False)
    shape = (len(items) // queries_per_user, queries_per_user, items.shape[1])
    items, scores, log_probs = items.reshape(shape), scores.reshape(shape), None
    if query_scores is not None:
        if np.size(query_scores) != shape[0] * shape[1] or np.isposinf(query_scores).any():
            counts = f"{np.size(query_scores)} query_scores for {shape[0] * shape[1]} queries"
            raise ValueError(f"{counts}: one log-probability per text, none of them inf")
        log_probs = np.asarray(query_scores, dtype=np.float64).reshape(shape[:2])
        log_probs = np.where(np.isnan(log_probs), -np.inf, log_probs)  # the score of a text that is not there
        order = np.argsort(-log_probs, axis=1, kind="stable")
        items, scores = (np.take_along_axis(part, order[:, :, None], axis=1) for part in (items, scores))
        log_probs = np.take_along_axis(log_probs, order, axis=1)
    if seen is not None:
        if len(seen) != shape[0]:
            raise ValueError(f"seen has {len(seen)} users, the hits have {shape[0]}: pass one array per user")
        items = np.where(seen_mask(items.reshape(shape[0], -1), seen).reshape(shape), -1, items)
    return Grid(items, np.where(items >= 0, scores, -np.inf), log_probs, weight)


def score(grid: Grid, k: int) -> Ranked:
    """The best hit of each text, by retrieval score; an item found twice keeps its better score."""
    return best_first(*best_hit_per_text(grid), k)


def beam_order(grid: Grid, k: int) -> Ranked:
    """The best hit of each text, in the order of the texts."""
    items, _ = best_hit_per_text(grid)
    return in_order(items, k)


def unseen(grid: Grid, k: int) -> Ranked:
    """Each text's best hit that is neither seen nor taken by an earlier text, in the order of the texts."""
    items, _ = picks_in_turns(grid, k, turns=1)
    return in_order(items, k)


def round_robin(grid: Grid, k: int) -> Ranked:
    """As `unseen`, and when every text has had its turn, they go round again until the list is full."""
    items, _ = picks_in_turns(grid, k, turns=k)
    return in_order(items, k)


def rrf(grid: Grid, k: int) -> Ranked:
    """Reciprocal rank fusion: the sum over texts of 1 / (60 + rank of the item among the text's hits)."""
    present = grid.items >= 0
    rank = np.cumsum(present, axis=2)  # counts from 1, and skips what was dropped as seen
    votes = np.where(present, 1.0 / (RRF_CONSTANT + rank), 0.0)
    return best_first(grid.items.reshape(len(votes), -1), votes.reshape(len(votes), -1), k, combine=np.add)


def calrec(grid: Grid, k: int) -> Ranked:
    """As `round_robin`, but a round is sorted by (1 - w) · match + w · likelihood, minus 1 per earlier round.

    match = a pick's retrieval score / the best of the user's picks; likelihood = its text's probability / that of
    the user's likeliest text. The formula is ours: how CALRec combines the two in its rounds was not readable.
    """
    if grid.log_probs is None:
        raise ValueError("policy 'calrec' needs query_scores: take a queries file with sequence_scores (notebook 04)")
    items, scores = picks_in_turns(grid, k, turns=k)
    turns, texts = np.divmod(np.arange(items.shape[1]), grid.items.shape[1])
    match = np.maximum(scores, 0.0)
    match /= np.maximum(match.max(axis=1, keepdims=True), np.finfo(float).tiny)
    likeliest = np.maximum(grid.log_probs.max(axis=1, keepdims=True), np.finfo(float).min)
    likelihood = np.exp(grid.log_probs - likeliest)
    keys = (1 - grid.weight) * match + grid.weight * likelihood[:, texts] - turns
    return best_first(items, np.where(items >= 0, keys, -np.inf), k)


POLICIES = {policy.__name__: policy for policy in (score, beam_order, unseen, round_robin, rrf, calrec)}


def rank_items(
    hits: Hits,
    queries_per_user: int = 5,
    policy: str = "score",
    k: int = 10,
    seen: Sequence[np.ndarray] | None = None,
    query_scores: np.ndarray | None = None,
    weight: float = CALREC_WEIGHT,
) -> np.ndarray:
    """Rank items for every user from the hits of the user's texts: int64 [num_users, k], best first, -1 pads.

    Args:
        hits: one row per text, the texts of a user side by side; -1 pads (an empty text has only pads).
        policy: one of POLICIES; `score`, `beam_order` and `unseen` give at most one item per text.
        seen: item numbers that each user has already; dropped under any policy, needed by `unseen`.
        query_scores: float [num_queries], log-probabilities: they order a user's texts, and `calrec` needs them.
        weight: of the log-probability in `calrec`, 0 to 1.
    """
    return rank_with_scores(hits, queries_per_user, policy, k, seen, query_scores, weight)[0]


def rank_with_scores(
    hits, queries_per_user=5, policy="score", k=10, seen=None, query_scores=None, weight=CALREC_WEIGHT
):
    """As `rank_items`, with the float64 scores that the list was ranked by; -inf at pads.

    They are retrieval scores under `score`, votes under `rrf`, the combined score under `calrec`, and 1 / rank
    where the order of texts decides.
    """
    check_choice(policy, POLICIES, "policy")
    check_number(k, "k", 1, MAX_HITS)
    if policy == "unseen" and seen is None:
        raise ValueError("policy 'unseen' needs seen: pass each user's item numbers (task.seen_items)")
    return POLICIES[policy](make_grid(hits, queries_per_user, seen, query_scores, weight), k)


def best_hit_per_text(grid: Grid) -> Ranked:
    """The first hit of each text that is still there: items and scores, [num_users, texts]."""
    first = (grid.items >= 0).argmax(axis=2)[:, :, None]
    return tuple(np.take_along_axis(part, first, axis=2)[:, :, 0] for part in (grid.items, grid.scores))


def picks_in_turns(grid: Grid, k: int, turns: int) -> Ranked:
    """Each text in its turn gives its best item that no text has given yet, `turns` times round at most.

    A row of items and retrieval scores is [rounds × texts] long; -1 comes from a text that had nothing left.
    """
    left, users = grid.items.copy(), np.arange(len(grid.items))
    items, scores = [], []
    for _ in range(turns):
        for text in range(left.shape[1]):
            first = (left[:, text] >= 0).argmax(axis=1)
            picked = left[users, text, first]
            scores.append(np.where(picked >= 0, grid.scores[users, text, first], -np.inf))
            left[left == picked[:, None, None]] = -1
            items.append(picked)
        if (left < 0).all() or (np.sum([picked >= 0 for picked in items], axis=0) >= k).all():
            break
    return np.stack(items, axis=1), np.stack(scores, axis=1)


def in_order(items: np.ndarray, k: int) -> Ranked:
    """The k first distinct items of each row as they come; the score is 1 / rank."""
    ranked, scores = best_first(items, np.where(items >= 0, -np.arange(items.shape[1]), -np.inf), k)
    return ranked, np.where(scores > -np.inf, 1.0 / (np.arange(k) + 1.0), -np.inf)


def best_first(items: np.ndarray, keys: np.ndarray, k: int, combine: np.ufunc = np.maximum) -> Ranked:
    """Join what stands twice in a row, then take the k best; equal keys go to the lower item number.

    `items` and `keys` are [num_users, candidates]; `combine` makes one key of two, `np.maximum` or `np.add`.
    """
    order = np.argsort(items, axis=1, kind="stable")
    items, keys = (np.take_along_axis(part, order, axis=1) for part in (items, keys))
    starts = np.flatnonzero(np.diff(items, axis=1, prepend=-2) != 0)  # a pad is -1, so -2 starts every row
    joined = np.full(items.shape, -np.inf)
    # Rounded, so that equal sums are equal in whatever order they were added.
    joined.flat[starts] = np.round(combine.reduceat(keys.ravel(), starts), 12) if len(starts) else []
    joined[items < 0] = -np.inf
    order = np.argsort(-joined, axis=1, kind="stable")[:, :k]  # stable: of equal keys the lower item stays first
    ranked, scores = np.full((len(items), k), -1, dtype=np.int64), np.full((len(items), k), -np.inf)
    scores[:, : order.shape[1]] = np.take_along_axis(joined, order, axis=1)
    ranked[:, : order.shape[1]] = np.take_along_axis(items, order, axis=1)
    return np.where(scores > -np.inf, ranked, -1), scores
