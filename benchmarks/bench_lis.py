"""LIS-BM25 for all test users: our path against bm25s + dictionaries + ranx, each in a fresh process.

    python benchmarks/bench_lis.py --raw-dir <folder>

Both start from the prepared data. The clock runs over the path's own imports (and ranx's compiling, as on a
first run), index, search and metrics.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from gloss_utils import raw_data, splits

K = 10


def ours(task: splits.Task, texts: list[str]) -> tuple[np.ndarray, dict]:
    from gloss_utils import baselines
    from gloss_utils.metrics import evaluate, summarize
    from gloss_utils.retrieval import BM25Index

    ranked = baselines.lis(task, BM25Index(texts), k=K)
    per_user = evaluate(ranked, task.targets)
    summarize(per_user)
    return ranked, per_user.mean().to_dict()


def dictionaries(task: splits.Task, texts: list[str]) -> tuple[np.ndarray, dict]:
    import bm25s
    import ranx

    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    queries = [texts[items[-1]] for items in task.seen_items]
    words = bm25s.tokenize(queries, stopwords="en", show_progress=False)
    ranked, _ = index.retrieve(words, k=K, show_progress=False)
    # the place instead of the score, because ranx orders equal scores in its own way
    run = {
        user: {str(item): -place for place, item in enumerate(row)} for user, row in zip(task.reviewer_ids, ranked)
    }
    qrels = {user: {str(target): 1} for user, target in zip(task.reviewer_ids, task.targets)}
    names = ["recall@5", "ndcg@5", "recall@10", "ndcg@10", "mrr"]
    scores = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), names)
    return np.asarray(ranked), {name: float(scores[name]) for name in names}


def child(path: str, data_dir: str, dataset: str, output: str) -> None:
    """Time one path in this process; the last line printed is JSON."""
    prepared = splits.load_prepared(dataset, data_dir)
    task, texts = splits.load_task(prepared), prepared.catalog["text"].tolist()
    start = time.perf_counter()
    ranked, means = {"ours": ours, "dictionaries": dictionaries}[path](task, texts)
    print(json.dumps({"seconds": time.perf_counter() - start, "means": means}))
    np.save(output, ranked)


def timed(path: str, data_dir: str, dataset: str) -> tuple[dict, np.ndarray]:
    """Run one path in a process of its own, with nothing compiled before."""
    output = os.path.join(data_dir, f"{path}.npy")
    command = [sys.executable, __file__, "--child", path, "--data-dir", data_dir, "--dataset", dataset]
    environment = os.environ | {"NUMBA_CACHE_DIR": os.path.join(data_dir, "numba")}
    answer = subprocess.run([*command, "--output", output], capture_output=True, text=True, env=environment)
    if answer.returncode:
        raise RuntimeError(answer.stderr)
    return json.loads(answer.stdout.splitlines()[-1]), np.load(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw-dir", default="")
    parser.add_argument("--dataset", default="")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--data-dir", default="", help=argparse.SUPPRESS)
    parser.add_argument("--output", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    dataset = options.dataset or ("beauty" if options.raw_dir else "sample")
    if options.child:
        return child(options.child, options.data_dir, dataset, options.output)
    with tempfile.TemporaryDirectory() as data_dir:
        prepared = raw_data.prepare(dataset, raw_dir=options.raw_dir, data_dir=data_dir, progress=False)
        fast, _ = timed("ours", data_dir, dataset)
        slow, lists = timed("dictionaries", data_dir, dataset)
        task = splits.load_task(prepared)
    from gloss_utils.metrics import evaluate

    means = evaluate(lists, task.targets).mean()
    gap = max(abs(means[name] - value) for name, value in slow["means"].items())
    print(f"LIS-BM25, {dataset}, {len(task):,} users, load average {os.getloadavg()[0]:.1f}")
    print(f"ours {fast['seconds']:.2f} s; dictionaries and ranx, cold {slow['seconds']:.2f} s")
    print(f"ratio {slow['seconds'] / fast['seconds']:.1f}; metrics on the same lists differ by {gap:.1e}")
    assert gap < 1e-9


if __name__ == "__main__":
    main()
