"""Measure the systems that need no language model on real data, and keep them with their provenance.

    python benchmarks/measure_baselines.py --dataset beauty --raw-dir <folder>

Prepares the data, ranks every test user with each baseline and with the fused signals of chapter 07, and lets
`keep_measured` write its three files in data/.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass, replace

import keep_measured
import numpy as np

from gloss_utils import baselines, fusion, raw_data, splits
from gloss_utils.dense import DenseIndex, encode
from gloss_utils.metrics import RESULT_KEYS, System, evaluate, name_system, save_results, summarize
from gloss_utils.retrieval import BM25Index, blocks, no_hits, top_k


def popularity_weighted(task: splits.Task, counts: np.ndarray, k: int = 10, seed: int = 42) -> np.ndarray:
    """Draw k different items per user, one after the other, in proportion to `counts`."""
    # By hand: rng.choice(replace=False, p=…) serves one user per call. Exp(1) / count is when an item "finishes";
    # the first k to finish are such a draw.
    rng = np.random.default_rng(seed)
    ranked = no_hits(len(task), k).items
    with np.errstate(divide="ignore"):
        slowness = (1.0 / counts).astype(np.float32)  # infinite for an item that nobody bought
    for rows in blocks(len(task), len(counts)):
        finish = rng.standard_exponential((rows.stop - rows.start, len(counts)), dtype=np.float32) * slowness
        ranked[rows] = top_k(-finish, k).items
    return ranked


def repeat_last(task: splits.Task, k: int = 10) -> np.ndarray:
    """Recommend the user's own last k different items, newest first."""
    ranked = no_hits(len(task), k).items
    for user, items in enumerate(task.seen_items):
        newest = list(dict.fromkeys(items[::-1].tolist()))[:k]
        ranked[user, : len(newest)] = newest
    return ranked


def rankings(prepared: splits.Prepared, encoder: str, cache_dir: str | None):
    """Each baseline's (system, items, scores or None) for the test users, lists of ten."""
    task, histories = splits.load_task(prepared), splits.training_histories(prepared)
    texts = prepared.catalog["text"].tolist()
    counts = baselines.item_counts(histories, len(texts))
    dense = DenseIndex(texts, encoder, cache_dir=cache_dir)
    yield System("random"), popularity_weighted(task, np.ones(len(texts))), None
    yield System("popularity-weighted"), popularity_weighted(task, counts), None
    yield System("most-popular"), baselines.most_popular(task, counts), None
    yield System("most-popular", policy="drop-seen"), baselines.most_popular(task, counts, drop="seen"), None
    yield System("repeat-last"), repeat_last(task), None
    for retriever, index in (("bm25", BM25Index(texts)), (f"dense-{encoder}", dense)):
        for drop, policy in (("none", "keep-seen"), ("query", "drop-query"), ("seen", "drop-seen")):
            system = System("lis", retriever=retriever, policy=policy)
            yield system, *baselines.lis_with_scores(task, index, drop=drop)
    together = baselines.cooccurrence(histories, len(texts))
    yield System("star", retriever=f"dense-{encoder}"), *baselines.star(task, dense.vectors, together)
    for policy, hits in late_fusion(prepared, dense.vectors):
        if policy != "STAR":  # that is the row before
            yield System("fusion", retriever=encoder, policy=policy), *hits


@dataclass
class AfterLast:
    """Chapter 07's signal that reads the order of ties: 1 for each item after the last one in asin order."""

    asin_rank: np.ndarray

    def score(self, task: splits.Task) -> np.ndarray:
        last = np.array([items[-1] for items in task.seen_items])
        return (self.asin_rank > self.asin_rank[last][:, None]).astype(np.float32)


def late_fusion(prepared: splits.Prepared, vectors: np.ndarray):
    """Chapter 07's (policy, hits): signals from all training histories, weights from validation users."""
    task, days = splits.load_task(prepared), splits.purchase_days(prepared)
    order = {"after_last": AfterLast(prepared.catalog["asin"].rank().to_numpy())}
    shorter, held_out = fusion.extend_validation(prepared)
    choosing = fusion.fit_signals(shorter, vectors, fusion.FUSION, days) | order
    candidates = fusion.gather_candidates({name: choosing[name] for name in fusion.FUSION}, held_out)
    eight = fusion.choose_weights(candidates)
    nine = fusion.choose_weights(fusion.gather_candidates(choosing, held_out))
    fitted = fusion.fit_signals(splits.training_histories(prepared), vectors, fusion.FUSION, days) | order
    cosines = {name: replace(fitted[name], power=1) for name in ("text", "cooccurrence", "transitions")}
    yield "STAR", fusion.fuse(cosines, {"text": 0.5, "cooccurrence": 0.5}, task)
    yield "STAR + ½ transitions", fusion.fuse(cosines, dict.fromkeys(cosines, 0.5), task)
    yield "fused", fusion.fuse(fitted, eight, task)
    yield "fused + after_last", fusion.fuse(fitted, nine, task)


def keep_shuffled(prepared: splits.Prepared, encoder: str, cache_dir: str | None, command: str) -> None:
    """Measure chapter 07's systems with the ties of each day shuffled, and keep the rows."""
    ordered = splits.order_ties(prepared.interactions, "shuffled")
    store = replace(prepared, interactions=ordered, splits=splits.build_splits(ordered, prepared.catalog))
    vectors, task = encode(prepared.catalog["text"].tolist(), encoder, cache_dir), splits.load_task(store)
    for policy, hits in late_fusion(store, vectors):
        system = System("fusion", retriever=encoder, policy=f"{policy}, shuffled ties")
        rows = summarize(evaluate(hits.items, task.targets)).assign(
            dataset=prepared.dataset, split="test", **asdict(system)
        )
        columns = [*RESULT_KEYS, "value", "low", "high", "num_users"]
        keep_measured.keep(keep_measured.metrics.MEASURED, rows[columns], RESULT_KEYS[:-1], command, "ties shuffled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="beauty")
    parser.add_argument("--raw-dir", default="")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--data-dir", default="", help="where rankings are kept; nowhere by default")
    parser.add_argument("--shuffled-ties", action="store_true", help="chapter 07's systems, ties of a day shuffled")
    parser.add_argument("--cache-dir", default=None, help="where vectors are kept between runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        prepared = raw_data.prepare(options.dataset, options.raw_dir, options.data_dir or scratch)
        if reason := keep_measured.refusal(prepared):
            sys.exit(reason)
        command = f"python benchmarks/measure_baselines.py --dataset {options.dataset} --raw-dir RAW_DIR"
        if options.shuffled_ties:
            keep_shuffled(prepared, options.encoder, options.cache_dir, command + " --shuffled-ties")
            return
        task = splits.load_task(prepared)
        for system, items, scores in rankings(prepared, options.encoder, options.cache_dir):
            means = save_results(prepared, "test", system, items, scores, task).mean(numeric_only=True)
            print(
                f"{name_system(system):35s} recall@5 {means['recall@5']:.4f}  ndcg@5 {means['ndcg@5']:.4f}",
                flush=True,
            )
        keep_measured.keep_dataset(prepared, None, command, "ties by asin")


if __name__ == "__main__":
    main()
