"""Queries files: the texts of every user of a split, in the layout that GLoSS publishes.

A list of `{reviewer_id, asin, seen_asins, generated_sequences}`, plus `sequence_scores` where there are some.
While they are being written, finished users stand in a partial file beside the final one, a line each.
"""

import json
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from .generation import CatalogTrie, Generated, Strategy, generate_batches, get_strategy
from .paths import show, write_atomically


def text_table(records: Sequence[dict], catalog: pd.DataFrame, tokenizer) -> pd.DataFrame:
    """Lay the texts of a queries file out as a table.

    Args:
        records: from `queries.load_queries`.
        catalog: `asin, title, text`.
        tokenizer: the one that wrote them, for their length.

    Returns:
        One row per text: reviewer_id, position (1 is the first), text, score (total log-probability; NaN where
        the file has none), is_item (it is a catalog text to the letter), is_seen (one that the user has),
        is_target (the text of the held-out item), tokens (end-of-text not counted).
    """
    text_of = dict(zip(catalog["asin"], catalog["text"]))
    catalog_texts = set(catalog["text"])
    rows = []
    for record in records:
        seen = {text_of.get(asin) for asin in record["seen_asins"]}
        texts = record["generated_sequences"]
        scores = record.get("sequence_scores") or [np.nan] * len(texts)
        target = text_of.get(record["asin"])
        for position, (text, score) in enumerate(zip(texts, scores), start=1):
            found = (text in catalog_texts, text in seen, text == target)
            rows.append((record["reviewer_id"], position, text, score, *found))
    columns = ["reviewer_id", "position", "text", "score", "is_item", "is_seen", "is_target"]
    table = pd.DataFrame(rows, columns=columns)
    table["tokens"] = count_tokens(table["text"], tokenizer)
    return table


def count_tokens(texts: Sequence[str], tokenizer) -> list[int]:
    """Tokens per text, without special ones."""
    texts = list(texts)
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []


def describe_texts(table: pd.DataFrame, max_new_tokens: int = 50) -> pd.Series:
    """Sum a table of texts up in one row.

    Args:
        table: from `text_table`.
        max_new_tokens: the limit that the texts were written under.

    Returns:
        Texts and distinct texts per user; shares of texts that are a catalog text, name a seen item, are
        empty, or ran into the limit (between 0 and 1); the longest text in tokens.
    """
    users = table.groupby("reviewer_id")["text"]
    return pd.Series(
        {
            "texts per user": users.size().mean(),
            "distinct per user": users.nunique().mean(),
            "exact item": table["is_item"].mean(),
            "seen item": table["is_seen"].mean(),
            "empty": (table["text"] == "").mean(),
            "at the limit": (table["tokens"] >= max_new_tokens - 1).mean(),
            "longest, tokens": table["tokens"].max(),
        }
    )


PROGRESS_SECONDS = 15.0  # between two lines of progress; lines, because a log shows them too
REQUIRED = ("reviewer_id", "asin", "seen_asins", "generated_sequences")


def load_queries(path: str | Path, prepared=None) -> list[dict]:
    """Open a queries file: ours, or one that GLoSS publishes.

    Args:
        path: the JSON file.
        prepared: the dataset it should belong to, if that is to be checked.

    Returns:
        One dict per user, in the file's order.

    Raises:
        FileNotFoundError: notebook 04 has not made it.
        ValueError: not JSON, not this layout, or made from other data.
    """
    path = Path(path)
    if prepared is not None:
        prepared.paths.require(path, "queries")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{show(path)} is not JSON (line {error.lineno}): download or generate it again") from error
    if not isinstance(records, list):
        raise ValueError(f"{show(path)} holds no list of users: a queries file is a JSON list of objects")
    for number, record in enumerate(records):
        _check_record(path, number, record)
    if prepared is not None and records:
        unknown = (prepared.item_numbers([record["asin"] for record in records]) < 0).mean()
        if unknown > 0.01:
            raise ValueError(
                f"{show(path)}: {unknown:.0%} of its targets are not in the catalog of '{prepared.dataset}': "
                "it was made from other data"
            )
    return records


def _check_record(path: Path, number: int, record: dict) -> None:
    missing = [key for key in REQUIRED if key not in record] if isinstance(record, dict) else list(REQUIRED)
    if missing:
        raise ValueError(f"{show(path)}: user {number} lacks {', '.join(missing)}")
    scores = record.get("sequence_scores")
    if scores is not None and len(scores) != len(record["generated_sequences"]):
        raise ValueError(
            f"{show(path)}: user '{record['reviewer_id']}' has {len(record['generated_sequences'])} texts "
            f"and {len(scores)} sequence_scores"
        )


def generate_split(
    prepared,
    task,
    model,
    tokenizer,
    strategy: str | Strategy = "beam5",
    *,
    model_name: str = "tiny-llama",
    split: str = "test",
    batch_size: int = 32,
    max_seq_length: int = 1024,
    seed: int = 42,
    truncation: str = "left",
    engine: str = "transformers",
    progress: bool = True,
) -> Path:
    """Write the queries file of a split: all users of `task`, in its order.

    Every batch is on disk before the next one starts, so a killed run goes on where it was. A finished file
    made with the same settings, model and users is left as it is.

    Args:
        prepared: the dataset.
        task: the users to write for.
        model: as for `generate_batches`.
        tokenizer: the model's.
        strategy: a name in `STRATEGIES`, or a `Strategy`.
        model_name: the directory under `queries/`; `tiny-llama-base` for a model before fine-tuning.
        split: `test` or `validation`, for the file's name.
        batch_size: users per batch; the texts do not depend on it.
        max_seq_length: tokens of prompt and answer together.
        seed: of the samples.
        truncation: of prompts that are too long, as in training (`run.json`).
        engine: `transformers` or `vllm`.
        progress: print users per second and the time left, every few seconds.

    Returns:
        The file's path. `read_cost` tells what it took.
    """
    strategy = get_strategy(strategy)
    path = prepared.paths.queries(model_name, strategy.name, split)
    trie = CatalogTrie(prepared.catalog["text"], tokenizer) if strategy.constrained else None
    settings = {
        "strategy": asdict(strategy),
        "max_seq_length": max_seq_length,
        "truncation": truncation,
        "seed": seed,
        "engine": engine,
        "model": fingerprint_model(model),
        "users": zlib.crc32("\n".join([*task.reviewer_ids, *task.prompts]).encode()),
        "catalog": zlib.crc32("\n".join(prepared.catalog["text"]).encode()) if strategy.constrained else 0,
    }
    if path.exists() and read_cost(path).get("settings") == settings:
        print(f"{show(path)} is up to date")
        return path
    partial = PartialFile(path, settings)
    waiting = [row for row, reviewer in enumerate(task.reviewer_ids) if reviewer not in partial.records]
    batches = generate_batches(
        model,
        tokenizer,
        [task.prompts[row] for row in waiting],
        strategy,
        batch_size=batch_size,
        max_seq_length=max_seq_length,
        seed=seed,
        trie=trie,
        truncation=truncation,
        engine=engine,
    )
    start = shown = time.perf_counter()
    for numbers, results in batches:
        rows = [waiting[number] for number in numbers]
        seconds, start = time.perf_counter() - start, time.perf_counter()
        partial.append([make_record(prepared, task, row, result) for row, result in zip(rows, results)], seconds)
        if progress and start - shown > PROGRESS_SECONDS and len(partial.records) < len(task):
            print(partial.progress(len(task)), flush=True)
            shown = start
    path = partial.finish(task.reviewer_ids)
    if progress:
        cost = read_cost(path)
        print(f"{show(path)}: {len(task):,} users, {cost['users_per_second']:.1f} users/s")
    return path


def make_record(prepared, task, row: int, generated: Generated) -> dict:
    """One user in the published layout."""
    asins = prepared.catalog["asin"].array
    return {
        "reviewer_id": str(task.reviewer_ids[row]),
        "asin": asins[task.targets[row]],
        "seen_asins": [asins[item] for item in task.seen_items[row]],
        "generated_sequences": generated.texts,
        "sequence_scores": [round(score, 4) for score in generated.scores],
    }


def read_cost(path: Path) -> dict:
    """What a queries file was made with: `settings`, `num_users`, `seconds`, `users_per_second`.

    Empty where it was not made here, as with a published file.
    """
    beside = Path(path).with_suffix(".run.json")
    return json.loads(beside.read_text()) if beside.exists() else {}


def fingerprint_model(model) -> int:
    """Tell one set of weights from another: a checksum over the start of every weight."""
    if hasattr(model, "fingerprint"):  # a vLLM model, whose weights are in another process
        return model.fingerprint
    checksum = 0
    for name, weight in model.named_parameters():
        checksum = zlib.crc32(name.encode(), checksum)
        checksum = zlib.crc32(weight.detach().flatten()[:64].double().cpu().numpy().tobytes(), checksum)
    return checksum


class PartialFile:
    """Finished users on their way to a queries file: a line with the settings, then a line per batch.

    Attributes:
        records: reviewer id to record, of the users that are done.
        seconds: time spent on them, over all runs.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        self.final, self.settings = path, settings
        self.path = path.with_suffix(".partial.jsonl")
        self.records: dict[str, dict] = {}
        self.seconds = 0.0
        lines = self._complete_lines()
        if lines and lines[0] != settings:
            print(f"{show(self.path)} was begun with other settings, another model or other users: starting again")
        kept = lines if lines and lines[0] == settings else [settings]
        for batch in kept[1:]:
            self._take(batch)
        if self.records:
            print(f"{show(self.path)}: going on after {len(self.records)} users")
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def _complete_lines(self) -> list:
        """Read up to the first line that a kill cut short."""
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return lines

    def _take(self, batch: dict) -> None:
        self.records.update({record["reviewer_id"]: record for record in batch["records"]})
        self.seconds += batch["seconds"]

    def append(self, records: list[dict], seconds: float) -> None:
        """Add a batch, and return when it is on the disk."""
        batch = {"seconds": round(seconds, 4), "records": records}
        self._take(batch)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(batch) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def progress(self, num_users: int) -> str:
        """Users done, users per second, and the time left at this pace (long prompts come first, so less)."""
        pace = len(self.records) / max(self.seconds, 1e-9)
        left = (num_users - len(self.records)) / pace
        return f"  {len(self.records):,} of {num_users:,} users, {pace:.1f} users/s, at most {left:.0f} s left"

    def finish(self, reviewer_ids) -> Path:
        """Write the queries file in the order of `reviewer_ids`, and remove the partial one."""
        records = [self.records[str(reviewer)] for reviewer in reviewer_ids]
        cost = {
            "settings": self.settings,
            "num_users": len(records),
            "seconds": round(self.seconds, 2),
            "users_per_second": round(len(records) / max(self.seconds, 1e-9), 2),
        }
        for path, content in [(self.final, records), (self.final.with_suffix(".run.json"), cost)]:
            text = json.dumps(content, indent=1, ensure_ascii=False)
            write_atomically(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
        self.path.unlink()
        return self.final
