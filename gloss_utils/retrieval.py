"""Search a catalog by text: BM25, dense vectors, or both, behind one call.

    hits = BM25Index(texts).search(queries, k=20)     # hits.items, hits.scores: [num_queries, k]

Every index keeps three promises: equal scores go to the lower item number, a query without a hit gets
a row of -1, and `k` beyond the catalog pads with -1.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .bm25 import BM25Index
from .choices import check
from .dense import DenseIndex
from .hits import Hits, Index, blocks, top_k

__all__ = ["BM25Index", "DenseIndex", "Hits", "HybridIndex", "build_index", "merge", "top_k"]

HYBRID_DEPTH = 1000  # hits of each side that a hybrid search merges, as in retriv
HYBRID_QUERIES = 4096  # whose hits are held at once: both sides of them take 100 MB


class HybridIndex(Index):
    """BM25 and dense hits merged: each side's scores scaled to 0..1 per query, then added (retriv's rule).

    Args:
        texts: the catalog, in item order.
        encoder, cache_dir: as in `DenseIndex`.
        engine: "exact", or "retriv" for the paper's library.
        depth: hits of each side that are merged.
    """

    def __init__(
        self,
        texts: Sequence[str],
        encoder: str = "minilm",
        cache_dir: str | Path | None = None,
        engine: str = "exact",
        depth: int = HYBRID_DEPTH,
        dtype: str = "auto",
    ):
        check(engine, ["exact", "retriv"], "hybrid engine")
        super().__init__(texts, {"encoder": encoder, "engine": engine, "depth": depth})
        if engine == "retriv":
            self._build_retriv()
            return
        self.bm25 = BM25Index(texts)
        self.dense = DenseIndex(texts, encoder, cache_dir=cache_dir, dtype=dtype)

    def _build_retriv(self) -> None:
        from .retriv_engines import RetrivHybrid

        self.retriv = RetrivHybrid(self.texts, self.settings["encoder"], self.settings["depth"])

    def _search(self, queries: list[str], k: int) -> Hits:
        if self.settings["engine"] == "retriv":
            return self.retriv.search(queries, k)
        depth = min(self.settings["depth"], len(self.texts))
        parts = []
        for start in range(0, len(queries), HYBRID_QUERIES):
            some = queries[start : start + HYBRID_QUERIES]
            sides = [side.search(some, depth) for side in (self.bm25, self.dense)]
            for rows in blocks(len(some), len(self.texts)):
                parts.append(merge([Hits(hits.items[rows], hits.scores[rows]) for hits in sides], len(self.texts), k))
        return Hits(*map(np.concatenate, zip(*parts)))

    def _write(self, directory: Path) -> None:
        if self.settings["engine"] == "retriv":
            return
        self.bm25.save(directory / "bm25")
        self.dense.save(directory / "dense")

    def _read(self, directory: Path) -> None:
        if self.settings["engine"] == "retriv":
            self._build_retriv()
            return
        self.bm25 = BM25Index.load(directory / "bm25", self.texts)
        self.dense = DenseIndex.load(directory / "dense", self.texts)


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


INDEXES = {"bm25": BM25Index, "dense": DenseIndex, "hybrid": HybridIndex}


def build_index(
    name: str, texts: Sequence[str], encoder: str = "minilm", cache_dir: str | Path | None = None
) -> Index:
    """Build an index by name: "bm25", "dense" or "hybrid" (the encoder only concerns the last two)."""
    check(name, INDEXES, "retriever")
    if name == "bm25":
        return BM25Index(texts)
    return INDEXES[name](texts, encoder=encoder, cache_dir=cache_dir)
