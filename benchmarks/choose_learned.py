"""Choose the learned ranking's columns, and how many users it learns from, on validation users, under two draws.

    python benchmarks/choose_learned.py --datasets beauty toys --raw-dir <folder>

The rehearsal is the test itself with the validation users in the test users' place: trees are learned on the last
training purchase of other users, and rank the validation users' held-out items with signals of the whole training
part. No test user takes part. Writes benchmarks/results/learned.csv: NDCG@5 of each variant over the validation users
of these categories together, and its paired difference to nine signals learned on 3,000 users.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from measure_sasrec import Category, learn_ranking, some

from gloss_utils import fusion, rankers, raw_data, splits
from gloss_utils.dense import encode
from gloss_utils.metrics import compare
from gloss_utils.paths import PROJECT_ROOT

RESULTS = PROJECT_ROOT / "benchmarks/results/learned.csv"
USUAL = ("nine signals", 3_000)
VARIANTS = {  # signals left out, users to learn from
    USUAL: fusion.LEARNED,
    ("nine signals", 15_000): fusion.LEARNED,
    ("nine + closest title", 15_000): ("long_cooccurrence",),
    ("nine + closest title + long co-occurrence", 15_000): (),
}


def rehearse(category: Category, left_out: tuple, users: int) -> dict[str, pd.DataFrame]:
    """Per-user metrics of the validation users, by the weighted sum and by the trees."""
    validation, learners = splits.load_task(category.prepared, "validation"), category.held_out[1]
    others = np.arange(len(validation), len(learners))  # extend_validation puts the validation users first
    drawn = np.sort(np.random.default_rng(category.seed).permutation(others)[:users])
    learning, known = some(category.learning, *left_out), some(category.known, *left_out)
    weights, trees, _ = learn_ranking(category, learning, learners.take(drawn))
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
    parts = {}
    for dataset in options.datasets:
        prepared = raw_data.prepare(dataset, options.raw_dir, options.cache_dir, progress=False)
        vectors = encode(prepared.catalog["text"].tolist(), cache_dir=options.cache_dir)
        for seed in options.seeds:
            category = Category(prepared, vectors, seed=seed, cache=options.cache_dir)
            for variant, left_out in VARIANTS.items():
                for how, table in rehearse(category, left_out, variant[1]).items():
                    table["reviewer_id"] = dataset + " " + table["reviewer_id"]  # some buy in both categories
                    parts.setdefault((seed, *variant, how), []).append(table)
                    print(
                        dataset,
                        seed,
                        variant,
                        how,
                        table[["recall@5", "ndcg@5"]].mean().round(4).to_dict(),
                        flush=True,
                    )
    together = {key: pd.concat(tables, ignore_index=True) for key, tables in parts.items()}
    rows = []
    for (seed, columns, users, how), table in together.items():
        row = compare(table, together[seed, *USUAL, "trees"]).set_index("metric").loc["ndcg@5"]
        row = row.rename({"a": "ndcg@5"}).drop("b")
        rows.append({"columns": columns, "learning users": users, "ranked by": how, "seed": seed, **row})
    table = pd.DataFrame(rows).assign(datasets=" + ".join(options.datasets)).round(4).astype({"num_users": int})
    table.to_csv(RESULTS, index=False)
    print(table.to_string())


if __name__ == "__main__":
    main()
