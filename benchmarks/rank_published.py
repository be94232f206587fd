"""GLoSS-1B's published texts for validation users of Toys, under each retriever and ranking rule.

    python benchmarks/rank_published.py --raw-dir <folder> --texts <file>

The users, their histories and targets are the file's own. Differences are paired by user, against the authors' rule
(`score`, seen items kept) with the same retriever. Writes benchmarks/results/published_rules.csv, and to
published_texts.csv the texts that are no title of the catalog but whose first hit is what the user bought next.
"""

import argparse
import html
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from gloss_utils import raw_data
from gloss_utils.baselines import lis
from gloss_utils.dense import build_index
from gloss_utils.metrics import compare, evaluate
from gloss_utils.paths import PROJECT_ROOT, write_atomically
from gloss_utils.ranking import rank_items, stack_queries
from gloss_utils.splits import Prepared, Task

RESULTS = PROJECT_ROOT / "benchmarks/results"
RULES = (
    ("score", False),
    ("beam_order", False),
    ("score", True),
    ("beam_order", True),
    ("unseen", True),
    ("round_robin", True),
    ("rrf", True),
)


def read(path: Path, prepared: Prepared) -> tuple[list[dict], Task]:
    """The records whose target is in our catalog, with `&amp;` read as `&`, and their users as a task."""
    records = json.loads(path.read_text())
    targets = prepared.item_numbers([record["asin"] for record in records])
    for record in records:
        record["generated_sequences"] = [html.unescape(text) for text in record["generated_sequences"]]
    kept = np.flatnonzero(targets >= 0)
    records = [records[row] for row in kept]
    seen = [prepared.item_numbers(record["seen_asins"]) for record in records]
    ids = np.array([record["reviewer_id"] for record in records])
    return records, Task(ids, [""] * len(ids), [items[items >= 0] for items in seen], targets[kept])


def measure(records: list[dict], task: Task, texts: list[str], retriever: str) -> list[dict]:
    """One row per rule and metric, and one for LIS."""
    index = build_index(retriever, texts)
    queries, width, _ = stack_queries(records)
    hits = index.search(queries, 20)
    lists = {"LIS, seen dropped": evaluate(lis(task, index, 5, drop="seen"), task.targets, (5,))}
    for policy, drop in RULES:
        ranked = rank_items(hits, width, policy, 5, task.seen_items if drop else None)
        lists[policy + (", seen dropped" if drop else "")] = evaluate(ranked, task.targets, (5,))
    tables = [compare(table, lists["score"]).assign(retriever=retriever, rule=rule) for rule, table in lists.items()]
    table = pd.concat(tables)
    table = table[table["metric"] != "mrr"].rename(columns={"a": "value"})
    return table[["retriever", "rule", "metric", "value", "difference", "low", "high", "num_users"]].to_dict(
        "records"
    )


def repaired(records: list[dict], task: Task, texts: list[str]) -> pd.DataFrame:
    """Texts that are no title, and yet BM25 finds the target first."""
    queries, width, _ = stack_queries(records)
    found = build_index("bm25", texts).search(queries, 1).items[:, 0]
    titles, rows = set(texts), []
    for place, (text, item) in enumerate(zip(queries, found)):
        user = place // width
        if text not in titles and item == task.targets[user]:
            exact = texts[item] in records[user]["generated_sequences"]
            rows.append((task.reviewer_ids[user], text, texts[item], exact))
    return pd.DataFrame(rows, columns=["reviewer_id", "text", "title found", "another text is the title"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw-dir", required=True)
    parser.add_argument("--texts", required=True, type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as data_dir:
        prepared = raw_data.prepare("toys", raw_dir=options.raw_dir, data_dir=data_dir, progress=False)
    records, task = read(options.texts, prepared)
    texts = prepared.catalog["text"].tolist()
    table = pd.DataFrame([row for name in ("bm25", "dense") for row in measure(records, task, texts, name)])
    table["exact titles"] = np.isin(stack_queries(records)[0], texts).mean()
    examples = repaired(records, task, texts)
    for name, frame in (("published_rules", table.round(4)), ("published_texts", examples)):
        write_atomically(RESULTS / f"{name}.csv", lambda path, frame=frame: frame.to_csv(path, index=False))


if __name__ == "__main__":
    main()
