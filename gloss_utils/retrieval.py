"""Search a catalog by text: hits, exact top-k, BM25, and two indexes merged; `dense` searches by vectors.

In every index equal scores go to the lower item number, a query without a hit gets a row of -1, and `k`
beyond the catalog pads with -1.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import bm25s
import numpy as np
import scipy.sparse as sp
import Stemmer

from .paths import check_number

MAX_HITS = 1_000_000  # per query: rows are padded to the k that was asked for
BLOCK_CELLS = 8_000_000  # scores held at once, 32 MB: memory does not grow with the number of queries


class Hits(NamedTuple):
    """What a search found, best first: items int64 and scores float32 [num_queries, k]; -1 and -inf pad."""

    items: np.ndarray
    scores: np.ndarray


def top_k(scores: np.ndarray, k: int, floor: float = -np.inf) -> Hits:
    """Take the k best of every row of scores above `floor`; equal scores go to the lower column; -1 pads.

    >>> top_k(np.array([[0.5, 0.9, 0.5]], dtype=np.float32), k=2).items
    array([[1, 0]])
    """
    # By hand: np.argpartition, torch.topk and bm25s.retrieve leave the order of equal scores open.
    num_rows, num_items = scores.shape
    last = num_items - min(k, num_items)
    # At or below the floor a score becomes another one: where most are equal, np.partition takes ten times as long.
    apart = scores if floor == -np.inf else scores - (scores <= floor) * np.arange(num_items, dtype=np.float32)
    threshold = np.partition(apart, last, axis=1)[:, last, None]
    rows, columns = np.divmod(np.flatnonzero((scores >= threshold) & (scores > floor)), num_items)
    values = scores[rows, columns]
    order = np.lexsort((-values, rows))  # stable, so columns stay ascending where values are equal
    rows, columns, values = rows[order], columns[order], values[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, np.arange(num_rows))[rows]
    kept = rank < k
    hits = no_hits(num_rows, k)
    hits.items[rows[kept], rank[kept]] = columns[kept]
    hits.scores[rows[kept], rank[kept]] = values[kept]
    return hits


def no_hits(num_rows: int, k: int) -> Hits:
    """Rows of padding: -1 and -inf."""
    return Hits(np.full((num_rows, k), -1, dtype=np.int64), np.full((num_rows, k), -np.inf, dtype=np.float32))


def flatten_seen(seen: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the row that each seen item belongs to, and all users' seen items in one array; -1 is left out."""
    rows = np.repeat(np.arange(len(seen)), [len(items) for items in seen])
    items = np.concatenate([np.empty(0, dtype=np.int64), *(items for items in seen if len(items))])
    if not np.issubdtype(items.dtype, np.integer) or items.min(initial=0) < -1:
        raise ValueError("seen holds something else than item numbers: give integers from 0, or -1 for a pad")
    return rows[items >= 0], items[items >= 0]


def seen_mask(items: np.ndarray, seen: Sequence[np.ndarray]) -> np.ndarray:
    """Say which items [num_users, width] the row's user has seen; -1 pads, and is never seen."""
    owner, old = flatten_seen(seen)
    width = int(max(items.max(initial=0), old.max(initial=0))) + 2
    asked = np.arange(len(items))[:, None] * width + np.where(items < 0, width - 1, items)
    return np.isin(asked, owner * width + old)


def check_texts(texts: Sequence[str], what: str) -> list[str]:
    """Return texts as a list, or say in a ValueError that they are one text, or which of them is none."""
    if isinstance(texts, str) or not hasattr(texts, "__iter__"):
        raise ValueError(f"{what} is {str(texts)[:40]!r}, which is one string or none: give a list, such as [query]")
    texts = list(texts)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{what}[{row}] is {text!r}: give texts only")
    return texts


def blocks(num_rows: int, num_items: int) -> Iterator[slice]:
    """Cut rows into slices of at most `BLOCK_CELLS` scores each."""
    step = max(1, BLOCK_CELLS // max(1, num_items))
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the distinct texts in order of appearance, and each text's position among them."""
    positions: dict[str, int] = {}
    inverse = np.fromiter((positions.setdefault(text, len(positions)) for text in texts), np.int64, len(texts))
    return list(positions), inverse


class Index:
    """What every index shares: the catalog's texts and checked searches."""

    def __init__(self, texts: Sequence[str]):
        self.texts = check_texts(texts, "the catalog")
        if not self.texts:
            raise ValueError("the catalog is empty: an index needs at least one text")

    def search(self, queries: Sequence[str], k: int = 20) -> Hits:
        """Find the k best items for every query; equal queries are searched once."""
        check_number(k, "k", 1, MAX_HITS)
        unique, inverse = distinct(check_texts(queries, "queries"))
        filled = [row for row, query in enumerate(unique) if query.strip()]
        hits = no_hits(len(unique), k)
        if filled:
            found = self._search([unique[row] for row in filled], min(k, len(self.texts)))
            hits.items[filled, : found.items.shape[1]] = found.items
            hits.scores[filled, : found.scores.shape[1]] = found.scores
        return Hits(hits.items[inverse], hits.scores[inverse])


COMMON_SHARE = 0.2  # a word in more of the catalog than this ("title") is added as a dense row, which is faster


class BM25Index(Index):
    """BM25 (Lucene's variant) over whole words; an item that shares no word with the query is no hit.

    bm25s computes the score matrix [words, items] once; a search is one sparse product with it. `stop_words` is a
    language that bm25s knows, a list, or None; `stemmer` a Snowball language, or None as in the paper's results.
    """

    def __init__(self, texts, k1: float = 1.5, b: float = 0.75, stop_words="english", stemmer: str | None = None):
        super().__init__(texts)
        self.stop_words, self.stemmer = stop_words or [], Stemmer.Stemmer(stemmer) if stemmer else None
        tokens = self._tokenize(self.texts)
        self.vocabulary = dict(tokens.vocab)
        weights = sp.csr_matrix((max(1, len(self.vocabulary)), len(self.texts)), dtype=np.float32)
        if self.vocabulary:
            model = bm25s.BM25(k1=k1, b=b, method="lucene")
            model.index(tokens, show_progress=False, create_empty_token=False)
            arrays = (model.scores["data"], model.scores["indices"], model.scores["indptr"])
            # bm25s keeps columns of words; read as rows, the same arrays are the transposed matrix
            weights = sp.csr_matrix(arrays, shape=weights.shape)
        is_common = np.diff(weights.indptr) > COMMON_SHARE * len(self.texts)
        self._common = {word: weights[[word]].toarray() for word in np.flatnonzero(is_common)}
        self._rare = sp.diags((~is_common).astype(np.float32), format="csr") @ weights
        self._rare.eliminate_zeros()

    def _tokenize(self, texts: Sequence[str]) -> "bm25s.tokenization.Tokenized":
        return bm25s.tokenize(list(texts), stopwords=self.stop_words, stemmer=self.stemmer, show_progress=False)

    def _count_words(self, queries: Sequence[str]) -> sp.csr_matrix:
        """Word counts [num_queries, num_words] of the words that the catalog has."""
        tokens = self._tokenize(queries)
        known = {number: self.vocabulary[word] for word, number in tokens.vocab.items() if word in self.vocabulary}
        cells = [(row, known[word]) for row, ids in enumerate(tokens.ids) for word in ids if word in known]
        rows, columns = np.array(cells, dtype=np.int64).reshape(-1, 2).T
        return sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), (len(queries), self._rare.shape[0]))

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """BM25 of every query with every item, float32 [num_queries, num_items]: for a few queries."""
        return self._scores(self._count_words(queries))

    def _scores(self, counts: sp.csr_matrix) -> np.ndarray:
        scores = (counts @ self._rare).toarray()
        for word, row in self._common.items():  # element by element: BLAS can give equal texts unequal scores
            scores += counts[:, [word]].toarray() * row
        return scores

    def _search(self, queries: list[str], k: int) -> Hits:
        counts = self._count_words(queries)
        parts = [top_k(self._scores(counts[rows]), k, floor=0.0) for rows in blocks(len(queries), len(self.texts))]
        return Hits(*map(np.concatenate, zip(*parts)))


HYBRID_DEPTH = 1000  # hits of each side that a hybrid search merges, as in retriv


def merge(sides: Sequence[Hits], num_items: int, k: int) -> Hits:
    """Add several lists of hits per query, each scaled so that its best hit is 1 and its last 0 (retriv's rule)."""
    total = np.zeros((len(sides[0].items), num_items), dtype=np.float32)
    found = np.zeros(total.shape, dtype=bool)
    for items, scores in sides:
        rows, ranks = np.nonzero(items >= 0)
        low = np.where(items >= 0, scores, np.inf).min(axis=1)
        spread = np.maximum(scores.max(axis=1) - low, 1e-9)
        total[rows, items[rows, ranks]] += (scores[rows, ranks] - low[rows]) / spread[rows]
        found[rows, items[rows, ranks]] = True
    return top_k(np.where(found, total, -np.inf), k)


class HybridIndex(Index):
    """Merge the hits of two indexes, which must be over one catalog (`merge`)."""

    def __init__(self, sparse: Index, dense: Index):
        super().__init__(sparse.texts)
        if sparse.texts != dense.texts:
            raise ValueError("the two indexes of a HybridIndex are over different catalogs: build both on one")
        self.sides = (sparse, dense)

    def _search(self, queries: list[str], k: int) -> Hits:
        parts, num_items = [], len(self.texts)
        for some in blocks(len(queries), HYBRID_DEPTH):
            found = [side.search(queries[some], min(HYBRID_DEPTH, num_items)) for side in self.sides]
            for rows in blocks(len(found[0].items), num_items):
                parts.append(merge([Hits(*(part[rows] for part in hits)) for hits in found], num_items, k))
        return Hits(*map(np.concatenate, zip(*parts)))
