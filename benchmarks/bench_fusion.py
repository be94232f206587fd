"""Fused ranking of every Beauty user: time, memory, and how both grow with users and catalog.

    python benchmarks/bench_fusion.py --raw-dir <folder>

Titles are encoded before the clock starts (they are cached in a real run too). The clock covers counting the
matrices, scoring, adding up and the top ten. The limits: 20 seconds on two cores, 2 GiB for the whole process.
Every size runs in a process of its own, so that the memory is its own.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from gloss_utils import fusion, plotting, splits
from gloss_utils.paths import PROJECT_ROOT

RESULTS = PROJECT_ROOT / "benchmarks" / "results" / "fusion.csv"
FIGURE = PROJECT_ROOT / "figures" / "bench_fusion.png"
DIMENSIONS = 384  # of MiniLM
LIMIT_SECONDS, LIMIT_GIB = 20, 2


def made_up_store(num_users: int, num_items: int, seed: int = 42):
    """Histories and a task of Beauty's shape, with a long tail, and random unit vectors."""
    rng = np.random.default_rng(seed)
    lengths = 3 + rng.geometric(0.17, num_users)
    chance = 1.0 / (10 + np.arange(num_items))
    draws = rng.choice(num_items, lengths.sum(), p=chance / chance.sum())
    histories = [np.unique(part) for part in np.split(draws, np.cumsum(lengths)[:-1])]
    histories = [rng.permutation(items) for items in histories]
    vectors = rng.normal(size=(num_items, DIMENSIONS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.array([f"u{number}" for number in range(num_users)])
    task = splits.Task(ids, [""] * num_users, histories, np.zeros(num_users, dtype=np.int64))
    days = {user: np.sort(rng.uniform(0, 1000, len(items))) for user, items in zip(ids, histories)}
    return histories, vectors, task, days


def real_store(data_dir: str):
    """Beauty as `main` prepared it."""
    from gloss_utils.dense import encode

    prepared = splits.load_prepared("beauty", data_dir)
    vectors = encode(prepared.catalog["text"].tolist(), cache_dir=prepared.paths.cache)
    return splits.training_histories(prepared), vectors, splits.load_task(prepared), splits.purchase_days(prepared)


def measure(histories, vectors, task, days) -> dict:
    """Count, score, add, rank; seconds of the wall and of the processor, and the process's peak memory."""
    wall, processor = time.perf_counter(), time.process_time()
    fitted = fusion.fit_signals(histories, vectors, fusion.FUSION, days)
    counted = time.perf_counter()
    fusion.fuse(fitted, dict.fromkeys(fitted, 1.0), task)
    return {
        "users": len(task),
        "items": len(vectors),
        "counting_s": counted - wall,
        "ranking_s": time.perf_counter() - counted,
        "processor_s": time.process_time() - processor,
        "peak_gib": peak_gib(),
    }


def peak_gib() -> float:
    """The most memory this process has held. Linux's getrusage would count what its parent held when it began."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # bytes on a Mac


def in_a_process(*arguments) -> dict:
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return json.loads(lines[-1])


def draw(table: pd.DataFrame) -> None:
    """Two panels: seconds against users and against items, with the memory at each point."""
    plotting.use_style()
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.4), sharey=True)
    for axis, grows in zip(axes, ("users", "items")):
        part = table[table["grows"] == grows]
        axis.plot(part[grows], part["counting_s"] + part["ranking_s"], "o-", label="wall, two cores")
        axis.plot(part[grows], part["processor_s"], "s--", label="processor")
        for row in part.itertuples():
            place = (getattr(row, grows), row.processor_s)
            axis.annotate(
                f"{row.peak_gib:.1f} GiB", place, (0, 7), textcoords="offset points", fontsize=7, ha="center"
            )
        axis.set(xscale="log", yscale="log", xlabel=f"{grows} (made up)")
        axis.set_xticks(part[grows], [f"{size:,}" for size in part[grows]])
        axis.minorticks_off()
        axis.margins(0.15)
    axes[0].set_ylabel("seconds to rank everyone")
    axes[1].legend(fontsize=8, loc="lower right")
    plotting.save(figure, FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw-dir", help="Amazon 2014's raw files; without it only made-up data is measured")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, *rest = arguments.one
        store = real_store(rest[0]) if kind == "real" else made_up_store(int(rest[0]), int(rest[1]))
        print(json.dumps(measure(*store)))
        return
    rows = []
    if arguments.raw_dir:
        from gloss_utils import raw_data
        from gloss_utils.dense import encode

        with tempfile.TemporaryDirectory() as data_dir:
            prepared = raw_data.prepare("beauty", raw_dir=arguments.raw_dir, data_dir=data_dir, progress=False)
            encode(prepared.catalog["text"].tolist(), cache_dir=prepared.paths.cache)
            rows.append({"grows": "Beauty"} | in_a_process("real", data_dir))
        total = rows[0]["counting_s"] + rows[0]["ranking_s"]
        print(f"Beauty: {total:.1f} s of {LIMIT_SECONDS}, {rows[0]['peak_gib']:.2f} GiB of {LIMIT_GIB}")
    for users in (5_000, 20_000, 80_000):
        rows.append({"grows": "users"} | in_a_process("made-up", users, 12_000))
    for items in (3_000, 12_000, 48_000):
        rows.append({"grows": "items"} | in_a_process("made-up", 10_000, items))
    table = pd.DataFrame(rows)
    print(table.round(2).to_string(index=False))
    Path(RESULTS).parent.mkdir(exist_ok=True)
    table.round(3).to_csv(RESULTS, index=False)
    draw(table)


if __name__ == "__main__":
    main()
