"""QLoRA fine-tuning: a 4-bit base, a LoRA adapter, TRL's trainer (paper, section 4.1)."""

import hashlib
import json
import shutil
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import EarlyStoppingCallback, PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from . import language_models, resources
from .paths import DatasetPaths, write_atomically
from .splits import Prepared
from .training_texts import PROJECTIONS, SeededOrder, Settings, tokenize

VERSIONED = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


def load_base(model: str, paths: DatasetPaths, settings: Settings | None = None, engine: str = "auto"):
    """Load the base that a method starts from: 4-bit for `qlora`, full precision for the others.

    Args:
        model: `tiny-llama`, `llama-3.2-1b`, …, a Hugging Face id, or a local directory.
        paths: the dataset's.
        settings: the run's.
        engine: `auto`, `unsloth`, `transformers`.

    Returns:
        (model, tokenizer).
    """
    settings = settings or Settings()
    quantize = settings.method == "qlora"
    source = language_models.locate(model, paths, quantize)
    name, _ = language_models.choose_engine(engine)
    return language_models.load(source, quantize, name, settings.max_seq_length)


def add_adapter(model, settings: Settings, engine: str = "auto"):
    """Freeze the base and put a LoRA pair beside each of the seven projections.

    Args:
        model: from `load_base`.
        settings: rank, alpha, dropout, seed; for `full` the model stays as it is.
        engine: the one that loaded it.
    """
    if settings.method == "full":
        return model
    torch.manual_seed(settings.seed)
    options = {"r": settings.rank, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout, "bias": "none"}
    if language_models.choose_engine(engine)[0] == "unsloth":
        from unsloth import FastLanguageModel

        return FastLanguageModel.get_peft_model(
            model,
            target_modules=list(PROJECTIONS),
            use_gradient_checkpointing="unsloth",
            random_state=settings.seed,
            **options,
        )
    return get_peft_model(model, LoraConfig(target_modules=list(PROJECTIONS), task_type="CAUSAL_LM", **options))


def count_weights(model) -> tuple[int, int]:
    """Count trainable weights and all weights; a 4-bit tensor holds two per byte."""
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    total = sum(
        getattr(weight, "quant_state", None).shape.numel() if getattr(weight, "quant_state", None) else weight.numel()
        for weight in model.parameters()
    )
    return trainable, total


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

    All epochs, or what fits into the time limit: two steps are timed for that, their gradients thrown away.

    Args:
        trainer: changed in place.
        settings: epochs, time limit, evaluations.
    """
    args = trainer.args
    texts_per_step = settings.batch_size * settings.gradient_accumulation
    steps_per_epoch = -(-len(trainer.train_dataset) // texts_per_step)
    args.max_steps = settings.epochs * steps_per_epoch
    if settings.minutes:
        seconds = time_of_a_step(trainer) * settings.gradient_accumulation
        args.max_steps = max(1, min(args.max_steps, int(60 * settings.minutes / seconds)))
    evaluations = settings.evaluations or -(-args.max_steps // steps_per_epoch)
    args.eval_steps = args.save_steps = max(1, args.max_steps // evaluations)


def time_of_a_step(trainer: Trainer) -> float:
    """Time forward and backward over the middle one of three batches, in seconds."""
    seconds = []
    trainer.model.train()
    for batch, _ in zip(trainer.get_train_dataloader(), range(3)):
        started = time.perf_counter()
        trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).backward()
        seconds.append(time.perf_counter() - started)
    trainer.model.zero_grad()
    return sorted(seconds)[len(seconds) // 2]


def finetune(
    prepared: Prepared,
    model: str,
    settings: Settings | None = None,
    engine: str = "auto",
    resume: bool = False,
) -> pd.DataFrame:
    """Fine-tune a base on the training users and save adapter, tokenizer, log and `run.json`.

    Args:
        prepared: the dataset.
        model: the base's name.
        settings: how; the default is the paper's.
        engine: `auto`, `unsloth` or `transformers`.
        resume: go on from the last checkpoint of a run that was cut off, if there is one.

    Returns:
        The log (`resources.LOG_COLUMNS`).
    """
    settings, paths, started = settings or Settings(), prepared.paths, time.perf_counter()
    checkpoints, log = paths.model(model) / "checkpoints", paths.training_log(model)
    if not resume:
        shutil.rmtree(checkpoints, ignore_errors=True)
    base, tokenizer = load_base(model, paths, settings, engine)
    trainer = make_trainer(add_adapter(base, settings, engine), tokenizer, prepared, settings, checkpoints, log)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None)
    save(trainer, tokenizer, prepared, model, settings, engine, time.perf_counter() - started)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return resources.read_log(log)


def save(trainer, tokenizer, prepared: Prepared, model: str, settings: Settings, engine: str, seconds: float) -> None:
    """Save adapter (or, for `full`, the model) with its tokenizer, and `run.json` beside it."""
    paths = prepared.paths

    def write(folder: Path) -> None:
        trainer.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    write_atomically(paths.adapter(model), write)
    trainable, total = count_weights(trainer.model)
    run = {
        "model": model,
        "dataset": prepared.dataset,
        "settings": asdict(settings),
        "engine": language_models.choose_engine(engine),
        "device": resources.describe_device(),
        "versions": {name: version(name) for name in VERSIONED},
        "data_fingerprint": fingerprint(prepared),
        "trainable_weights": trainable,
        "all_weights": total,
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "best_validation_loss": trainer.state.best_metric,
        "seconds": round(seconds, 1),
    }
    write_atomically(paths.run_json(model), lambda path: path.write_text(json.dumps(run, indent=1)))


def fingerprint(prepared: Prepared) -> str:
    """Hash the training texts, so that a run says which data it saw."""
    joined = "\x00".join(prepared.splits["train"]["text"][:])
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def load_finetuned(paths: DatasetPaths, model: str, engine: str = "auto"):
    """Load base and adapter for generation, from this disk alone where the base is on it.

    Args:
        paths: the dataset's.
        model: its name, as in `finetune`.
        engine: `auto`, `unsloth` or `transformers`.

    Returns:
        (model, tokenizer): evaluation mode, padding and truncation on the left.

    Raises:
        FileNotFoundError: notebook 03 has not run for this model.
    """
    adapter = paths.require(paths.adapter(model), "adapter")
    settings = Settings(**json.loads(paths.run_json(model).read_text())["settings"])
    name, _ = language_models.choose_engine(engine)
    if settings.method == "full":
        network, tokenizer = language_models.load(str(adapter), quantize=False, engine=name)
    else:
        base, _ = load_base(model, paths, settings, engine)
        network = PeftModel.from_pretrained(base, str(adapter))
        tokenizer = language_models.load_tokenizer(str(adapter))
        language_models.set_padding_token(network, tokenizer)
    return for_generation(network, tokenizer)


def for_generation(model, tokenizer):
    """Set a model and its tokenizer to generate: no dropout, and prompts flush with the right."""
    model.eval()
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    return model, tokenizer
