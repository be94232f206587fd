"""Seconds per user of `Recommender.recommend`, one user at a time, on the sample store with `tiny-llama`.

python benchmarks/bench_recommender.py [--users 30]

Run notebooks 01 and 03 first. The limit is one second per user on two cores, after loading. Users are drawn from
the test split, each with the whole history. Writes benchmarks/results/recommender.csv.
"""

import argparse
import time

import pandas as pd

from gloss_utils import Recommender
from gloss_utils.paths import PROJECT_ROOT, write_atomically
from gloss_utils.splits import load_prepared, load_task, sample_users

LIMIT_SECONDS = 1.0
RESULTS = PROJECT_ROOT / "benchmarks" / "results" / "recommender.csv"


def measure(recommender: Recommender, histories: list[list[str]]) -> list[float]:
    """Seconds of each call; one user more warms up."""
    recommender.recommend(histories[0], k=10)
    seconds = []
    for history in histories:
        start = time.perf_counter()
        recommender.recommend(history, k=10)
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=30)
    parser.add_argument("--raw-dir", help="not needed: it is the sample store")
    options = parser.parse_args()

    prepared = load_prepared("sample")
    task = sample_users(load_task(prepared), options.users)
    histories = [prepared.catalog["asin"].iloc[items].tolist() for items in task.seen_items]
    rows = []
    for retriever in ("bm25", "dense"):
        start = time.perf_counter()
        recommender = Recommender.load("sample", retriever=retriever)
        loading = time.perf_counter() - start
        seconds = pd.Series(measure(recommender, histories))
        rows.append(
            {
                "retriever": retriever,
                "loading_s": loading,
                "median_s": seconds.median(),
                "slowest_s": seconds.max(),
                "users": len(task),
            }
        )
    table = pd.DataFrame(rows).round(3)
    print(table.to_string(index=False))
    write_atomically(RESULTS, lambda path: table.to_csv(path, index=False))
    assert table["slowest_s"].max() < LIMIT_SECONDS, f"a user takes more than {LIMIT_SECONDS:g} second"


if __name__ == "__main__":
    main()
