"""Choose the learned ranking's columns, and how many users it learns from, on validation users, under two draws.

    python benchmarks/choose_learned.py --datasets beauty --raw-dir <folder> --cache-dir <folder>
    python benchmarks/choose_learned.py --datasets toys --seeds 42 --raw-dir <folder> --cache-dir <folder>

The rehearsal is the test with the validation users in the test users' place: trees are learned on the last training
purchase of other users, and rank the validation users' held-out items with signals of the whole training part. All
variants share the signals and the SASRec that learn without 15,000 users' last training purchase, so fewer learning
users means fewer for the trees. The validation users are among those who stop SASRec's training, in every variant. No
test user takes part. Writes benchmarks/results/learned.csv: NDCG@5 of each variant over a category's
validation users, and its paired difference to nine signals learned on 3,000 users.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from measure_sasrec import Category, Signals, learn_ranking

from gloss_utils import baselines, fusion, rankers, raw_data, splits
from gloss_utils.dense import encode
from gloss_utils.metrics import compare, upsert_rows
from gloss_utils.paths import PROJECT_ROOT
from gloss_utils.splits import Task

RESULTS = PROJECT_ROOT / "benchmarks/results/learned.csv"
KEYS = ["dataset", "seed", "columns", "learning users", "ranked by"]
USUAL = ("nine signals", 3_000)
VARIANTS = {  # further signals, users to learn from
    USUAL: (),
    ("nine signals", 15_000): (),
    ("nine + closest title", 15_000): ("closest title",),
    ("nine + closest title + long co-occurrence", 15_000): ("closest title", "long co-occurrence"),
}


@dataclass(frozen=True)
class ClosestTitle:
    """Cosine of an item's title with the closest of a user's last titles; `text` has their mean."""

    vectors: np.ndarray  # of the catalog, float32 [num_items, dimensions]
    length: int = 8

    def score(self, task: Task) -> np.ndarray:
        scores = np.full((len(task), len(self.vectors)), -1, dtype=np.float32)
        for back in range(1, self.length + 1):  # one product for all users' last items, one for those before them
            rows = [row for row, items in enumerate(task.seen_items) if len(items) >= back]
            close = self.vectors[[task.seen_items[row][-back] for row in rows]] @ self.vectors.T
            scores[rows] = np.maximum(scores[rows], close)
        return scores


def further(names: tuple[str, ...], histories, vectors: np.ndarray) -> Signals:
    """The named signals that the chapter does not have."""
    fits = {
        "closest title": lambda: ClosestTitle(vectors),
        "long co-occurrence": lambda: fusion.ItemSignal(
            (baselines.cooccurrence(histories, len(vectors)),), length=20, decay=0.9
        ),
    }
    return {name: fits[name]() for name in names}


def rehearse(category: Category, names: tuple[str, ...], users: int) -> dict[str, pd.DataFrame]:
    """Per-user metrics of the validation users, by the weighted sum and by the trees."""
    validation, (shorter, learners) = splits.load_task(category.prepared, "validation"), category.held_out
    others = np.arange(len(validation), len(learners))  # extend_validation puts the validation users first
    drawn = np.sort(np.random.default_rng(category.seed).permutation(others)[:users])
    learning = category.learning | further(names, shorter, category.vectors)
    known = category.known | further(names, splits.training_histories(category.prepared), category.vectors)
    learners = learners.take(drawn)
    weights, trees, _ = learn_ranking(category.taught, fusion.gather_candidates(learning, learners), learners)
    ranked = {
        "sum": fusion.fuse(known, weights, validation),
        "trees": rankers.rank_learned(trees, known, weights, validation),
    }
    return {name: category.taught.evaluate(hits, validation) for name, hits in ranked.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["beauty", "toys"])
    parser.add_argument("--raw-dir", default="")
    parser.add_argument(
        "--cache-dir", type=Path, required=True, help="for data and trained models, kept between runs"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43])
    options = parser.parse_args()
    for dataset in options.datasets:
        prepared = raw_data.prepare(dataset, options.raw_dir, options.cache_dir, progress=False)
        vectors = encode(prepared.catalog["text"].tolist(), cache_dir=options.cache_dir)
        for seed in options.seeds:
            category = Category(prepared, vectors, seed=seed, cache=options.cache_dir)
            tables = {}
            for variant, names in VARIANTS.items():
                for how, table in rehearse(category, names, variant[1]).items():
                    tables[*variant, how] = table
                    print(
                        dataset,
                        seed,
                        variant,
                        how,
                        table[["recall@5", "ndcg@5"]].mean().round(4).to_dict(),
                        flush=True,
                    )
            rows = []
            for (columns, users, how), table in tables.items():
                row = compare(table, tables[*USUAL, "trees"]).set_index("metric").loc["ndcg@5"]
                row = row.rename({"a": "ndcg@5"}).drop("b")
                rows.append({"columns": columns, "learning users": users, "ranked by": how, "seed": seed, **row})
            rows = pd.DataFrame(rows).assign(dataset=dataset).round(4).astype({"num_users": int})
            upsert_rows(RESULTS, rows, KEYS)
            print(rows.to_string())


if __name__ == "__main__":
    main()
