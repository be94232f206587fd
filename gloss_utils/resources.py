"""Memory and time per step, on a GPU or a CPU."""

import gc
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx
import pandas as pd
import psutil
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from .paths import PROJECT_ROOT, check_choice

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


MIB = 2**20


def has_fast_bf16() -> bool:
    """Say whether bfloat16 arithmetic is native: on a GPU since Ampere, on a CPU with AVX-512 bf16 or AMX."""
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
    """Read the memory in use, in MiB.

    Returns:
        `allocated_mib` (tensors) and `reserved_mib` (what the allocator took for them) on a GPU, each the peak
        since it was last reset; `resident_mib`, the memory of the whole Python process, on both.
    """
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


TIMEOUT = 10  # seconds for the one question


def check_reachable(source: str) -> None:
    """Return if a model is on this disk, in the hub's cache, or on the hub.

    Args:
        source: a directory or a hub id ("owner/name").

    Raises:
        OSError: none of these; the message is the hub's.
    """
    if Path(source).is_dir():
        return
    try:
        if isinstance(try_to_load_from_cache(source, "config.json"), str):
            return
        HfApi().model_info(source, timeout=TIMEOUT)
    except (httpx.HTTPError, ValueError) as error:  # no network; not an id, such as a mistyped directory
        raise OSError(str(error)) from error


GB = 1e9
# 4 bits, and with double quantization 0.127 bits of scales for each weight (QLoRA, section 3).
NF4_BYTES = (4 + 0.127) / 8
BF16_BYTES = 2
ADAMW_BYTES = 4 + 4 + 4 + 4  # fp32: the weight, its gradient, and two moments

LLAMA_SHAPES = {
    "llama-3.2-1b": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "tied": True},
    "llama-3.2-3b": {"hidden_size": 3072, "num_hidden_layers": 28, "intermediate_size": 8192, "tied": True},
    "llama-3.1-8b": {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "tied": False},
}
ATTENTION_HEADS = {"llama-3.2-1b": 32, "llama-3.2-3b": 24, "llama-3.1-8b": 32}
# The primer's figures: trainable weights in millions, and the peak that "usage stays under" in GB.
PAPER_TRAINABLE = {"llama-3.2-1b": 11, "llama-3.2-3b": 24, "llama-3.1-8b": 42}
PAPER_PEAK_GB = {"llama-3.2-1b": 4.0, "llama-3.2-3b": 5.5, "llama-3.1-8b": 9.0}
PARTS = (
    "projections, 4 bit",
    "embeddings, head, norms",
    "adapter and AdamW",
    "kept activations",
    "one layer at work",
    "logits",
)


def llama_config(model: str) -> LlamaConfig:
    """Write down a Llama-3's configuration.

    Args:
        model: `llama-3.2-1b`, `llama-3.2-3b` or `llama-3.1-8b`.
    """
    shape = dict(LLAMA_SHAPES[check_choice(model, LLAMA_SHAPES, "Llama")])
    return LlamaConfig(
        vocab_size=128_256,
        tie_word_embeddings=shape.pop("tied"),
        num_attention_heads=ATTENTION_HEADS[model],
        num_key_value_heads=8,
        head_dim=shape["hidden_size"] // ATTENTION_HEADS[model],
        **shape,
    )


def count_weights(config: LlamaConfig, rank: int = 16) -> dict[str, int]:
    """Count the weights of a model with a LoRA adapter; nothing is allocated, the tensors have shapes only.

    Args:
        config: of the model.
        rank: of the adapter.

    Returns:
        `projections` (what QLoRA keeps in 4 bits), `other` (embeddings, norms, head) and `adapter`.
    """
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        model.tie_weights()
        adapted = get_peft_model(
            model,
            LoraConfig(r=rank, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM"),
            low_cpu_mem_usage=True,
        )
    counts = {"projections": 0, "other": 0, "adapter": 0}
    for name, weight in adapted.named_parameters():
        kind = "adapter" if "lora_" in name else "projections" if "base_layer" in name else "other"
        counts[kind] += weight.numel()
    return counts


def estimate_memory(config: LlamaConfig, rank: int = 16, batch_size: int = 4, tokens: int = 1024) -> dict[str, float]:
    """Estimate the peak of a QLoRA step with gradient checkpointing, in GB (1e9 bytes).

    Args:
        config: of the model.
        rank: of the adapter.
        batch_size: texts at once; gradient accumulation costs nothing.
        tokens: length of the padded batch.

    Returns:
        One figure per part, and `total`. Not in it: the CUDA context (0.3 to 0.6 GB) and fragmentation.
    """
    counts = count_weights(config, rank)
    positions = batch_size * tokens
    # Checkpointing keeps each layer's input, and recomputes one layer at a time: its largest tensors are the
    # MLP's gate, up, their product, and the gradients of these.
    layer_inputs = positions * config.hidden_size * config.num_hidden_layers * BF16_BYTES
    one_layer = positions * (6 * config.intermediate_size + 8 * config.hidden_size) * BF16_BYTES
    # One projection at a time is unpacked to bf16.
    unpacked = config.hidden_size * config.intermediate_size * BF16_BYTES
    # A fused loss writes the logits in chunks; so one text's worth, in fp32, with its gradient.
    logits = 2 * tokens * config.vocab_size * 4
    sizes = (
        counts["projections"] * NF4_BYTES,
        counts["other"] * BF16_BYTES,
        counts["adapter"] * ADAMW_BYTES,
        layer_inputs,
        one_layer + unpacked,
        logits,
    )
    parts = {name: size / GB for name, size in zip(PARTS, sizes)}
    return {**parts, "total": sum(parts.values())}


def paper_table(rank: int = 16, batch_size: int = 4, tokens: int = 1024) -> pd.DataFrame:
    """Put trainable weights and estimated peaks of the three Llamas beside the paper's.

    Args:
        rank, batch_size, tokens: as in `estimate_memory`.

    Returns:
        One row per model: `model, trainable_millions, paper_trainable_millions`, the parts, `total` and
        `paper_peak` in GB.
    """
    rows = []
    for model in LLAMA_SHAPES:
        config = llama_config(model)
        rows.append(
            {
                "model": model,
                "trainable_millions": count_weights(config, rank)["adapter"] / 1e6,
                "paper_trainable_millions": PAPER_TRAINABLE[model],
                **estimate_memory(config, rank, batch_size, tokens),
                "paper_peak": PAPER_PEAK_GB[model],
            }
        )
    return pd.DataFrame(rows)
