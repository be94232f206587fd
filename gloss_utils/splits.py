"""Histories, the leave-last-out split, and the tasks that the other chapters solve."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict
from datasets.fingerprint import generate_random_fingerprint

from . import prompts
from .paths import DatasetPaths, check_choice, check_number, digest, find_dataset, show

MIN_INTERACTIONS = 3  # one item to train on, one to predict, and one to hold out
VALIDATION_SHARE = 0.05
VALIDATION_SEED = 42  # the authors' seed: on the same file, the same people
TIE_ORDERS = ("asin", "shuffled", "reverse")
HELD_OUT_COLUMNS = ["reviewer_id", "ptext", "text", "seen_asins", "asin", "asin_text"]


@dataclass(frozen=True)
class Prepared:
    """A dataset, ready for every later chapter."""

    dataset: str
    paths: DatasetPaths
    interactions: pd.DataFrame = field(repr=False)  # reviewer_id, asin, timestamp (s), in each user's order
    catalog: pd.DataFrame = field(repr=False)  # asin, title, text; the row position is the item's number
    splits: DatasetDict = field(repr=False)
    report: pd.DataFrame = field(repr=False)  # one row per cleaning step

    @property
    def sampled(self) -> bool:
        """Whether notebook 01 kept only a sample of the users (`MAX_USERS`)."""
        return bool(self.report["step"].str.startswith("a sample of").any())

    @cached_property
    def fingerprint(self) -> str:
        """Tell one generation of interactions, catalog and report from another; `prepare` keeps it in the splits."""
        frames = [frame for frame in (self.interactions, self.catalog, self.report) if frame is not None]
        return digest([pd.util.hash_pandas_object(frame, index=False).tolist() for frame in frames])

    def item_numbers(self, asins) -> np.ndarray:
        """Look up the catalog rows of some asins; -1 where there is none."""
        return pd.Index(self.catalog["asin"]).get_indexer(asins)


@dataclass(frozen=True)
class Task:
    """Who to recommend to, and what each of them bought next."""

    reviewer_ids: np.ndarray  # str [U]
    prompts: list[str] = field(repr=False)  # the `ptext` of each user
    seen_items: list[np.ndarray] = field(repr=False)  # int64 item numbers in time order, per user
    targets: np.ndarray = field(repr=False)  # int64 [U], the held-out item's number

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: np.ndarray) -> "Task":
        """Keep the users at these positions, in this order."""
        return Task(
            self.reviewer_ids[rows],
            [self.prompts[row] for row in rows],
            [self.seen_items[row] for row in rows],
            self.targets[rows],
        )

    def subset(self, reviewer_ids) -> "Task":
        """Keep these users, in this order; ValueError where one of them is not in the task."""
        reviewer_ids = list(reviewer_ids)
        rows = pd.Index(self.reviewer_ids).get_indexer(reviewer_ids)
        if (rows < 0).any():
            missing = reviewer_ids[int(np.argmin(rows))]
            raise ValueError(f"reviewer '{missing}' is not in this task of {len(self)} users")
        return self.take(rows)


def order_ties(interactions: pd.DataFrame, tie_order: str = "asin", seed: int = 42) -> pd.DataFrame:
    """Sort every user's purchases by time, and those of one instant by asin, reversed, or shuffled.

    Timestamps are days, so this choice decides what "the last item" is for four users in ten.
    """
    check_choice(tie_order, TIE_ORDERS, "tie order")
    # Instead of sort_values: on numbers in the order of the ids, sorting is several times faster than on the ids.
    reviewers = pd.factorize(interactions["reviewer_id"], sort=True)[0]
    asins = pd.factorize(interactions["asin"], sort=True)[0]
    times = interactions["timestamp"].to_numpy()
    order = np.lexsort((-asins if tie_order == "reverse" else asins, times, reviewers))
    if tie_order == "shuffled":  # from the asin order, so that the file's line order does not matter
        shuffled = np.random.default_rng(seed).permutation(len(order))
        order = order[np.lexsort((shuffled, times[order], reviewers[order]))]
    return interactions.iloc[order].reset_index(drop=True)


def draw_validation_users(reviewer_ids: Iterable[str]) -> list[str]:
    """Draw 5 % of the users as the authors drew theirs; at least one, so that a tiny dataset has some too."""
    ordered = sorted(dict.fromkeys(reviewer_ids))  # not a set: they mostly come sorted, which is quick to sort again
    return random.Random(VALIDATION_SEED).sample(ordered, max(1, int(VALIDATION_SHARE * len(ordered))))


def user_bounds(interactions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Find where each user's rows begin, in interactions sorted by user: ids [U], and row offsets int64 [U + 1]."""
    ids = interactions["reviewer_id"].to_numpy(dtype=object)
    starts = np.flatnonzero(np.append(np.ones(min(len(ids), 1), dtype=bool), ids[1:] != ids[:-1]))
    return ids[starts], np.append(starts, len(ids))


def build_splits(interactions: pd.DataFrame, catalog: pd.DataFrame, validation_users=None) -> DatasetDict:
    """Leave the last item out for test; for the validation users, the one before it too, in training as well.

    Train has `reviewer_id, text`; validation and test have `HELD_OUT_COLUMNS`. `validation_users` were drawn from
    more users than these are; without them, they are drawn here. A column `item`, numbers in this catalog, saves
    looking the asins up.
    """
    reviewer_ids, bounds = user_bounds(interactions)
    lengths = np.diff(bounds)
    if (lengths < MIN_INTERACTIONS).any():
        short = f"user '{reviewer_ids[int(np.argmin(lengths))]}' has {lengths.min()} interactions"
        raise ValueError(f"{short}: a split needs {MIN_INTERACTIONS} or more per user")
    asins = pa.array(interactions["asin"], pa.string())
    given = "item" in interactions
    items = interactions["item"] if given else pd.Index(catalog["asin"]).get_indexer(interactions["asin"])
    texts = pa.array(catalog["text"], pa.string()).take(pa.array(items))
    starts, stops = bounds[:-1], bounds[1:]
    chosen = draw_validation_users(reviewer_ids) if validation_users is None else validation_users
    drawn = pd.Index(reviewer_ids).isin(chosen)
    train = _hold_out_last(reviewer_ids, starts, stops - 1 - drawn, asins, texts).select(["reviewer_id", "text"])
    validation = _hold_out_last(reviewer_ids[drawn], starts[drawn], stops[drawn] - 1, asins, texts)
    test = _hold_out_last(reviewer_ids, starts, stops, asins, texts)
    return DatasetDict(train=_to_dataset(train), validation=_to_dataset(validation), test=_to_dataset(test))


def _hold_out_last(reviewer_ids, starts, stops, asins: pa.Array, texts: pa.Array) -> pa.Table:
    """Write one row per user: the last item of the span starts..stops is the answer, those before it are the prompt.

    In Arrow's columns: with `prompts.build_prompt` in a loop over the users, `prepare` is 4 times as fast as
    row-by-row pandas instead of 6 times (Beauty), and needs 300 MiB more.
    """
    offsets = np.concatenate([[0], np.cumsum(stops - 1 - starts)])
    before = pa.array(np.repeat(starts - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1]))
    last, lists = pa.array(stops - 1), pa.array(offsets, pa.int32())
    histories = pc.binary_join(pa.ListArray.from_arrays(lists, texts.take(before)), "\n")
    ptext = pc.binary_join_element_wise(prompts.PROMPT_HEADER, histories, prompts.NEXT_ITEM, "")
    columns = [ptext, pc.binary_join_element_wise(ptext, texts.take(last), "")]
    columns += [pa.ListArray.from_arrays(lists, asins.take(before)), asins.take(last), texts.take(last)]
    return pa.table([pa.array(reviewer_ids, pa.string()), *columns], names=HELD_OUT_COLUMNS)


def _to_dataset(table: pa.Table) -> Dataset:
    # Instead of Dataset.from_dict: to hash the rows for a fingerprint takes it longer than building them took.
    return Dataset(datasets.table.InMemoryTable(table), fingerprint=generate_random_fingerprint())


def load_prepared(dataset: str = "sample", data_dir: str | Path = "data") -> Prepared:
    """Open what notebook 01 wrote; FileNotFoundError where it has not run for this dataset."""
    paths = find_dataset(dataset, data_dir)
    interactions = paths.read(paths.interactions, "interactions", pd.read_parquet)
    catalog = paths.read(paths.catalog, "catalog", pd.read_parquet)
    splits = paths.read(paths.splits, "splits", lambda path: datasets.load_from_disk(str(path)))
    report = paths.read(paths.report, "report", lambda path: pd.read_csv(path, keep_default_na=False))
    prepared = Prepared(paths.dataset, paths, interactions, catalog, splits, report)
    if {rows.info.description for rows in splits.values()} != {prepared.fingerprint}:
        wrong = f"{show(paths.splits)} was made from other interactions, catalog or report than those beside it"
        raise ValueError(f"{wrong}: run notebook 01 with DATASET={paths.dataset} again")
    return prepared


def load_task(prepared: Prepared, split: str = "test") -> Task:
    """Turn a held-out split, `test` or `validation`, into arrays."""
    rows = prepared.splits[check_choice(split, ("test", "validation"), "split")].to_pandas()
    items = prepared.item_numbers(np.concatenate(rows["seen_asins"]))  # one look-up for all users
    return Task(
        reviewer_ids=rows["reviewer_id"].to_numpy(dtype=str),
        prompts=rows["ptext"].tolist(),
        seen_items=np.split(items, np.cumsum(rows["seen_asins"].map(len))[:-1]),
        targets=prepared.item_numbers(rows["asin"]),
    )


def followed_user(task: Task, reviewer_id: str = "") -> int:
    """Find the row of the user whom the course follows; 0, the first user, where they are not in the task."""
    rows = np.flatnonzero(task.reviewer_ids == reviewer_id)
    return int(rows[0]) if len(rows) else 0


def sample_users(task: Task, max_users: int, seed: int = 42) -> Task:
    """Draw `max_users` users (0: all) that chapters 04 and later share, in the task's order."""
    check_number(max_users, "max_users", 0)
    if max_users == 0 or max_users >= len(task):
        return task
    return task.take(np.sort(np.random.default_rng(seed).permutation(len(task))[:max_users]))


def training_histories(prepared: Prepared, everything: bool = False) -> list[np.ndarray]:
    """What may be learned from: each user's item numbers but the last, two for validation users; or `everything`."""
    reviewer_ids, bounds = user_bounds(prepared.interactions)
    items = prepared.item_numbers(prepared.interactions["asin"])
    held_out = 0 if everything else 1 + pd.Index(reviewer_ids).isin(prepared.splits["validation"]["reviewer_id"][:])
    return [items[start:stop] for start, stop in zip(bounds[:-1], bounds[1:] - held_out)]


def purchase_days(prepared: Prepared) -> dict[str, np.ndarray]:
    """Say when each user bought: float64 days since 1970 per reviewer id, in time order, held-out items included.

    A history is the beginning of its user's row, so its dates are the first `len(history)` of that row.
    """
    reviewer_ids, bounds = user_bounds(prepared.interactions)
    days = prepared.interactions["timestamp"].to_numpy() / 86_400
    return dict(zip(map(str, reviewer_ids), np.split(days, bounds[1:-1])))
