"""The hits of every user's texts as one block of numbers, which is what a ranking policy reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .hits import Hits, seen_mask

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


def texts_side_by_side(records: Sequence[dict]) -> tuple[list[str], int, np.ndarray | None]:
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
