"""Recommenders that train nothing: most popular, last-item search, and STAR's retrieval.

Each takes a `Task` and returns item numbers int64 [num_users, k], best first; -1 pads.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from .paths import check_choice, check_number
from .retrieval import Hits, Index, blocks, flatten_seen, no_hits, seen_mask, top_k
from .splits import Task

DROPS = ("none", "query", "seen")
STAR_DECAY = 0.7  # how much less the item before counts
STAR_HISTORY = 3  # items that STAR looks back at


def item_counts(histories: Sequence[np.ndarray], num_items: int) -> np.ndarray:
    """How often each item was bought in these histories, int64 [num_items]."""
    return np.bincount(np.concatenate(histories), minlength=num_items)


def most_popular(task: Task, counts: np.ndarray, k: int = 10, drop: str = "none") -> np.ndarray:
    """Recommend the same best-sellers to everyone; `drop="seen"` leaves out what the user has."""
    hidden = _hidden_items(task, check_choice(drop, ("none", "seen"), "drop"))
    best = top_k(counts[None].astype(np.float32), k + max(map(len, hidden), default=0), floor=0.0)
    return keep_unseen(Hits(*(np.repeat(part, len(task), axis=0) for part in best)), hidden, k).items


def lis(task: Task, index: Index, k: int = 10, drop: str = "none") -> np.ndarray:
    """Last-item search: search the catalog with the text of the user's last item (paper, section 3.2).

    `drop` is "none" as in the paper, "query" for the last item itself, or "seen" for the whole history.
    """
    return lis_with_scores(task, index, k, drop).items


def lis_with_scores(task: Task, index: Index, k: int = 10, drop: str = "none") -> Hits:
    """`lis`, with the retriever's scores."""
    hidden = _hidden_items(task, check_choice(drop, DROPS, "drop"))
    depth = k + max(map(len, hidden), default=0)  # enough for the longest history
    queries = [index.texts[items[-1]] for items in task.seen_items]
    parts = [keep_unseen(index.search(queries[rows], depth), hidden[rows], k) for rows in blocks(len(queries), depth)]
    return Hits(*map(np.concatenate, zip(no_hits(0, k), *parts)))


def _hidden_items(task: Task, drop: str) -> list[np.ndarray]:
    """The items that each user's list leaves out."""
    return [{"none": items[:0], "query": items[-1:], "seen": items}[drop] for items in task.seen_items]


def keep_unseen(hits: Hits, seen: Sequence[np.ndarray], k: int) -> Hits:
    """The first k hits of each row that its user has not seen."""
    gone = seen_mask(hits.items, seen) | (hits.items < 0)
    order = np.argsort(gone, axis=1, kind="stable")[:, :k]  # what stays comes first, in its order
    items, scores, gone = (np.take_along_axis(part, order, axis=1) for part in (*hits, gone))
    return Hits(np.where(gone, -1, items), np.where(gone, np.float32(-np.inf), scores))


def hide_seen(scores: np.ndarray, seen: Sequence[np.ndarray]) -> None:
    """Set the scores of each row's seen items to -inf, in place."""
    rows, items = flatten_seen(seen)
    check_number(int(items.max(initial=0)), "an item of seen", 0, scores.shape[1] - 1)
    scores[rows, items] = -np.inf


def interaction_matrix(histories: Sequence[np.ndarray], num_items: int) -> sp.csr_matrix:
    """Who bought what in the training part: float32 [num_users, num_items] of ones."""
    matrix = item_rows(histories, np.ones(sum(map(len, histories))), num_items)
    matrix.data[:] = 1  # an item counts once per user
    return matrix


def item_rows(items: Sequence[np.ndarray], weights: np.ndarray, num_items: int) -> sp.csr_matrix:
    """Each user's items as one sparse row of weights (given for one user after the other), [num_users, num_items]."""
    rows = np.repeat(np.arange(len(items)), [len(part) for part in items])
    return sp.csr_matrix((weights.astype(np.float32), (rows, np.concatenate(items))), shape=(len(items), num_items))


def cooccurrence(histories: Sequence[np.ndarray], num_items: int) -> sp.csr_matrix:
    """Cosine between items as columns of `interaction_matrix`, float32 [num_items, num_items]; 0 with itself."""
    bought = interaction_matrix(histories, num_items)
    # By their lowest item number: buyers of an item lie side by side where neighbouring numbers are bought together.
    bought = bought[np.argsort(np.append(bought.indices, 0)[bought.indptr[:-1]], kind="stable")]
    cosines = bought.T.tocsr() @ bought
    norm, lengths = 1 / np.sqrt(np.maximum(cosines.diagonal(), 1)), np.diff(cosines.indptr)
    # in place, some items at a time: a product with a diagonal matrix is a copy of it all
    for items in np.array_split(np.arange(num_items), num_items // 10_000 + 1):
        part = slice(*cosines.indptr[[items[0], items[-1] + 1]])
        rows, columns = np.repeat(items, lengths[items]), cosines.indices[part]
        cosines.data[part] *= norm[rows]
        cosines.data[part] *= norm[columns]
        cosines.data[part][rows == columns] = 0
    return cosines


def recency_weights(task: Task, num_items: int, length=STAR_HISTORY, decay=STAR_DECAY) -> sp.csr_matrix:
    """Each user's last items with weights 1, 0.7, 0.49 ... over their number, float32 [num_users, num_items]."""
    recent = [items[-length:][::-1] for items in task.seen_items]
    ages = np.concatenate([np.arange(len(items)) for items in recent])
    lengths = np.array([len(items) for items in recent])
    return item_rows(recent, decay**ages / np.repeat(lengths, lengths), num_items)


def star(task: Task, vectors: np.ndarray, cooc: sp.csr_matrix, k=10, length=STAR_HISTORY, decay=STAR_DECAY) -> Hits:
    """STAR's retrieval: text similarity and co-occurrence with the last few items; seen ones are not scored.

    score(x) = mean over the last `length` items j of decay^age * (½ cos(x, j) + ½ cooc(x, j)).
    `vectors` are the catalog's unit vectors, `cooc` is from `cooccurrence` of the training part.
    Source: Lee et al., "STAR: A Simple Training-free Approach for Recommendations using LLMs", section 3.2.
    """
    recent = recency_weights(task, len(vectors), length, decay)
    # the mean goes through both sums, so a user is one vector and one sparse row
    text_profile, bought = 0.5 * (recent @ vectors), 0.5 * (recent @ cooc)
    parts = []
    for rows in blocks(len(task), len(vectors)):
        scores = text_profile[rows] @ vectors.T + bought[rows].toarray()
        hide_seen(scores, task.seen_items[rows])
        parts.append(top_k(scores, k))
    return Hits(*map(np.concatenate, zip(*parts)))
