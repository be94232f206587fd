"""GLoSS, step by step: the helper package behind the notebooks.

The calls that other people's code relies on can be imported from here. They are looked up when they are
first used, so that `import gloss_utils` alone does not load torch.
"""

import logging
import os
from importlib import import_module

# Waiting threads that spin make two busy cores ten times slower. Read when torch loads its thread library.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# On import bitsandbytes warns that an optional CPU kernel is missing. Nothing here needs it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_HOME = {
    "prepare": "raw_data",
    "load_prepared": "splits",
    "load_task": "splits",
    "BM25Index": "retrieval",
    "DenseIndex": "dense",
    "HybridIndex": "retrieval",
    "build_index": "dense",
    "rank_items": "ranking",
    "evaluate": "metrics",
    "summarize": "metrics",
    "compare": "metrics",
    "Recommender": "recommender",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'gloss_utils' has no attribute '{name}'")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
