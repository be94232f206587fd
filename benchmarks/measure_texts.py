"""Rank a model's generated texts on a real category with every rule and retriever, beside LIS, STAR and fused.

    python benchmarks/measure_texts.py beauty --model smollm2-135m

Only users who have texts are measured: all systems on the same users, and in pairs. Whatever is chosen (CALRec's
weight, and the weights of fused + texts) is chosen on the validation users who have texts. Fixed beforehand: the
systems of `LADDER`; and where fewer than `ENOUGH` validation users have texts, the row to read of fused + texts is
the one without weights, reciprocal rank fusion of the two lists.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import keep_measured
import numpy as np
import pandas as pd
from keep_measured import pair

from gloss_utils import baselines, fusion, ranking, splits
from gloss_utils.dense import DenseIndex
from gloss_utils.metrics import System, evaluate, name_system, save_results
from gloss_utils.paths import write_atomically
from gloss_utils.queries import load_queries
from gloss_utils.recommender import embed_texts
from gloss_utils.retrieval import BM25Index, Hits, HybridIndex, Index
from gloss_utils.splits import Prepared, Task

ENCODER, STRATEGY, NUM_HITS = "minilm", "beam5", 20
RULES = {"score": ("score", False), "score-drop-seen": ("score", True), "beam_order": ("beam_order", False)}
RULES |= {"beam_order-drop-seen": ("beam_order", True)}
RULES |= {rule: (rule, True) for rule in ("unseen", "round_robin", "rrf", "calrec")}
SHORT = ("score", "beam_order", "unseen")  # one item per text, so five texts have no ten items
LADDER = (("bm25", "score"), ("dense-minilm", "score"), ("bm25", "round_robin"), ("dense-minilm", "round_robin"))
ENOUGH = 200  # validation users with texts for two weights


@dataclass
class Written:
    """The users of a queries file, with their texts."""

    task: Task
    records: list[dict]
    signal: fusion.GeneratedTexts

    @property
    def texts(self) -> list[str]:
        return ranking.stack_queries(self.records)[0]


def read_texts(prepared: Prepared, model: str, split: str, vectors: np.ndarray) -> Written:
    """Open the queries file of a split."""
    records = load_queries(prepared.paths.queries(model, STRATEGY, split), prepared)
    ids = [record["reviewer_id"] for record in records]
    return Written(splits.load_task(prepared, split).subset(ids), records, text_signal(records, vectors))


def text_signal(records: list[dict], vectors: np.ndarray) -> fusion.GeneratedTexts:
    """The texts of some users as a signal of the fused ranking (chapter 07)."""
    users, texts = ([record[name] for record in records] for name in ("reviewer_id", "generated_sequences"))
    return embed_texts(users, texts, vectors, ENCODER)


def build_indexes(prepared: Prepared) -> dict[str, Index]:
    """The three retrievers of chapter 05."""
    texts = prepared.catalog["text"].tolist()
    bm25, dense = BM25Index(texts), DenseIndex(texts, ENCODER, cache_dir=prepared.paths.cache)
    return {"bm25": bm25, f"dense-{ENCODER}": dense, f"hybrid-{ENCODER}": HybridIndex(bm25, dense)}


def rank_by_rules(written: Written, hits: Hits, weight: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Items and scores of every rule, lists of ten."""
    _, width, log_probs = ranking.stack_queries(written.records)
    options = {"query_scores": log_probs, "weight": weight}
    return {
        rule: ranking.rank_with_scores(hits, width, policy, 10, written.task.seen_items if drop else None, **options)
        for rule, (policy, drop) in RULES.items()
        if policy != "calrec" or log_probs is not None
    }


def choose_calrec_weight(validation: Written, index: Index) -> float:
    """The weight of the log-probability with the highest NDCG@5 on the validation users (BM25, as in chapter 05)."""
    hits, found = index.search(validation.texts, NUM_HITS), {}
    for weight in np.linspace(0, 1, 6).round(1):
        items = rank_by_rules(validation, hits, float(weight))["calrec"][0]
        found[float(weight)] = evaluate(items, validation.task.targets, (5,))["ndcg@5"].mean()
    return max(found, key=found.get)


def measure_rules(prepared, model, split, written, indexes, weight) -> dict[System, pd.DataFrame]:
    """Every rule with every retriever, saved into the dataset's results."""
    measured = {}
    for retriever, index in indexes.items():
        for rule, found in rank_by_rules(written, index.search(written.texts, NUM_HITS), weight).items():
            system, ks = System(model, STRATEGY, retriever, rule), (5,) if RULES[rule][0] in SHORT else (5, 10)
            measured[system] = save_results(prepared, split, system, *found, written.task, ks)
    return measured


def measure_rivals(task: Task, indexes: dict[str, Index], histories: list[np.ndarray]) -> dict[System, pd.DataFrame]:
    """LIS with each retriever, seen items kept and dropped, and STAR, on these users."""
    measured, vectors = {}, indexes[f"dense-{ENCODER}"].vectors
    for retriever, index in indexes.items():
        for drop, policy in (("none", "keep-seen"), ("seen", "drop-seen")):
            measured[System("lis", retriever=retriever, policy=policy)] = baselines.lis(task, index, 10, drop)
    counts = baselines.cooccurrence(histories, len(vectors))
    measured[System("star", retriever=f"dense-{ENCODER}")] = baselines.star(task, vectors, counts).items
    return evaluate_lists(measured, task)


def evaluate_lists(lists: dict[System, np.ndarray], task: Task) -> dict[System, pd.DataFrame]:
    """The per-user metrics of each system's items."""
    return {system: evaluate(items, task.targets, (5, 10), task.reviewer_ids) for system, items in lists.items()}


def equal_votes(*lists: Hits) -> np.ndarray:
    """Merge ranked lists by reciprocal rank fusion, which has no weight to choose."""
    items = np.stack([hits.items for hits in lists], axis=1)
    return ranking.rrf(ranking.Grid(items, np.zeros(items.shape)), 10)[0]


def fuse_texts(prepared, vectors, model, test: Written, validation: Written) -> dict[System, np.ndarray]:
    """fused, and fused with the texts: weights from the validation users who have texts (chapter 07), or equal votes.

    `fused` keeps chapter 07's weights. Its signals are fitted without the held-out items of the users that choose.
    """
    days = splits.purchase_days(prepared)
    shorter, held_out = fusion.extend_validation(prepared)
    choosing = fusion.fit_signals(shorter, vectors, days=days)
    weights = fusion.choose_weights(fusion.gather_candidates(choosing, held_out))
    pair = {"fused": fusion.WeightedSum(choosing, weights), "generated": validation.signal}
    shares = fusion.choose_weights(fusion.gather_candidates(pair, validation.task))
    print(f"weights from {len(validation.task):,} validation users with texts: {shares}")
    fitted = fusion.fit_signals(splits.training_histories(prepared), vectors, days=days)
    pair = {"fused": fusion.WeightedSum(fitted, weights), "generated": test.signal}
    alone, texts = (fusion.fuse(pair, {name: 1.0}, test.task, k=NUM_HITS) for name in pair)
    fused = System("fusion", retriever=ENCODER, policy="fused")
    joined = System("fusion", STRATEGY, ENCODER, f"fused with {model}")
    votes = System("fusion", STRATEGY, ENCODER, f"fused with {model}, equal votes")
    return {
        fused: alone.items[:, :10],
        joined: fusion.fuse(pair, shares, test.task).items,
        votes: equal_votes(alone, texts),
    }


def ladder_of(model: str) -> list[System]:
    """The rows of `LADDER`."""
    return [System(model, STRATEGY, *row) for row in LADDER]


def same_rule(system: System) -> System:
    """LIS with the retriever of a row of texts and its treatment of seen items."""
    return System("lis", retriever=system.retriever, policy="drop-seen" if RULES[system.policy][1] else "keep-seen")


def describe(prepared: Prepared, written: Written) -> str:
    """How many texts are titles, or titles that the user has, and how many users get a first text of their own."""
    title_of = prepared.catalog["text"].to_numpy()
    titles, texts = set(title_of), [record["generated_sequences"] for record in written.records]
    seen = [text in set(title_of[items]) for items, own in zip(written.task.seen_items, texts) for text in own]
    exact, first = [text in titles for own in texts for text in own], {own[0] for own in texts if own}
    return f"exact titles {np.mean(exact):.1%}, seen items {np.mean(seen):.1%}, {len(first):,} distinct first texts"


def find_examples(prepared: Prepared, written: Written, indexes: dict[str, Index]) -> pd.DataFrame:
    """Texts that are no title, with the first item that each search finds: four that find the target, three others.

    Of each kind the first in the order of the queries file, one per user.
    """
    title_of, rows = prepared.catalog["title"], []
    titles = set(prepared.catalog["text"])
    for record, seen, target in zip(written.records, written.task.seen_items, written.task.targets):
        own = [text for text in record["generated_sequences"] if text not in titles]
        rows += [(record["reviewer_id"], seen[-1], text, target) for text in own]
    table = pd.DataFrame(rows, columns=["reviewer_id", "last purchase", "text", "target"])
    for name in ("bm25", f"dense-{ENCODER}"):
        table[name] = indexes[name].search(table["text"].tolist(), 1).items[:, 0]
    right = table[["bm25", f"dense-{ENCODER}"]].eq(table["target"], axis=0).any(axis=1)
    kinds = [table[of_kind].drop_duplicates("reviewer_id") for of_kind in (right, ~right)]
    table = pd.concat([kinds[0][:4], kinds[1][:3]])
    columns = ["last purchase", "target", "bm25", f"dense-{ENCODER}"]
    return table.assign(**{column: title_of.reindex(table[column]).to_numpy() for column in columns})


def compare_all(dataset: str, model: str, tables: dict[System, pd.DataFrame]) -> pd.DataFrame:
    """Paired differences: each rule with LIS under the same rule, `LADDER` with STAR, fused and GLoSS's ranks."""
    ladder = ladder_of(model)
    fused, joined, votes = (system for system in tables if system.model == "fusion")
    star = System("star", retriever=f"dense-{ENCODER}")
    wanted = [(system, same_rule(system)) for system in tables if system.model == model]
    wanted += [(system, other) for system in ladder for other in (star, fused)]
    wanted += [(joined, fused), (votes, fused), (joined, ladder[-1])]
    rows = [pair(tables[a], tables[b]).assign(system=name_system(a), against=name_system(b)) for a, b in wanted]
    for name, theirs in keep_measured.published_metrics(dataset).items():
        for system in (*ladder, joined, votes):
            rows.append(pair(tables[system], theirs).assign(system=name_system(system), against=name))
    return pd.concat(rows).assign(dataset=dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help=f"one of {', '.join(keep_measured.REAL_CATEGORIES)}")
    parser.add_argument("--model", default="smollm2-135m", help="whose texts, from notebook 04 or train_smollm2.py")
    parser.add_argument("--data-dir", default="data", help="where the dataset lies")
    parser.add_argument("--note", default="", help="what a reader should know, such as how the model was trained")
    parser.add_argument("--examples", type=Path, help="a CSV file for some texts that are no title")
    options = parser.parse_args()
    dataset, model = options.dataset, options.model
    prepared = splits.load_prepared(dataset, options.data_dir)
    if reason := keep_measured.refusal(prepared):
        sys.exit(reason)
    indexes = build_indexes(prepared)
    vectors = indexes[f"dense-{ENCODER}"].vectors
    test, validation = (read_texts(prepared, model, split, vectors) for split in ("test", "validation"))
    weight = choose_calrec_weight(validation, indexes["bm25"])
    chosen = measure_rules(prepared, model, "validation", validation, indexes, weight)
    tables = measure_rules(prepared, model, "test", test, indexes, weight)
    rivals = measure_rivals(test.task, indexes, splits.training_histories(prepared))
    fused = evaluate_lists(fuse_texts(prepared, vectors, model, test, validation), test.task)
    about = f"{len(test.task):,} seeded test users with texts: {describe(prepared, test)}"
    about += f"; CALRec's weight {weight} from {len(validation.task):,} validation users"
    note = "; ".join(filter(None, (about, options.note)))
    provenance = {"command": f"python benchmarks/measure_texts.py {dataset} --model {model}", "note": note}
    with_texts = {system: table for system, table in fused.items() if system.strategy == STRATEGY}
    keep_measured.keep_results(dataset, "validation", chosen, **provenance)
    keep_measured.keep_results(dataset, "test", tables | with_texts, **provenance)
    ladder = {name_system(system): tables[system] for system in ladder_of(model)}
    others = {name_system(system) + ", users with texts": table for system, table in (rivals | fused).items()}
    keep_measured.keep_segments(prepared, ladder | others, **provenance)
    keep_measured.keep_pairs(compare_all(dataset, model, tables | rivals | fused), **provenance)
    if options.examples:
        examples = find_examples(prepared, test, indexes)
        write_atomically(options.examples, lambda path: examples.to_csv(path, index=False))


if __name__ == "__main__":
    main()
