"""BM25 over a catalog, as one sparse product."""

import json
from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np
import scipy.sparse as sp

from .choices import check
from .hits import Hits, Index, blocks, top_k

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
        engine: "bm25s", or "retriv" for the paper's library.
    """

    def __init__(
        self,
        texts: Sequence[str],
        k1: float = 1.5,
        b: float = 0.75,
        stop_words: str | list[str] | None = "english",
        stemmer: str | None = None,
        engine: str = "bm25s",
    ):
        check(engine, ["bm25s", "retriv"], "BM25 engine")
        settings = {"k1": k1, "b": b, "stop_words": stop_words, "stemmer": stemmer, "engine": engine}
        super().__init__(texts, settings)
        if engine == "retriv":
            self._build_retriv()
        else:
            self._build()

    def _build(self) -> None:
        tokens = self._tokenize(self.texts)
        self.vocabulary = dict(tokens.vocab)
        self.weights = sp.csr_matrix((max(1, len(self.vocabulary)), len(self.texts)), dtype=np.float32)
        if self.vocabulary:
            model = bm25s.BM25(k1=self.settings["k1"], b=self.settings["b"], method="lucene")
            model.index(tokens, show_progress=False, create_empty_token=False)
            arrays = (model.scores["data"], model.scores["indices"], model.scores["indptr"])
            # bm25s keeps columns of words; read as rows, the same arrays are the transposed matrix
            self.weights = sp.csr_matrix(arrays, shape=self.weights.shape)

    def _build_retriv(self) -> None:
        from .retriv_engines import RetrivSparse

        self.retriv = RetrivSparse(self.texts, self._words, self.settings["k1"], self.settings["b"])

    def _tokenize(self, texts: Sequence[str]) -> "bm25s.tokenization.Tokenized":
        stemmer = None
        if self.settings["stemmer"]:
            import Stemmer

            stemmer = Stemmer.Stemmer(self.settings["stemmer"])
        stop_words = self.settings["stop_words"] or []
        return bm25s.tokenize(list(texts), stopwords=stop_words, stemmer=stemmer, show_progress=False)

    def _words(self, text: str) -> list[str]:
        """One text's words, as both engines see them."""
        tokens = self._tokenize([text])
        names = {number: word for word, number in tokens.vocab.items()}
        return [names[number] for number in tokens.ids[0]]

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
        if self.settings["engine"] == "retriv":
            return self.retriv.search(queries, k)
        counts = self._count_words(queries)
        parts = [top_k(self._scores(counts[rows]), k, floor=0.0) for rows in blocks(len(queries), len(self.texts))]
        return Hits(*map(np.concatenate, zip(*parts)))

    def _write(self, directory: Path) -> None:
        if self.settings["engine"] == "bm25s":
            sp.save_npz(directory / "weights.npz", self.weights)
            (directory / "vocabulary.json").write_text(json.dumps(self.vocabulary))

    def _read(self, directory: Path) -> None:
        if self.settings["engine"] == "retriv":
            self._build_retriv()
            return
        self.weights = sp.load_npz(directory / "weights.npz").tocsr()
        self.vocabulary = json.loads((directory / "vocabulary.json").read_text())
