"""retriv, the paper's library, called plainly: what our indexes must find too."""

import tempfile

import bm25s

from gloss_utils.dense import minilm_directory


def sparse_run(texts: list[str], queries: list[str], k: int) -> list[dict[int, float]]:
    """BM25 by retriv on the words that BM25Index uses; scores without the classic formula's factor k1 + 1."""
    from retriv import SparseRetriever

    words = bm25s.tokenize(texts + queries, stopwords="english", return_ids=False, show_progress=False)
    words = [" ".join(text) for text in words]
    # Stop words are gone already (retriv's default would download NLTK's list), and words stay as they are.
    off = dict.fromkeys(("do_special_chars_normalization", "do_punctuation_removal"), False)
    retriever = SparseRetriever(stemmer=None, stopwords=[], hyperparams={"k1": 1.5, "b": 0.75}, **off)
    found = _search(retriever, words[: len(texts)], words[len(texts) :], k)
    return [{item: score / 2.5 for item, score in run.items()} for run in found]


def dense_run(texts: list[str], queries: list[str], k: int) -> list[dict[int, float]]:
    """Cosine search by retriv: fp32, exact (its approximate path fails under numpy 2)."""
    from retriv import DenseRetriever

    return _search(DenseRetriever(model=str(minilm_directory()), normalize=True, use_ann=False), texts, queries, k)


def merged_run(runs: list[list[dict[int, float]]], k: int) -> list[dict[int, float]]:
    """retriv's merger: min-max scaled per query, then added."""
    from retriv import Merger

    merged = Merger().mfuse([{str(query): run for query, run in enumerate(side)} for side in runs], cutoff=k)
    return [merged.get(str(query), {}) for query in range(len(runs[0]))]


def _search(retriever, texts: list[str], queries: list[str], k: int) -> list[dict[int, float]]:
    import retriv

    with tempfile.TemporaryDirectory() as folder:
        retriv.set_base_path(folder)  # after the import, which overwrites it
        retriever.index([{"id": str(number), "text": text} for number, text in enumerate(texts)], show_progress=False)
        found = [retriever.search(query, return_docs=False, cutoff=k) if query.strip() else {} for query in queries]
    return [{int(item): float(score) for item, score in run.items()} for run in found]


RUNS = {"bm25": sparse_run, "dense": dense_run}
