"""The raw files: UCSD's reviews and metadata, and tables of one's own."""

import ast
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from tqdm.auto import tqdm

from .paths import check_choice, read_file, show

MAX_BROKEN_SHARE = 0.01  # above this the file is not what it should be
BLOCK_BYTES = 8 << 20  # text held at a time while reading; bounds the memory
MAX_TIMESTAMP = 1 << 53  # whole numbers above it are not exact as JSON numbers
REVIEW_FIELDS = pa.schema(
    {"reviewerID": pa.string(), "asin": pa.string(), "unixReviewTime": pa.int64(), "overall": pa.float64()}
)
REQUIRED_FIELDS = ["reviewerID", "asin", "unixReviewTime"]
META_START = re.compile(r"^\{'asin': '([^'\\]*)'.*\}\s*$")

COLUMN_ROLES = {"user": "user", "item": "item", "timestamp": "timestamp", "title": "title"}
# A number of seconds since 1970 stays below this until the year 5138; finer units are far above it.
MAX_SECONDS = 100_000_000_000
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass
class BrokenLines:
    """Counts the lines of one file that cannot be read, and keeps "file, line n: text" of the first three."""

    file: str
    lines: int = 0
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, line_number: int, text: str) -> None:
        self.count += 1
        if len(self.examples) < 3:
            self.examples.append(f"{self.file}, line {line_number}: {text.strip()[:60]}")

    def refuse_too_many(self) -> None:
        """Raise a ValueError if more than 1 % of the lines were broken, or if there were none at all."""
        if self.lines == 0:
            raise ValueError(f"{self.file} is empty: put the right file in its place")
        if self.count > MAX_BROKEN_SHARE * self.lines:
            raise ValueError(
                f"{self.file}: {self.count} of {self.lines} lines cannot be read (more than 1 %), so this is not "
                f"the right file. First: {'; '.join(self.examples)}"
            )


def read_blocks(path: Path, progress: bool = True) -> Iterator[bytes]:
    """Read a gzip file in blocks of whole lines, about 8 MiB of text at a time."""
    size = path.stat().st_size
    with (
        path.open("rb") as raw,
        tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=not progress, leave=False) as bar,
    ):
        try:
            with gzip.open(raw) as lines:
                while block := lines.read(BLOCK_BYTES):
                    yield block + lines.readline()
                    bar.update(raw.tell() - bar.n)
        except EOFError:
            raise ValueError(f"{path.name} is truncated: delete it and download it again") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path.name} is damaged ({error}): delete it and download it again") from None


def read_reviews(path: Path, progress: bool = True) -> tuple[pd.DataFrame, BrokenLines]:
    """Read `reviews_<Category>_5.json.gz`: reviewer_id, asin, timestamp (s), rating (or NaN), and broken lines."""
    broken = BrokenLines(path.name)
    tables = []
    for block in read_blocks(path, progress):
        tables.append(_parse_review_block(block, broken))
        broken.lines += _count_lines(block)
    broken.refuse_too_many()
    frame = pa.concat_tables(tables).to_pandas()
    frame.columns = ["reviewer_id", "asin", "timestamp", "rating"]
    return frame, broken


def _count_lines(block: bytes) -> int:
    return block.count(b"\n") + (not block.endswith(b"\n"))


def _parse_review_block(block: bytes, broken: BrokenLines) -> pa.Table:
    """Parse a block with Arrow; it stops at a broken line, so then look for those one by one."""
    options = pa.json.ParseOptions(explicit_schema=REVIEW_FIELDS, unexpected_field_behavior="ignore")
    try:
        table = pa.json.read_json(pa.BufferReader(block), pa.json.ReadOptions(use_threads=False), options)
        blank = [pc.any(pc.equal(pc.utf8_trim_whitespace(table[name]), "")).as_py() for name in REQUIRED_FIELDS[:2]]
        missing = any(table[name].null_count for name in REQUIRED_FIELDS)
        if len(table) == _count_lines(block) and not missing and not any(blank):
            return table.select(REVIEW_FIELDS.names)
    except pa.ArrowInvalid:
        pass
    records = []
    for number, line in enumerate(block.split(b"\n"), start=broken.lines + 1):
        record = _parse_review(line)
        if record:
            records.append(record)
        elif line.strip():
            broken.add(number, line.decode("utf-8", "replace"))
    return pa.Table.from_pylist(records, schema=REVIEW_FIELDS)


def _parse_review(line: bytes) -> dict | None:
    """Read one line with `json.loads`; None if it is no review."""
    try:
        record = json.loads(line)
        user, asin, timestamp = (record[name] for name in REQUIRED_FIELDS)
        f"{user}{asin}".encode()  # a lone surrogate has no UTF-8
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    rating = record.get("overall")
    types = type(user), type(asin), type(timestamp)
    if types != (str, str, int) or abs(timestamp) > MAX_TIMESTAMP or type(rating) not in (int, float, type(None)):
        return None
    if not user.strip() or not asin.strip():
        return None
    return {"reviewerID": user, "asin": asin, "unixReviewTime": timestamp, "overall": rating}


def read_metadata(path: Path, wanted: set[str], progress: bool = True) -> tuple[pd.DataFrame, BrokenLines]:
    """Read `asin, title` (raw or None) of the wanted asins out of `meta_<Category>.json.gz`, and broken lines.

    Lines are Python literals, which are slow to evaluate; a real file has 20 lines for each one that is
    needed. So every line must look like `{'asin': '…' … }`, and only those of wanted items are evaluated.
    """
    broken = BrokenLines(path.name)
    rows = []
    for block in read_blocks(path, progress):
        for number, text in enumerate(block.decode("utf-8", "replace").split("\n"), start=broken.lines + 1):
            start = META_START.match(text)
            if not text.strip() or (start and start[1] not in wanted):
                continue
            item = _parse_item(text)
            if item is None:
                broken.add(number, text)
            elif item["asin"] in wanted:
                rows.append((item["asin"], item.get("title")))
        broken.lines += _count_lines(block)
    broken.refuse_too_many()
    return pd.DataFrame(rows, columns=["asin", "title"], dtype=object), broken


def _parse_item(text: str) -> dict | None:
    try:
        item = ast.literal_eval(text.strip())
        f"{item['asin']}{item.get('title')}".encode()  # a lone surrogate has no UTF-8
    except (SyntaxError, ValueError, KeyError, TypeError, RecursionError, MemoryError):
        return None
    return item if isinstance(item["asin"], str) else None


def read_tables(raw_dir: Path, columns: dict[str, str], time_format: str = "") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read one's own `interactions` and `items`, each a CSV or Parquet file in `raw_dir`, as reviews and items.

    `columns` says what they call `user, item, timestamp, title`; what is left out keeps that name.
    """
    for role in columns:
        check_choice(role, COLUMN_ROLES, "column role")
    names = COLUMN_ROLES | columns
    interactions = _read_table(raw_dir, "interactions", [names["user"], names["item"], names["timestamp"]])
    items = _read_table(raw_dir, "items", [names["item"], names["title"]])
    interactions.columns = ["reviewer_id", "asin", "timestamp"]
    items.columns = ["asin", "title"]
    interactions["timestamp"] = to_seconds(interactions["timestamp"], time_format)
    return interactions.astype({"reviewer_id": str, "asin": str}), items.astype({"asin": str})


def _read_table(raw_dir: Path, name: str, columns: list[str]) -> pd.DataFrame:
    found = [path for path in (raw_dir / f"{name}.parquet", raw_dir / f"{name}.csv") if path.exists()]
    if not found:
        raise FileNotFoundError(f"no {name}.csv or {name}.parquet in {show(raw_dir)}: put one there")
    if len(found) > 1:
        raise ValueError(f"both {name}.parquet and {name}.csv are in {show(raw_dir)}: keep one of them")
    path = found[0]  # ids are text: '007' must not become 7, nor 'NA' a missing value
    read_csv = partial(pd.read_csv, dtype=str, keep_default_na=False, na_values=[""])
    read = read_csv if path.suffix == ".csv" else pd.read_parquet
    table = read_file(path, read, "save it as CSV in UTF-8, with commas, or as Parquet")
    missing = [column for column in columns if column not in table.columns]
    if missing:
        remedy = 'separate them by commas, and name yours: -p USER_COLUMN …, or columns={"user": …} in Python'
        has = ", ".join(map(str, table.columns))
        raise ValueError(f"{path.name} has no column '{missing[0]}': it has {has}; {remedy}")
    ids = table[columns[: 2 if name == "interactions" else 1]]  # a missing title is dealt with later
    empty = (ids.isna() | (ids.astype(str).apply(lambda column: column.str.strip()) == "")).to_numpy()
    if empty.any():
        row, column = np.argwhere(empty)[0]
        raise ValueError(f"row {row + 1} of {path.name} has no '{columns[column]}': fill it or drop the row")
    return table[columns].copy()


def to_seconds(timestamps: pd.Series, time_format: str = "", place: str = "the interactions") -> pd.Series:
    """Turn ISO dates, or seconds, milliseconds (or finer) since 1970, or text of these into int64 seconds.

    `time_format` says what other dates are like ("%d.%m.%Y"), or the unit of the numbers ("s", "ms", "us", "ns");
    `place` names for a message where they stand.

    >>> to_seconds(pd.Series(["2014-07-23", "2014-07-24"])).tolist()
    [1406073600, 1406160000]
    """
    if time_format and "%" not in time_format:
        check_choice(time_format, UNITS, "time format", ", or a date's such as %d.%m.%Y")
    numbers = pd.to_numeric(timestamps, errors="coerce").astype(float)
    dated = pd.api.types.is_datetime64_any_dtype(timestamps) or numbers.isna().all() or "%" in time_format
    if dated:
        text = timestamps.astype(str) if "%" in time_format else timestamps
        values = pd.to_datetime(text, format=time_format or "ISO8601", errors="coerce", utc=True)
        wrong = values.isna()
    else:
        likely = [unit for unit in UNITS.values() if numbers.abs().median() / unit <= MAX_SECONDS]
        unit = UNITS.get(time_format) or (likely or [1])[0]
        seconds = numbers.abs() / unit
        wrong = ~(seconds <= MAX_SECONDS)  # NaN too
        if not time_format:  # 20140513 is a date in disguise; a finer unit's numbers lie above the coarser one's
            wrong |= numbers.between(19_900_101, 21_001_231).all() | (unit > 1) & (seconds * 1000 <= MAX_SECONDS)
    if wrong.any():
        row = int(np.argmax(wrong.to_numpy()))
        where = f"timestamp {timestamps.tolist()[row]!r} in row {row + 1} of {place} cannot be read with certainty"
        other = ", or say time_format (TIME_FORMAT in notebook 01)" if place == "the interactions" else ""
        raise ValueError(f"{where}: use seconds or dates such as 2014-07-23{other}")
    if dated:
        return values.astype("datetime64[s, UTC]").astype("int64")
    return (pd.to_numeric(timestamps) // unit).astype("int64")
