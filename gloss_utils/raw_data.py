"""From raw files to a prepared dataset: read, clean, report what each step removed, split, write."""

import html
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from datasets import DatasetDict

from . import prompts, raw_files, splits
from .paths import check_choice, check_number, dataset_paths, resolve, show, write_atomically

CATEGORIES = {"sample": "Sample", "beauty": "Beauty", "toys": "Toys_and_Games", "sports": "Sports_and_Outdoors"}


def clean_title(title: object) -> str:
    """Undo HTML entities and collapse white space; '' for a missing title."""
    return " ".join(html.unescape(title).split()) if isinstance(title, str) else ""


class Report:
    """Collects one row per cleaning step: what it removed, and what was left after it."""

    def __init__(self) -> None:
        self.rows = []

    def add(self, step: str, interactions: pd.DataFrame, removed: int, note: str = "") -> None:
        """Add a row: `removed` counts what the step names (lines, asins or interactions)."""
        left = self.rows[-1] if self.rows else {}
        if left.get("interactions") != len(interactions):  # counting is slow: not where nothing went
            users, items = interactions["reviewer_id"].nunique(), interactions["asin"].nunique()
            left = {"users": users, "items": items, "interactions": len(interactions)}
        self.rows.append(left | {"step": step, "removed": removed, "note": note})

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=["step", "removed", "users", "items", "interactions", "note"])


def clean(reviews: pd.DataFrame, items: pd.DataFrame, report: Report) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Apply the filters of the authors' code, in its order, to interactions and catalog; a report row per step."""
    kept = reviews.drop_duplicates()
    report.add("exact duplicate interactions", kept, len(reviews) - len(kept))

    first = items.drop_duplicates("asin")
    report.add("duplicate asins in the metadata", kept, len(items) - len(first))
    titles = first["title"].map(clean_title)
    catalog = pd.DataFrame({"asin": first["asin"], "title": titles})[titles != ""]

    titled = kept[kept["asin"].isin(catalog["asin"])]
    report.add("interactions with items without a title", titled, len(kept) - len(titled))

    counts = titled["reviewer_id"].map(titled["reviewer_id"].value_counts())
    least = splits.MIN_INTERACTIONS
    interactions = titled[counts >= least]
    report.add(f"interactions of users under {least}", interactions, len(titled) - len(interactions))
    if interactions.empty:
        raise ValueError(
            f"the catalog is empty: no user has {least} purchases of items with a title. "
            "Do the two files belong together?"
        )
    interactions = splits.order_ties(interactions[["reviewer_id", "asin", "timestamp"]])
    catalog = catalog[catalog["asin"].isin(interactions["asin"])]
    return interactions, catalog.assign(text=[prompts.item_text(title) for title in catalog["title"]])


def number_items(catalog: pd.DataFrame, interactions: pd.DataFrame) -> pd.DataFrame:
    """Order the catalog as the training histories meet the items; those that only occur held out follow by asin.

    Equal scores go to the lower number, so numbers that held-out purchases had a say in would favour the targets.
    """
    reviewer_ids, bounds = splits.user_bounds(interactions)
    stops = bounds[1:] - 1 - pd.Index(reviewer_ids).isin(splits.draw_validation_users(reviewer_ids))
    in_training = np.arange(len(interactions)) < np.repeat(stops, np.diff(bounds))
    met = interactions["asin"][in_training].unique()
    others = pd.Index(catalog["asin"]).difference(met)  # sorted; np.setdiff1d takes a second on text
    return catalog.set_index("asin").loc[[*met, *others]].reset_index()


def keep_users(interactions: pd.DataFrame, max_users: int, seed: int) -> pd.DataFrame:
    """Keep a seeded sample of `max_users` users (0: all); the catalog stays whole, so the task stays as hard."""
    users = np.sort(interactions["reviewer_id"].unique())
    if max_users <= 0 or max_users >= len(users):
        return interactions
    kept = np.random.default_rng(seed).permutation(len(users))[:max_users]
    return interactions[interactions["reviewer_id"].isin(users[kept])]


def prepare(
    dataset: str,  # sample, beauty, toys, sports, or a directory of one's own (with a slash)
    raw_dir: str | Path | None = None,  # of the raw files, "" for the dataset's own raw/
    data_dir: str | Path = "data",
    tie_order: str = "asin",  # of purchases of one instant: asin, shuffled or reverse
    max_users: int = 0,  # a seeded sample of so many users; 0 for all
    columns: dict[str, str] | None = None,  # what files of one's own call user, item, timestamp, title
    seed: int = 42,  # of the shuffle and of the sample
    progress: bool = True,
    time_format: str = "",  # of one's own times that are neither ISO dates nor seconds, see raw_files.to_seconds
) -> splits.Prepared:
    """Turn raw files into interactions, catalog and splits, and write them."""
    check_choice(tie_order, splits.TIE_ORDERS, "tie order")
    check_number(max_users, "max_users", 0)
    check_number(seed, "seed", 0)
    paths, report = dataset_paths(dataset, data_dir), Report()
    raw = resolve(raw_dir) if raw_dir else paths.raw
    if "/" in dataset or "\\" in dataset:
        reviews, items = raw_files.read_tables(raw, columns or {}, time_format)
        report.add("rows read", reviews, 0)
    else:
        reviews, items = _read_category(dataset, raw, report, progress)
    everyone, catalog = clean(reviews, items, report)
    interactions = keep_users(everyone, max_users, seed).reset_index(drop=True)
    if tie_order != "asin":
        interactions = splits.order_ties(interactions, tie_order, seed)
    if max_users:
        report.add(f"a sample of {max_users} users", interactions, len(everyone) - len(interactions))
    catalog = number_items(catalog, interactions)
    rows = splits.build_splits(interactions, catalog)
    prepared = splits.Prepared(paths.dataset, paths, interactions, catalog, rows, report.frame())
    write(prepared)
    return prepared


def category_files(dataset: str, raw_dir: str | Path) -> tuple[Path, Path]:
    """Name the reviews and the metadata file of a category, as the UCSD hosts do."""
    own = f"; a directory of your own has a slash: ./{dataset}"
    category = CATEGORIES[check_choice(dataset, CATEGORIES, "data set", own)]
    raw = resolve(raw_dir)
    return raw / f"reviews_{category}_5.json.gz", raw / f"meta_{category}.json.gz"


def _read_category(dataset: str, raw: Path, report: Report, progress: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the two UCSD files of one category; where one is missing, say how to get it."""
    files = category_files(dataset, raw)
    folder = show(raw) if resolve(show(raw)) == raw else "FOLDER"
    command = f"`python -m tools.download {dataset} --raw-dir {folder}` gets it, or set RAW_DIR to where it is"
    for path in files:
        if not path.exists():
            remedy = "it comes with the repository" if dataset == "sample" else command
            raise FileNotFoundError(f"{path.name} is missing from {show(raw)}: {remedy}")
    reviews, broken = raw_files.read_reviews(files[0], progress)
    report.add("malformed lines in the reviews", reviews, broken.count, "; ".join(broken.examples))
    items, broken = raw_files.read_metadata(files[1], set(reviews["asin"].unique()), progress)
    report.add("malformed lines in the metadata", reviews, broken.count, "; ".join(broken.examples))
    return reviews, items


def write(prepared: splits.Prepared) -> None:
    """Write the artifacts of a prepared dataset, each whole or not at all."""
    paths = prepared.paths
    write_atomically(paths.report, lambda path: prepared.report.to_csv(path, index=False))
    write_atomically(paths.interactions, lambda path: prepared.interactions.to_parquet(path, index=False))
    write_atomically(paths.catalog, lambda path: prepared.catalog.to_parquet(path, index=False))
    for rows in prepared.splits.values():  # the splits come last: what they are made of is then on the disk
        rows.info.description = prepared.fingerprint
    write_atomically(paths.splits, lambda path: _save_quietly(prepared.splits, path))


def _save_quietly(rows: DatasetDict, path: Path) -> None:
    """Save without the library's bar per split."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    rows.save_to_disk(str(path))
    if shown:
        datasets.enable_progress_bars()
