"""From the hits of a user's generated texts to one ranked list.

A policy reads a grid: for each user, a few texts, and for each text its hits, best first. It answers two
questions: which hits may enter the list, and in what order. Every policy works on all users at once.

Where `seen` is given, the user's seen items leave the grid before any policy looks at it, so the next hit of
the same text moves up. `score` without `seen` is the paper's ranking.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .paths import check_choice
from .retrieval import Hits, seen_mask

CALREC_WEIGHT = 0.5  # notebook 05 chooses it on validation users


@dataclass(frozen=True)
class Grid:
    """The hits of all users, one plane per user.

    Attributes:
        items: int64 [num_users, texts, hits], best hit first, -1 where there is none.
        scores: float64, same shape, retrieval scores; -inf where there is no item.
        log_probs: float64 [num_users, texts], the generator's log-probability of each text, or None.
        weight: what `calrec` gives to the log-probability, 0 to 1.
    """

    items: np.ndarray
    scores: np.ndarray
    log_probs: np.ndarray | None = None
    weight: float = CALREC_WEIGHT


def stack_queries(records: Sequence[dict]) -> tuple[list[str], int, np.ndarray | None]:
    """Lay the texts of a queries file out as `rank_items` wants them: as many per user, padded with "".

    Args:
        records: from `generation.load_queries`: `generated_sequences` and, where known, `sequence_scores`.

    Returns:
        The texts, users in the records' order; the texts per user; float64 log-probabilities [num_texts]
        (-inf for a pad), or None where a record has none.
    """
    width = max((len(record["generated_sequences"]) for record in records), default=0) or 1
    texts, log_probs = [], []
    for record in records:
        missing = width - len(record["generated_sequences"])
        texts += [*record["generated_sequences"], *[""] * missing]
        log_probs += [*(record.get("sequence_scores") or []), *[-np.inf] * missing]
    return texts, width, np.array(log_probs) if len(log_probs) == len(texts) else None


def make_grid(
    hits: Hits, queries_per_user: int, query_scores: np.ndarray | None = None, weight: float = CALREC_WEIGHT
) -> Grid:
    """Give each user a plane of (texts, hits), the likeliest text first where probabilities are known."""
    num_queries, depth = np.asarray(hits.items).shape
    if queries_per_user < 1 or num_queries % queries_per_user:
        raise ValueError(f"{num_queries} queries cannot be split into {queries_per_user} per user")
    shape = (num_queries // queries_per_user, queries_per_user, depth)
    items = np.asarray(hits.items, dtype=np.int64).reshape(shape)
    scores = np.where(items >= 0, np.asarray(hits.scores, dtype=np.float64).reshape(shape), -np.inf)
    if query_scores is None:
        return Grid(items, scores, None, weight)
    log_probs = np.asarray(query_scores, dtype=np.float64)
    if log_probs.size != num_queries:
        raise ValueError(f"{log_probs.size} query_scores for {num_queries} queries: one per text is needed")
    # A score that is not a number belongs to a text that is not there.
    log_probs = np.nan_to_num(log_probs.reshape(shape[:2]), nan=-np.inf, neginf=-np.inf)
    order = np.argsort(-log_probs, axis=1, kind="stable")
    items, scores = (np.take_along_axis(part, order[:, :, None], axis=1) for part in (items, scores))
    return Grid(items, scores, np.take_along_axis(log_probs, order, axis=1), weight)


def drop_seen(grid: Grid, seen: Sequence[np.ndarray]) -> Grid:
    """Turn every seen item of the grid into a pad, for all users in one search."""
    num_users = len(grid.items)
    if len(seen) != num_users:
        raise ValueError(f"seen has {len(seen)} users, the hits have {num_users}: pass one array per user")
    gone = seen_mask(grid.items.reshape(num_users, -1), seen).reshape(grid.items.shape)
    items = np.where(gone, -1, grid.items)
    return Grid(items, np.where(items >= 0, grid.scores, -np.inf), grid.log_probs, grid.weight)


RRF_CONSTANT = 60.0  # Cormack, Clarke & Büttcher (SIGIR 2009): their value, never tuned since


Ranked = tuple[np.ndarray, np.ndarray]  # items int64 [num_users, k] and scores float64 [num_users, k]


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
    """The sum over texts of 1 / (60 + rank of the item among the text's hits)."""
    present = grid.items >= 0
    rank = np.cumsum(present, axis=2)  # counts from 1, and skips what was dropped as seen
    votes = np.where(present, 1.0 / (RRF_CONSTANT + rank), 0.0)
    return best_first(_flat(grid.items), _flat(votes), k, combine=np.add)


def calrec(grid: Grid, k: int) -> Ranked:
    """As `round_robin`, but a round is sorted by (1 - w) · match + w · likelihood, minus 1 per earlier round.

    match = a pick's retrieval score / the best of the user's picks; likelihood = its text's probability / that of
    the user's likeliest text. The formula is ours: CALRec combines the same two quantities in rounds, but how
    exactly was not readable.
    """
    if grid.log_probs is None:
        raise ValueError(
            "policy 'calrec' needs query_scores, one log-probability per text: take a queries file that has "
            "sequence_scores (notebook 04 writes them) or another policy"
        )
    items, scores = picks_in_turns(grid, k, turns=k)
    texts, turns = np.arange(items.shape[1]) % grid.items.shape[1], np.arange(items.shape[1]) // grid.items.shape[1]
    tiny, lowest = np.finfo(float).tiny, np.finfo(float).min
    match = np.maximum(scores, 0.0)
    match /= np.maximum(match.max(axis=1, keepdims=True), tiny)
    likelihood = np.exp(grid.log_probs - np.maximum(grid.log_probs.max(axis=1, keepdims=True), lowest))
    keys = (1 - grid.weight) * match + grid.weight * likelihood[:, texts] - turns
    return best_first(items, np.where(items >= 0, keys, -np.inf), k)


@dataclass(frozen=True)
class Policy:
    """A ranking policy: what it does, why, and where it comes from."""

    rank: Callable[[Grid, int], Ranked]
    reason: str
    source: str


POLICIES = {
    "score": Policy(score, "trust the search engine's match", "GLoSS, section 4.1.4 and the authors' code"),
    "beam_order": Policy(beam_order, "trust the model's order of its texts", "GPT4Rec; this course"),
    "unseen": Policy(unseen, "no place is spent on what the user has, or on one item twice", "this course"),
    "round_robin": Policy(round_robin, "fill the list, so that @10 exists", "CALRec's quasi-round-robin"),
    "rrf": Policy(rrf, "let texts vote: what many of them find comes first", "Cormack et al., SIGIR 2009"),
    "calrec": Policy(calrec, "weigh the match against the text's probability", "CALRec-style, formula ours"),
}


def rank_items(
    hits: Hits,
    queries_per_user: int = 5,
    policy: str = "score",
    k: int = 10,
    seen: Sequence[np.ndarray] | None = None,
    query_scores: np.ndarray | None = None,
    weight: float = CALREC_WEIGHT,
) -> np.ndarray:
    """Rank items for every user from the hits of the user's texts.

    Args:
        hits: one row per text, the texts of a user side by side; -1 pads (an empty text has only pads).
        queries_per_user: texts per user.
        policy: one of POLICIES.
        k: length of the list. `score`, `beam_order` and `unseen` give at most one item per text.
        seen: item numbers that each user has already; dropped under any policy, needed by `unseen`.
        query_scores: float [num_queries], sequence log-probabilities. Where given, a user's texts are taken
            in descending order of them, else as they come. `calrec` needs them.
        weight: of the log-probability in `calrec`.

    Returns:
        int64 [num_users, k], best first, -1 where the list is shorter than k.

    Raises:
        ValueError: an unknown policy, or inputs that do not fit together.
    """
    return rank_with_scores(hits, queries_per_user, policy, k, seen, query_scores, weight)[0]


def rank_with_scores(
    hits: Hits,
    queries_per_user: int = 5,
    policy: str = "score",
    k: int = 10,
    seen: Sequence[np.ndarray] | None = None,
    query_scores: np.ndarray | None = None,
    weight: float = CALREC_WEIGHT,
) -> Ranked:
    """As `rank_items`, with the scores that the list was ranked by.

    Returns:
        The items, and the float64 scores that they were ranked by: retrieval scores under `score`, votes under
        `rrf`, the combined score under `calrec`, 1 / position where the order of texts decides; -inf at pads.
    """
    check_choice(policy, POLICIES, "policy")
    if k < 1:
        raise ValueError(f"k is {k}: a list holds at least one item")
    if policy == "unseen" and seen is None:
        raise ValueError("policy 'unseen' needs seen: pass each user's item numbers (task.seen_items)")
    grid = make_grid(hits, queries_per_user, query_scores, weight)
    if seen is not None:
        grid = drop_seen(grid, seen)
    return POLICIES[policy].rank(grid, k)


def best_hit_per_text(grid: Grid) -> Ranked:
    """The first hit of each text that is still there: items and scores, [num_users, texts]."""
    first = (grid.items >= 0).argmax(axis=2)[:, :, None]
    return tuple(np.take_along_axis(part, first, axis=2)[:, :, 0] for part in (grid.items, grid.scores))


def picks_in_turns(grid: Grid, k: int, turns: int) -> Ranked:
    """Each text in its turn gives its best item that nobody has taken, `turns` times round at most.

    Returns:
        Items and their retrieval scores, [num_users, rounds × texts]; -1 from a text that had nothing left.
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
    """The k first distinct items of each row as they come; the score is 1 / position."""
    positions = np.arange(items.shape[1]) + 1.0
    ranked, scores = best_first(items, np.where(items >= 0, 1.0 / positions, -np.inf), k)
    # An empty turn took a position, but no place in the list.
    return ranked, np.where(scores > -np.inf, 1.0 / (np.arange(k) + 1.0), -np.inf)


def best_first(items: np.ndarray, keys: np.ndarray, k: int, combine: np.ufunc = np.maximum) -> Ranked:
    """Join what stands twice in a row, then take the k best; equal keys go to the lower item number.

    Args:
        items: int64 [num_users, candidates], -1 pads.
        keys: float64, same shape, larger is better.
        combine: what two keys of one item become, `np.maximum` or `np.add`.
    """
    order = np.argsort(items, axis=1, kind="stable")
    items, keys = (np.take_along_axis(part, order, axis=1) for part in (items, keys))
    starts = np.flatnonzero(np.diff(items, axis=1, prepend=-2) != 0)  # a pad is -1, so -2 starts every row
    joined = np.full(items.shape, -np.inf)
    if len(starts):
        # Rounded, so that equal sums are equal in whatever order they were added.
        joined.flat[starts] = np.round(combine.reduceat(keys.ravel(), starts), 12)
    joined[items < 0] = -np.inf

    users = np.arange(len(items))
    ranked, scores = np.full((len(items), k), -1, dtype=np.int64), np.full((len(items), k), -np.inf)
    for place in range(min(k, items.shape[1])):
        best = joined.argmax(axis=1)  # the first of equals, and items stand in ascending order
        scores[:, place] = joined[users, best]
        ranked[:, place] = np.where(scores[:, place] > -np.inf, items[users, best], -1)
        joined[users, best] = -np.inf
    return ranked, scores


def _flat(part: np.ndarray) -> np.ndarray:
    return part.reshape(len(part), -1)
