"""Queries files: the texts of every user of a split, in the layout that GLoSS publishes.

A list of `{reviewer_id, asin, seen_asins, generated_sequences}`, plus `sequence_scores` where there are some.
"""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from . import generation
from .generation import STRATEGIES, CatalogTrie, Generated, Strategy, get_strategy
from .paths import check_choice, digest, read_file, read_json, show, write_atomically

ENGINES = ("transformers", "vllm")
REQUIRED = ("reviewer_id", "asin", "seen_asins", "generated_sequences")
PROGRESS_SECONDS = 15.0  # between two lines of progress; not tqdm's bar, which a log shows as one long line


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
) -> Path:
    """Write the queries file of a split: all users of `task`, in its order, as `generation.generate_batches` does.

    Every batch is on disk before the next one starts, so a killed run goes on where it was. A finished file made
    with the same settings, model and users is left as it is. `model_name` and `split` (`test`, `validation`) name
    it; engine `vllm` takes a `tools.vllm_engine.VllmModel` for a model.
    """
    strategy, _ = get_strategy(strategy), check_choice(engine, ENGINES, "engine")
    write = getattr(type(model), "generate_batches", generation.generate_batches)  # a VllmModel has its own
    if (write is generation.generate_batches) == (engine == "vllm"):
        raise ValueError(f"engine '{engine}' does not fit a {type(model).__name__}: load the model with that engine")
    options = {"max_seq_length": max_seq_length, "seed": seed, "truncation": truncation}
    settings = options | {
        "strategy": asdict(strategy),
        "engine": engine,
        "model": fingerprint_model(model),
        "users": digest([task.reviewer_ids.tolist(), task.prompts]),
        "catalog": digest(prepared.catalog["text"].tolist()) if strategy.constrained else "",
    }
    path = prepared.paths.queries(model_name, strategy.name, split)
    cost, stamp = read_cost(path), {"settings": settings, "data": prepared.fingerprint}
    if path.exists() and {"data": prepared.fingerprint} | cost == cost | stamp:
        print(f"{show(path)} is up to date")
        return path
    if strategy.constrained:
        options["trie"] = CatalogTrie(prepared.catalog["text"], tokenizer)
    partial = PartialFile(path, stamp)
    waiting = [row for row, reviewer in enumerate(task.reviewer_ids) if reviewer not in partial.records]
    prompts = [task.prompts[row] for row in waiting]
    start = shown = time.perf_counter()
    for numbers, results in write(model, tokenizer, prompts, strategy, batch_size=batch_size, **options):
        rows = [waiting[number] for number in numbers]
        seconds, start = time.perf_counter() - start, time.perf_counter()
        partial.append([make_record(prepared, task, row, result) for row, result in zip(rows, results)], seconds)
        if start - shown > PROGRESS_SECONDS and len(partial.records) < len(task):
            shown = start
            left = (len(task) - len(partial.records)) / partial.pace  # long prompts come first, so at most
            print(f"  {len(partial.records):,} of {len(task):,} users, {partial.pace:.1f} users/s, {left:.0f} s left")
    print(f"{show(path)}: {len(task):,} users, {partial.pace:.1f} users/s")
    return partial.finish(task.reviewer_ids)


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


def fingerprint_model(model) -> str:
    """Tell one model from another by the start of every parameter."""
    return digest([(name, tensor.detach().flatten()[:64].tolist()) for name, tensor in model.named_parameters()])


def read_cost(path: Path) -> dict:
    """The `settings`, `data`, `num_users`, `seconds`, `users_per_second` of a file made here; empty for others."""
    try:
        return dict(read_json(Path(path).with_suffix(".run.json")))
    except (FileNotFoundError, ValueError, TypeError):  # cut short: the file is made again
        return {}


class PartialFile:
    """Not one `json.dump` at the end, which a kill would lose: the settings in a line, then a line per batch."""

    def __init__(self, path: Path, settings: dict) -> None:
        self.final, self.settings = path, settings
        self.path = path.with_suffix(".partial.jsonl")
        self.records: dict[str, dict] = {}  # by reviewer id
        self.seconds = 0.0  # spent on them, over all runs
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

    @property
    def pace(self) -> float:
        """Users per second."""
        return len(self.records) / max(self.seconds, 1e-9)

    def _complete_lines(self) -> list:
        """Read up to the first line that a kill cut short."""
        lines = []
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        for line in text.splitlines():
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

    def finish(self, reviewer_ids) -> Path:
        """Write the queries file in the order of `reviewer_ids`, and remove the partial one."""
        records = [self.records[str(reviewer)] for reviewer in reviewer_ids]
        cost = self.settings | {"num_users": len(records), "seconds": round(self.seconds, 2)}
        cost["users_per_second"] = round(self.pace, 2)
        for path, content in [(self.final, records), (self.final.with_suffix(".run.json"), cost)]:
            text = json.dumps(content, indent=1, ensure_ascii=False)
            write_atomically(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
        self.path.unlink()
        return self.final


def load_queries(path: str | Path, prepared=None) -> list[dict]:
    """Open a queries file, ours or one that GLoSS publishes; with `prepared`, only if it is of that dataset."""
    path = Path(path)
    if prepared is not None and not path.exists():
        check_choice(path.stem.rpartition("_")[0], STRATEGIES, "strategy")
        prepared.paths.require(path, "queries")
    records = read_file(path, read_json, "delete it and run notebook 04, or download it again")
    if not isinstance(records, list):
        raise ValueError(f"{show(path)} holds no list of users: a queries file is a JSON list of objects")
    for number, record in enumerate(records):
        _check_record(path, number, record)
    targets = [record["asin"] for record in records]
    if prepared is not None and targets and (unknown := (prepared.item_numbers(targets) < 0).mean()) > 0.01:
        where = f"are not in the catalog of '{prepared.dataset}': it was made from other data"
        raise ValueError(f"{show(path)}: {unknown:.0%} of its targets {where}")
    if prepared is not None and read_cost(path).get("data", prepared.fingerprint) != prepared.fingerprint:
        raise ValueError(f"{show(path)} was made from other data than what is prepared now: run notebook 04 again")
    return records


def _check_record(path: Path, number: int, record: dict) -> None:
    missing = [key for key in REQUIRED if key not in record] if isinstance(record, dict) else list(REQUIRED)
    if missing:
        raise ValueError(f"{show(path)}: user {number} lacks {', '.join(missing)}")
    texts, scores = record["generated_sequences"], record.get("sequence_scores")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{show(path)}: generated_sequences of user {number} is no list of texts")
    if scores is not None and len(scores) != len(texts):
        who = f"{show(path)}: user '{record['reviewer_id']}'"
        raise ValueError(f"{who} has {len(texts)} texts and {len(scores)} sequence_scores")
