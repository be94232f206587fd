"""Raw files to splits: against a row-by-row build, and on up to ten times the data.

python benchmarks/bench_data.py [--raw-dir DIR] [--copies 1 3 10]

With --raw-dir on real Beauty, else on the sample store. Every build runs in a process of its own, so that its
peak memory is its own. The copies are generated: the same reviews and items under new names. Writes
benchmarks/results/data.csv and figures/bench_data.png.
"""

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from gloss_utils import plotting, raw_data
from gloss_utils.paths import PROJECT_ROOT, show, write_atomically

BUILDS = ("prepare", "row by row")
FASTER = 5  # times as fast: what prepare must reach


def read_lines(path: Path) -> list[str]:
    with gzip.open(path, "rt") as lines:
        return lines.read().splitlines()


def build_row_by_row(dataset: str, raw_dir: Path, data_dir: Path) -> None:
    """Build the same splits one line and one row at a time, with `iterrows`, as one writes it first."""
    import ast
    import random

    from datasets import Dataset, DatasetDict

    from gloss_utils import prompts

    reviews_file, meta_file = raw_data.category_files(dataset, raw_dir)
    reviews, titles = [], {}
    for line in read_lines(reviews_file):
        try:
            record = json.loads(line)
            reviews.append({name: record[name] for name in ("reviewerID", "asin", "unixReviewTime")})
        except (ValueError, KeyError, TypeError):
            continue
    for line in read_lines(meta_file):
        try:
            item = ast.literal_eval(line.strip())
        except (SyntaxError, ValueError):
            continue
        if "asin" in item:
            titles.setdefault(item["asin"], raw_data.clean_title(item.get("title")))
    frame = pd.DataFrame(reviews).drop_duplicates().sort_values(["reviewerID", "unixReviewTime", "asin"])
    histories = {}
    for _, row in frame.iterrows():
        if titles.get(row["asin"]):
            histories.setdefault(row["reviewerID"], []).append(row["asin"])
    histories = {user: asins for user, asins in histories.items() if len(asins) >= 3}
    drawn = set(random.Random(42).sample(sorted(histories), int(0.05 * len(histories))))
    train, validation, test = [], [], []
    for user, asins in histories.items():
        texts = [prompts.item_text(titles[asin]) for asin in asins]
        cut = len(asins) - 2 if user in drawn else len(asins) - 1
        train.append({"reviewer_id": user, "text": prompts.build_training_text(texts[:cut])})
        for split, last in ((test, len(asins) - 1), (validation, len(asins) - 2)):
            if split is test or user in drawn:
                prompt = prompts.build_prompt(texts[:last])
                split.append(
                    {"reviewer_id": user, "ptext": prompt, "text": prompt + texts[last]}
                    | {"seen_asins": asins[:last], "asin": asins[last], "asin_text": texts[last]}
                )
    made = {"train": train, "validation": validation, "test": test}
    splits = DatasetDict({name: Dataset.from_pandas(pd.DataFrame(rows)) for name, rows in made.items()})
    splits.save_to_disk(str(data_dir / dataset / "splits"))


def run_one(build: str, dataset: str, raw_dir: Path, data_dir: Path) -> dict:
    """Run one build in this process.

    Returns:
        seconds of CPU time, and mebibytes at the peak, imports included.
    """
    import datasets

    datasets.disable_progress_bars()
    start = time.process_time()  # of this process: the same on a busy machine
    if build == "prepare":
        raw_data.prepare(dataset, raw_dir=raw_dir, data_dir=data_dir, progress=False)
    else:
        build_row_by_row(dataset, raw_dir, data_dir)
    seconds = time.process_time() - start
    return {"seconds": seconds, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure(build: str, dataset: str, raw_dir: Path, data_dir: Path) -> dict:
    """Run one build in a process of its own."""
    command = [sys.executable, __file__, "--one", build, dataset, str(raw_dir), str(data_dir)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def write_copies(dataset: str, raw_dir: Path, folder: Path, copies: int) -> Path:
    """Write raw files with every review and every item `copies` times, under new names."""
    folder.mkdir(parents=True)
    for path, keys in zip(raw_data.category_files(dataset, raw_dir), (("reviewerID", "asin"), ("asin",))):
        lines = read_lines(path)
        with gzip.open(folder / path.name, "wt", compresslevel=1) as out:
            for copy in range(copies):
                for line in lines:
                    out.write(rename(line, keys, copy) + "\n")
    return folder


def rename(line: str, keys: tuple[str, ...], copy: int) -> str:
    """Put the copy's number in front of the ids of a line, in JSON or as a Python literal."""
    for key in keys:
        line = line.replace(f'"{key}": "', f'"{key}": "{copy}').replace(f"'{key}': '", f"'{key}': '{copy}")
    return line


def assert_same_splits(first: Path, second: Path) -> None:
    from datasets import load_from_disk

    ours, theirs = load_from_disk(str(first)), load_from_disk(str(second))
    for name in ("train", "validation", "test"):
        assert ours[name].to_dict() == theirs[name].to_dict(), f"{name} differs"


def plot(table: pd.DataFrame) -> plt.Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
    for axis, column, label in ((left, "seconds", "CPU seconds"), (right, "mib", "peak memory (MiB)")):
        for (build, rows), marker in zip(table.groupby("build", sort=False), "os"):
            axis.plot(rows["interactions"] / 1e6, rows[column], marker=marker, label=build)
        axis.set(xlabel="million interactions", ylabel=label, xlim=(0, None), ylim=(0, None))
    left.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw-dir", help="the folder of the Amazon 2014 files; without it, the sample store")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        build, dataset, raw_dir, data_dir = arguments.one
        print(json.dumps(run_one(build, dataset, Path(raw_dir), Path(data_dir))))
        return
    dataset = "beauty" if arguments.raw_dir else "sample"
    raw_dir = Path(arguments.raw_dir).resolve() if arguments.raw_dir else PROJECT_ROOT / "data/sample/raw"
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for copies in arguments.copies:
            source = (
                raw_dir if copies == 1 else write_copies(dataset, raw_dir, Path(scratch) / f"raw{copies}", copies)
            )
            for build in BUILDS if copies == 1 else BUILDS[:1]:
                folder = Path(scratch) / build.replace(" ", "_") / str(copies)
                measured = measure(build, dataset, source, folder)
                if build == "prepare":
                    interactions = len(pd.read_parquet(folder / dataset / "interactions.parquet", columns=["asin"]))
                rows.append(
                    {"dataset": dataset, "build": build, "copies": copies, "interactions": interactions} | measured
                )
                print(rows[-1], flush=True)
            if copies == 1:
                assert_same_splits(
                    *(Path(scratch) / build.replace(" ", "_") / "1" / dataset / "splits" for build in BUILDS)
                )
                print("the same splits from both")
    report(pd.DataFrame(rows))


def report(table: pd.DataFrame) -> None:
    results = PROJECT_ROOT / "benchmarks/results/data.csv"
    write_atomically(results, lambda path: table.round(2).to_csv(path, index=False))
    plotting.use_style()
    figure = plotting.save(plot(table), PROJECT_ROOT / "figures/bench_data.png")
    print(table.to_string(index=False, float_format="%.1f"))
    print("wrote", show(results), "and", show(figure))
    once = table[table["copies"] == 1].set_index("build")["seconds"]
    ratio = once["row by row"] / once["prepare"]
    print(f"prepare is {ratio:.1f} times as fast as row by row")
    ours = table[table["build"] == "prepare"]
    per_row = ours["seconds"] / ours["interactions"]
    print(f"seconds per million interactions: {', '.join(f'{1e6 * value:.1f}' for value in per_row)}")
    if table["dataset"].iloc[0] == "beauty" and ratio < FASTER:
        raise SystemExit(f"less than {FASTER} times")


if __name__ == "__main__":
    main()
