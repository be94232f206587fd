"""Recommenders that train nothing: random, popular, repeat-last, last-item search, and STAR's retrieval.

Each takes a `Task` and returns item numbers int64 [num_users, k], best first; -1 pads.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from .paths import check_choice
from .retrieval import Hits, Index, blocks, no_hits, seen_mask, top_k
from .splits import Task

DROPS = ("none", "query", "seen")
STAR_DECAY = 0.7  # how much less the item before counts
STAR_HISTORY = 3  # items that STAR looks back at


def item_counts(histories: Sequence[np.ndarray], num_items: int) -> np.ndarray:
    """How often each item was bought in these histories, int64 [num_items]."""
    return np.bincount(np.concatenate(histories), minlength=num_items)


def random_items(task: Task, num_items: int, k: int = 10, seed: int = 42) -> np.ndarray:
    """Draw k different items per user, all equally likely."""
    return popularity_weighted(task, np.ones(num_items), k, seed)


def popularity_weighted(task: Task, counts: np.ndarray, k: int = 10, seed: int = 42) -> np.ndarray:
    """Draw k different items per user, one after the other, in proportion to `counts`.

    An exponential race does it without a loop: an item with weight w finishes after Exp(1) / w, and the
    first k to finish are such a draw.
    """
    rng = np.random.default_rng(seed)
    ranked = no_hits(len(task), k).items
    with np.errstate(divide="ignore"):
        slowness = (1.0 / counts).astype(np.float32)  # infinite for an item that nobody bought
    for rows in blocks(len(task), len(counts)):
        finish = rng.standard_exponential((rows.stop - rows.start, len(counts)), dtype=np.float32) * slowness
        ranked[rows] = top_k(-finish, k).items
    return ranked


def most_popular(task: Task, counts: np.ndarray, k: int = 10, drop: str = "none") -> np.ndarray:
    """Recommend the same best-sellers to everyone; `drop="seen"` leaves out what the user has."""
    check_choice(drop, ("none", "seen"), "drop")
    depth = k + max(map(len, task.seen_items), default=0) if drop == "seen" else k
    best = top_k(counts[None].astype(np.float32), min(depth, len(counts)), floor=0.0).items
    lists = np.broadcast_to(best, (len(task), best.shape[1]))
    return keep_unseen(lists, task.seen_items if drop == "seen" else None, k)


def repeat_last(task: Task, k: int = 10) -> np.ndarray:
    """Recommend the user's own last k different items, newest first."""
    ranked = no_hits(len(task), k).items
    for user, items in enumerate(task.seen_items):
        newest = list(dict.fromkeys(items[::-1].tolist()))[:k]
        ranked[user, : len(newest)] = newest
    return ranked


def lis(task: Task, index: Index, k: int = 10, drop: str = "none") -> np.ndarray:
    """Last-item search: look the text of the user's last item up in the catalog (paper, section 3.2).

    Args:
        task: whom to recommend to.
        index: over the catalog's texts, in item order.
        k: items per user.
        drop: "none" as in the paper, "query" for the last item itself, "seen" for the whole history.
    """
    return lis_with_scores(task, index, k, drop).items


def lis_with_scores(task: Task, index: Index, k: int = 10, drop: str = "none") -> Hits:
    """`lis`, with the retriever's scores."""
    check_choice(drop, DROPS, "drop")
    last, user_of = np.unique([items[-1] for items in task.seen_items], return_inverse=True)
    texts = [index.texts[item] for item in last]
    if drop == "none":
        hits = index.search(texts, k)
        return Hits(hits.items[user_of], hits.scores[user_of])
    dropped = task.seen_items if drop == "seen" else [items[-1:] for items in task.seen_items]
    return _search_past(index, texts, user_of, dropped, k)


def _search_past(index: Index, texts: list[str], user_of: np.ndarray, dropped: Sequence, k: int) -> Hits:
    """Search deeper until every user has k hits beside the dropped ones, or there are no more.

    Most users need a few hits more than k; only those with a long history of look-alikes need many.
    """
    result = no_hits(len(user_of), k)
    users, depth = np.arange(len(user_of)), k + 8
    while len(users):
        query, row = np.unique(user_of[users], return_inverse=True)
        hits = index.search([texts[number] for number in query], depth)
        items, scores = hits.items[row], hits.scores[row]
        gone = [dropped[user] for user in users]
        places = first_places(seen_mask(items, gone) | (items < 0), k)
        result.items[users], result.scores[users] = take_places(items, places), take_places(scores, places, -np.inf)
        exhausted = (items[:, -1] < 0) | (depth >= len(index.texts))
        users = users[(result.items[users, -1] < 0) & ~exhausted]
        depth *= 4
    return result


def first_places(masked: np.ndarray, k: int) -> np.ndarray:
    """The columns of the first k unmasked cells of each row, int64 [num_rows, k]; -1 pads."""
    rows, columns = np.nonzero(~masked)
    place = np.arange(len(rows)) - np.searchsorted(rows, np.arange(len(masked)))[rows]
    places = np.full((len(masked), k), -1, dtype=np.int64)
    places[rows[place < k], place[place < k]] = columns[place < k]
    return places


def take_places(values: np.ndarray, places: np.ndarray, pad: float = -1) -> np.ndarray:
    """`values` at these columns, `pad` where a column is -1."""
    return np.where(places < 0, pad, np.take_along_axis(values, np.maximum(places, 0), axis=1)).astype(values.dtype)


def keep_unseen(items: np.ndarray, seen: Sequence[np.ndarray] | None, k: int) -> np.ndarray:
    """Cut every row to its first k items that are neither padding nor seen."""
    masked = items < 0 if seen is None else seen_mask(items, seen) | (items < 0)
    return take_places(items, first_places(masked, k))


def interaction_matrix(histories: Sequence[np.ndarray], num_items: int) -> sp.csr_matrix:
    """Who bought what in the training part: float32 [num_users, num_items] of ones."""
    lengths = [len(items) for items in histories]
    pointers = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate(histories)
    matrix = sp.csr_matrix((np.ones(len(items), np.float32), items, pointers), (len(histories), num_items))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def cooccurrence(histories: Sequence[np.ndarray], num_items: int) -> sp.csr_matrix:
    """Cosine between items as columns of the user-by-item matrix, float32 [num_items, num_items].

    Args:
        histories: item numbers per user, of the training part only; an item counts once per user.
        num_items: of the catalog.
    """
    bought = interaction_matrix(histories, num_items)
    norm = sp.diags(1.0 / np.sqrt(np.maximum(np.asarray(bought.sum(axis=0)).ravel(), 1)), dtype=np.float32)
    together = (norm @ (bought.T @ bought) @ norm).tolil()
    together.setdiag(0)
    return together.tocsr()


def item_rows(items: Sequence[np.ndarray], weights: np.ndarray, num_items: int) -> sp.csr_matrix:
    """Each user's items as one sparse row of weights, float32 [num_users, num_items].

    Args:
        items: item numbers per user.
        weights: of all of them, one user after the other.
        num_items: of the catalog.
    """
    rows = np.repeat(np.arange(len(items)), [len(part) for part in items])
    return sp.csr_matrix((weights.astype(np.float32), (rows, np.concatenate(items))), shape=(len(items), num_items))


def recency_weights(
    task: Task, num_items: int, length: int = STAR_HISTORY, decay: float = STAR_DECAY
) -> sp.csr_matrix:
    """Each user's last items with weights 1, 0.7, 0.49 ... over their number, float32 [num_users, num_items]."""
    recent = [items[-length:][::-1] for items in task.seen_items]
    ages = np.concatenate([np.arange(len(items)) for items in recent])
    lengths = np.array([len(items) for items in recent])
    return item_rows(recent, decay**ages / np.repeat(lengths, lengths), num_items)


def star(
    task: Task,
    vectors: np.ndarray,
    together: sp.csr_matrix,
    k: int = 10,
    text_share: float = 0.5,
    length: int = STAR_HISTORY,
    decay: float = STAR_DECAY,
) -> Hits:
    """STAR's retrieval: a mix of text similarity and co-occurrence with the last few items; seen ones dropped.

    score(x) = mean over the last `length` items j of decay^age * (share * cos(x, j) + (1 - share) * cooc(x, j))

    Args:
        task: whom to recommend to.
        vectors: unit vectors of the catalog, float32 [num_items, dimensions] (`DenseIndex.vectors`).
        together: from `cooccurrence`, of the training part.
        k: items per user.
        text_share: weight of the text; the rest goes to co-occurrence.
        length, decay: how far back, and how fast it fades.

    Source: Lee et al., "STAR: A Simple Training-free Approach for Recommendations using LLMs", section 3.2.
    """
    num_items = len(vectors)
    recent = recency_weights(task, num_items, length, decay)
    # the mean goes through both sums, so a user is one vector and one sparse row
    text_profile, bought = text_share * (recent @ vectors), (1 - text_share) * (recent @ together)
    parts = []
    for rows in blocks(len(task), num_items):
        scores = text_profile[rows] @ vectors.T + bought[rows].toarray()
        hide_seen(scores, task.seen_items[rows])
        parts.append(top_k(scores, k))
    return Hits(*map(np.concatenate, zip(*parts)))


def hide_seen(scores: np.ndarray, seen: Sequence[np.ndarray]) -> None:
    """Set the scores of each row's seen items to -inf, in place."""
    rows = np.repeat(np.arange(len(seen)), [len(items) for items in seen])
    scores[rows, np.concatenate(seen)] = -np.inf
