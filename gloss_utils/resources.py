"""What is here (device, memory, packages, the hub), and the memory that a QLoRA step needs, estimated beforehand."""

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
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from .paths import PROJECT_ROOT, check_choice, read_json

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MIB, GIB, GB = 2**20, 2**30, 1e9
TIMEOUT = 10  # seconds for the one question to the hub

# 4 bits, and with double quantization 0.127 bits of scales for each parameter (QLoRA, section 3).
NF4_BYTES = (4 + 0.127) / 8
BF16_BYTES = 2
ADAMW_BYTES = 4 + 4 + 4 + 4  # fp32: the parameter, its gradient, and two moments
# Hidden size, layers, heads, MLP size, whether the head is the embedding; then the trainable
# parameters in millions (paper, 4.1.4) and the peak in GB that "VRAM usage" stays below (primer).
LLAMAS = {
    "llama-3.2-1b": (2048, 16, 32, 8192, True, 11, 4.0),
    "llama-3.2-3b": (3072, 28, 24, 8192, True, 24, 5.5),
    "llama-3.1-8b": (4096, 32, 32, 14336, False, 42, 9.0),
}


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


def llama_config(model: str) -> LlamaConfig:
    """Write down the configuration of `llama-3.2-1b`, `llama-3.2-3b` or `llama-3.1-8b`."""
    hidden_size, layers, heads, mlp_size, tied, _, _ = LLAMAS[check_choice(model, LLAMAS, "Llama")]
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=hidden_size // heads,
        intermediate_size=mlp_size,
        tie_word_embeddings=tied,
    )


def count_parameters(config: LlamaConfig, rank: int = 16) -> dict[str, int]:
    """Count `projections` (what QLoRA keeps in 4 bits), `other` (embeddings, norms, head) and `adapter`.

    Nothing is allocated: the tensors have shapes only.
    """
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        model.tie_weights()
        lora = LoraConfig(r=rank, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM")
        adapted = get_peft_model(model, lora, low_cpu_mem_usage=True)
    counts = {"projections": 0, "other": 0, "adapter": 0}
    for name, parameter in adapted.named_parameters():
        kind = "adapter" if "lora_" in name else "projections" if "base_layer" in name else "other"
        counts[kind] += parameter.numel()
    return counts


def estimate_memory(config: LlamaConfig, rank: int = 16, batch_size: int = 4, tokens: int = 1024) -> dict[str, float]:
    """Estimate the peak of a QLoRA step with gradient checkpointing, in GB (1e9 bytes), by part and in total.

    `batch_size` counts texts at once; gradient accumulation costs nothing. Not in it: the CUDA context
    (0.3 to 0.6 GB) and fragmentation.
    """
    counts = count_parameters(config, rank)
    positions, hidden, mlp = batch_size * tokens, config.hidden_size, config.intermediate_size
    parts = {
        "projections, 4 bit": counts["projections"] * NF4_BYTES,
        "embeddings, head, norms": counts["other"] * BF16_BYTES,
        "adapter and AdamW": counts["adapter"] * ADAMW_BYTES,
        # Checkpointing keeps each layer's input, and recomputes one layer at a time: its largest tensors are the
        # MLP's gate, up, their product, and the gradients of these. One projection at a time is unpacked to bf16.
        "kept activations": positions * hidden * config.num_hidden_layers * BF16_BYTES,
        "one layer at work": (positions * (6 * mlp + 8 * hidden) + hidden * mlp) * BF16_BYTES,
        # A fused loss writes the logits in chunks; so one text's worth, in fp32, with its gradient.
        "logits": 2 * tokens * config.vocab_size * 4,
    }
    return {name: size / GB for name, size in parts.items()} | {"total": sum(parts.values()) / GB}


def memory_table(rank: int = 16, batch_size: int = 4, tokens: int = 1024) -> pd.DataFrame:
    """Trainable parameters and estimated peak (GB) of three Llamas beside the paper's count and the primer's peak."""
    rows = []
    for model, (*_, paper_millions, primer_peak) in LLAMAS.items():
        config = llama_config(model)
        rows.append(
            {
                "model": model,
                "trainable_millions": count_parameters(config, rank)["adapter"] / 1e6,
                "paper_trainable_millions": paper_millions,
                **estimate_memory(config, rank, batch_size, tokens),
                "primer_peak": primer_peak,
            }
        )
    return pd.DataFrame(rows)
