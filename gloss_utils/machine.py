"""What this machine can do, and which profile suits it."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import pandas as pd
import psutil
import torch

from .paths import PROJECT_ROOT

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "bm25s", "sentence-transformers")
GIB = 2**30


def describe_machine() -> pd.DataFrame:
    """List cores, memory, disk, GPU and Python, one row each: what, found, enough.

    `enough` speaks of the sample profile: two cores, 6 GiB of memory, 2 GiB of disk; a GPU is never needed.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / GIB
    disk = shutil.disk_usage(PROJECT_ROOT).free / GIB
    rows = [
        ("Python", platform.python_version(), platform.python_version_tuple()[:2] in (("3", "11"), ("3", "12"))),
        ("CPU cores", f"{cores}", cores >= 2),
        ("memory", f"{memory:.0f} GiB", memory >= 6),
        ("free disk", f"{disk:.0f} GiB", disk >= 2),
        ("GPU", gpu_name() or "none: everything runs on the CPU", True),
    ]
    return pd.DataFrame(rows, columns=["what", "found", "enough"])


def gpu_name() -> str:
    """Name the first GPU with its memory, or return an empty string."""
    if not torch.cuda.is_available():
        return ""
    found = torch.cuda.get_device_properties(0)
    return f"{found.name}, {found.total_memory / GIB:.0f} GiB"


def suggest_profile() -> str:
    """Return the profile for this machine: `paper` with a GPU of 8 GiB or more, else `sample`.

    The paper fine-tunes Llama-3.2-3B in under 5.5 GB and Llama-3.1-8B in under 9 GB (primer, part 2).
    """
    big_enough = torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory >= 8 * GIB
    return "paper" if big_enough else "sample"


def package_versions() -> pd.DataFrame:
    """List the versions that shape the results; `unsloth` is there on a GPU only."""
    return pd.DataFrame([(name, _version(name)) for name in PACKAGES], columns=["package", "version"])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
