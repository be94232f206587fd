"""The rows of the splits, built in columns: one pass over arrays instead of one user at a time."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict
from datasets.fingerprint import generate_random_fingerprint

from . import prompts

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
