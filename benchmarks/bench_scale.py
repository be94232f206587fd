"""Splits, co-occurrence, transitions and last-item search on up to 60 million interactions and two million items.

python benchmarks/bench_scale.py [--raw-dir DIR] [--sizes 300000 3000000 10000000 30000000 60000000]

With --raw-dir on data made from real Beauty, else from the sample store. The data are generated: users are drawn with
replacement, and each lives in one of several copies of the catalog, so that there is an item per 30 interactions in
every size. The items of a copy have neighbouring numbers, unless `--numbers random` mixes all items. So that no copy
repeats another, one purchase in ten becomes another item of the same copy (popular ones more often), one in twenty
goes to another copy, and in each title a fifth of the words are drawn from all titles.

Every step of every size runs in a process of its own, which reads the files first, so that its peak memory is its
own. Rows of sizes that were not run stay in benchmarks/results/scale.csv. 30 million take 8 GiB of disk, and must
stay under 8 GiB of memory; twice as many show whether the time goes on in proportion. The figure shows processor
seconds in user mode: those of the system are mostly for memory, and on a virtual machine, whose host takes memory
back after a pause, the same gibibyte may cost many times what it costs when it was just in use.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PROJECT_ROOT = Path(__file__).resolve().parent.parent
if str(PROJECT_ROOT) not in sys.path:  # a script is started with its own folder there
    sys.path.insert(0, str(PROJECT_ROOT))

from gloss_utils import baselines, fusion, plotting, raw_data, splits  # noqa: E402
from gloss_utils.paths import show, write_atomically  # noqa: E402
from gloss_utils.retrieval import BM25Index  # noqa: E402
from tools import at_scale  # noqa: E402

SIZES = [300_000, 3_000_000]
PER_ITEM = 30  # interactions
OTHER_ITEM, OTHER_COPY, OTHER_WORD = 0.1, 0.05, 0.2
LIS_USERS = 1000
LIMIT_GIB, LIMIT_SIZE = 8, 30_000_000
RESULTS = PROJECT_ROOT / "benchmarks/results/scale.csv"
ROWS = 1_000_000  # written at once


# The data


def make_store(dataset: str, raw_dir: str, size: int, folder: Path, numbers: str = "grouped", seed: int = 42) -> None:
    """Write interactions and catalog of about `size` interactions, made from those of a dataset."""
    rng = np.random.default_rng(seed)
    source = raw_data.prepare(dataset, raw_dir, folder / "source", progress=False)
    catalog, table = source.catalog, source.interactions
    bounds = splits.user_bounds(table)[1]
    items = pd.Index(catalog["asin"]).get_indexer(table["asin"])
    copies = max(1, round(size / PER_ITEM / len(catalog)))
    users = rng.integers(len(bounds) - 1, size=round(size / np.diff(bounds).mean()))
    lengths = np.diff(bounds)[users]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.repeat(bounds[users] - starts[:-1], lengths) + np.arange(starts[-1])

    bought = items[rows]
    changed = np.flatnonzero(rng.random(len(rows)) < OTHER_ITEM)
    bought[changed] = rng.choice(items, len(changed))
    copy = np.repeat(rng.integers(copies, size=len(users)), lengths)
    moved = np.flatnonzero(rng.random(len(rows)) < OTHER_COPY)
    copy[moved] = rng.integers(copies, size=len(moved))
    place = np.arange(copies * len(catalog))
    place = place if numbers == "grouped" else np.random.default_rng(seed).permutation(place)
    bought = place[bought + copy * len(catalog)]
    times = table["timestamp"].to_numpy()[rows] + np.repeat(rng.integers(-365, 366, len(users)) * 86_400, lengths)
    owners = np.repeat(np.arange(len(users), dtype=np.int32), lengths)

    write_catalog(catalog, place, rng, folder / "catalog.parquet")
    with pq.ParquetWriter(folder / "interactions.parquet", at_scale.INTERACTIONS) as writer:
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            columns = [name_numbers("U", owners[part]), name_numbers("B", bought[part]), pa.array(times[part])]
            writer.write_table(pa.table(columns, schema=at_scale.INTERACTIONS))


def name_numbers(letter: str, numbers: np.ndarray) -> pa.Array:
    """Ids of ten characters, in the order of the numbers."""
    return pc.binary_join_element_wise(letter, pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 9, "0"), "")


def write_catalog(catalog: pd.DataFrame, place: np.ndarray, rng: np.random.Generator, path: Path) -> None:
    """Write copies of the catalog, each item in its place, under new asins and with some words exchanged."""
    words = pc.split_pattern(pa.array(catalog["title"], pa.string()), " ")
    words = pa.concat_arrays([words] * (len(place) // len(catalog))).take(pa.array(np.argsort(place)))
    flat = words.flatten().dictionary_encode()
    codes = flat.indices.to_numpy(zero_copy_only=False).copy()
    changed = np.flatnonzero(rng.random(len(codes)) < OTHER_WORD)
    codes[changed] = rng.choice(codes, len(changed))
    texts = flat.dictionary.take(pa.array(codes))
    titles = pc.binary_join(pa.ListArray.from_arrays(words.offsets, texts), " ")
    asins = name_numbers("B", np.arange(len(titles)))
    prefixed = pc.binary_join_element_wise("Title: ", titles, "")
    pq.write_table(pa.table([asins, titles, prefixed], names=["asin", "title", "text"]), path)


# The steps


def count_items(folder: Path) -> int:
    return pq.read_metadata(folder / "catalog.parquet").num_rows


def run_splits(folder: Path) -> int:
    catalog = pd.read_parquet(folder / "catalog.parquet")
    return at_scale.write_splits(folder / "interactions.parquet", catalog, folder / "splits")["test"]


def run_cooccurrence(folder: Path) -> int:
    return baselines.cooccurrence(at_scale.read_histories(folder / "splits"), count_items(folder)).nnz


def run_transitions(folder: Path) -> int:
    return fusion.transitions(at_scale.read_histories(folder / "splits"), count_items(folder)).nnz


def run_lis(folder: Path) -> int:
    """Index the catalog, and search it for a sample of the test users."""
    catalog = pd.read_parquet(folder / "catalog.parquet")
    file = pq.ParquetFile(folder / "splits/test.parquet")
    users = next(file.iter_batches(LIS_USERS, columns=["reviewer_id", "seen_asins", "asin"])).to_pandas()
    numbers = pd.Index(catalog["asin"])
    seen = [numbers.get_indexer(history) for history in users["seen_asins"]]
    task = splits.Task(users["reviewer_id"].to_numpy(str), [], seen, numbers.get_indexer(users["asin"]))
    return len(baselines.lis(task, BM25Index(catalog["text"].tolist())))


STEPS = {
    "splits": run_splits,  # first: the others read them
    "co-occurrence": run_cooccurrence,
    "transitions": run_transitions,
    "last-item search": run_lis,
}


def run_one(step: str, folder: Path) -> dict:
    """Run a step in this process: seconds on the clock and of the processor, GiB at the peak (imports included)."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    made = STEPS[step](folder)
    row, after = {"seconds": time.perf_counter() - start}, resource.getrusage(resource.RUSAGE_SELF)
    row |= {"user_seconds": after.ru_utime - before.ru_utime, "system_seconds": after.ru_stime - before.ru_stime}
    return row | {"gib": after.ru_maxrss / 2**20, "made": made}


def in_process(*arguments: str) -> str:
    """Run this file with hidden arguments in a process of its own; returns its last line."""
    command = [sys.executable, __file__, *arguments]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return out.splitlines()[-1] if out else ""


def measure(dataset: str, raw_dir: str, size: int, folder: Path, numbers: str) -> list[dict]:
    """Make the data of one size, and run every step on it."""
    in_process("--make", dataset, raw_dir, str(size), str(folder), numbers)
    metadata = pq.read_metadata(folder / "interactions.parquet")
    items = count_items(folder)
    rows = []
    for step in STEPS:
        measured = json.loads(in_process("--one", step, str(folder)))
        users = pq.read_metadata(folder / "splits/test.parquet").num_rows
        made = {"dataset": dataset, "numbers": numbers, "size": size}
        sizes = {"interactions": metadata.num_rows, "users": users, "items": items}
        rows.append({"step": step} | made | sizes | measured)
        print(rows[-1], flush=True)
    return rows


def plot(table: pd.DataFrame) -> plt.Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for (step, rows), marker in zip(table.groupby("step", sort=False), "osD^"):
        for axis, column in ((left, "user_seconds"), (right, "gib")):
            axis.plot(rows["interactions"], rows[column], marker=marker, label=step)
    ends = np.array([table["interactions"].min(), table["interactions"].max()])
    slowest = table[table["interactions"] == ends[1]]["user_seconds"].max()
    left.plot(ends, slowest * ends / ends[1], "k:", linewidth=1, label="in proportion")
    right.axhline(LIMIT_GIB, color="k", linestyle="--", linewidth=1)
    for axis, label in ((left, "processor seconds in user mode"), (right, "peak memory (GiB)")):
        axis.set(xscale="log", yscale="log", xlabel="interactions", ylabel=label)
    right.set_yticks([0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"], minor=False)
    right.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def report(table: pd.DataFrame) -> None:
    write_atomically(RESULTS, lambda path: table.round(2).to_csv(path, index=False))
    plotting.use_style()
    figure = plotting.save(plot(table[table["numbers"] == "grouped"]), PROJECT_ROOT / "figures/bench_scale.png")
    print(table.to_string(index=False, float_format="%.1f"))
    print("wrote", show(RESULTS), "and", show(figure))
    for (numbers, step), rows in table.groupby(["numbers", "step"], sort=False):
        per_million = 1e6 * rows["user_seconds"] / rows["interactions"]
        values = ", ".join(f"{value:.2f}" for value in per_million)
        print(f"{step}, numbers {numbers}: {values} processor seconds in user mode per million interactions")
    if table.loc[table["size"] <= LIMIT_SIZE, "gib"].max() > LIMIT_GIB:
        raise SystemExit(f"more than {LIMIT_GIB} GiB for {LIMIT_SIZE:,} interactions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw-dir", help="the folder of the Amazon 2014 files; without it, the sample store")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="interactions")
    parser.add_argument("--numbers", choices=["grouped", "random"], default="grouped", help="of the items of a copy")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(arguments.one[0], Path(arguments.one[1]))))
        return
    if arguments.make:
        dataset, raw_dir, size, folder, numbers = arguments.make
        make_store(dataset, raw_dir, int(size), Path(folder), numbers)
        return
    dataset = "beauty" if arguments.raw_dir else "sample"
    raw_dir = str(Path(arguments.raw_dir).resolve()) if arguments.raw_dir else ""
    rows = []
    for size in sorted(arguments.sizes):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(dataset, raw_dir, size, Path(folder), arguments.numbers)
    table = pd.DataFrame(rows)
    if RESULTS.exists():
        kept = pd.read_csv(RESULTS)
        again = (kept["numbers"] == arguments.numbers) & kept["size"].isin(table["size"])
        table = pd.concat([kept[(kept["dataset"] == dataset) & ~again], table])
        table = table.sort_values(["numbers", "interactions"], kind="stable")
    report(table)


if __name__ == "__main__":
    main()
