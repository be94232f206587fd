"""QLoRA fine-tuning: settings, texts to tokens, TRL's trainer, its log, its resume (paper, section 4.1)."""

import csv
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from . import language_models, prompts, resources
from .paths import DatasetPaths, check_choice, check_number, digest, read_file, read_json, write_atomically
from .splits import Prepared

LOG_COLUMNS = ["step", "epoch", "split", "loss", "learning_rate", "step_seconds", "tokens_per_second"]
LOG_COLUMNS += ["allocated_mib", "reserved_mib", "resident_mib"]
CHOICES = {
    "method": ("qlora", "lora", "full"),
    "truncation": ("left", "oldest"),
    "loss_on": ("text", "answer"),
    "order": ("shuffled", "by_length"),
}
AT_LEAST = {
    **dict.fromkeys(["rank", "alpha", "epochs", "batch_size", "gradient_accumulation", "patience"], 1),
    **dict.fromkeys(["warmup_steps", "max_steps", "evaluations", "validation_users", "seed"], 0),
    "max_seq_length": 2,
}
SHARES = {"learning_rate": (1e-15, 10), "dropout": (0, 0.99), "weight_decay": (0, 10), "user_share": (1e-9, 1)}
WINDOW = 32  # batches: enough for like lengths, few enough that an epoch is still well mixed
MAY_CHANGE = ("patience",)  # of the settings, when a run is resumed
VERSIONED = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


@dataclass(frozen=True)
class TrainingSettings:
    """What a fine-tuning run is made of. The defaults are the paper's (section 4.1, and the primer).

    Learning rate: AdamW, linear to zero after the warm-up. A ValueError names a number outside its range.
    """

    method: str = "qlora"  # qlora (4-bit base), lora (full precision), full (all parameters, no adapter)
    rank: int = 16
    alpha: int = 16
    dropout: float = 0.0
    learning_rate: float = 1e-4
    warmup_steps: int = 300
    weight_decay: float = 0.01
    epochs: int = 10  # passes over the users
    max_steps: int = 0  # at most; 0 for all epochs
    batch_size: int = 4  # 4 × 4 texts per step in the paper
    gradient_accumulation: int = 4
    max_seq_length: int = 1024  # tokens per text
    truncation: str = "left"  # left cuts tokens off the start; oldest drops whole items
    loss_on: str = "text"  # text (every token) or answer (the next item only)
    add_eos: bool = True  # False shows a model that never saw an end
    order: str = "shuffled"  # shuffled, or by_length: batches of like lengths
    evaluations: int = 0  # of the validation loss, each with a checkpoint; 0 for one per epoch
    patience: int = 3  # evaluations without a lower validation loss before it stops
    user_share: float = 1.0  # part of the training users
    validation_users: int = 0  # for the validation loss, a seeded sample; 0 for all
    seed: int = 42

    def __post_init__(self):
        for name, choices in CHOICES.items():
            check_choice(getattr(self, name), choices, name)
        for name, least in AT_LEAST.items():
            check_number(getattr(self, name), name, least)
        for name, span in SHARES.items():
            check_number(getattr(self, name), name, *span, whole=False)


def tokenize_text(text: str, tokenizer, settings: TrainingSettings) -> dict[str, list[int]]:
    """Turn a training text (prompt and answer, from the splits) into `input_ids` and `labels`.

    The labels are the same numbers, or -100 where the loss should not look.
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
    """Tokenize many texts; columns `input_ids`, `labels`."""
    return Dataset.from_list([tokenize_text(text, tokenizer, settings) for text in texts])


def choose_texts(prepared: Prepared, split: str, settings: TrainingSettings) -> list[str]:
    """List the texts of `train` or `validation`, or a sample: of validation users the same one whatever the seed."""
    texts = prepared.splits[split]["text"][:]
    wanted = int(settings.user_share * len(texts)) if split == "train" else settings.validation_users or len(texts)
    if wanted >= len(texts):
        return texts
    seed = settings.seed if split == "train" else 42  # so that the losses of two runs compare
    return [texts[row] for row in np.sort(np.random.default_rng(seed).permutation(len(texts))[: max(1, wanted)])]


class SeededOrder(Sampler):
    """Batches of like lengths: texts sorted within windows of `WINDOW` batches, then the batches shuffled.

    Stands in for `SFTConfig(train_sampling_strategy="group_by_length")`, whose order comes from torch's global random
    state, so that a resumed run would see other batches. Here it comes from seed and epoch alone.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = torch.tensor(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1000 + self.epoch)
        windows = torch.randperm(len(self), generator=generator).split(WINDOW * self.batch_size)
        ranked = torch.cat([window[self.lengths[window].argsort(stable=True)] for window in windows])
        batches = list(ranked.split(self.batch_size))
        last = [batches.pop()] if len(self) % self.batch_size else []  # a short batch elsewhere would shift the rest
        shuffled = torch.randperm(len(batches), generator=generator)
        return iter(torch.cat([batches[number] for number in shuffled] + last).tolist())


class Trainer(SFTTrainer):
    """TRL's trainer with a loss that runs on a CPU too, and batches of like lengths where they are asked for."""

    order = "shuffled"

    def compute_loss(self, model, *args, **kwargs):
        if not self.args.use_cpu:
            return super().compute_loss(model, *args, **kwargs)
        # SFTTrainer.compute_loss calls a Triton kernel, which needs a GPU. transformers' own loss is the same number.
        return transformers.Trainer.compute_loss(self, model, *args, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        if self.order == "shuffled":
            return super()._get_train_sampler(train_dataset)
        lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return SeededOrder(lengths, batch, self.args.seed)


def trainer_arguments(settings: TrainingSettings, output_dir: str | Path, num_texts: int) -> dict:
    """Write the settings as arguments of TRL's `SFTConfig`; the number of texts gives the number of steps."""
    on_gpu = torch.cuda.is_available()
    per_epoch = -(-num_texts // (settings.batch_size * settings.gradient_accumulation))
    steps = min(settings.epochs * per_epoch, settings.max_steps or settings.epochs * per_epoch)
    every = max(1, steps // settings.evaluations) if settings.evaluations else per_epoch
    return {
        "output_dir": str(output_dir),
        "max_steps": steps,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation // PartialState(cpu=not on_gpu).num_processes,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "optim": "adamw_torch",
        "bf16": resources.has_fast_bf16(),
        "use_cpu": not on_gpu,
        "gradient_checkpointing": on_gpu,  # recomputes activations to save memory, which is not short on a CPU
        "max_length": settings.max_seq_length,
        "dataset_kwargs": {"skip_prepare_dataset": True},  # ours is tokenized
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
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


def make_trainer(
    model, tokenizer, prepared: Prepared, settings: TrainingSettings, checkpoints: Path, log: Path
) -> Trainer:
    """Put model (with its adapter), texts and settings together."""
    language_models.keep_trainable(model)
    train, validation = (
        tokenize(choose_texts(prepared, split, settings), tokenizer, settings) for split in ("train", "validation")
    )
    trainer = Trainer(
        model=model,
        args=SFTConfig(**trainer_arguments(settings, checkpoints, len(train))),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[TrainingLog(log), EarlyStoppingCallback(early_stopping_patience=settings.patience)],
    )
    trainer.order = settings.order
    trainer.remove_callback(PrinterCallback)
    for parameter in model.parameters():
        if parameter.requires_grad:  # SFTTrainer rounds a QLoRA adapter to bf16; small updates need more digits
            parameter.data = parameter.data.float()
    return trainer


def last_checkpoint(paths: DatasetPaths, name: str) -> str | None:
    """Find the newest whole checkpoint of a run that was cut off, and remove what the cut left half-written.

    `get_last_checkpoint` alone takes a half-written one; the trainer's state is the last file written into it.
    """
    checkpoints = paths.model(name) / "checkpoints"
    while checkpoints.is_dir() and (newest := get_last_checkpoint(checkpoints)):
        try:
            json.loads((Path(newest) / "trainer_state.json").read_text())
            return newest
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(newest)
    return None


def finetune(
    prepared: Prepared,
    model: str,
    settings: TrainingSettings | None = None,
    engine: str = "auto",
    resume: bool = False,
    name: str | None = None,
) -> pd.DataFrame:
    """Fine-tune a base on the training users; save adapter, tokenizer, log and `run.json`; return the log.

    `resume` goes on from the last checkpoint of a run that was cut off, if there is one; base, data and settings
    must be that run's. `name` is for several adapters on one base.
    """
    settings, name = settings or TrainingSettings(), name or model
    paths, started = prepared.paths, time.perf_counter()
    checkpoints, log = paths.model(name) / "checkpoints", paths.training_log(name)
    processes = PartialState(cpu=not torch.cuda.is_available())  # several under accelerate; one writes
    with processes.main_process_first():
        checkpoint = last_checkpoint(paths, name) if resume else None
        if processes.is_main_process and not checkpoint:
            shutil.rmtree(checkpoints, ignore_errors=True)
    network, tokenizer = language_models.load_base(
        model, paths, settings.method == "qlora", engine, settings.max_seq_length
    )
    stamp = describe_inputs(prepared, model, settings)
    check_stamp(checkpoints / "run.json", stamp)
    if settings.method != "full":
        adapter = settings.rank, settings.alpha, settings.dropout, settings.seed
        network = language_models.add_adapter(network, *adapter, engine)
    trainer = make_trainer(network, tokenizer, prepared, settings, checkpoints, log)
    trainer.train(resume_from_checkpoint=checkpoint)
    processes.wait_for_everyone()  # each has read the best checkpoint before the main one removes it
    whole = trainer.is_fsdp_enabled and trainer.accelerator.get_state_dict(trainer.model)  # asks every process
    if processes.is_main_process:
        language_models.save(trainer.model, tokenizer, paths.adapter(name), whole or None)
        run = stamp | describe_run(trainer, engine) | {"seconds": round(time.perf_counter() - started, 1)}
        write_atomically(paths.run_json(name), lambda path: path.write_text(json.dumps(run, indent=1)))
        shutil.rmtree(checkpoints, ignore_errors=True)
    return read_log(log)


def describe_inputs(prepared: Prepared, model: str, settings: TrainingSettings) -> dict:
    """Write down what a run is made of: base, data, settings."""
    return {
        "model": model,
        "dataset": prepared.dataset,
        "settings": asdict(settings),
        "data_fingerprint": digest(prepared.splits["train"]["text"][:]),
        **language_models.describe_origin(prepared.paths, model, settings.method == "qlora"),
    }


def check_stamp(path: Path, stamp: dict) -> None:
    """Write what a run is made of beside its checkpoints, or refuse to go on with another run's."""
    old = read_file(path, read_json, "set RESUME to False") if path.exists() else stamp
    before, now = ({**run, **run["settings"], "settings": None} for run in (old, stamp))
    for name, value in now.items():
        if before.get(name) != value and name not in MAY_CHANGE:
            raise ValueError(
                f"the run that was cut off had {name} {before.get(name)!r}, this one has {value!r}: set it back, "
                "or start anew with resume=False (RESUME in notebook 03)"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(stamp, indent=1)))


def describe_run(trainer: Trainer, engine: str) -> dict:
    """Write down where a run took place and how it went."""
    model, state = trainer.model, trainer.state
    if hasattr(model, "get_nb_trainable_parameters"):
        trainable, total = model.get_nb_trainable_parameters()
    else:  # method `full`: no adapter, nothing in 4 bits
        trainable = total = model.num_parameters()
    return {
        "engine": language_models.choose_engine(engine),
        "device": resources.describe_device(),
        "versions": {package: version(package) for package in VERSIONED},
        "trainable_parameters": trainable,
        "all_parameters": total,
        "processes": trainer.args.world_size,
        "steps": state.global_step,
        "best_step": state.best_global_step,
        "best_validation_loss": state.best_metric,
    }


class TrainingLog(TrainerCallback):
    """Adds time and memory to `state.log_history`, writes it to `training_log.csv` as the run goes, shows a bar.

    A run that is cut off still tells how far it came; a resumed one starts from the checkpoint's history.
    transformers' own bar prints a line per logged step, and the trainer's state is written at checkpoints only.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.started = self.seconds = 0.0
        self.tokens = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.path = self.path if state.is_world_process_zero else Path(os.devnull)  # of several processes, one logs
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "w", newline="") as file:
            csv.DictWriter(file, LOG_COLUMNS).writeheader()
        for entry in state.log_history:
            self._write(entry)
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

    def on_log(self, args, state, control, **kwargs):
        entry = state.log_history[-1]
        entry |= resources.memory()
        if "loss" in entry:
            tokens, self.tokens = state.num_input_tokens_seen - self.tokens, state.num_input_tokens_seen
            entry |= {"step_seconds": self.seconds, "tokens_per_second": tokens / max(self.seconds, 1e-9)}
        elif "eval_loss" in entry:
            self.progress.set_postfix({"validation loss": f"{entry['eval_loss']:.3f}"})
        self._write(entry)

    def _write(self, entry: dict) -> None:
        split = "train" if "loss" in entry else "validation" if "eval_loss" in entry else None
        if split:  # the last entry sums the run up
            row = {**entry, "split": split, "loss": entry.get("loss", entry.get("eval_loss"))}
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, LOG_COLUMNS, extrasaction="ignore").writerow(row)


def read_log(path: str | Path) -> pd.DataFrame:
    """Read a `training_log.csv`; a last line that a kill cut in half is left out."""
    log = read_file(Path(path), partial(pd.read_csv, on_bad_lines="skip"), "run notebook 03 again")
    return log[log["split"].isin(["train", "validation"]) & log["loss"].notna()].reset_index(drop=True)
