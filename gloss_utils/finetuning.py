"""QLoRA fine-tuning: a 4-bit base, a LoRA adapter, TRL's trainer (paper, section 4.1)."""

import hashlib
import json
import shutil
import time
import zlib
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from . import language_models, resources
from .paths import DatasetPaths, write_atomically
from .splits import Prepared
from .training_loop import Trainer, follow_plan, last_checkpoint, make_trainer
from .training_texts import PROJECTIONS, Settings

MAY_CHANGE = ("minutes", "patience")  # of the settings, when a run is resumed
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


def finetune(
    prepared: Prepared,
    model: str,
    settings: Settings | None = None,
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
        The log (`resources.LOG_COLUMNS`).

    Raises:
        ValueError: the run to resume had another base, other data or other settings.
    """
    settings, name = settings or Settings(), name or model
    paths, started = prepared.paths, time.perf_counter()
    checkpoints, log = paths.model(name) / "checkpoints", paths.training_log(name)
    if not (resume and can_resume(paths, name)):
        shutil.rmtree(checkpoints, ignore_errors=True)
    stamp_run(checkpoints / "run.json", prepared, model, settings)
    base, tokenizer = load_base(model, paths, settings, engine)
    trainer = make_trainer(add_adapter(base, settings, engine), tokenizer, prepared, settings, checkpoints, log)
    checkpoint = last_checkpoint(checkpoints)
    if checkpoint:
        follow_plan(trainer, checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - started
    save_weights(trainer, tokenizer, paths.adapter(name))
    run = describe_run(trainer, prepared, model, settings, engine, seconds)
    write_atomically(paths.run_json(name), lambda path: path.write_text(json.dumps(run, indent=1)))
    shutil.rmtree(checkpoints, ignore_errors=True)
    return resources.read_log(log)


def can_resume(paths: DatasetPaths, name: str) -> bool:
    """Tell whether a run under this name was cut off behind a checkpoint."""
    return last_checkpoint(paths.model(name) / "checkpoints") is not None


def stamp_run(path: Path, prepared: Prepared, model: str, settings: Settings) -> None:
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
    trainer: Trainer, prepared: Prepared, model: str, settings: Settings, engine: str, seconds: float
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


def read_run(paths: DatasetPaths, model: str) -> dict:
    """Read a model's `run.json`.

    Raises:
        FileNotFoundError: notebook 03 has not run for it.
    """
    return json.loads(paths.require(paths.run_json(model), "adapter").read_text())


def engine_of(run: dict) -> str:
    """Name the engine that trained a model, or the best one here where that one cannot run.

    Args:
        run: from `read_run`.
    """
    try:
        return language_models.choose_engine(run["engine"][0])[0]
    except ValueError:  # trained with Unsloth, and this machine has no GPU
        return language_models.choose_engine("auto")[0]


def fingerprint(prepared: Prepared) -> str:
    """Hash the training texts, so that a run says which data it saw."""
    joined = "\x00".join(prepared.splits["train"]["text"][:])
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def load_finetuned(paths: DatasetPaths, model: str, engine: str = "auto"):
    """Load base and adapter for generation, from this disk alone where the base is on it.

    Args:
        paths: the dataset's.
        model: the name it was saved under.
        engine: `unsloth`, `transformers`, or `auto`: the one that trained it, see `engine_of`.

    Returns:
        (model, tokenizer): evaluation mode, padding and truncation on the left.

    Raises:
        FileNotFoundError: notebook 03 has not run for this model.
    """
    adapter = paths.require(paths.adapter(model), "adapter")
    run = read_run(paths, model)
    settings = Settings(**run["settings"])
    engine = engine_of(run) if engine == "auto" else language_models.choose_engine(engine)[0]
    if settings.method == "full":
        network, tokenizer = language_models.load(str(adapter), quantize=False, engine=engine)
    else:
        base, _ = load_base(run["model"], paths, settings, engine)
        network = PeftModel.from_pretrained(base, str(adapter))
        tokenizer = language_models.load_tokenizer(str(adapter))
        language_models.set_padding_token(network, tokenizer)
    return for_generation(network, tokenizer)


def for_generation(model, tokenizer):
    """Set a model and its tokenizer to generate: no dropout, and prompts flush with the right."""
    model.eval()
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    return model, tokenizer
