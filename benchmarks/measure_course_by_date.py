"""Run the course itself on the sample store cut at chapter 09's date: trained systems and generated texts too.

    make course && python benchmarks/measure_course_by_date.py

The cut store holds what everybody bought before the date, and of those who bought again after it the next purchase.
So the course's leave-last-out, on this store, asks for next purchases after the date and learns from no later one:
the notebooks 02 to 05 and 07 fine-tune `tiny-llama`, generate, train SASRec and the trees, and rank, as they always
do. Only users with a purchase after the date are counted. What differs from chapter 09: a user with a single known
purchase is left out (the splits need three); of users who bought nothing later the last known purchase is not learned
from, since leave-last-out holds it out; and `fused` takes its weights from last purchases, as in chapter 07. All
titles are on the shelf: the encoder and the base of `tiny-llama` read those, too, that nobody has bought yet.

Five to ten minutes on two cores. Writes data/measured_shop_sample.csv: numbers of an invented store.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import keep_measured
import measure_time_split
import numpy as np
import pandas as pd

from gloss_utils import metrics, raw_data, splits
from gloss_utils.metrics import System
from gloss_utils.paths import PROJECT_ROOT, dataset_paths

MEASURED = PROJECT_ROOT / "data" / "measured_shop_sample.csv"
COMMAND = "make course && python benchmarks/measure_course_by_date.py"
CHAPTERS = ("02", "03", "04", "05", "07")
TEXTS, WITH_TEXTS = "texts of tiny-llama", "fused + texts"
SYSTEMS = {
    "most popular": System("most-popular", policy="drop-seen"),
    "LIS": System("lis", retriever="bm25", policy="drop-seen"),
    "STAR": System("star", retriever="dense-minilm"),
    "fused": System("fusion", retriever="minilm", policy="fused"),
    "SASRec + titles": System("SASRec + titles", policy="drop-seen"),
    "learned ranking": System("fusion", retriever="minilm", policy="learned ranking"),
    TEXTS: System("tiny-llama", "beam5", "dense-minilm", "round_robin"),
    WITH_TEXTS: System("fusion", "beam5", "minilm", "fused with tiny-llama"),
}
PAIRS = (("STAR", "LIS"), ("fused", "STAR"), ("SASRec + titles", "STAR"), ("learned ranking", "fused"))
PAIRS += ((TEXTS, "LIS"), (TEXTS, "fused"), (WITH_TEXTS, "fused"))


def cut(prepared: splits.Prepared, share: float, root: Path) -> tuple[splits.Prepared, np.ndarray]:
    """Write the store as it is on the date with this share of the purchases before it; and who bought again later."""
    interactions = prepared.interactions
    known = interactions["timestamp"] < measure_time_split.find_date(interactions, share)
    following = interactions[~known].groupby("reviewer_id").head(1).index
    kept = interactions[known | interactions.index.isin(following)]
    users = kept.groupby("reviewer_id")["timestamp"].transform("size")
    past = known[kept.index].groupby(kept["reviewer_id"]).transform("any")  # a newcomer has no history
    kept = kept[past & (users >= splits.MIN_INTERACTIONS)].reset_index(drop=True)
    again = interactions.loc[following, "reviewer_id"].unique()
    catalog = raw_data.number_items(prepared.catalog, kept)
    made = splits.build_splits(kept, catalog)
    by_date = splits.Prepared(root.name, dataset_paths(str(root)), kept, catalog, made, prepared.report)
    raw_data.write(by_date)
    return by_date, again[pd.Index(again).isin(kept["reviewer_id"])]


def run_chapters(root: Path, scratch: Path) -> None:
    command = [sys.executable, "-m", "tools.course", "--only", *CHAPTERS, "--out", str(scratch / "runs")]
    command += ["-p", "DATASET", str(root), "-p", "FIGURES_DIR", str(scratch / "figures")]
    subprocess.run(command, cwd=PROJECT_ROOT, check=True)


def measure(prepared: splits.Prepared, users: np.ndarray) -> pd.DataFrame:
    """The rows of the systems under the date, on the users who bought again."""
    per_user = {name: metrics.load_metrics(prepared, "test", system) for name, system in SYSTEMS.items()}
    per_user = {
        name: table[table["reviewer_id"].isin(users)].reset_index(drop=True) for name, table in per_user.items()
    }
    assert len({len(table) for table in per_user.values()}) == 1, "every system ranks for the same users"
    task = splits.load_task(prepared).subset(per_user["LIS"]["reviewer_id"])
    later = prepared.interactions["reviewer_id"].isin(users) & ~prepared.interactions["reviewer_id"].duplicated(
        "last"
    )
    known = prepared.item_numbers(
        prepared.interactions["asin"][~later].unique()
    )  # bought before the date, in this store
    cold = ~np.isin(task.targets, known)
    parts = {"all": cold | True, "target bought before": ~cold, "target never bought": cold}
    return measure_time_split.describe_parts(parts, per_user, PAIRS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.8, help="of the interactions, before the date")
    parser.add_argument("--folder", help="work here, and go on here after a stop; else a folder of its own")
    options = parser.parse_args()
    prepared = splits.load_prepared("sample")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(options.folder or scratch).resolve()
        by_date, users = cut(prepared, options.share, scratch / "sample_by_date")
        run_chapters(by_date.paths.root, scratch)
        rows = measure(by_date, users).assign(dataset="sample")
    rows = rows[[*measure_time_split.KEYS, "value", "low", "high", "num_users"]]
    print(rows[rows["metric"] == "recall@5"].round(4).to_string(index=False))
    note = f"ties by asin; {options.share:.0%} before the date"
    keep_measured.keep(MEASURED, rows, measure_time_split.KEYS, COMMAND, note, "the sample store, which is invented")


if __name__ == "__main__":
    main()
