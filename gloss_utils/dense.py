"""Dense search over a catalog: exact in blocks, or approximate with FAISS."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .choices import check
from .encoders import encode
from .hits import Hits, Index, blocks, distinct, top_k


class DenseIndex(Index):
    """Cosine similarity between sentence vectors; exact unless `engine` says otherwise.

    Args:
        texts: the catalog, in item order; each distinct text is encoded once.
        encoder: "minilm", "e5-small-v2", "e5-base-v2", or any sentence-transformers id or directory.
        engine: "exact", "hnsw" (FAISS, approximate, for large catalogs), or "retriv" (the paper's library).
        cache_dir: where vectors are kept between runs; None keeps none.
        query_prefix, item_prefix: put before each text. E5 was trained with "query: " and "passage: ";
            the paper used none.
        dtype: "auto", "float32" or "bfloat16", as in `encode`.
        effort: for "hnsw", how many candidates a search keeps open (`efSearch`).
    """

    def __init__(
        self,
        texts: Sequence[str],
        encoder: str = "minilm",
        engine: str = "exact",
        cache_dir: str | Path | None = None,
        query_prefix: str = "",
        item_prefix: str = "",
        dtype: str = "auto",
        effort: int = 128,
    ):
        check(engine, ["exact", "hnsw", "retriv"], "dense engine")
        settings = {"encoder": encoder, "engine": engine, "query_prefix": query_prefix}
        settings |= {"item_prefix": item_prefix, "dtype": dtype, "effort": effort}
        super().__init__(texts, settings)
        self.cache_dir = cache_dir
        if engine == "retriv":
            self._build_retriv()
            return
        unique, inverse = distinct(self.texts)
        self._set_vectors(self._encode(unique, item_prefix)[inverse])
        if engine == "hnsw":
            self.graph = build_hnsw(self.vectors)

    def _build_retriv(self) -> None:
        from .retriv_engines import RetrivDense

        self.retriv = RetrivDense(self.texts, self.settings["encoder"])

    def _set_vectors(self, vectors: np.ndarray) -> None:
        """Keep the vectors [num_items, dimensions], and those of the distinct texts for the search."""
        unique, self._inverse = distinct(self.texts)
        first = np.full(len(unique), len(self.texts))
        np.minimum.at(first, self._inverse, np.arange(len(self.texts)))
        self.vectors, self._unique_vectors = vectors, vectors[first]
        self._number = {text: number for text, number in zip(unique, first)}

    def _encode(self, texts: list[str], prefix: str) -> np.ndarray:
        texts = [prefix + text for text in texts]
        return encode(texts, self.settings["encoder"], self.cache_dir, dtype=self.settings["dtype"])

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Vectors of the queries, float32 [num_queries, dimensions]; a catalog text keeps its own vector."""
        same_prefix = self.settings["query_prefix"] == self.settings["item_prefix"]
        known = [self._number.get(query, -1) if same_prefix else -1 for query in queries]
        vectors = np.empty((len(queries), self.vectors.shape[1]), dtype=np.float32)
        known = np.array(known, dtype=np.int64)
        vectors[known >= 0] = self.vectors[known[known >= 0]]
        new = np.flatnonzero(known < 0)
        if len(new):
            vectors[new] = self._encode([queries[place] for place in new], self.settings["query_prefix"])
        return vectors

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Cosines with every item, float32 [num_queries, num_items].

        Each distinct text is scored once and copied, so that equal texts have equal scores to the last bit.
        """
        return np.take(vectors @ self._unique_vectors.T, self._inverse, axis=1)

    def _search(self, queries: list[str], k: int) -> Hits:
        if self.settings["engine"] == "retriv":
            return self.retriv.search(queries, k)
        vectors = self.encode_queries(queries)
        if self.settings["engine"] == "hnsw":
            return search_hnsw(self.graph, vectors, k, self.settings["effort"])
        parts = [top_k(self.scores(vectors[rows]), k) for rows in blocks(len(queries), len(self.texts))]
        return Hits(*map(np.concatenate, zip(*parts)))

    def _write(self, directory: Path) -> None:
        if self.settings["engine"] != "retriv":
            np.save(directory / "vectors.npy", self.vectors)
        if self.settings["engine"] == "hnsw":
            import faiss

            faiss.write_index(self.graph, str(directory / "hnsw.faiss"))

    def _read(self, directory: Path) -> None:
        self.cache_dir = None
        if self.settings["engine"] == "retriv":
            self._build_retriv()
            return
        self._set_vectors(np.load(directory / "vectors.npy"))
        if self.settings["engine"] == "hnsw":
            import faiss

            self.graph = faiss.read_index(str(directory / "hnsw.faiss"))


def build_hnsw(vectors: np.ndarray, neighbours: int = 32) -> "faiss.IndexHNSWFlat":  # noqa: F821
    """Link unit vectors [num_items, dimensions] into FAISS's small-world graph (inner product)."""
    import faiss

    graph = faiss.IndexHNSWFlat(vectors.shape[1], neighbours, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 200
    graph.add(np.ascontiguousarray(vectors))
    return graph


def search_hnsw(graph: "faiss.IndexHNSWFlat", vectors: np.ndarray, k: int, effort: int) -> Hits:  # noqa: F821
    """Search the graph; near the end of a list it may miss an item that exact search finds."""
    graph.hnsw.efSearch = max(effort, k)
    scores, items = graph.search(np.ascontiguousarray(vectors), k)
    order = np.lexsort((items, -scores))  # equal scores: the lower item number first
    items, scores = np.take_along_axis(items, order, 1), np.take_along_axis(scores, order, 1)
    return Hits(items.astype(np.int64), np.where(items < 0, -np.inf, scores).astype(np.float32))
