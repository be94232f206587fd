"""Keep what was measured on a real category, with where it comes from.

    make course DATASET=beauty RAW_DIR=...
    python benchmarks/keep_measured.py beauty

Takes the test rows of the category's results.csv and its per-user metrics, and writes into data/
- measured_results.csv: the rows as they are;
- measured_segments.csv: `SYSTEMS` and GLoSS's published ranks by length of history (chapter 06);
- measured_pairs.csv: `SYSTEMS` against GLoSS's published ranks, user by user (chapter 08).

`measure_texts.py` adds the rows of generated texts to the same three files, `measure_sasrec.py` those of SASRec and
of the learned ranking to the first and the last.

Rows of the same system are replaced, all others stay.
"""

import argparse
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from gloss_utils import metrics
from gloss_utils.metrics import RESULT_KEYS, System, name_system, upsert_rows
from gloss_utils.paths import PROJECT_ROOT
from gloss_utils.splits import Prepared, load_prepared, load_task, order_ties

REAL_CATEGORIES = ("beauty", "toys", "sports")
DATA = PROJECT_ROOT / "data"
SOURCE = "Amazon 2014 rebuilt from public derivatives; titles matched automatically"
NO_DATES = {"toys": "timestamps are positions in a user's history, not dates"}
# Fixed beforehand, not picked by their test results.
SYSTEMS = [
    System("lis", retriever="bm25", policy="keep-seen"),
    System("lis", retriever="bm25", policy="drop-seen"),
    System("star", retriever="dense-minilm"),
    System("fusion", retriever="minilm", policy="fused"),
]
PUBLISHED = {f"GLoSS-{size}B": f"llama-{size}b e5-small-v2" for size in (1, 3, 8)} | {"LIS-BM25": "lis bm25"}
SEGMENT_COLUMNS = ["dataset", "system", "segment", "metric", "value", "low", "high", "num_users", "best"]
PAIR_COLUMNS = ["dataset", "system", "against", "metric", "a", "b", "difference", "low", "high"]
PAIR_COLUMNS += ["better", "both", "num_users"]  # better: what picking the better list per user would get


def refusal(prepared: Prepared) -> str:
    """Say why a dataset's results may not stand beside the papers'; empty where they may."""
    if prepared.dataset not in REAL_CATEGORIES:
        return f"'{prepared.dataset}' is no real category: keep results of {', '.join(REAL_CATEGORIES)}"
    if prepared.sampled:
        return f"'{prepared.dataset}' was cut to some of its users: run notebook 01 with MAX_USERS 0"
    if not order_ties(prepared.interactions, "asin").equals(prepared.interactions):
        return f"'{prepared.dataset}' does not have its ties by asin: run notebook 01 with TIE_ORDER asin"
    return ""


def published_ranks(dataset: str) -> pd.DataFrame:
    """The authors' ranks: reviewer_id, then one column per list; 0 where the target is not in it."""
    return pd.read_csv(DATA / "published_ranks" / f"ranks_{dataset}.csv.gz")


def published_metrics(dataset: str) -> dict[str, pd.DataFrame]:
    """The per-user metrics of the lists in `PUBLISHED`."""
    ranks = published_ranks(dataset)
    return {
        name: metrics.score_ranks(ranks[column], ks=(5,), reviewer_ids=ranks["reviewer_id"])
        for name, column in PUBLISHED.items()
    }


def on_users(per_user: pd.DataFrame, reviewer_ids) -> pd.DataFrame:
    """The rows of these users, in their order; users without a row are left out."""
    per_user = per_user.set_index("reviewer_id")[["recall@5", "ndcg@5"]]
    return per_user.loc[[user for user in reviewer_ids if user in per_user.index]].reset_index()


def pair(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """The paired difference on the users of both, and what the better list of each user would get."""
    ours = on_users(ours, theirs["reviewer_id"])
    theirs = on_users(theirs, ours["reviewer_id"])
    a, b = (table[["recall@5", "ndcg@5"]] for table in (ours, theirs))
    both = (a["recall@5"] * b["recall@5"]).mean()
    return metrics.compare(ours, theirs).assign(better=np.maximum(a, b).mean().to_numpy(), both=both)


def keep(path: Path, rows: pd.DataFrame, keys: list[str], command: str, note: str, source: str = SOURCE) -> None:
    """Put rows into one of the files of measured results, with their provenance."""
    numbers = rows.select_dtypes("float").columns
    rows = rows.assign(
        **rows[numbers].round(6), command=command, source=source, date=date.today().isoformat(), note=note
    )
    upsert_rows(path, rows, keys)
    print(f"{len(rows):4d} rows of {rows['dataset'].iloc[0]} in {path.relative_to(PROJECT_ROOT)}")


def keep_results(dataset: str, split: str, tables: dict[System, pd.DataFrame], **provenance: str) -> None:
    """Keep the means of per-user metrics, as results.csv has them."""
    rows = [
        metrics.summarize(table).assign(dataset=dataset, split=split, **asdict(system))
        for system, table in tables.items()
    ]
    rows = pd.concat(rows)[[*RESULT_KEYS, "value", "low", "high", "num_users"]]
    keep(metrics.MEASURED, rows, RESULT_KEYS[:-1], **provenance)


def keep_segments(prepared: Prepared, tables: dict[str, pd.DataFrame], **provenance: str) -> None:
    """Keep per-user metrics by length of history, for the test users that a table has."""
    reviewer_ids, parts = load_task(prepared).reviewer_ids, []
    for name, per_user in tables.items():
        per_user = on_users(per_user, reviewer_ids)
        lengths = metrics.history_lengths(prepared, per_user["reviewer_id"])
        segment = metrics.assign_segments(
            lengths, metrics.THRESHOLDS.get(prepared.dataset, metrics.DEFAULT_THRESHOLDS)
        )
        parts.append(metrics.by_segment(per_user, segment).assign(dataset=prepared.dataset, system=name))
    keep(DATA / "measured_segments.csv", pd.concat(parts)[SEGMENT_COLUMNS], SEGMENT_COLUMNS[:2], **provenance)


def keep_pairs(pairs: pd.DataFrame, **provenance: str) -> None:
    """Keep paired differences: the columns of `pair`, with dataset, system and against."""
    keep(DATA / "measured_pairs.csv", pairs[PAIR_COLUMNS], PAIR_COLUMNS[:3], **provenance)


def keep_dataset(prepared: Prepared, models: list[str] | None, command: str, note: str) -> None:
    """Keep a dataset's test rows, and the segments and pairs of `SYSTEMS`."""
    dataset = prepared.dataset
    provenance = {"command": command, "note": "; ".join(filter(None, (note, NO_DATES.get(dataset))))}
    rows = metrics.load_results(prepared).query("split == 'test'")
    rows = rows[rows["model"].isin(models)] if models else rows
    if rows.empty:
        sys.exit(f"no test rows of {models or dataset} in results.csv: run the notebooks first")
    keep(metrics.MEASURED, rows, RESULT_KEYS[:-1], **provenance)
    published = published_metrics(dataset)
    ours = {
        name_system(system): metrics.load_metrics(prepared, "test", system)
        for system in SYSTEMS
        if prepared.paths.metrics("test", system.name).exists()
    }
    print("measured here:", *ours, sep="\n  ")
    keep_segments(prepared, ours | {f"{name}, published": table for name, table in published.items()}, **provenance)
    pairs = [
        pair(per_user, table).assign(dataset=dataset, system=name, against=other)
        for name, per_user in ours.items()
        for other, table in published.items()
    ]
    if pairs:
        keep_pairs(pd.concat(pairs), **provenance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help=f"one of {', '.join(REAL_CATEGORIES)}")
    parser.add_argument("--data-dir", default="data", help="where the dataset's results lie")
    parser.add_argument("--models", nargs="*", help="keep only these models' rows, as results.csv calls them")
    parser.add_argument("--note", default="", help="what a reader should know, such as how a model was trained")
    options = parser.parse_args()
    prepared = load_prepared(options.dataset, options.data_dir)
    if reason := refusal(prepared):
        sys.exit(reason)
    command = (
        f"make course DATASET={options.dataset} RAW_DIR=… && python benchmarks/keep_measured.py {options.dataset}"
    )
    keep_dataset(prepared, options.models, command, options.note)


if __name__ == "__main__":
    main()
