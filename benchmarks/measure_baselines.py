"""Measure the training-free baselines on real data, and keep them with their provenance.

    python benchmarks/measure_baselines.py --dataset beauty --raw-dir ../shared/amazon2014

Writes data/measured_results.csv, which notebook 02 shows beside the paper's Table 8.
"""

import argparse
import tempfile

from gloss_utils import baselines, raw_data, splits
from gloss_utils.metrics import System, append_measured, evaluate, summarize
from gloss_utils.retrieval import BM25Index, DenseIndex


def rankings(prepared: splits.Prepared, encoder: str, cache_dir: str | None) -> dict[System, object]:
    """Every baseline's lists of ten for the test users."""
    task, histories = splits.load_task(prepared), splits.training_histories(prepared)
    texts = prepared.catalog["text"]
    counts = baselines.item_counts(histories, len(texts))
    dense = DenseIndex(texts, encoder, cache_dir=cache_dir)
    together = baselines.cooccurrence(histories, len(texts))
    lists = {
        System("random"): baselines.random_items(task, len(texts)),
        System("popularity-weighted"): baselines.popularity_weighted(task, counts),
        System("most-popular"): baselines.most_popular(task, counts),
        System("most-popular", policy="drop-seen"): baselines.most_popular(task, counts, drop="seen"),
        System("repeat-last"): baselines.repeat_last(task),
        System("star", retriever=f"dense-{encoder}"): baselines.star(task, dense.vectors, together).items,
    }
    for retriever, index in (("bm25", BM25Index(texts)), (f"dense-{encoder}", dense)):
        for drop, policy in (("none", "keep-seen"), ("query", "drop-query"), ("seen", "drop-seen")):
            lists[System("lis", retriever=retriever, policy=policy)] = baselines.lis(task, index, drop=drop)
    return lists


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="beauty")
    parser.add_argument("--raw-dir", default="")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--tie-order", default="asin", help="asin, shuffled or reverse")
    parser.add_argument("--cache-dir", default=None, help="where vectors are kept between runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        prepared = raw_data.prepare(
            options.dataset, raw_dir=options.raw_dir, data_dir=scratch, tie_order=options.tie_order
        )
        targets = splits.load_task(prepared).targets
        for system, ranked in rankings(prepared, options.encoder, options.cache_dir).items():
            summary = summarize(evaluate(ranked, targets))
            about = {"dataset": options.dataset, "split": "test", "model": system.model, "strategy": system.strategy}
            rows = summary.assign(**about, retriever=system.retriever, policy=system.policy)
            command = (
                f"python benchmarks/measure_baselines.py --dataset {options.dataset} --encoder {options.encoder}"
            )
            append_measured(rows, command + " --raw-dir RAW_DIR", note=f"{options.tie_order} ties")
            means = summary.set_index("metric")["value"]
            print(f"{system.name:45s} recall@5 {means['recall@5']:.4f}  ndcg@5 {means['ndcg@5']:.4f}", flush=True)


if __name__ == "__main__":
    main()
