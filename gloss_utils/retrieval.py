"""Search a catalog by text: BM25, dense vectors, or both, behind one call.

    hits = BM25Index(texts).search(queries, k=20)     # hits.items, hits.scores: [num_queries, k]

Every index keeps three promises: equal scores go to the lower item number, a query without a hit gets
a row of -1, and `k` beyond the catalog pads with -1.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import bm25s
import numpy as np
import scipy.sparse as sp
import Stemmer


BLOCK_CELLS = 8_000_000  # score cells held at once, 32 MB: memory does not grow with the number of queries


class Hits(NamedTuple):
    """What a search found, best first.

    Attributes:
        items: int64 [num_queries, k], item numbers; -1 pads.
        scores: float32 [num_queries, k]; -inf where `items` is -1.
    """

    items: np.ndarray
    scores: np.ndarray


def top_k(scores: np.ndarray, k: int, floor: float = -np.inf) -> Hits:
    """Take the k best of every row; equal scores go to the lower column.

    Args:
        scores: float [num_rows, num_items].
        k: hits per row; beyond `num_items` the rest is padding.
        floor: only scores above it count.

    >>> top_k(np.array([[0.5, 0.9, 0.5]], dtype=np.float32), k=2).items
    array([[1, 0]])
    """
    num_rows, num_items = scores.shape
    last = num_items - min(k, num_items)
    threshold = np.partition(scores, last, axis=1)[:, last, None]
    rows, columns = np.divmod(np.flatnonzero((scores >= threshold) & (scores > floor)), num_items)
    values = scores[rows, columns]
    order = np.lexsort((-values, rows))  # stable, so columns stay ascending where values are equal
    rows, columns, values = rows[order], columns[order], values[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, np.arange(num_rows))[rows]
    kept = place < k
    hits = no_hits(num_rows, k)
    hits.items[rows[kept], place[kept]] = columns[kept]
    hits.scores[rows[kept], place[kept]] = values[kept]
    return hits


def no_hits(num_rows: int, k: int) -> Hits:
    """Rows of padding: -1 and -inf."""
    return Hits(np.full((num_rows, k), -1, dtype=np.int64), np.full((num_rows, k), -np.inf, dtype=np.float32))


def seen_mask(items: np.ndarray, seen: Sequence[np.ndarray]) -> np.ndarray:
    """Say which items of each row are among that row's seen ones, all users in one search.

    Args:
        items: int64 [num_users, width]; -1 pads, and is never seen.
        seen: one int64 array per user.

    Returns:
        bool [num_users, width].
    """
    width = int(max(items.max(initial=0), max((part.max(initial=0) for part in seen), default=0))) + 2
    owner = np.repeat(np.arange(len(seen)), [len(part) for part in seen])
    pairs = np.sort(owner * width + np.concatenate([*seen, np.empty(0, dtype=np.int64)]))
    asked = np.arange(len(items))[:, None] * width + np.where(items < 0, width - 1, items)
    place = np.searchsorted(pairs, asked)
    return (place < len(pairs)) & (pairs[np.minimum(place, len(pairs) - 1)] == asked) if len(pairs) else asked < 0


def blocks(num_rows: int, num_items: int) -> Iterator[slice]:
    """Cut rows into slices of at most `BLOCK_CELLS` scores each."""
    step = max(1, BLOCK_CELLS // max(1, num_items))
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the distinct texts in order of appearance, and for every text its place among them."""
    places: dict[str, int] = {}
    inverse = np.fromiter((places.setdefault(text, len(places)) for text in texts), np.int64, len(texts))
    return list(places), inverse


def fingerprint(texts: Sequence[str]) -> str:
    """A hash of the texts and their order: what tells one catalog from another."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


class Index:
    """What every index shares: the catalog's texts and checked searches."""

    def __init__(self, texts: Sequence[str]):
        self.texts = [str(text) for text in texts]
        if not self.texts:
            raise ValueError("the catalog is empty: an index needs at least one text")

    def search(self, queries: Sequence[str], k: int = 20) -> Hits:
        """Find the k best items for every query.

        Args:
            queries: texts; equal ones are searched once.
            k: hits per query, at least 1; beyond what there is the rows are padded with -1.

        Raises:
            ValueError: `k` is below 1, or `queries` is one string instead of a list.
        """
        if isinstance(queries, str):
            raise ValueError("queries is one string: give a list of texts, such as [query]")
        if k < 1:
            raise ValueError(f"k={k}: ask for at least one hit")
        unique, inverse = distinct([str(query) for query in queries])
        filled = [place for place, query in enumerate(unique) if query.strip()]
        hits = no_hits(len(unique), k)
        if filled:
            found = self._search([unique[place] for place in filled], min(k, len(self.texts)))
            hits.items[filled, : found.items.shape[1]] = found.items
            hits.scores[filled, : found.scores.shape[1]] = found.scores
        return Hits(hits.items[inverse], hits.scores[inverse])


COMMON_SHARE = 0.2  # a word in more of the catalog than this is added as a dense row, which is faster


class BM25Index(Index):
    """BM25 (Lucene's variant) over whole words; an item that shares no word with the query is no hit.

    The score matrix [words, items] is computed once by bm25s. A search is then one sparse product: the
    queries' word counts times that matrix.

    Args:
        texts: the catalog, in item order.
        k1: how fast a repeated word saturates.
        b: how much a long text is discounted.
        stop_words: a language that bm25s knows, a list of words, or None.
        stemmer: a Snowball language ("english"), or None as in the paper's results.
    """

    def __init__(
        self,
        texts: Sequence[str],
        k1: float = 1.5,
        b: float = 0.75,
        stop_words: str | list[str] | None = "english",
        stemmer: str | None = None,
    ):
        super().__init__(texts)
        self.stop_words, self.stemmer = stop_words or [], Stemmer.Stemmer(stemmer) if stemmer else None
        tokens = self._tokenize(self.texts)
        self.vocabulary = dict(tokens.vocab)
        self.weights = sp.csr_matrix((max(1, len(self.vocabulary)), len(self.texts)), dtype=np.float32)
        if self.vocabulary:
            model = bm25s.BM25(k1=k1, b=b, method="lucene")
            model.index(tokens, show_progress=False, create_empty_token=False)
            arrays = (model.scores["data"], model.scores["indices"], model.scores["indptr"])
            # bm25s keeps columns of words; read as rows, the same arrays are the transposed matrix
            self.weights = sp.csr_matrix(arrays, shape=self.weights.shape)

    def _tokenize(self, texts: Sequence[str]) -> "bm25s.tokenization.Tokenized":
        return bm25s.tokenize(list(texts), stopwords=self.stop_words, stemmer=self.stemmer, show_progress=False)

    def _count_words(self, queries: Sequence[str]) -> sp.csr_matrix:
        """Word counts [num_queries, num_words] of the words that the catalog has."""
        tokens = self._tokenize(queries)
        known = np.full(max(1, len(tokens.vocab)), -1)
        for word, number in tokens.vocab.items():
            known[number] = self.vocabulary.get(word, -1)
        lengths = [len(ids) for ids in tokens.ids]
        rows = np.repeat(np.arange(len(queries)), lengths)
        columns = known[np.fromiter((number for ids in tokens.ids for number in ids), np.int64, sum(lengths))]
        rows, columns = rows[columns >= 0], columns[columns >= 0]
        ones = np.ones(len(rows), dtype=np.float32)
        return sp.csr_matrix((ones, (rows, columns)), shape=(len(queries), self.weights.shape[0]))

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """BM25 of every query with every item, float32 [num_queries, num_items]: for a few queries."""
        return self._scores(self._count_words(queries))

    def _scores(self, counts: sp.csr_matrix) -> np.ndarray:
        common = np.flatnonzero(np.diff(self.weights.indptr) > COMMON_SHARE * len(self.texts))
        rare = np.ones(self.weights.shape[0], dtype=np.float32)
        rare[common] = 0
        sparse_counts = counts @ sp.diags(rare, format="csr")
        sparse_counts.eliminate_zeros()
        scores = (sparse_counts @ self.weights).toarray()
        for word in common:  # element by element, not by BLAS: equal texts must get equal scores
            scores += counts[:, [word]].toarray() * self.weights[word].toarray()
        return scores

    def _search(self, queries: list[str], k: int) -> Hits:
        counts = self._count_words(queries)
        parts = [top_k(self._scores(counts[rows]), k, floor=0.0) for rows in blocks(len(queries), len(self.texts))]
        return Hits(*map(np.concatenate, zip(*parts)))


HYBRID_DEPTH = 1000  # hits of each side that a hybrid search merges, as in retriv
HYBRID_QUERIES = 4096  # whose hits are held at once: both sides of them take 100 MB


def merge(sides: Sequence[Hits], num_items: int, k: int) -> Hits:
    """Add several lists of hits per query, each scaled so that its best hit is 1 and its last 0."""
    num_queries = len(sides[0].items)
    total = np.full((num_queries, num_items), -np.inf, dtype=np.float32)
    for items, scores in sides:
        found = items >= 0
        low = np.where(found, scores, np.inf).min(axis=1, keepdims=True)
        spread = np.maximum(scores.max(axis=1, keepdims=True) - low, 1e-9)
        rows, places = np.nonzero(found)
        scaled = ((scores - low) / spread)[rows, places]
        columns = items[rows, places]
        total[rows, columns] = np.where(np.isinf(total[rows, columns]), 0, total[rows, columns]) + scaled
    return top_k(total, k)


class HybridIndex(Index):
    """Hits of two indexes merged: each side's scores scaled to 0..1 per query, then added (retriv's rule).

    Args:
        sparse, dense: two indexes over the same catalog, in the same order.
        depth: hits of each side that are merged.

    Raises:
        ValueError: the two are over different catalogs.
    """

    def __init__(self, sparse: Index, dense: Index, depth: int = HYBRID_DEPTH):
        super().__init__(sparse.texts)
        if sparse.texts != dense.texts:
            raise ValueError("the two indexes of a HybridIndex are over different catalogs: build both on one")
        self.sides, self.depth = (sparse, dense), min(depth, len(sparse.texts))

    def _search(self, queries: list[str], k: int) -> Hits:
        parts = []
        for start in range(0, len(queries), HYBRID_QUERIES):
            some = queries[start : start + HYBRID_QUERIES]
            found = [side.search(some, self.depth) for side in self.sides]
            for rows in blocks(len(some), len(self.texts)):
                parts.append(merge([Hits(hits.items[rows], hits.scores[rows]) for hits in found], len(self.texts), k))
        return Hits(*map(np.concatenate, zip(*parts)))
