"""Memory and time per step, on a GPU or a CPU."""

import csv
import gc
import time
from pathlib import Path

import pandas as pd
import psutil
import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

MIB = 2**20
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


def has_fast_bf16() -> bool:
    """Say whether bfloat16 arithmetic is native: on a GPU since Ampere, on a CPU with AVX-512 bf16 or AMX."""
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
    """Read the memory in use, in MiB.

    Returns:
        `allocated_mib` (tensors) and `reserved_mib` (what the allocator took for them) on a GPU, each the peak
        since it was last reset; `resident_mib`, the memory of the whole Python process, on both.
    """
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
        row = {"step": state.global_step, "epoch": state.epoch, **numbers, **memory()}
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
