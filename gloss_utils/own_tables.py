"""A data set of one's own: a table of (user, item, timestamp) and one of (item, title), CSV or Parquet."""

from pathlib import Path

import numpy as np
import pandas as pd

from .paths import show

DEFAULT_COLUMNS = {"user": "user", "item": "item", "timestamp": "timestamp", "title": "title"}
SUFFIXES = (".parquet", ".csv")
# A number of seconds since 1970 stays below this until the year 5138; finer units are far above it.
MAX_SECONDS = 100_000_000_000


def read_tables(raw_dir: Path, columns: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read `interactions` and `items`.

    Args:
        raw_dir: the folder that holds `interactions.csv` or `.parquet`, and `items.csv` or `.parquet`.
        columns: what the files call `user, item, timestamp, title`; what is left out keeps that name.

    Returns:
        reviews (`reviewer_id, asin, timestamp` in int64 seconds) and items (`asin, title`).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a column is missing, or a timestamp cannot be read.
    """
    unknown = set(columns) - set(DEFAULT_COLUMNS)
    if unknown:
        raise ValueError(f"unknown column role '{unknown.pop()}': choose from {', '.join(DEFAULT_COLUMNS)}")
    names = DEFAULT_COLUMNS | columns
    interactions = _read(raw_dir, "interactions", [names["user"], names["item"], names["timestamp"]])
    items = _read(raw_dir, "items", [names["item"], names["title"]])
    interactions.columns = ["reviewer_id", "asin", "timestamp"]
    items.columns = ["asin", "title"]
    interactions["timestamp"] = to_seconds(interactions["timestamp"])
    interactions = interactions.astype({"reviewer_id": str, "asin": str})
    return interactions, items.astype({"asin": str})


def _read(raw_dir: Path, name: str, columns: list[str]) -> pd.DataFrame:
    found = [raw_dir / (name + suffix) for suffix in SUFFIXES if (raw_dir / (name + suffix)).exists()]
    if not found:
        raise FileNotFoundError(f"no {name}.csv or {name}.parquet in {show(raw_dir)}: put one there")
    path = found[0]
    if path.suffix == ".csv":  # ids are text: '007' must not become 7, nor 'NA' a missing value
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    else:
        table = pd.read_parquet(path)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(
            f"{path.name} has no column '{missing[0]}': it has {', '.join(table.columns)}; "
            f'name yours, as in columns={{"user": "{table.columns[0]}"}}'
        )
    empty = table[columns[:2]].isna().to_numpy()  # ids; a missing title is dealt with later
    if name == "interactions" and empty.any():
        row, column = np.argwhere(empty)[0]
        raise ValueError(f"row {row + 1} of {path.name} has no '{columns[column]}': fill it or drop the row")
    return table[columns].copy()


def to_seconds(timestamps: pd.Series) -> pd.Series:
    """Turn seconds, milliseconds (or finer) or dates into int64 seconds since 1970.

    Args:
        timestamps: numbers, numbers as text, dates as text, or datetimes.

    Raises:
        ValueError: one is missing or cannot be read.

    >>> to_seconds(pd.Series(["2014-07-23", "2014-07-24"])).tolist()
    [1406073600, 1406160000]
    """
    numbers = pd.to_numeric(timestamps, errors="coerce")
    if pd.api.types.is_datetime64_any_dtype(timestamps) or numbers.isna().all():
        dates = pd.to_datetime(timestamps, errors="coerce", utc=True)
        _refuse_missing(dates, timestamps)
        return pd.Series(dates.astype("datetime64[s, UTC]").astype("int64"), index=timestamps.index)
    _refuse_missing(numbers, timestamps)
    unit = 1
    while np.abs(numbers.median()) / unit > MAX_SECONDS:
        unit *= 1000  # milliseconds, microseconds, nanoseconds
    return (numbers // unit).astype("int64")


def _refuse_missing(values: pd.Series, timestamps: pd.Series) -> None:
    if values.isna().any():
        row = int(np.argmax(values.isna().to_numpy()))
        raise ValueError(
            f"timestamp {timestamps.iloc[row]!r} in row {row + 1} of the interactions cannot be read: "
            "use seconds, milliseconds or dates"
        )
