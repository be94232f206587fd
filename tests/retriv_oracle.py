"""retriv's retrievers, the paper's library, behind our search call: slower, and must agree with ours.

retriv sorts equal scores in no fixed order, so every search asks it for the whole catalog's scores and
orders them here. Its files go into a temporary directory that lives as long as the index.
"""

import tempfile
from collections.abc import Callable, Sequence

import numpy as np

from gloss_utils.dense import ENCODERS, minilm_directory
from gloss_utils.retrieval import BM25Index, Hits, no_hits

QUERIES_AT_ONCE = 256  # a run is a dictionary of the whole catalog per query


class _Retriv:
    """A retriv retriever over one catalog."""

    def __init__(self, texts: Sequence[str]):
        import retriv

        self.num_items = len(texts)
        self._folder = tempfile.TemporaryDirectory(prefix="retriv-")
        retriv.set_base_path(self._folder.name)  # after the import, which overwrites it
        # ids sort as strings in retriv, so they are padded to sort as numbers
        collection = [{"id": f"{number:09d}", "text": text} for number, text in enumerate(texts)]
        self.retriever = self._build()
        self.retriever.index(collection, show_progress=False)

    def _build(self):
        raise NotImplementedError

    def _run(self, queries: list[dict]) -> dict[str, dict[str, float]]:
        return self.retriever.msearch(queries, cutoff=self.num_items)

    def search(self, queries: Sequence[str], k: int) -> Hits:
        """As `Index.search`."""
        hits = no_hits(len(queries), k)
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            batch = queries[start : start + QUERIES_AT_ONCE]
            run = self._run([{"id": str(start + row), "text": text} for row, text in enumerate(batch)])
            for query, found in run.items():
                items = np.array([int(item) for item in found], dtype=np.int64)
                scores = np.array(list(found.values()), dtype=np.float32)
                best = np.lexsort((items, -scores))[:k]
                hits.items[int(query), : len(best)] = items[best]
                hits.scores[int(query), : len(best)] = self._rescale(scores[best])
        return hits

    def _rescale(self, scores: np.ndarray) -> np.ndarray:
        return scores


class RetrivSparse(_Retriv):
    """BM25 by retriv, on the same words as ours.

    Args:
        texts: the catalog.
        words: turns a text into the words to index.
        k1, b: BM25's parameters.
    """

    def __init__(self, texts: Sequence[str], words: Callable[[str], list[str]], k1: float, b: float):
        self.words, self.k1, self.b = words, k1, b
        super().__init__(texts)

    def _build(self):
        return build_sparse(self.words, self.k1, self.b)

    def _rescale(self, scores: np.ndarray) -> np.ndarray:
        return scores / (self.k1 + 1)  # the classic formula's constant factor; Lucene dropped it


def build_sparse(words: Callable[[str], list[str]], k1: float, b: float):
    """Make a SparseRetriever that splits texts as we do and downloads nothing."""
    from retriv import SparseRetriever

    class Sparse(SparseRetriever):
        def save(self) -> None:
            """Keep the index in memory: its file would pickle our tokenizer."""

    off = dict.fromkeys(
        [
            "do_lowercasing",
            "do_ampersand_normalization",
            "do_special_chars_normalization",
            "do_acronyms_normalization",
            "do_punctuation_removal",
        ],
        False,
    )
    return Sparse(tokenizer=words, stemmer=None, stopwords=[], hyperparams={"k1": k1, "b": b}, **off)


class RetrivDense(_Retriv):
    """Cosine search by retriv: fp32, no approximation (its ANN path fails under numpy 2)."""

    def __init__(self, texts: Sequence[str], encoder: str):
        self.model = str(minilm_directory()) if encoder == "minilm" else ENCODERS.get(encoder, encoder)
        super().__init__(texts)

    def _build(self):
        from retriv import DenseRetriever

        return DenseRetriever(model=self.model, normalize=True, use_ann=False)


class RetrivHybrid:
    """retriv's merger over its sparse and dense hits: min-max scaled, then added.

    The parts are built one by one, because `HybridRetriever` passes no tokenizer on to its sparse side.
    """

    def __init__(self, texts: Sequence[str], encoder: str, depth: int):
        self.sides = [BM25Index(texts, engine="retriv").retriv, RetrivDense(texts, encoder)]
        self.depth = depth

    def search(self, queries: Sequence[str], k: int) -> Hits:
        """As `Index.search`."""
        from retriv import Merger

        runs = []
        for side in self.sides:
            found = side.search(queries, min(self.depth, side.num_items))
            pairs = [zip(items[items >= 0].tolist(), row.tolist()) for items, row in zip(*found)]
            runs.append({str(query): dict(pair) for query, pair in enumerate(pairs)})
        hits = no_hits(len(queries), k)
        for query, fused in Merger().mfuse(runs, cutoff=k).items():
            hits.items[int(query), : len(fused)] = list(fused)
            hits.scores[int(query), : len(fused)] = list(fused.values())
        return hits
