"""Ranking and metrics after retrieval: under one second for all of Beauty's users, whatever the policy.

python benchmarks/bench_ranking.py

Hits are random, 5 texts with 20 hits for each of 22,363 users over 12,094 items, a third of them shared by the
texts of a user as with real beams, and nine seen items. What takes time does not depend on what the items are.
Writes benchmarks/results/ranking.csv and figures/bench_ranking.png.
"""

import argparse
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from gloss_utils import plotting
from gloss_utils.metrics import evaluate
from gloss_utils.paths import PROJECT_ROOT, show, write_atomically
from gloss_utils.ranking import POLICIES, rank_items
from gloss_utils.retrieval import Hits

NUM_USERS, NUM_ITEMS, TEXTS, DEPTH = 22_363, 12_094, 5, 20
LIMIT_SECONDS = 1.0
REPEATS = 3


def make_hits(num_users: int, num_items: int, rng: np.random.Generator) -> Hits:
    """Random hits, best first; a third of each user's come from a small pool that the user's texts share."""
    pool = rng.integers(0, num_items, (num_users, DEPTH))
    own = rng.integers(0, num_items, (num_users, TEXTS, DEPTH))
    items = np.where(rng.random(own.shape) < 1 / 3, pool[:, None, :], own)
    scores = -np.sort(-rng.random(items.shape, dtype=np.float32), axis=2)
    return Hits(items.reshape(-1, DEPTH), scores.reshape(-1, DEPTH))


def measure(num_users: int, num_items: int) -> list[dict]:
    """The best of a few runs per policy: seconds for ranking, and for the metrics after it."""
    rng = np.random.default_rng(42)
    hits = make_hits(num_users, num_items, rng)
    seen = list(rng.integers(0, num_items, (num_users, 9)))
    log_probs = -rng.random(num_users * TEXTS)
    targets = rng.integers(0, num_items, num_users)
    rows = []
    for policy in POLICIES:
        runs = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            ranked = rank_items(hits, TEXTS, policy, k=10, seen=seen, query_scores=log_probs)
            middle = time.perf_counter()
            evaluate(ranked, targets)
            runs.append((middle - start, time.perf_counter() - middle))
        ranking, metrics = min(runs, key=sum)
        rows.append(
            {"policy": policy, "users": num_users, "items": num_items, "ranking": ranking, "metrics": metrics}
        )
    return rows


def plot(table: pd.DataFrame) -> plt.Figure:
    """Seconds by number of users, and by number of items; a line per policy."""
    plotting.use_style()
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True)
    fixed = {"users": table["items"] == NUM_ITEMS, "items": table["users"] == NUM_USERS}
    for axis, (grows, rows) in zip(axes, fixed.items()):
        for policy, part in table[rows].groupby("policy", sort=False):
            axis.plot(part[grows], part["ranking"] + part["metrics"], marker="o", label=policy)
        axis.axhline(LIMIT_SECONDS, color="grey", linestyle=":")
        axis.set(xscale="log", yscale="log", xlabel=grows)
        ticks = sorted(set(table.loc[rows, grows]))
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=20)
        axis.minorticks_off()
    axes[0].set_ylabel("seconds, ranking and metrics")
    axes[1].legend(fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw-dir", help="not needed: the hits are random")
    parser.parse_args()
    by_users = pd.DataFrame([row for users in (2_000, 7_000, NUM_USERS, 70_000) for row in measure(users, NUM_ITEMS)])
    by_items = pd.DataFrame([row for items in (100_000, 1_000_000) for row in measure(NUM_USERS, items)])
    table = pd.concat([by_users, by_items], ignore_index=True)
    print(table.to_string(index=False, float_format="%.3f"))
    results = PROJECT_ROOT / "benchmarks/results/ranking.csv"
    write_atomically(results, lambda path: table.round(4).to_csv(path, index=False))
    figure = plotting.save(plot(table), PROJECT_ROOT / "figures/bench_ranking.png")
    print("wrote", show(results), "and", show(figure))

    beauty = table.query("users == @NUM_USERS and items == @NUM_ITEMS")
    slowest = (beauty["ranking"] + beauty["metrics"]).max()
    print(f"{NUM_USERS:,} users × {TEXTS} texts × {DEPTH} hits, slowest policy: {slowest:.2f} s")
    if slowest > LIMIT_SECONDS:
        raise SystemExit(f"slower than {LIMIT_SECONDS} s")


if __name__ == "__main__":
    main()
