"""A base model pretrained on the spot: a small Llama with a tokenizer trained on the catalog.

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
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_linear_schedule_with_warmup

from . import prompts, resources
from .language_models import save
from .paths import check_number

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"  # Llama-3's names
# Text that is the same in every prompt is one token here. Llama-3 spends about 80 on the instruction and can
# afford it; on two cores they would take half of the training time.
ITEM = prompts.ITEM_PREFIX.rstrip()  # "Title:"
TEMPLATE_TOKENS = (prompts.PROMPT_HEADER, prompts.NEXT_ITEM, "\n" + ITEM, ITEM)
MAX_POSITIONS = 2048  # longest text in tokens


@dataclass(frozen=True)
class Recipe:
    """How the base is made and pretrained."""

    vocab_size: int = 2048  # tokens at most; a small catalog yields fewer
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    mlp_size: int = 384
    epochs: int = 4  # passes over the catalog, reshuffled each time
    block_length: int = 128  # tokens per training row; the rows have no padding
    batch_size: int = 16  # rows per step
    learning_rate: float = 3e-3  # peak; warm-up over the first twentieth, then linear to zero
    seed: int = 42

    def __post_init__(self):
        for name, value in asdict(self).items():
            least = {"vocab_size": 300, "seed": 0}.get(name, 1)  # 256 bytes and the special tokens
            if name != "learning_rate":
                check_number(value, name, least)
        check_number(self.learning_rate, "learning_rate", 1e-9, 10, whole=False)
        if self.hidden_size % 64 or self.mlp_size % 64:
            raise ValueError(
                f"hidden_size={self.hidden_size} and mlp_size={self.mlp_size} must be multiples of 64: NF4 has one "
                "scale per 64 parameters, and bitsandbytes lays whole rows out for the CPU"
            )


def train_tokenizer(texts: Sequence[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with Llama-3's special tokens on item texts; PAD is distinct from EOS."""
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
    tokenizer.train_from_iterator((text.removeprefix(ITEM) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in TEMPLATE_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def build_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    """Make a Llama with random parameters for a tokenizer's vocabulary."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.mlp_size,
            num_hidden_layers=recipe.num_layers,
            num_attention_heads=recipe.num_heads,
            num_key_value_heads=recipe.num_kv_heads,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def catalog_pages(texts: Sequence[str], rng: np.random.Generator, longest: int = 12) -> list[str]:
    """Shuffle the catalog and cut it into pages of 1 to `longest` items, one item per line."""
    order = rng.permutation(len(texts))
    cuts = np.cumsum(rng.integers(1, longest + 1, size=len(texts)))
    return ["\n".join(texts[row] for row in page) for page in np.split(order, cuts[cuts < len(texts)])]


def token_blocks(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, block_length: int
) -> torch.Tensor:
    """Write one epoch of the shuffled catalog as rows of equal length, [rows, block_length]; EOS ends a page."""
    pages = tokenizer(catalog_pages(texts, rng), return_attention_mask=False)["input_ids"]
    stream = np.concatenate([[*page, tokenizer.eos_token_id] for page in pages])
    length = min(block_length, len(stream))
    rows = len(stream) // length
    return torch.from_numpy(stream[: rows * length].reshape(rows, length).astype(np.int64))


def pretrain(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], recipe: Recipe
) -> pd.DataFrame:
    """Train all parameters, in place, on the shuffled catalog; the log has `step, loss` (nats), `step_seconds`."""
    rng = np.random.default_rng(recipe.seed)
    batches = [
        batch
        for _ in range(recipe.epochs)
        for batch in token_blocks(texts, tokenizer, rng, recipe.block_length).split(recipe.batch_size)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, len(batches) // 20, len(batches))
    model.train()
    rows = []
    for step, batch in enumerate(tqdm(batches, desc="pretraining", unit="step"), start=1):
        started = time.perf_counter()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=resources.has_fast_bf16()):
            loss = model(input_ids=batch.to(model.device), labels=batch.to(model.device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        rows.append({"step": step, "loss": loss.item(), "step_seconds": time.perf_counter() - started})
    return pd.DataFrame(rows)


def pretrain_base(texts: Sequence[str], directory: str | Path, recipe: Recipe | None = None) -> pd.DataFrame:
    """Make tokenizer and base model from the catalog's texts, pretrain, save both; returns `pretrain`'s log."""
    recipe, texts = recipe or Recipe(), list(texts)
    tokenizer = train_tokenizer(texts, recipe.vocab_size)
    model = build_model(tokenizer, recipe)
    log = pretrain(model, tokenizer, texts, recipe)
    save(model, tokenizer, Path(directory))
    return log
