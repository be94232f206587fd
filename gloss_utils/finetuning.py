"""QLoRA fine-tuning: a 4-bit base, a LoRA adapter, TRL's trainer (paper, section 4.1)."""

import csv
import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from . import language_models, prompts, resources
from .paths import DatasetPaths, check_choice, write_atomically
from .splits import Prepared

LOG_COLUMNS = (
    "step",
    "epoch",
    "split",
    "loss",
    "learning_rate",
    "step_seconds",
    "tokens_per_second",
    "allocated_mib",
    "reserved_mib",
    "resident_mib",
)


WINDOW = 32  # batches: enough for like lengths, few enough that an epoch is still well mixed
METHODS = ("qlora", "lora", "full")


@dataclass(frozen=True)
class TrainingSettings:
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
        check_choice(self.method, METHODS, "method")
        check_choice(self.truncation, ("left", "oldest"), "truncation")
        check_choice(self.loss_on, ("text", "answer"), "loss_on")
        check_choice(self.order, ("shuffled", "by_length"), "order")
        if not 0 < self.user_share <= 1:
            raise ValueError(f"user_share is {self.user_share}: it must lie above 0 and at most at 1")


def tokenize_text(text: str, tokenizer, settings: TrainingSettings) -> dict[str, list[int]]:
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
    prompt_ids = prompts.truncate_prompt(
        prompt + marker, tokenizer, settings.max_seq_length - len(answer_ids), settings.truncation
    )
    hidden = [-100] * len(prompt_ids) if settings.loss_on == "answer" else prompt_ids
    return {"input_ids": prompt_ids + answer_ids, "labels": hidden + answer_ids}


def tokenize(texts: Sequence[str], tokenizer, settings: TrainingSettings) -> Dataset:
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


def trainer_arguments(settings: TrainingSettings, output_dir: str | Path) -> dict:
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


def training_texts(prepared: Prepared, settings: TrainingSettings) -> list[str]:
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


def make_trainer(
    model, tokenizer, prepared: Prepared, settings: TrainingSettings, checkpoints: Path, log: Path
) -> Trainer:
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
            TrainingLog(log),
            TimeLimit(settings.minutes),
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


def plan(trainer: Trainer, settings: TrainingSettings) -> None:
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


MAY_CHANGE = ("minutes", "patience")  # of the settings, when a run is resumed
VERSIONED = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


def count_weights(model) -> tuple[int, int]:
    """Count trainable weights and all weights; a 4-bit tensor holds two per byte."""
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    total = sum(
        getattr(weight, "quant_state", None).shape.numel() if getattr(weight, "quant_state", None) else weight.numel()
        for weight in model.parameters()
    )
    return trainable, total


def finetune(
    prepared: Prepared,
    model: str,
    settings: TrainingSettings | None = None,
    engine: str = "auto",
    resume: bool = False,
    name: str | None = None,
) -> pd.DataFrame:
    """Fine-tune a base on the training users and save adapter, tokenizer, log and `run.json`.

    Args:
        prepared: the dataset.
        model: the base's name.
        settings: how; the default is the paper's.
        engine: `auto`, `unsloth` or `transformers`.
        resume: go on from the last checkpoint of a run that was cut off, if there is one. Base, data and settings
            must be that run's.
        name: save under this name instead of the base's, for several adapters on one base.

    Returns:
        The log (`LOG_COLUMNS`).

    Raises:
        ValueError: the run to resume had another base, other data or other settings.
    """
    settings, name = settings or TrainingSettings(), name or model
    paths, started = prepared.paths, time.perf_counter()
    checkpoints, log = paths.model(name) / "checkpoints", paths.training_log(name)
    if not (resume and can_resume(paths, name)):
        shutil.rmtree(checkpoints, ignore_errors=True)
    stamp_run(checkpoints / "run.json", prepared, model, settings)
    base, tokenizer = language_models.load_base(
        model, paths, settings.method == "qlora", engine, settings.max_seq_length
    )
    if settings.method != "full":
        base = language_models.add_adapter(
            base, settings.rank, settings.alpha, settings.dropout, settings.seed, engine
        )
    trainer = make_trainer(base, tokenizer, prepared, settings, checkpoints, log)
    checkpoint = last_checkpoint(checkpoints)
    if checkpoint:
        follow_plan(trainer, checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - started
    save_weights(trainer, tokenizer, paths.adapter(name))
    run = describe_run(trainer, prepared, model, settings, engine, seconds)
    write_atomically(paths.run_json(name), lambda path: path.write_text(json.dumps(run, indent=1)))
    shutil.rmtree(checkpoints, ignore_errors=True)
    return read_log(log)


def can_resume(paths: DatasetPaths, name: str) -> bool:
    """Tell whether a run under this name was cut off behind a checkpoint."""
    return last_checkpoint(paths.model(name) / "checkpoints") is not None


def stamp_run(path: Path, prepared: Prepared, model: str, settings: TrainingSettings) -> None:
    """Write down what a run is made of, or refuse to go on with another one's checkpoints.

    Args:
        path: of the stamp, beside the checkpoints.
        prepared, model, settings: the run's.

    Raises:
        ValueError: the stamp that is there says otherwise.
    """
    base = prepared.paths.base_model(model) / "model.safetensors"
    stamp = {
        "base": model,
        "base_weights": zlib.crc32(base.read_bytes()) if base.exists() else None,
        "data": fingerprint(prepared),
        **{name: value for name, value in asdict(settings).items() if name not in MAY_CHANGE},
    }
    old = json.loads(path.read_text()) if path.exists() else stamp
    for name, value in stamp.items():
        if old.get(name) != value:
            raise ValueError(
                f"the run that was cut off had {name} {old.get(name)!r}, this one has {value!r}: set it back, "
                "or start anew with resume=False (RESUME in notebook 03)"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(stamp, indent=1)))


def save_weights(trainer: Trainer, tokenizer, folder: Path) -> None:
    """Save the adapter (for `full`, the whole model) and the tokenizer, all or nothing."""

    def write(temporary: Path) -> None:
        trainer.model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)

    write_atomically(folder, write)


def describe_run(
    trainer: Trainer, prepared: Prepared, model: str, settings: TrainingSettings, engine: str, seconds: float
) -> dict:
    """Write down what `run.json` keeps: settings, versions, data, and how it went."""
    trainable, total = count_weights(trainer.model)
    state = trainer.state
    return {
        "model": model,
        "dataset": prepared.dataset,
        "settings": asdict(settings),
        "engine": language_models.choose_engine(engine),
        "device": resources.describe_device(),
        "versions": {package: version(package) for package in VERSIONED},
        "data_fingerprint": fingerprint(prepared),
        "trainable_weights": trainable,
        "all_weights": total,
        "steps": state.global_step,
        "best_step": state.best_global_step,
        "best_validation_loss": state.best_metric,
        "seconds": round(seconds, 1),
    }


def fingerprint(prepared: Prepared) -> str:
    """Hash the training texts, so that a run says which data it saw."""
    joined = "\x00".join(prepared.splits["train"]["text"][:])
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


class TrainingLog(TrainerCallback):
    """Shows a progress bar and writes `training_log.csv` as the run goes: a row per step and per evaluation.

    A run that is cut off still tells how far it came. A run that resumes continues the file behind the
    checkpoint's step; what came after it is written anew.

    Args:
        path: of the CSV.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.started = self.seconds = 0.0
        self.tokens = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = read_log(self.path) if state.global_step and self.path.exists() else pd.DataFrame(columns=LOG_COLUMNS)
        kept[kept["step"] <= state.global_step].to_csv(self.path, index=False)
        self.tokens = state.num_input_tokens_seen
        self.progress = tqdm(total=state.max_steps, initial=state.global_step, desc="fine-tuning", unit="step")

    def on_train_end(self, args, state, control, **kwargs):
        self.progress.close()

    def on_step_begin(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # so that each row has the peak of its own step
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds = time.perf_counter() - self.started
        self.progress.update()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            tokens, self.tokens = state.num_input_tokens_seen - self.tokens, state.num_input_tokens_seen
            self._write(
                state,
                split="train",
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                step_seconds=self.seconds,
                tokens_per_second=tokens / max(self.seconds, 1e-9),
            )
        elif "eval_loss" in logs:
            self._write(state, split="validation", loss=logs["eval_loss"])
            self.progress.set_postfix({"validation loss": f"{logs['eval_loss']:.3f}"})

    def _write(self, state, **numbers):
        row = {"step": state.global_step, "epoch": state.epoch, **numbers, **resources.memory()}
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, LOG_COLUMNS).writerow(row)


def read_log(path: str | Path) -> pd.DataFrame:
    """Read a `training_log.csv`; a last line that a kill cut in half is left out.

    Args:
        path: of the CSV.
    """
    log = pd.read_csv(path, on_bad_lines="skip")
    return log[log["split"].isin(["train", "validation"]) & log["loss"].notna()].reset_index(drop=True)


class TimeLimit(TrainerCallback):
    """Stops the training after some minutes, evaluated and saved like any other end.

    Args:
        minutes: 0 for no limit.
    """

    def __init__(self, minutes: float):
        self.minutes = minutes
        self.deadline = float("inf")

    def on_train_begin(self, args, state, control, **kwargs):
        if self.minutes:
            self.deadline = time.monotonic() + 60 * self.minutes

    def on_step_end(self, args, state, control, **kwargs):
        if time.monotonic() > self.deadline:
            control.should_training_stop = True
            control.should_evaluate = True
            control.should_save = True
