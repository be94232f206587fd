"""Measure the systems that need no language model on real data, and keep them with their provenance.

    python benchmarks/measure_baselines.py --dataset beauty --raw-dir ../shared/amazon2014

Prepares the data, ranks every test user with each baseline and with the fused signals of chapter 07, and lets
`keep_measured` write its three files in data/.
"""

import argparse
import sys
import tempfile

import keep_measured

from gloss_utils import baselines, fusion, raw_data, splits
from gloss_utils.dense import DenseIndex
from gloss_utils.metrics import System, name_system, save_results
from gloss_utils.retrieval import BM25Index


def rankings(prepared: splits.Prepared, encoder: str, cache_dir: str | None):
    """Each baseline's (system, items, scores or None) for the test users, lists of ten."""
    task, histories = splits.load_task(prepared), splits.training_histories(prepared)
    texts = prepared.catalog["text"].tolist()
    counts = baselines.item_counts(histories, len(texts))
    dense = DenseIndex(texts, encoder, cache_dir=cache_dir)
    yield System("random"), baselines.random_items(task, len(texts)), None
    yield System("popularity-weighted"), baselines.popularity_weighted(task, counts), None
    yield System("most-popular"), baselines.most_popular(task, counts), None
    yield System("most-popular", policy="drop-seen"), baselines.most_popular(task, counts, drop="seen"), None
    yield System("repeat-last"), baselines.repeat_last(task), None
    for retriever, index in (("bm25", BM25Index(texts)), (f"dense-{encoder}", dense)):
        for drop, policy in (("none", "keep-seen"), ("query", "drop-query"), ("seen", "drop-seen")):
            system = System("lis", retriever=retriever, policy=policy)
            yield system, *baselines.lis_with_scores(task, index, drop=drop)
    together = baselines.cooccurrence(histories, len(texts))
    yield System("star", retriever=f"dense-{encoder}"), *baselines.star(task, dense.vectors, together)
    yield System("fusion", retriever=encoder, policy="fused"), *fused(prepared, task, histories, dense.vectors)


def fused(prepared: splits.Prepared, task: splits.Task, histories, vectors):
    """The fused ranking of chapter 07: weights from validation users, signals from all training histories."""
    days = splits.purchase_days(prepared)
    shorter, held_out = fusion.extend_validation(prepared)
    candidates = fusion.gather_candidates(fusion.fit_signals(shorter, vectors, fusion.FUSION, days), held_out)
    weights = fusion.choose_weights(candidates)
    return fusion.fuse(fusion.fit_signals(histories, vectors, fusion.FUSION, days), weights, task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="beauty")
    parser.add_argument("--raw-dir", default="")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--data-dir", default="", help="where rankings are kept; nowhere by default")
    parser.add_argument("--cache-dir", default=None, help="where vectors are kept between runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        prepared = raw_data.prepare(options.dataset, options.raw_dir, options.data_dir or scratch)
        if reason := keep_measured.refusal(prepared):
            sys.exit(reason)
        task = splits.load_task(prepared)
        for system, items, scores in rankings(prepared, options.encoder, options.cache_dir):
            means = save_results(prepared, "test", system, items, scores, task).mean(numeric_only=True)
            print(
                f"{name_system(system):35s} recall@5 {means['recall@5']:.4f}  ndcg@5 {means['ndcg@5']:.4f}",
                flush=True,
            )
        command = f"python benchmarks/measure_baselines.py --dataset {options.dataset} --raw-dir RAW_DIR"
        keep_measured.keep_dataset(prepared, None, command, "ties by asin")


if __name__ == "__main__":
    main()
