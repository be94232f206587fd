"""Exact against approximate dense search as the catalog grows to a million vectors.

python benchmarks/bench_retrieval.py [--raw-dir DIR] [--sizes 10000 100000 1000000]

Vectors: MiniLM of the catalog's titles (Beauty with --raw-dir, else the sample store), and beyond that mixtures
of two of them with noise, which are as crowded as real titles are. Queries are such mixtures, too. Times are CPU
times, so that a busy machine does not change them; the million takes about half an hour of one core. Writes
benchmarks/results/retrieval.csv, after every size, and figures/bench_retrieval.png.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial

import faiss
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from gloss_utils import plotting, raw_data
from gloss_utils.dense import encode
from gloss_utils.paths import PROJECT_ROOT, show, write_atomically
from gloss_utils.retrieval import top_k

SIZES = [10_000, 30_000, 100_000, 300_000, 1_000_000]
EF_SEARCH = [32, 128, 512]
NUM_QUERIES = 500
K = 20
NOISE = 0.5  # the length of the noise, where a title's vector has length 1
BLOCK = 50_000
RESULTS = PROJECT_ROOT / "benchmarks/results/retrieval.csv"


def title_vectors(raw_dir: str | None) -> np.ndarray:
    """MiniLM vectors of the distinct titles of Beauty, or of the sample store."""
    dataset, raw_dir = ("beauty", raw_dir) if raw_dir else ("sample", PROJECT_ROOT / "data/sample/raw")
    with tempfile.TemporaryDirectory() as data_dir:
        catalog = raw_data.prepare(dataset, raw_dir=raw_dir, data_dir=data_dir, progress=False).catalog
    return encode(catalog["text"].drop_duplicates().tolist())


def mixtures(titles: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors between two titles, with noise: float32 [count, dimensions]."""
    first, second = (titles[rng.integers(0, len(titles), count)] for _ in range(2))
    share = rng.random((count, 1), dtype=np.float32)
    noise = rng.standard_normal(first.shape, dtype=np.float32) * np.float32(NOISE / np.sqrt(first.shape[1]))
    mixed = share * first + (1 - share) * second + noise
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def search_exact(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The K nearest items of each query; queries in small blocks, as DenseIndex takes them."""
    return np.concatenate([top_k(queries[row : row + 8] @ vectors.T, K).items for row in range(0, len(queries), 8)])


def build_graph(vectors: np.ndarray) -> faiss.IndexHNSWFlat:
    """Link unit vectors into FAISS's small-world graph (inner product), as chapter 05 does."""
    graph = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 200
    graph.add(vectors)
    return graph


def search_graph(graph: faiss.IndexHNSWFlat, queries: np.ndarray, ef_search: int) -> np.ndarray:
    """The K items that the graph finds for each query, with `ef_search` of them kept open."""
    graph.hnsw.efSearch = ef_search
    return graph.search(queries, K)[1]


def timed(search: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """What a search finds, and its CPU milliseconds per query."""
    start = time.process_time()
    items = search()
    return items, 1000 * (time.process_time() - start) / len(items)


def measure(graph, build_seconds: float, vectors: np.ndarray, queries: np.ndarray) -> list[dict]:
    """One row for exact search and one per efSearch."""
    exact, milliseconds = timed(lambda: search_exact(vectors, queries))
    rows = [{"engine": "exact", "recall": 1.0, "milliseconds": milliseconds}]
    for ef_search in EF_SEARCH:
        found, milliseconds = timed(lambda ef=ef_search: search_graph(graph, queries, ef))
        recall = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(exact, found)])
        rows.append({"engine": f"hnsw, efSearch {ef_search}", "recall": recall, "milliseconds": milliseconds})
    table = pd.DataFrame(rows).assign(items=len(vectors), build_seconds=build_seconds)
    print(table.to_string(index=False, float_format="%.3f"), flush=True)
    return table.to_dict("records")


def grow(titles: np.ndarray, sizes: list[int]) -> pd.DataFrame:
    """Let one graph grow from size to size, measuring at each."""
    rng = np.random.default_rng(42)
    queries = mixtures(titles, NUM_QUERIES, rng)
    vectors = np.empty((max(sizes), titles.shape[1]), dtype=np.float32)
    known = min(len(titles), max(sizes))
    vectors[:known] = titles[:known]
    for row in range(known, len(vectors), BLOCK):
        vectors[row : row + BLOCK] = mixtures(titles, len(vectors[row : row + BLOCK]), rng)
    rows, graph, seconds, done = [], None, 0.0, 0
    for size in sorted(sizes):
        start = time.process_time()
        if graph is None:
            graph = build_graph(vectors[:size])
        else:
            graph.add(vectors[done:size])
        seconds, done = seconds + time.process_time() - start, size
        rows += measure(graph, seconds, vectors[:size], queries)
        write_atomically(RESULTS, partial(pd.DataFrame(rows).round(4).to_csv, index=False))
    return pd.DataFrame(rows)


def plot(table: pd.DataFrame) -> plt.Figure:
    """Time per query and recall, by catalog size."""
    plotting.use_style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5))
    for number, (engine, part) in enumerate(table.groupby("engine", sort=False)):
        style = {"color": plotting.COLORS[number], "marker": "o", "label": engine}
        left.plot(part["items"], part["milliseconds"], **style)
        right.plot(part["items"], part["recall"], **style)
    left.set(xscale="log", yscale="log", xlabel="items", ylabel="CPU milliseconds per query")
    right.set(xscale="log", xlabel="items", ylabel=f"share of the exact {K} hits found")
    left.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw-dir", help="the Amazon 2014 files; without it, the sample store's titles")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments = parser.parse_args()
    table = grow(title_vectors(arguments.raw_dir), arguments.sizes)
    figure = plotting.save(plot(table), PROJECT_ROOT / "figures/bench_retrieval.png")
    print("wrote", show(RESULTS), "and", show(figure))


if __name__ == "__main__":
    main()
