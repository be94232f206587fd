"""What a row of the fault tables is, and how one is tried: a sentence, nothing harmed, and the next run right."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from gloss_utils import raw_data

DAY = 86_400
START = 1_400_000_000  # in May 2014
TITLES = ["Rose Soap", "Rose Cream", "Mint Soap", "Mint Cream", "Cedar Comb", "Café Scrub", "Lemon Oil", "Steel File"]


class Fault(NamedTuple):
    """One row: what is broken, what a user does next, and the sentence that they see."""

    what: str
    inject: Callable
    call: Callable
    sentence: str


def rows(*faults: Fault):
    """The rows as pytest takes them, named by what is broken."""
    assert len({fault.what for fault in faults}) == len(faults)
    return pytest.mark.parametrize("fault", faults, ids=[fault.what for fault in faults])


def refused(call: Callable, sentence: str, root: Path | None = None) -> str:
    """`call` must end in one readable sentence, and change no file under `root`."""
    before = root and files(root)
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    message = str(caught.value)
    assert re.search(sentence, message), message
    assert "\n" not in message and len(message) < 700 and not re.match(r"\[Errno|\(\d|'[^']*'$", message), message
    assert root is None or files(root) == before, "a refusal harms nothing and leaves nothing behind"
    return message


def files(root: Path) -> dict[str, bytes]:
    """Every file under a directory, and its bytes."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def contents(root: Path) -> dict[str, bytes]:
    """The files that `prepare` makes, but for the random marks that `datasets` leaves in its state files."""
    made = {name: data for name, data in files(root).items() if name.endswith((".parquet", ".arrow"))}
    return {name: data for name, data in made.items() if not name.startswith("raw/")}


def copy(template: Path, to: Path) -> Path:
    shutil.copytree(template, to)
    return to


def own_tables(users: int = 12, prefix: str = "i") -> tuple[pd.DataFrame, pd.DataFrame]:
    """A dozen users with four purchases each, of eight items."""
    bought = [
        (f"u{user}", f"{prefix}{(user * 3 + step * 5) % 8}", START + (user + step) * DAY)
        for user in range(users)
        for step in range(4)
    ]
    items = pd.DataFrame({"item": [f"{prefix}{row}" for row in range(8)], "title": TITLES})
    return pd.DataFrame(bought, columns=["user", "item", "timestamp"]), items


def write_tables(root: Path, interactions: pd.DataFrame | None = None, items: pd.DataFrame | None = None) -> Path:
    """Put the tables of a store where `prepare` looks for them."""
    tables = own_tables()
    (root / "raw").mkdir(parents=True, exist_ok=True)
    for name, table, given in (("interactions", tables[0], interactions), ("items", tables[1], items)):
        (table if given is None else given).to_csv(root / "raw" / f"{name}.csv", index=False)
    return root


def prepare(root: Path, **options):
    return raw_data.prepare(f"{root}/", progress=False, **options)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")
