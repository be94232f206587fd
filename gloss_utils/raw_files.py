"""Read the UCSD files: gzipped JSON lines of reviews, gzipped Python literals of metadata, some of them broken."""

import ast
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.json
from tqdm.auto import tqdm

MAX_BROKEN_SHARE = 0.01  # above this the file is not what it should be
BLOCK_BYTES = 8 << 20  # text held at a time while reading; bounds the memory
MAX_TIMESTAMP = 1 << 53  # beyond it is no time
REVIEW_FIELDS = pa.schema(
    {"reviewerID": pa.string(), "asin": pa.string(), "unixReviewTime": pa.int64(), "overall": pa.float64()}
)
REQUIRED_FIELDS = ["reviewerID", "asin", "unixReviewTime"]
META_START = re.compile(r"^\{'asin': '([^'\\]*)'.*\}\s*$")


@dataclass
class BrokenLines:
    """Counts the lines of one file that cannot be read, and keeps the first few.

    Attributes:
        file: the file's name.
        lines: lines read so far.
        count: how many of them were broken.
        examples: "file, line n: text" of the first three.
    """

    file: str
    lines: int = 0
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, line_number: int, text: str) -> None:
        self.count += 1
        if len(self.examples) < 3:
            self.examples.append(f"{self.file}, line {line_number}: {text.strip()[:60]}")

    def refuse_too_many(self) -> None:
        """Raise if more than 1 % of the lines were broken, or if there were none at all.

        Raises:
            ValueError: it is not a usable file.
        """
        if self.lines == 0:
            raise ValueError(f"{self.file} is empty: put the right file in its place")
        if self.count > MAX_BROKEN_SHARE * self.lines:
            raise ValueError(
                f"{self.file}: {self.count} of {self.lines} lines cannot be read (more than 1 %), so this is not "
                f"the right file. First: {'; '.join(self.examples)}"
            )


def read_blocks(path: Path, progress: bool = True) -> Iterator[bytes]:
    """Read a gzip file in blocks of whole lines, about 8 MiB of text at a time.

    Args:
        path: a `.gz` file.
        progress: show a bar over the compressed bytes.

    Raises:
        ValueError: the file is cut off or is not a gzip file.
    """
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
    """Read `reviews_<Category>_5.json.gz` in one streaming pass.

    Args:
        path: JSON lines with `reviewerID, asin, unixReviewTime` and, where there, `overall`.
        progress: show a bar.

    Returns:
        `reviewer_id, asin, timestamp` (int64 seconds), `rating` (NaN where absent), in the file's order;
        and the broken lines.
    """
    broken = BrokenLines(path.name)
    tables = []
    for block in read_blocks(path, progress):
        tables.append(_parse_review_block(block, broken).select(REVIEW_FIELDS.names))
        broken.lines += _count_lines(block)
    broken.refuse_too_many()
    frame = pa.concat_tables(tables).to_pandas()
    frame.columns = ["reviewer_id", "asin", "timestamp", "rating"]
    return frame, broken


def _count_lines(block: bytes) -> int:
    return block.count(b"\n") + (not block.endswith(b"\n"))


def _parse_review_block(block: bytes, broken: BrokenLines) -> pa.Table:
    """Parse a block at once; only where that fails, look for the broken lines one by one."""
    try:
        table = _parse_json(block)
        if len(table) == _count_lines(block) and not any(table[name].null_count for name in REQUIRED_FIELDS):
            return table
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


def _parse_json(text: bytes) -> pa.Table:
    options = pa.json.ParseOptions(explicit_schema=REVIEW_FIELDS, unexpected_field_behavior="ignore")
    return pa.json.read_json(
        pa.BufferReader(text), read_options=pa.json.ReadOptions(use_threads=False), parse_options=options
    )


def _parse_review(line: bytes) -> dict | None:
    """Read one line the slow way; None if it is no review."""
    try:
        record = json.loads(line)
        user, asin, timestamp = (record[name] for name in REQUIRED_FIELDS)
    except (ValueError, KeyError, TypeError):
        return None
    rating = record.get("overall")
    types = type(user), type(asin), type(timestamp)
    if types != (str, str, int) or abs(timestamp) > MAX_TIMESTAMP or type(rating) not in (int, float, type(None)):
        return None
    return {"reviewerID": user, "asin": asin, "unixReviewTime": timestamp, "overall": rating}


def read_metadata(path: Path, wanted: set[str], progress: bool = True) -> tuple[pd.DataFrame, BrokenLines]:
    """Read the titles of the wanted items out of `meta_<Category>.json.gz` in one streaming pass.

    Lines are Python literals, which are slow to evaluate; a real file has 20 lines for each one that is
    needed. So every line must look like `{'asin': '…' … }`, and only those of wanted items are evaluated.

    Args:
        path: the metadata file.
        wanted: asins that occur in the reviews.
        progress: show a bar.

    Returns:
        `asin, title` (raw, None where missing) of the wanted lines, in the file's order; and the broken
        lines.
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
    except (SyntaxError, ValueError):
        return None
    return item if isinstance(item, dict) and isinstance(item.get("asin"), str) else None
