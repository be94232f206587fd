"""Keep what was measured on a real category, with where it comes from.

    make course DATASET=beauty RAW_DIR=...
    python benchmarks/keep_measured.py beauty

Takes the test rows of the category's results.csv and its per-user metrics, and writes into data/
- measured_results.csv: the rows as they are;
- measured_segments.csv: each of the training-free systems by length of history (chapter 06);
- measured_pairs.csv: the same systems against GLoSS's published ranks, user by user (chapter 08).

Rows of the same system are replaced, all others stay.
"""

import argparse
import sys
from datetime import date
from pathlib import Path

import pandas as pd

from gloss_utils import metrics, segments
from gloss_utils.metrics import RESULT_KEYS, System, name_system, upsert_rows
from gloss_utils.paths import PROJECT_ROOT
from gloss_utils.splits import Prepared, load_prepared, load_task, order_ties

REAL_CATEGORIES = ("beauty", "toys", "sports")
DATA = PROJECT_ROOT / "data"
SOURCE = "Amazon 2014 rebuilt from public derivatives; titles matched automatically"
# Fixed beforehand, not picked by their test results.
SYSTEMS = [
    System("lis", retriever="bm25", policy="keep-seen"),
    System("lis", retriever="bm25", policy="drop-seen"),
    System("star", retriever="dense-minilm"),
    System("fusion", retriever="minilm", policy="fused"),
]
PUBLISHED = {f"GLoSS-{size}B": f"llama-{size}b e5-small-v2" for size in (1, 3, 8)} | {"LIS-BM25": "lis bm25"}
SEGMENT_COLUMNS = ["dataset", "system", "segment", "metric", "value", "low", "high", "num_users", "best"]
PAIR_COLUMNS = ["dataset", "system", "published", "metric", "a", "b", "difference", "low", "high"]
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


def pair(ours: pd.DataFrame, ranks: pd.DataFrame, column: str) -> pd.DataFrame:
    """Our per-user metrics against a published column, on the users of both, with what the better of the two gets."""
    theirs = metrics.score_ranks(ranks[column], ks=(5,), reviewer_ids=ranks["reviewer_id"])
    ours = ours[ours["reviewer_id"].isin(theirs["reviewer_id"])].reset_index(drop=True)
    theirs = theirs.set_index("reviewer_id").loc[ours["reviewer_id"]].reset_index()
    table = metrics.compare(ours[["reviewer_id", "recall@5", "ndcg@5"]], theirs)
    either = ours[["recall@5", "ndcg@5"]].combine(theirs[["recall@5", "ndcg@5"]], lambda a, b: a.where(a > b, b))
    both = ours["recall@5"] * theirs["recall@5"]
    return table.assign(better=either.mean().to_numpy(), both=both.mean())


def keep(path: Path, rows: pd.DataFrame, keys: list[str], command: str, note: str) -> None:
    """Put rows into one of the files of measured results, with their provenance."""
    numbers = rows.select_dtypes("float").columns
    rows = rows.assign(
        **rows[numbers].round(6), command=command, source=SOURCE, date=date.today().isoformat(), note=note
    )
    upsert_rows(path, rows, keys)
    print(f"{len(rows):4d} rows of {rows['dataset'].iloc[0]} in {path.relative_to(PROJECT_ROOT)}")


def keep_dataset(prepared: Prepared, models: list[str] | None, command: str, note: str) -> None:
    """Keep a dataset's test rows, and the segments and pairs of `SYSTEMS`."""
    dataset, provenance = prepared.dataset, {"command": command, "note": note}
    rows = metrics.load_results(prepared).query("split == 'test'")
    rows = rows[rows["model"].isin(models)] if models else rows
    if rows.empty:
        sys.exit(f"no test rows of {models or dataset} in results.csv: run the notebooks first")
    keep(metrics.MEASURED, rows, RESULT_KEYS[:-1], **provenance)
    task, ranks = load_task(prepared), published_ranks(dataset)
    segment = segments.assign(segments.history_lengths(prepared, task.reviewer_ids), segments.thresholds_for(dataset))
    by_segment, pairs = [], []
    for system in SYSTEMS:
        if not prepared.paths.metrics("test", system.name).exists():
            print(f"not measured here: {name_system(system)}")
            continue
        per_user = metrics.load_metrics(prepared, "test", system).set_index("reviewer_id")
        per_user = per_user.loc[task.reviewer_ids].reset_index()
        about = {"dataset": dataset, "system": name_system(system)}
        by_segment.append(segments.by_segment(per_user, segment).assign(**about))
        pairs += [pair(per_user, ranks, column).assign(published=name, **about) for name, column in PUBLISHED.items()]
    if by_segment:
        keep(
            DATA / "measured_segments.csv", pd.concat(by_segment)[SEGMENT_COLUMNS], SEGMENT_COLUMNS[:2], **provenance
        )
        keep(DATA / "measured_pairs.csv", pd.concat(pairs)[PAIR_COLUMNS], PAIR_COLUMNS[:3], **provenance)


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
