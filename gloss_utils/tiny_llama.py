"""A base model grown on the spot: a small Llama with a tokenizer trained on the catalog.

It stands in for Llama-3, so that the whole course runs without a download, a licence or a GPU. What
Llama-3 knows before fine-tuning (English, brands, what a product title looks like) this one learns from
the catalog's titles in random order. It has seen no user when it comes to fine-tuning, as Llama-3 has not.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import prompts, resources
from .paths import write_atomically

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"  # Llama-3's names
# Text that is the same in every prompt is one token here. Llama-3 spends about 80 on the instruction and can
# afford it; on two cores they would take half of the training time.
TEMPLATE_TOKENS = (
    prompts.PROMPT_HEADER,
    prompts.NEXT_ITEM,
    "\n" + prompts.ITEM_PREFIX.rstrip(),
    prompts.ITEM_PREFIX.rstrip(),
)
BASE_LOG = "base_log.csv"


@dataclass(frozen=True)
class Recipe:
    """How the base is grown.

    Attributes:
        vocab_size: tokens at most; a small catalog yields fewer.
        hidden_size, num_layers, num_heads, num_kv_heads, mlp_size: the shape.
        epochs: passes over the catalog, reshuffled each time.
        block_length: tokens per training row; the rows have no padding.
        batch_size: rows per step.
        learning_rate: peak; warm-up over the first twentieth, then linear to zero.
        minutes: time limit, 0 for none. Fewer steps are planned where all would take longer.
        seed: of the weights and of the shuffles.
    """

    vocab_size: int = 2048
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    mlp_size: int = 384
    epochs: int = 30
    block_length: int = 128
    batch_size: int = 16
    learning_rate: float = 3e-3
    minutes: float = 0.0
    seed: int = 42

    def __post_init__(self):
        if self.hidden_size % 64 or self.mlp_size % 64:
            raise ValueError(
                f"hidden_size={self.hidden_size} and mlp_size={self.mlp_size} must be multiples of 64: NF4 has one "
                "scale per 64 weights, and bitsandbytes lays whole rows out for the CPU"
            )


def train_tokenizer(texts: Sequence[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, as Llama-3's, on the catalog.

    Args:
        texts: item texts.
        vocab_size: tokens at most, special ones included.

    Returns:
        A tokenizer with Llama-3's special tokens; PAD is distinct from EOS.
    """
    if not len(texts):
        raise ValueError("no item texts to train a tokenizer on: the catalog is empty")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TEMPLATE_TOKENS),
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.removeprefix(prompts.ITEM_PREFIX.rstrip()) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in TEMPLATE_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, max_positions: int = 2048) -> LlamaForCausalLM:
    """Make a Llama with random weights.

    Args:
        tokenizer: gives the vocabulary and the special tokens' numbers.
        recipe: the shape and the seed.
        max_positions: longest text in tokens.
    """
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.mlp_size,
            num_hidden_layers=recipe.num_layers,
            num_attention_heads=recipe.num_heads,
            num_key_value_heads=recipe.num_kv_heads,
            max_position_embeddings=max_positions,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def catalog_pages(texts: Sequence[str], rng: np.random.Generator, longest: int = 12) -> list[str]:
    """Shuffle the catalog and cut it into pages of 1 to `longest` items.

    Args:
        texts: item texts.
        rng: decides the order and the cuts.
        longest: items on a page at most.
    """
    order = rng.permutation(len(texts))
    cuts = np.cumsum(rng.integers(1, longest + 1, size=len(texts)))
    return ["\n".join(texts[row] for row in page) for page in np.split(order, cuts[cuts < len(texts)])]


def token_blocks(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, block_length: int
) -> torch.Tensor:
    """Write one epoch of the shuffled catalog as rows of equal length.

    Args:
        texts: item texts.
        tokenizer: adds BOS; EOS ends each page.
        rng: decides the shuffle.
        block_length: tokens per row.

    Returns:
        int64 [rows, block_length]; the last, shorter row is left out unless it is the only one.
    """
    pages = tokenizer(catalog_pages(texts, rng), return_attention_mask=False)["input_ids"]
    stream = np.concatenate([[*page, tokenizer.eos_token_id] for page in pages])
    length = min(block_length, len(stream))
    rows = len(stream) // length
    return torch.from_numpy(stream[: rows * length].reshape(rows, length).astype(np.int64))


def planned_steps(model, optimizer, blocks: torch.Tensor, recipe: Recipe) -> int:
    """Count the steps of all epochs, or those that fit into the time limit.

    Two steps are timed for that, and their gradients thrown away.
    """
    steps = recipe.epochs * -(-len(blocks) // recipe.batch_size)
    if not recipe.minutes:
        return steps
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        _loss(model, blocks[: recipe.batch_size]).backward()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return max(1, min(steps, int(60 * recipe.minutes / min(seconds))))


def pretrain(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], recipe: Recipe
) -> pd.DataFrame:
    """Train all weights on the shuffled catalog.

    Args:
        model: changed in place.
        tokenizer: the model's.
        texts: item texts.
        recipe: epochs, batch, learning rate, time limit.

    Returns:
        One row per step: `step, loss` (nats per token), `step_seconds`.
    """
    rng = np.random.default_rng(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    blocks = token_blocks(texts, tokenizer, rng, recipe.block_length)
    steps = planned_steps(model, optimizer, blocks, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_then_fall(step, steps))
    model.train()
    rows, batches, deadline = [], [], time.monotonic() + (60 * recipe.minutes or float("inf"))
    for step in tqdm(range(steps), desc="base", unit="step"):
        if time.monotonic() > deadline:
            break
        if not batches:
            blocks = token_blocks(texts, tokenizer, rng, recipe.block_length)
            batches = list(blocks.split(recipe.batch_size))
        started = time.perf_counter()
        loss = _loss(model, batches.pop())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        rows.append({"step": step + 1, "loss": loss.item(), "step_seconds": time.perf_counter() - started})
    return pd.DataFrame(rows)


def _loss(model: LlamaForCausalLM, blocks: torch.Tensor) -> torch.Tensor:
    blocks = blocks.to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=resources.has_fast_bf16()):
        return model(input_ids=blocks, labels=blocks).loss


def _warm_up_then_fall(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def pretrain_base(texts: Sequence[str], directory: str | Path, recipe: Recipe | None = None) -> pd.DataFrame:
    """Make tokenizer and base model, and save both with the log.

    Args:
        texts: item texts of the catalog.
        directory: where the base goes, `paths.base_model("tiny-llama")`.
        recipe: how; the default is the sample profile's.

    Returns:
        The log, one row per step.

    Raises:
        ValueError: the catalog is empty.
    """
    recipe, texts = recipe or Recipe(), list(texts)
    tokenizer = train_tokenizer(texts, recipe.vocab_size)
    model = build_model(tokenizer, recipe)
    log = pretrain(model, tokenizer, texts, recipe)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        log.to_csv(folder / BASE_LOG, index=False)
        pd.Series(asdict(recipe)).to_json(folder / "recipe.json", indent=1)

    write_atomically(Path(directory), write)
    return log
