"""From the splits' texts to batches: EOS, truncation, loss mask, and the order of an epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from . import prompts
from .choices import check

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WINDOW = 32  # batches: enough for like lengths, few enough that an epoch is still well mixed
METHODS = ("qlora", "lora", "full")


@dataclass(frozen=True)
class Settings:
    """What a fine-tuning run is made of. The defaults are the paper's (section 4.1, and the primer).

    Attributes:
        method: `qlora` (4-bit base), `lora` (full-precision base), `full` (all weights, no adapter).
        rank, alpha, dropout: of the adapter.
        learning_rate, warmup_steps, weight_decay: AdamW, linear to zero after the warm-up.
        epochs, batch_size, gradient_accumulation: 4 × 4 texts per step in the paper.
        max_seq_length: tokens per text.
        truncation: `left` cuts tokens off the start, the instruction first; `oldest` drops whole items.
        loss_on: `text` (every token) or `answer` (the next item only).
        add_eos: False shows what a model does that never saw an end.
        order: `shuffled`, or `by_length`: batches of like lengths, so that little is padded.
        packing: fill rows with several texts; for a GPU with flash attention.
        evaluations: how often to look at the validation loss, and to save a checkpoint; 0 for once an epoch.
        patience: evaluations without a lower validation loss before it stops.
        minutes: time limit, 0 for none; fewer steps are planned where all would take longer.
        user_share: part of the training users.
        seed: of the adapter's weights and of the order.
    """

    method: str = "qlora"
    rank: int = 16
    alpha: int = 16
    dropout: float = 0.0
    learning_rate: float = 1e-4
    warmup_steps: int = 300
    weight_decay: float = 0.01
    epochs: int = 10
    batch_size: int = 4
    gradient_accumulation: int = 4
    max_seq_length: int = 1024
    truncation: str = "left"
    loss_on: str = "text"
    add_eos: bool = True
    order: str = "shuffled"
    packing: bool = False
    evaluations: int = 0
    patience: int = 3
    minutes: float = 0.0
    user_share: float = 1.0
    seed: int = 42

    def __post_init__(self):
        check(self.method, METHODS, "method")
        check(self.truncation, ("left", "oldest"), "truncation")
        check(self.loss_on, ("text", "answer"), "loss_on")
        check(self.order, ("shuffled", "by_length"), "order")
        if not 0 < self.user_share <= 1:
            raise ValueError(f"user_share is {self.user_share}: it must lie above 0 and at most at 1")


def tokenize_text(text: str, tokenizer, settings: Settings) -> dict[str, list[int]]:
    """Turn a training text into token numbers and labels.

    Args:
        text: prompt and answer, from the splits.
        tokenizer: of the base.
        settings: length, truncation, loss mask, EOS.

    Returns:
        `input_ids`, and `labels`: the same numbers, or -100 where the loss should not look.

    Raises:
        ValueError: the text is not in the template.
    """
    prompt, marker, answer = text.rpartition(prompts.NEXT_ITEM)
    if not marker:
        raise ValueError("a training text has no '### Next item:': build it with prompts.build_training_text")
    answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    answer_ids += [tokenizer.eos_token_id] * settings.add_eos
    answer_ids = answer_ids[: settings.max_seq_length - 1]
    prompt_ids = truncate_prompt(
        prompt + marker, tokenizer, settings.max_seq_length - len(answer_ids), settings.truncation
    )
    hidden = [-100] * len(prompt_ids) if settings.loss_on == "answer" else prompt_ids
    return {"input_ids": prompt_ids + answer_ids, "labels": hidden + answer_ids}


def truncate_prompt(prompt: str, tokenizer, max_tokens: int, truncation: str = "left") -> list[int]:
    """Fit a prompt into a number of tokens.

    Args:
        prompt: a history in the template.
        tokenizer: of the model.
        max_tokens: room for the prompt, BOS included.
        truncation: `left`, as the paper, or `oldest`.
    """
    ids = tokenizer(prompt)["input_ids"]
    if len(ids) <= max_tokens:
        return ids
    if truncation == "oldest":
        _, items = prompts.split_prompt(prompt)
        counts = [len(tokenizer("\n" + item, add_special_tokens=False)["input_ids"]) for item in items]
        room = max_tokens - (len(ids) - sum(counts))
        ids = tokenizer(prompts.build_prompt(prompts.keep_recent_items(items, counts, room)))["input_ids"]
    cut = ids[-max_tokens:]
    if len(cut) < len(ids) and ids[0] == tokenizer.bos_token_id:
        cut[0] = ids[0]  # generation's tokenizer keeps BOS when it truncates, so training does too
    return cut


def tokenize(texts: Sequence[str], tokenizer, settings: Settings) -> Dataset:
    """Tokenize many texts; columns `input_ids`, `labels`.

    Args:
        texts: training or validation texts.
        tokenizer: of the base.
        settings: as in `tokenize_text`.
    """
    return Dataset.from_list([tokenize_text(text, tokenizer, settings) for text in texts])


class SeededOrder(Sampler):
    """The order of an epoch, from seed and epoch alone, so that a resumed run sees the same batches.

    Args:
        lengths: tokens of each text.
        batch_size: texts per step.
        by_length: sort within windows of `WINDOW` batches, then shuffle the batches.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, by_length: bool, seed: int):
        self.lengths, self.batch_size, self.by_length, self.seed, self.epoch = lengths, batch_size, by_length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1000 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        if not self.by_length:
            return iter(order.tolist())
        lengths = torch.tensor(self.lengths)
        windows = [window[lengths[window].argsort(stable=True)] for window in order.split(WINDOW * self.batch_size)]
        batches = list(torch.cat(windows).split(self.batch_size))
        last = [batches.pop()] if len(order) % self.batch_size else []  # a short batch elsewhere would shift the rest
        shuffled = torch.randperm(len(batches), generator=generator)
        return iter(torch.cat([batches[number] for number in shuffled] + last).tolist())
