"""GLoSS-1B's published texts for validation users of Toys: every retriever and rule, and beside other systems.

    python benchmarks/rank_published.py --raw-dir <folder> --texts <file>

The users, their histories and targets are the file's own. All differences are paired by user. Writes into
benchmarks/results/
- published_rules.csv: each rule against the authors' (`score`, seen items kept) with the same retriever;
- published_rivals.csv: LIS, STAR, fused, the texts, and fused + texts, on the same users;
- published_texts.csv: the texts that are no title of the catalog but whose first hit is what the user bought next.

No system has seen these users' targets: their histories end before them wherever something is counted. The weights of
`fused` come from chapter 07's users without these. Those of fused + texts cannot come from other users with texts,
since nobody else has any, so there are two rows: equal votes, which have no weight, and weights from the other four
fifths of the users. Both were fixed before the first run.
"""

import argparse
import html
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from measure_texts import equal_votes, text_signal

from gloss_utils import baselines, fusion, raw_data, splits
from gloss_utils.baselines import lis
from gloss_utils.dense import build_index, encode
from gloss_utils.metrics import System, compare, evaluate, name_system, summarize
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


def without_targets(prepared: Prepared, histories: list[np.ndarray], task: Task) -> list[np.ndarray]:
    """The histories, those of the task's users cut to what comes before their targets."""
    row = {user: number for number, user in enumerate(splits.user_bounds(prepared.interactions)[0].astype(str))}
    for user, seen in zip(task.reviewer_ids, task.seen_items):
        histories[row[user]] = seen
    return histories


def fit_fused(prepared: Prepared, task: Task, vectors: np.ndarray) -> tuple[list, fusion.WeightedSum]:
    """The histories that may be counted, and chapter 07's sum; the task's users do not choose its weights."""
    days = splits.purchase_days(prepared)
    histories, held_out = fusion.extend_validation(prepared)
    held_out = held_out.take(np.flatnonzero(~np.isin(held_out.reviewer_ids, task.reviewer_ids)))
    choosing = fusion.fit_signals(without_targets(prepared, histories, task), vectors, days=days)
    weights = fusion.choose_weights(fusion.gather_candidates(choosing, held_out))
    histories = without_targets(prepared, splits.training_histories(prepared), task)
    print(f"weights of fused from {len(held_out):,} other users")
    return histories, fusion.WeightedSum(fusion.fit_signals(histories, vectors, days=days), weights)


def from_other_folds(pair: dict, task: Task, folds: int = 5) -> np.ndarray:
    """Lists of ten by the two signals' sum; a user's weights come from the users of the other folds."""
    fold = np.random.default_rng(42).permutation(len(task)) % folds
    items = np.full((len(task), 10), -1)
    for number in range(folds):
        weights = fusion.choose_weights(fusion.gather_candidates(pair, task.take(np.flatnonzero(fold != number))))
        mine = np.flatnonzero(fold == number)
        items[mine] = fusion.fuse(pair, weights, task.take(mine)).items
    return items


def rank_rivals(records: list[dict], task: Task, prepared: Prepared, vectors: np.ndarray) -> dict[str, np.ndarray]:
    """The lists of every system, by name; the rows of texts were fixed as chapter 08's."""
    queries, width, _ = stack_queries(records)
    histories, fused = fit_fused(prepared, task, vectors)
    indexes = {name: build_index(name, prepared.catalog["text"].tolist()) for name in ("bm25", "dense")}
    lists = {}
    for name, index in indexes.items():
        retriever, hits = name.replace("dense", "dense-minilm"), index.search(queries, 20)
        for policy, drop in (("keep-seen", "none"), ("drop-seen", "seen")):
            lists[name_system(System("lis", retriever=retriever, policy=policy))] = lis(task, index, 10, drop)
        for policy, seen in (("score", None), ("round_robin", task.seen_items)):
            system = System("llama-1b", "beam5", retriever, policy)
            lists[name_system(system)] = rank_items(hits, width, policy, 10, seen)
    counts = baselines.cooccurrence(histories, len(vectors))
    lists["STAR · MiniLM"] = baselines.star(task, vectors, counts).items
    pair = {"fused": fused, "generated": text_signal(records, vectors)}
    alone, texts = (fusion.fuse(pair, {name: 1.0}, task, 20) for name in pair)
    lists["fused"] = alone.items[:, :10]
    lists["fused + texts, equal votes"] = equal_votes(alone, texts)
    lists["fused + texts, weights from the other folds"] = from_other_folds(pair, task)
    return lists


def compare_rivals(records: list[dict], task: Task, prepared: Prepared) -> pd.DataFrame:
    """Each system's metrics with their intervals, and its paired differences to GLoSS and to fused."""
    vectors = encode(prepared.catalog["text"].tolist())
    lists = rank_rivals(records, task, prepared, vectors)
    tables = {name: evaluate(items, task.targets, (5,), task.reviewer_ids) for name, items in lists.items()}
    rows = []
    for name, table in tables.items():
        row = summarize(table).assign(system=name).set_index("metric")
        for short, other in (("GLoSS", "GLoSS (llama-1b) · MiniLM"), ("fused", "fused")):
            difference = compare(table, tables[other]).set_index("metric")[["difference", "low", "high"]]
            row = row.join(difference.add_prefix(f"minus {short}: "))
        rows.append(row.drop("mrr").reset_index())
    table = pd.concat(rows)
    return table[["system", *table.columns.drop("system")]]


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
    rivals = compare_rivals(records, task, prepared).round(4)
    frames = {"published_rules": table.round(4), "published_rivals": rivals, "published_texts": examples}
    for name, frame in frames.items():
        write_atomically(RESULTS / f"{name}.csv", lambda path, frame=frame: frame.to_csv(path, index=False))


if __name__ == "__main__":
    main()
