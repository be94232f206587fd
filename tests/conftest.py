"""Fixtures that all tests share. Each test that writes gets a data directory of its own."""

import functools
import os

# Before torch is imported anywhere: waiting threads that spin make busy cores ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from gloss_utils import raw_data, splits
from gloss_utils.paths import dataset_paths

REAL_DATA = os.environ.get("GLOSS_RAW_DIR", "")

TOY_TITLES = {
    "a1": "Rose Soap",
    "a2": "Rose Toner",
    "a3": "Rose Cream",
    "a4": "Mint Soap",
    "a5": "Mint Toner",
    "a6": "Mint Cream",
    "a7": "Wooden Comb",
}
# One user per line, in time order; the day is the position.
TOY_HISTORIES = {
    "u1": ["a1", "a2", "a3"],
    "u2": ["a4", "a5", "a6", "a7"],
    "u3": ["a1", "a2", "a7", "a3"],
    "u4": ["a2", "a3", "a4", "a5", "a6"],
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> splits.Prepared:
    """The sample store, prepared in a data directory of its own. Treat it as read-only, but for new artifacts."""
    return raw_data.prepare("sample", data_dir=tmp_path_factory.mktemp("data"), progress=False)


@pytest.fixture
def toy(tmp_path) -> splits.Prepared:
    """Seven items and four users, small enough to work out by hand; not written to disk."""
    interactions = pd.DataFrame(
        [(user, asin, day) for user, asins in TOY_HISTORIES.items() for day, asin in enumerate(asins)],
        columns=["reviewer_id", "asin", "timestamp"],
    )
    catalog = pd.DataFrame({"asin": list(TOY_TITLES), "title": list(TOY_TITLES.values())})
    catalog["text"] = "Title: " + catalog["title"]
    return splits.Prepared(
        "toy",
        dataset_paths("toy", tmp_path),
        interactions,
        catalog,
        splits.build_splits(interactions, catalog),
        pd.DataFrame(),
    )


@pytest.fixture(scope="session")
def real(tmp_path_factory) -> Callable[[str], splits.Prepared]:
    """Prepare a category of Amazon 2014 ("beauty"), once per run; GLOSS_RAW_DIR names the folder of its files."""
    if not REAL_DATA:
        pytest.skip("set GLOSS_RAW_DIR to the folder of the Amazon 2014 files")
    data_dir = tmp_path_factory.mktemp("real")
    return functools.cache(lambda name: raw_data.prepare(name, Path(REAL_DATA).resolve(), data_dir, progress=False))


def pytest_collection_modifyitems(items):
    """Fast tests first, the whole course last, so that a slip shows in seconds."""
    items.sort(key=lambda item: (bool(item.get_closest_marker("course")), bool(item.get_closest_marker("slow"))))
