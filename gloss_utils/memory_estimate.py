"""Memory of a fine-tuning run, worked out on paper from the model's configuration, without downloading it."""

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from .choices import check
from .training_texts import PROJECTIONS

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
    shape = dict(LLAMA_SHAPES[check(model, LLAMA_SHAPES, "Llama")])
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
