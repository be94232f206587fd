"""What is here: device, memory, the hub."""

import gc
from pathlib import Path

import httpx
import psutil
import torch
from huggingface_hub import HfApi, try_to_load_from_cache

from .paths import read_json

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MIB = 2**20
TIMEOUT = 10  # seconds for the one question to the hub


def has_fast_bf16() -> bool:
    """Say whether bfloat16 arithmetic is native: on a GPU since Ampere, on a CPU with AVX-512 bf16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def describe_device() -> str:
    """Name what the model runs on, for the reader and for `run.json`."""
    if torch.cuda.is_available():
        return f"GPU {torch.cuda.get_device_name()}"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}, bf16 {'native' if has_fast_bf16() else 'emulated'}"


def memory() -> dict[str, float]:
    """Read the memory in use: `resident_mib`; on a GPU also the peaks `allocated_mib` and `reserved_mib`."""
    numbers = {"resident_mib": psutil.Process().memory_info().rss / MIB}
    if torch.cuda.is_available():
        numbers["allocated_mib"] = torch.cuda.max_memory_allocated() / MIB
        numbers["reserved_mib"] = torch.cuda.max_memory_reserved() / MIB
    return numbers


def free_memory() -> None:
    """Give back what deleted models held, so that the next one does not have to fit beside them."""
    gc.collect()  # a trainer and its model refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_reachable(source: str) -> None:
    """Raise an OSError if a model (directory or hub id) is not on this disk, in the hub's cache, or on the hub.

    `from_pretrained` asks the hub too, but without a network its retries take minutes.
    """
    if Path(source).is_dir():
        return
    try:
        index = try_to_load_from_cache(source, "model.safetensors.index.json")
        parts = read_json(Path(index))["weight_map"].values() if isinstance(index, str) else ["model.safetensors"]
        if all(isinstance(try_to_load_from_cache(source, name), str) for name in ("config.json", *parts)):
            return  # half a model in the cache does not count: its rest would be asked for
        HfApi().model_info(source, timeout=TIMEOUT)
    except (httpx.HTTPError, ValueError) as error:  # no network; not an id, such as a mistyped directory
        raise OSError(str(error)) from error
