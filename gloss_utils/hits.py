"""What every search index shares: hits, an exact top-k, checked searches, save and load."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .paths import show, write_atomically

BLOCK_CELLS = 8_000_000  # score cells held at once, 32 MB: memory does not grow with the number of queries


class Hits(NamedTuple):
    """What a search found, best first.

    Attributes:
        items: int64 [num_queries, k], item numbers; -1 pads.
        scores: float32 [num_queries, k]; -inf where `items` is -1.
    """

    items: np.ndarray
    scores: np.ndarray


def top_k(scores: np.ndarray, k: int, floor: float = -np.inf) -> Hits:
    """Take the k best of every row; equal scores go to the lower column.

    Args:
        scores: float [num_rows, num_items].
        k: hits per row; beyond `num_items` the rest is padding.
        floor: only scores above it count.

    >>> top_k(np.array([[0.5, 0.9, 0.5]], dtype=np.float32), k=2).items
    array([[1, 0]])
    """
    num_rows, num_items = scores.shape
    last = num_items - min(k, num_items)
    threshold = np.partition(scores, last, axis=1)[:, last, None]
    rows, columns = np.divmod(np.flatnonzero((scores >= threshold) & (scores > floor)), num_items)
    values = scores[rows, columns]
    order = np.lexsort((-values, rows))  # stable, so columns stay ascending where values are equal
    rows, columns, values = rows[order], columns[order], values[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, np.arange(num_rows))[rows]
    kept = place < k
    hits = no_hits(num_rows, k)
    hits.items[rows[kept], place[kept]] = columns[kept]
    hits.scores[rows[kept], place[kept]] = values[kept]
    return hits


def no_hits(num_rows: int, k: int) -> Hits:
    """Rows of padding: -1 and -inf."""
    return Hits(np.full((num_rows, k), -1, dtype=np.int64), np.full((num_rows, k), -np.inf, dtype=np.float32))


def seen_mask(items: np.ndarray, seen: Sequence[np.ndarray]) -> np.ndarray:
    """Say which items of each row are among that row's seen ones, all users in one search.

    Args:
        items: int64 [num_users, width]; -1 pads, and is never seen.
        seen: one int64 array per user.

    Returns:
        bool [num_users, width].
    """
    width = int(max(items.max(initial=0), max((part.max(initial=0) for part in seen), default=0))) + 2
    owner = np.repeat(np.arange(len(seen)), [len(part) for part in seen])
    pairs = np.sort(owner * width + np.concatenate([*seen, np.empty(0, dtype=np.int64)]))
    asked = np.arange(len(items))[:, None] * width + np.where(items < 0, width - 1, items)
    place = np.searchsorted(pairs, asked)
    return (place < len(pairs)) & (pairs[np.minimum(place, len(pairs) - 1)] == asked) if len(pairs) else asked < 0


def blocks(num_rows: int, num_items: int) -> Iterator[slice]:
    """Cut rows into slices of at most `BLOCK_CELLS` scores each."""
    step = max(1, BLOCK_CELLS // max(1, num_items))
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the distinct texts in order of appearance, and for every text its place among them."""
    places: dict[str, int] = {}
    inverse = np.fromiter((places.setdefault(text, len(places)) for text in texts), np.int64, len(texts))
    return list(places), inverse


def fingerprint(texts: Sequence[str]) -> str:
    """A hash of the texts and their order: what tells one catalog from another."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


class Index:
    """What the three indexes share: the catalog's texts, checked searches, save and load."""

    def __init__(self, texts: Sequence[str], settings: dict):
        self.texts = [str(text) for text in texts]
        self.settings = settings
        if not self.texts:
            raise ValueError("the catalog is empty: an index needs at least one text")

    def search(self, queries: Sequence[str], k: int = 20) -> Hits:
        """Find the k best items for every query.

        Args:
            queries: texts; equal ones are searched once.
            k: hits per query, at least 1; beyond what there is the rows are padded with -1.

        Raises:
            ValueError: `k` is below 1, or `queries` is one string instead of a list.
        """
        if isinstance(queries, str):
            raise ValueError("queries is one string: give a list of texts, such as [query]")
        if k < 1:
            raise ValueError(f"k={k}: ask for at least one hit")
        unique, inverse = distinct([str(query) for query in queries])
        filled = [place for place, query in enumerate(unique) if query.strip()]
        hits = no_hits(len(unique), k)
        if filled:
            found = self._search([unique[place] for place in filled], min(k, len(self.texts)))
            hits.items[filled, : found.items.shape[1]] = found.items
            hits.scores[filled, : found.scores.shape[1]] = found.scores
        return Hits(hits.items[inverse], hits.scores[inverse])

    def save(self, directory: str | Path) -> Path:
        """Write the index as a directory, whole or not at all."""

        def write(target: Path) -> None:
            target.mkdir()
            about = {"kind": type(self).__name__, "catalog": fingerprint(self.texts), "settings": self.settings}
            (target / "index.json").write_text(json.dumps(about, indent=1))
            self._write(target)

        return write_atomically(Path(directory), write)

    @classmethod
    def load(cls, directory: str | Path, texts: Sequence[str]) -> "Index":
        """Read an index that `save` wrote, for the same catalog.

        Raises:
            FileNotFoundError: there is no index.
            ValueError: it is of another kind, or was built on other texts.
        """
        directory = Path(directory)
        if not (directory / "index.json").exists():
            raise FileNotFoundError(f"no index in {show(directory)}: build one and call .save() first")
        about = json.loads((directory / "index.json").read_text())
        if about["kind"] != cls.__name__:
            raise ValueError(f"{show(directory)} holds a {about['kind']}: load it with {about['kind']}.load")
        if about["catalog"] != fingerprint([str(text) for text in texts]):
            raise ValueError(f"{show(directory)} was built on another catalog: build the index again")
        index = cls.__new__(cls)
        Index.__init__(index, texts, about["settings"])
        index._read(directory)
        return index
