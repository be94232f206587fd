"""What the numbering of the items is worth, since equal scores go to the lower number: LIS-BM25, seen items dropped.

    python benchmarks/tie_orders.py --raw-dir <folder>

Seven numberings per category: the course's, by asin forwards and backwards, as all histories meet the items (the
held-out purchases included), and three shuffles. Beside it, last-item search with the last two titles joined.
Writes benchmarks/results/tie_orders.csv.
"""

import argparse
import tempfile

import numpy as np
import pandas as pd

from gloss_utils import baselines, raw_data, splits
from gloss_utils.metrics import compare, evaluate
from gloss_utils.paths import PROJECT_ROOT, show, write_atomically
from gloss_utils.retrieval import BM25Index

RESULTS = PROJECT_ROOT / "benchmarks/results/tie_orders.csv"


def numberings(prepared: splits.Prepared) -> dict[str, np.ndarray]:
    """Orders of the catalog's rows: the first becomes item 0, and so on."""
    num_items = len(prepared.catalog)
    by_asin = np.argsort(prepared.catalog["asin"].to_numpy(str))
    met = pd.unique(prepared.item_numbers(prepared.interactions["asin"]))
    shuffles = {f"shuffled, seed {seed}": np.random.default_rng(seed).permutation(num_items) for seed in (1, 2, 3)}
    return {
        "the course's: by the training part": np.arange(num_items),
        "by asin": by_asin,
        "by asin, backwards": by_asin[::-1],
        "as all histories meet them": np.concatenate([met, np.setdiff1d(np.arange(num_items), met)]),
        **shuffles,
    }


def renumber(task: splits.Task, order: np.ndarray) -> splits.Task:
    """The same users, with item `order[0]` as number 0, and so on."""
    number = np.argsort(order)
    return splits.Task(
        task.reviewer_ids, task.prompts, [number[items] for items in task.seen_items], number[task.targets]
    )


def last_two(task: splits.Task, index: BM25Index) -> np.ndarray:
    """LIS with the texts of the last two items joined."""
    queries = [" ".join(index.texts[item] for item in items[-2:]) for items in task.seen_items]
    longest = max(map(len, task.seen_items))
    return baselines.keep_unseen(index.search(queries, 10 + longest), task.seen_items, 10).items


def measure(dataset: str, raw_dir: str) -> list[dict]:
    with tempfile.TemporaryDirectory() as data_dir:
        prepared = raw_data.prepare(dataset, raw_dir=raw_dir, data_dir=data_dir, progress=False)
    task, texts = splits.load_task(prepared), prepared.catalog["text"].to_numpy()
    rows = []
    for name, order in numberings(prepared).items():
        other = renumber(task, order)
        per_user = evaluate(baselines.lis(other, BM25Index(texts[order]), drop="seen"), other.targets)
        rows.append({"dataset": dataset, "what": name, **per_user.mean()[["recall@5", "ndcg@5"]]})
    index = BM25Index(texts)
    one = evaluate(baselines.lis(task, index, drop="seen"), task.targets)
    gain = compare(evaluate(last_two(task, index), task.targets), one).set_index("metric")
    for part in ("a", "difference", "low", "high"):
        rows.append({"dataset": dataset, "what": f"two titles, {part}", **gain.loc[["recall@5", "ndcg@5"], part]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw-dir", required=True)
    parser.add_argument("--datasets", nargs="+", default=["beauty", "toys", "sports"])
    options = parser.parse_args()
    rows = [row for dataset in options.datasets for row in measure(dataset, options.raw_dir)]
    table = pd.DataFrame(rows)
    write_atomically(RESULTS, lambda path: table.round(4).to_csv(path, index=False))
    print(table.round(4).to_string(index=False))
    print("wrote", show(RESULTS))


if __name__ == "__main__":
    main()
