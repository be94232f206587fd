"""What is here: device, memory, the hub."""

import gc
import os
import platform
import shutil
from pathlib import Path

import httpx
import pandas as pd
import psutil
import torch
from huggingface_hub import HfApi, try_to_load_from_cache

from .paths import PROJECT_ROOT, read_json

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MIB, GIB = 2**20, 2**30
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


def describe_machine() -> pd.DataFrame:
    """List Python, cores, memory, disk and GPU: what, found, enough (for the sample profile, which needs no GPU)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ram = psutil.virtual_memory().total / GIB
    disk = shutil.disk_usage(PROJECT_ROOT).free / GIB
    gpu = f"{torch.cuda.get_device_name()}, {_gpu_bytes() / GIB:.0f} GiB" if torch.cuda.is_available() else ""
    rows = [
        ("Python", platform.python_version(), platform.python_version_tuple()[:2] in (("3", "11"), ("3", "12"))),
        ("CPU cores", f"{cores}", cores >= 2),
        ("memory", f"{ram:.0f} GiB", ram >= 6),
        ("free disk", f"{disk:.0f} GiB", disk >= 2),
        ("GPU", gpu or "none: everything runs on the CPU", True),
    ]
    return pd.DataFrame(rows, columns=["what", "found", "enough"])


def _gpu_bytes() -> int:
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def suggest_profile() -> str:
    """Return `paper` with a GPU of 8 GiB or more (the primer: Llama-3.2-3B trains in under 5.5 GB), else `sample`."""
    return "paper" if _gpu_bytes() >= 8 * GIB else "sample"


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
