"""Histories, the leave-last-out split, and the tasks that the other chapters solve."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict
from datasets.fingerprint import generate_random_fingerprint

from . import prompts
from .paths import DatasetPaths, check_choice, dataset_paths

BLOCK_USERS = 20_000  # rows built at a time, which bounds the memory


def build_rows(
    reviewer_ids: np.ndarray, starts: np.ndarray, stops: np.ndarray, asins: pa.Array, texts: pa.Array
) -> pa.Table:
    """Write one row per user: the last item of the span is the answer, those before it are the prompt.

    Args:
        reviewer_ids: [U].
        starts, stops: int64 [U], each user's span of rows in `asins` and `texts`.
        asins, texts: of all purchases.
    """
    blocks = [slice(row, row + BLOCK_USERS) for row in range(0, len(starts), BLOCK_USERS)]
    return pa.concat_tables(
        [_block_of_rows(reviewer_ids[block], starts[block], stops[block], asins, texts) for block in blocks]
    )


def _block_of_rows(
    reviewer_ids: np.ndarray, starts: np.ndarray, stops: np.ndarray, asins: pa.Array, texts: pa.Array
) -> pa.Table:
    """The same for a block of users; `prompts.build_prompt` in columns instead of one user at a time."""
    offsets = np.concatenate([[0], np.cumsum(stops - 1 - starts)])
    before = pa.array(np.repeat(starts - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1]))
    last = pa.array(stops - 1)
    lists = pa.array(offsets, pa.int32())
    histories = pc.binary_join(pa.ListArray.from_arrays(lists, texts.take(before)), "\n")
    ptext = pc.binary_join_element_wise(prompts.PROMPT_HEADER, histories, prompts.NEXT_ITEM, "")
    return pa.table(
        {
            "reviewer_id": pa.array(reviewer_ids, pa.string()),
            "ptext": ptext,
            "text": pc.binary_join_element_wise(ptext, texts.take(last), ""),
            "seen_asins": pa.ListArray.from_arrays(lists, asins.take(before)),
            "asin": asins.take(last),
            "asin_text": texts.take(last),
        }
    )


def to_dataset(table: pa.Table) -> Dataset:
    """Wrap a table for the datasets library."""
    # A fingerprint of our own: computing one takes the library longer than building the table.
    return Dataset(datasets.table.InMemoryTable(table), fingerprint=generate_random_fingerprint())


def save_splits(splits: DatasetDict, path: Path) -> None:
    """Write splits to disk without the library's progress bars."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        splits.save_to_disk(str(path))
    finally:
        if shown:
            datasets.enable_progress_bars()


MIN_INTERACTIONS = 3  # one item to train on, one to predict, and one to hold out
VALIDATION_SHARE = 0.05
VALIDATION_SEED = 42  # the authors' seed: on the same file, the same people
TIE_ORDERS = ("asin", "shuffled", "reverse")
REAL_CATEGORIES = ("beauty", "toys", "sports")


@dataclass(frozen=True)
class Prepared:
    """A dataset, ready for every later chapter.

    Attributes:
        dataset: its name.
        paths: where its artifacts live.
        interactions: `reviewer_id, asin, timestamp` (seconds), in each user's time order.
        catalog: `asin, title, text`; the row position is the item's number.
        splits: train, validation and test.
        report: one row per cleaning step, from raw to final.
    """

    dataset: str
    paths: DatasetPaths
    interactions: pd.DataFrame = field(repr=False)
    catalog: pd.DataFrame = field(repr=False)
    splits: DatasetDict = field(repr=False)
    report: pd.DataFrame = field(repr=False)

    @property
    def sampled(self) -> bool:
        """Whether notebook 01 kept only a sample of the users (`MAX_USERS`)."""
        return bool(self.report["step"].str.startswith("a sample of").any())

    def item_numbers(self, asins) -> np.ndarray:
        """Look up the catalog rows of some asins; -1 where there is none.

        Args:
            asins: a sequence or arrow array of asins.
        """
        return pd.Index(self.catalog["asin"]).get_indexer(np.asarray(asins, dtype=object))


@dataclass(frozen=True)
class Task:
    """Who to recommend to, and what each of them bought next.

    Attributes:
        reviewer_ids: str [U].
        prompts: the `ptext` of each user.
        seen_items: int64 item numbers in time order, one array per user.
        targets: int64 [U], the held-out item's number.
    """

    reviewer_ids: np.ndarray
    prompts: list[str] = field(repr=False)
    seen_items: list[np.ndarray] = field(repr=False)
    targets: np.ndarray = field(repr=False)

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
        """Keep these users, in this order.

        Raises:
            ValueError: one of them is not in the task.
        """
        reviewer_ids = list(reviewer_ids)
        rows = pd.Index(self.reviewer_ids).get_indexer(reviewer_ids)
        if (rows < 0).any():
            missing = reviewer_ids[int(np.argmin(rows))]
            raise ValueError(f"reviewer '{missing}' is not in this task of {len(self)} users")
        return self.take(rows)


def order_ties(interactions: pd.DataFrame, tie_order: str = "asin", seed: int = 42) -> pd.DataFrame:
    """Sort every user's purchases by time, and those of one instant as asked.

    Timestamps are days, so this choice decides what "the last item" is for four users in ten.

    Args:
        interactions: `reviewer_id, asin, timestamp`.
        tie_order: `asin` (the raw file's order, and the paper's), `shuffled` or `reverse`.
        seed: of the shuffle.
    """
    check_choice(tie_order, TIE_ORDERS, "tie order")
    # Reviewer and asin become numbers in their sorted order: sorting integers is several times faster.
    reviewers = pd.factorize(interactions["reviewer_id"], sort=True)[0]
    asins = pd.factorize(interactions["asin"], sort=True)[0]
    tie = {"asin": asins, "reverse": -asins}.get(tie_order)
    if tie is None:  # shuffled: from the asin order, so that the file's line order does not matter
        tie = np.random.default_rng(seed).permutation(len(interactions))
        tie = tie[np.argsort(np.lexsort((asins, interactions["timestamp"], reviewers)))]
    order = np.lexsort((tie, interactions["timestamp"], reviewers))
    return interactions.iloc[order].reset_index(drop=True)


def draw_validation_users(reviewer_ids, share: float = VALIDATION_SHARE, seed: int = VALIDATION_SEED) -> list[str]:
    """Draw the validation users as the authors drew theirs; at least one, so that a tiny shop has some too.

    Args:
        reviewer_ids: all users, in any order.
        share: of the users.
        seed: of `random.Random`.
    """
    ordered = sorted(set(reviewer_ids))
    return random.Random(seed).sample(ordered, max(1, int(share * len(ordered))))


def user_bounds(interactions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Find where each user's rows begin in interactions that are sorted by user.

    Returns:
        reviewer ids [U] in the order of the rows, and row offsets int64 [U + 1].
    """
    codes, reviewer_ids = pd.factorize(interactions["reviewer_id"])
    counts = np.bincount(codes, minlength=len(reviewer_ids))
    return np.asarray(reviewer_ids, dtype=object), np.concatenate([[0], np.cumsum(counts)])


def build_splits(interactions: pd.DataFrame, catalog: pd.DataFrame) -> DatasetDict:
    """Leave the last item out for test; for the validation users, the one before it too.

    Args:
        interactions: in each user's time order, three or more per user.
        catalog: `asin, title, text`.

    Returns:
        train (`reviewer_id, text`), validation and test (`reviewer_id, ptext, text, seen_asins, asin,
        asin_text`). A validation user's training text is one item shorter.

    Raises:
        ValueError: a user has fewer than three interactions.
    """
    reviewer_ids, bounds = user_bounds(interactions)
    lengths = np.diff(bounds)
    if (lengths < MIN_INTERACTIONS).any():
        short = reviewer_ids[int(np.argmin(lengths))]
        raise ValueError(
            f"user '{short}' has {lengths.min()} interactions: a split needs {MIN_INTERACTIONS} or more per user"
        )
    asins = pa.array(interactions["asin"], pa.string())
    items = pd.Index(catalog["asin"]).get_indexer(interactions["asin"])
    texts = pa.array(catalog["text"], pa.string()).take(pa.array(items))
    starts, stops = bounds[:-1], bounds[1:]
    drawn = pd.Index(reviewer_ids).isin(draw_validation_users(reviewer_ids))
    train = build_rows(reviewer_ids, starts, stops - 1 - drawn, asins, texts).select(["reviewer_id", "text"])
    validation = build_rows(reviewer_ids[drawn], starts[drawn], stops[drawn] - 1, asins, texts)
    test = build_rows(reviewer_ids, starts, stops, asins, texts)
    return DatasetDict(train=to_dataset(train), validation=to_dataset(validation), test=to_dataset(test))


def load_prepared(dataset: str = "sample", data_dir: str | Path = "data") -> Prepared:
    """Open what notebook 01 wrote.

    Args:
        dataset: a name, or a directory of one's own.
        data_dir: where the datasets live.

    Raises:
        FileNotFoundError: notebook 01 has not run for it.
    """
    paths = dataset_paths(dataset, data_dir)
    interactions = pd.read_parquet(paths.require(paths.interactions, "interactions"))
    catalog = pd.read_parquet(paths.require(paths.catalog, "catalog"))
    splits = datasets.load_from_disk(str(paths.require(paths.splits, "splits")))
    return Prepared(
        paths.dataset, paths, interactions, catalog, splits, pd.read_csv(paths.report, keep_default_na=False)
    )


def load_task(prepared: Prepared, split: str = "test") -> Task:
    """Turn a held-out split into arrays.

    Args:
        prepared: the dataset.
        split: `test` or `validation`.
    """
    table = prepared.splits[check_choice(split, ("test", "validation"), "split")].data.table
    seen = table.column("seen_asins").combine_chunks()
    if isinstance(seen, pa.ChunkedArray):
        seen = seen.chunk(0)
    offsets = seen.offsets.to_numpy()
    items = prepared.item_numbers(seen.flatten())
    return Task(
        reviewer_ids=np.array(table.column("reviewer_id").to_pylist(), dtype=str),
        prompts=table.column("ptext").to_pylist(),
        seen_items=np.split(items, (offsets - offsets[0])[1:-1]) if len(table) else [],
        targets=prepared.item_numbers(table.column("asin")),
    )


def training_histories(prepared: Prepared) -> list[np.ndarray]:
    """List what may be learned from: every user's items without those held out.

    Returns:
        int64 item numbers per user, in sorted-reviewer order: all but the last item, and all but the last
        two for the validation users.
    """
    reviewer_ids, bounds = user_bounds(prepared.interactions)
    items = prepared.item_numbers(prepared.interactions["asin"])
    held_out = 1 + pd.Index(reviewer_ids).isin(prepared.splits["validation"]["reviewer_id"][:])
    return [items[start:stop] for start, stop in zip(bounds[:-1], bounds[1:] - held_out)]


def purchase_days(prepared: Prepared) -> dict[str, np.ndarray]:
    """Say when each user bought: float64 days since 1970 per reviewer id, in time order, held-out items included.

    A history is the beginning of its user's row, so its dates are the first `len(history)` of that row.
    """
    reviewer_ids, bounds = user_bounds(prepared.interactions)
    days = prepared.interactions["timestamp"].to_numpy() / 86_400
    return dict(zip(map(str, reviewer_ids), np.split(days, bounds[1:-1])))


def require_whole_category(prepared: Prepared) -> None:
    """Let only results that may stand beside the papers' be kept as measured.

    Raises:
        ValueError: not a real category, not all of its users, or ties not in the field's order.
    """
    by_asin = order_ties(prepared.interactions, "asin")
    if prepared.dataset not in REAL_CATEGORIES or prepared.sampled or not by_asin.equals(prepared.interactions):
        raise ValueError(
            f"SAVE_MEASURED with '{prepared.dataset}': it takes one of {', '.join(REAL_CATEGORIES)}, "
            "all users (MAX_USERS 0) and TIE_ORDER asin"
        )


def sample_users(task: Task, max_users: int, seed: int = 42) -> Task:
    """Draw the users that chapters 04 and later share, in the task's order.

    Args:
        task: the whole split.
        max_users: how many; 0 for all.
        seed: of the draw.
    """
    if max_users <= 0 or max_users >= len(task):
        return task
    return task.take(np.sort(np.random.default_rng(seed).permutation(len(task))[:max_users]))
