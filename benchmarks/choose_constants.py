"""Vary the signals' constants of chapter 07 on validation users, for two draws of these users.

    python benchmarks/choose_constants.py --dataset beauty --raw-dir <folder>

One constant at a time takes another value, and the weights are fitted again. The users are those of chapter 07
(`fusion.extend_validation`): a second seed draws other users beside the same validation users. Half of the users fit
the weights and the other half is measured, then the other way round. No test user takes part. Writes
benchmarks/results/constants.csv: NDCG@5, and its paired difference to the values that gloss_utils/fusion.py has.
"""

import argparse
import tempfile
from unittest.mock import patch

import numpy as np
import pandas as pd

from gloss_utils import fusion, raw_data, splits
from gloss_utils.dense import encode
from gloss_utils.metrics import compare, evaluate, upsert_rows
from gloss_utils.paths import PROJECT_ROOT
from gloss_utils.splits import Task

RESULTS = PROJECT_ROOT / "benchmarks/results/constants.csv"
VALUES = {  # the one in the middle is the package's
    "WALK_HISTORY": (3, fusion.WALK_HISTORY, 8),
    "SKIP_REACH": (3, fusion.SKIP_REACH, 12),
    "TIME_DAYS": (5.0, fusion.TIME_DAYS, 20.0),
    "AGE_DAYS": (30.0, fusion.AGE_DAYS, 120.0),
}
CHANGES = {  # the signals that a constant concerns
    "WALK_HISTORY": ("random_walk", "skip_transitions"),
    "SKIP_REACH": ("skip_transitions",),
    "TIME_DAYS": ("time_decayed",),
    "AGE_DAYS": ("time_decayed",),
}


def measure(signals: dict, task: Task) -> pd.DataFrame:
    """Per-user metrics, each half of the users under the weights of the other half."""
    half = np.random.default_rng(42).permutation(len(task)) % 2
    items = np.full((len(task), 5), -1)
    for number in (0, 1):
        mine, others = np.flatnonzero(half == number), np.flatnonzero(half != number)
        weights = fusion.choose_weights(fusion.gather_candidates(signals, task.take(others)))
        items[mine] = fusion.fuse(signals, weights, task.take(mine), k=5).items
    return evaluate(items, task.targets, (5,), task.reviewer_ids)


def vary(prepared: splits.Prepared, vectors: np.ndarray, seed: int) -> pd.DataFrame:
    """One row per constant and value, for one draw of users."""
    days = splits.purchase_days(prepared)
    histories, task = fusion.extend_validation(prepared, seed=seed)
    signals = fusion.fit_signals(histories, vectors, days=days)
    usual, rows = measure(signals, task), []
    for constant, values in VALUES.items():
        for value in values:
            table = usual
            if value != getattr(fusion, constant):
                with patch.object(fusion, constant, value):
                    changed = fusion.fit_signals(histories, vectors, CHANGES[constant], days)
                    table = measure(signals | changed, task)
            row = compare(table, usual).set_index("metric").loc["ndcg@5"].rename({"a": "ndcg@5"}).drop("b")
            rows.append({"constant": constant, "value": value, "seed": seed, **row})
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="beauty")
    parser.add_argument("--raw-dir", default="")
    parser.add_argument("--cache-dir", default=None, help="where vectors are kept between runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as data_dir:
        prepared = raw_data.prepare(options.dataset, options.raw_dir, data_dir, progress=False)
        vectors = encode(prepared.catalog["text"].tolist(), cache_dir=options.cache_dir)
        for seed in options.seeds:
            rows = vary(prepared, vectors, seed).assign(dataset=options.dataset).round(4).astype({"num_users": int})
            upsert_rows(RESULTS, rows, ["dataset", "constant", "value", "seed"])


if __name__ == "__main__":
    main()
