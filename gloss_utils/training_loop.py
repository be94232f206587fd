"""TRL's trainer for this course: its arguments, a seeded order, a plan that fits the time, a log as it goes."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from transformers import EarlyStoppingCallback, PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from . import language_models, resources
from .splits import Prepared
from .training_texts import SeededOrder, Settings, tokenize

TRAINING_SHARE = 0.7  # of a time limit; the rest is for the optimizer, the log, evaluations and checkpoints
REHEARSAL_BATCHES = 12  # their lengths differ a lot, and so do their times


class Trainer(SFTTrainer):
    """TRL's trainer with a seeded order of the texts, and a loss that needs no GPU kernel."""

    order = "shuffled"

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self.args.use_cpu:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # TRL's loss wants Triton, which CPU builds of torch do not have. The model's own loss is the same number.
        inputs["use_cache"] = False
        return super(SFTTrainer, self).compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(ids) for ids in dataset["input_ids"]]
        batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return SeededOrder(lengths, batch, self.order == "by_length", self.args.seed)


def trainer_arguments(settings: Settings, output_dir: str | Path) -> dict:
    """Write the settings in TRL's words.

    Args:
        settings: the run's.
        output_dir: for checkpoints.
    """
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(output_dir),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "optim": "adamw_torch",
        "bf16": resources.has_fast_bf16(),
        "use_cpu": not on_gpu,
        "gradient_checkpointing": on_gpu,  # recomputes activations to save memory, which is not short on a CPU
        "max_length": settings.max_seq_length,
        "packing": settings.packing,
        "eval_packing": False,
        "dataset_kwargs": None if settings.packing else {"skip_prepare_dataset": True},  # ours is tokenized
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "restore_callback_states_from_checkpoint": True,  # how long the validation loss has not fallen
        "metric_for_best_model": "eval_loss",
        "logging_steps": 1,
        "include_num_input_tokens_seen": "non_padding",
        "dataloader_pin_memory": on_gpu,
        "disable_tqdm": True,
        "report_to": "none",
        "seed": settings.seed,
    }


def training_texts(prepared: Prepared, settings: Settings) -> list[str]:
    """List the training users' texts, or a seeded share of them.

    Args:
        prepared: the dataset.
        settings: share and seed.
    """
    texts = prepared.splits["train"]["text"][:]
    if settings.user_share == 1:
        return texts
    kept = np.random.default_rng(settings.seed).permutation(len(texts))[
        : max(1, int(settings.user_share * len(texts)))
    ]
    return [texts[row] for row in np.sort(kept)]


def make_trainer(model, tokenizer, prepared: Prepared, settings: Settings, checkpoints: Path, log: Path) -> Trainer:
    """Put model, texts and settings together.

    Args:
        model: with its adapter.
        tokenizer: the model's.
        prepared: the dataset.
        settings: the run's.
        checkpoints: where they go.
        log: path of `training_log.csv`.
    """
    tokenizer.padding_side = "right"  # behind the EOS; generation pads on the left
    language_models.keep_trainable(model)
    trainer = Trainer(
        model=model,
        args=SFTConfig(**trainer_arguments(settings, checkpoints)),
        train_dataset=tokenize(training_texts(prepared, settings), tokenizer, settings),
        eval_dataset=tokenize(prepared.splits["validation"]["text"][:], tokenizer, settings),
        processing_class=tokenizer,
        callbacks=[
            resources.TrainingLog(log),
            resources.TimeLimit(settings.minutes),
            EarlyStoppingCallback(early_stopping_patience=settings.patience),
        ],
    )
    trainer.order = settings.order
    trainer.remove_callback(PrinterCallback)
    plan(trainer, settings)
    for weight in model.parameters():
        if weight.requires_grad:  # TRL puts the adapter in bf16; small updates need more digits, and it is small
            weight.data = weight.data.float()
    return trainer


def plan(trainer: Trainer, settings: Settings) -> None:
    """Set the number of steps, and how often to evaluate and to save a checkpoint.

    All epochs, or what fits into the time limit: a few steps are timed for that, their gradients thrown away.
    The learning rate falls to zero over the planned steps, so a plan that is too long costs quality: the time
    limit would then end the run with the rate still high.

    Args:
        trainer: changed in place.
        settings: epochs, time limit, evaluations.
    """
    args = trainer.args
    texts_per_step = settings.batch_size * settings.gradient_accumulation
    steps_per_epoch = -(-len(trainer.train_dataset) // texts_per_step)
    args.max_steps = settings.epochs * steps_per_epoch
    affordable = float("inf")
    if settings.minutes:
        per_batch = time_of_a_step(trainer)
        planned = int(TRAINING_SHARE * 60 * settings.minutes / (per_batch * settings.gradient_accumulation))
        args.max_steps = max(1, min(args.max_steps, planned))
        # An evaluation is forward passes only, a third of the work; all of them must fit into what is left.
        evaluation = per_batch / 3 * -(-len(trainer.eval_dataset) // settings.batch_size)
        affordable = max(1, int((1 - TRAINING_SHARE) * 60 * settings.minutes / evaluation))
    evaluations = min(settings.evaluations or -(-args.max_steps // steps_per_epoch), affordable)
    args.eval_steps = args.save_steps = max(1, args.max_steps // evaluations)


def last_checkpoint(checkpoints: Path) -> str | None:
    """Find the newest checkpoint that was written to its end, and remove what a kill left half-written.

    The trainer's state is the last file that transformers writes into a checkpoint.

    Args:
        checkpoints: the folder of all of a run's checkpoints; it need not exist.
    """
    while checkpoints.is_dir() and (newest := get_last_checkpoint(checkpoints)):
        try:
            json.loads((Path(newest) / "trainer_state.json").read_text())
            return newest
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(newest)
    return None


def follow_plan(trainer: Trainer, checkpoint: str) -> None:
    """Take the number of steps from a checkpoint, so that a resumed run ends where the first one would have.

    Args:
        trainer: changed in place.
        checkpoint: the folder to resume from.
    """
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text())
    trainer.args.max_steps = state["max_steps"]
    trainer.args.eval_steps = trainer.args.save_steps = int(state["save_steps"])


def time_of_a_step(trainer: Trainer) -> float:
    """Time forward and backward, in seconds: the mean of a few batches, the first one (warm-up) left out."""
    seconds = []
    trainer.model.train()
    for batch, _ in zip(trainer.get_train_dataloader(), range(REHEARSAL_BATCHES)):
        started = time.perf_counter()
        trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).backward()
        seconds.append(time.perf_counter() - started)
    trainer.model.zero_grad()
    return float(np.mean(seconds[1:] or seconds))
