"""How long the recommender takes: one user at a time, and all users of Beauty at once.

python benchmarks/bench_recommender.py [--users 30]             # sample store; notebooks 01 and 03 first
python benchmarks/bench_recommender.py --raw-dir <folder>       # Beauty, the systems without a language model

Users are drawn from the test split, each with the whole history and its dates. The first calls warm up. A saved
recommender is opened, which counts again, before all users are ranked: `counting_s` and `all_users_s` together are
what a nightly run takes. `add_100_items_s` is how long it takes until a hundred new titles can be found. Seconds of
the processor stand beside those of the wall, because a shared machine stretches only the latter. The limits: one
second per user with a language model; without one, ten milliseconds at the median, and fifteen seconds for all users
of Beauty (`fused`). What notebook 07 trained is timed too, with --data-dir where it has run. Writes
benchmarks/results/recommender.csv, or recommender_beauty.csv.
"""

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd

from gloss_utils import Recommender, raw_data
from gloss_utils.paths import PROJECT_ROOT, write_atomically
from gloss_utils.recommender import HALVES, TRAINED
from gloss_utils.splits import Prepared, Task, load_prepared, load_task, purchase_days, sample_users

LIMIT_SECONDS, LIMIT_MEDIAN, LIMIT_ALL = 1.0, 0.01, 15.0
K = 10
NEW_ITEMS = pd.DataFrame({"asin": [f"NEW{n:07d}" for n in range(100)]}).assign(
    title="Rose Hand Cream " + pd.Series(range(100)).astype(str)
)
RESULTS = PROJECT_ROOT / "benchmarks" / "results"


def read_histories(prepared: Prepared, task: Task) -> list[tuple[list[str], list[float]]]:
    """Each user's asins, and when they were bought."""
    asins, days = prepared.catalog["asin"].to_numpy(), purchase_days(prepared)
    seconds = {user: dates * 86_400 for user, dates in days.items()}
    users = zip(task.reviewer_ids, task.seen_items)
    return [(asins[items].tolist(), seconds[str(user)][: len(items)].tolist()) for user, items in users]


def timed(call, *args, **options) -> tuple:
    """What a call returns, and its seconds of the wall and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    result = call(*args, **options)
    return result, time.perf_counter() - wall, time.process_time() - processor


def measure_each(recommender: Recommender, histories: list) -> dict:
    """One user at a time."""
    for asins, dates in histories[:3]:
        recommender.recommend(asins, K, dates)
    calls = [timed(recommender.recommend, asins, K, dates)[1:] for asins, dates in histories]
    wall, processor = (pd.Series(seconds) for seconds in zip(*calls))
    row = {"median_ms": wall.median(), "slowest_ms": wall.max(), "median_processor_ms": processor.median()}
    return {name: 1000 * value for name, value in row.items()} | {"users": len(histories)}


def measure_sample(num_users: int) -> pd.DataFrame:
    prepared = load_prepared("sample")
    histories = read_histories(prepared, sample_users(load_task(prepared), num_users))
    rows = []
    for system, retriever in [("texts", "bm25"), ("texts", "dense"), ("fused + texts", "bm25"), ("fused", "bm25")]:
        start = time.perf_counter()
        recommender = Recommender.load("sample", system=system, retriever=retriever)
        loading = {"system": system, "retriever": retriever, "loading_s": time.perf_counter() - start}
        rows.append(loading | measure_each(recommender, histories))
    return pd.DataFrame(rows)


def measure_beauty(data_dir: str | Path, num_users: int) -> pd.DataFrame:
    prepared = load_prepared("beauty", data_dir)
    task, rows = load_task(prepared), []
    asins, dates = zip(*read_histories(prepared, task))
    some = read_histories(prepared, sample_users(task, num_users))
    for system in ("most-popular", "lis", *HALVES, "fused", *(TRAINED if prepared.paths.ranker.exists() else ())):
        recommender, loading, _ = timed(Recommender.load, "beauty", system=system, data_dir=data_dir)
        with tempfile.TemporaryDirectory() as folder:
            recommender.save(Path(folder) / "served")
            recommender, counting, counting_processor = timed(Recommender.open, Path(folder) / "served")
        row = {"system": system, "loading_s": loading, "counting_s": counting} | measure_each(recommender, some)
        _, ranking, processor = timed(recommender.recommend_many, asins, K, dates)
        row |= {"all_users_s": ranking, "all_processor_s": counting_processor + processor, "all_users": len(asins)}
        row["add_100_items_s"] = timed(recommender.add_items, NEW_ITEMS)[1]
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, help="one at a time: 30 on the sample store, 300 on Beauty")
    parser.add_argument("--raw-dir", help="folder of the real Amazon 2014 files")
    parser.add_argument("--data-dir", help="where Beauty is prepared already, instead of --raw-dir")
    options = parser.parse_args()

    if not (options.raw_dir or options.data_dir):
        table, name = measure_sample(options.users or 30), "recommender.csv"
    elif options.data_dir:
        table, name = measure_beauty(options.data_dir, options.users or 300), "recommender_beauty.csv"
    else:
        with tempfile.TemporaryDirectory() as data_dir:
            raw_data.prepare("beauty", Path(options.raw_dir).resolve(), data_dir, progress=False)
            table, name = measure_beauty(data_dir, options.users or 300), "recommender_beauty.csv"
    print(table.round(2).to_string(index=False))
    write_atomically(RESULTS / name, lambda path: table.round(2).to_csv(path, index=False))
    if "all_users_s" in table:
        fused = table.set_index("system").loc["fused"]
        assert table["median_ms"].max() < 1000 * LIMIT_MEDIAN, f"a user takes more than {1000 * LIMIT_MEDIAN:g} ms"
        assert fused["counting_s"] + fused["all_users_s"] < LIMIT_ALL, f"all users take more than {LIMIT_ALL:g} s"
    else:
        assert table["slowest_ms"].max() < 1000 * LIMIT_SECONDS, f"a user takes more than {LIMIT_SECONDS:g} second"


if __name__ == "__main__":
    main()
