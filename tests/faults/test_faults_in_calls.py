"""Parameters out of range, misspelt names, and calls of the library with what they cannot use."""

import functools
import math

import injected
import numpy as np
import pandas as pd
import pytest
from injected import Fault, refused, rows

from gloss_utils import baselines, dense, fusion, metrics, paths, plotting, prompts, splits
from gloss_utils.metrics import System
from gloss_utils.ranking import rank_items
from gloss_utils.recommender import Recommender
from gloss_utils.retrieval import BM25Index, Hits

TEXTS = [prompts.item_text(title) for title in injected.TITLES]
NAN, INF = math.nan, math.inf


@functools.cache
def index() -> BM25Index:
    return BM25Index(TEXTS)


def search(queries=("rose",), k=3):
    return lambda _: index().search(queries, k)


def rank(**changes):
    hits = Hits(np.array([[0, 1], [2, -1]]), np.array([[2.0, 1.0], [3.0, -np.inf]]))
    given = {"hits": hits, "queries_per_user": 2, "k": 3} | changes
    return lambda _: rank_items(given.pop("hits"), **given) if "hits" in given else None


def score(ranked=((0, 1),), targets=(1,), ks=(1,)):
    return lambda _: metrics.evaluate(np.array(ranked), np.array(targets), ks)


@functools.cache
def recommender() -> Recommender:
    catalog = pd.DataFrame({"asin": [f"B00000000{row}" for row in range(8)], "title": injected.TITLES, "text": TEXTS})
    return Recommender(
        catalog, index(), lambda prompts: [(TEXTS[2:4], [-1.0, -2.0])], lambda items: items, np.arange(8)
    )


def recommend(history=("Rose Soap",), k=3):
    return lambda _: recommender().recommend(history, k)


def load(**names):
    return lambda root: Recommender.load(**({"dataset": f"{root}/"} | names))


def as_dataset(name):
    return lambda root: splits.load_prepared(name, root.parent)


WHOLE = r"it must be a whole number from 1 (up|to 1,000,000)$"


def fault(what, call, sentence):
    return Fault(what, None, call, sentence)


@rows(
    fault("k of 0", search(k=0), f"^k is 0: {WHOLE}"),
    fault("k below 0", search(k=-1), f"^k is -1: {WHOLE}"),
    fault("k in words", search(k="five"), f"^k is 'five': {WHOLE}"),
    fault("no k", search(k=None), f"^k is None: {WHOLE}"),
    fault("half a k", search(k=2.5), f"^k is 2.5: {WHOLE}"),
    fault("k that is NaN", search(k=NAN), f"^k is nan: {WHOLE}"),
    fault("k that is a yes", search(k=True), f"^k is True: {WHOLE}"),
    fault("a huge k", search(k=10**12), f"^k is 1000000000000: {WHOLE}"),
    fault("one string for queries", search("rose"), r"queries is 'rose', .* give a list, such as \[query\]"),
    fault("no queries", search(None), "queries is 'None', which is one string or none: give a list"),
    fault("a number for queries", search(7), "queries is '7'.* give a list"),
    fault("a number among queries", search(["rose", 7]), r"queries\[1\] is 7: give texts only"),
    fault("nothing among queries", search([None]), r"queries\[0\] is None: give texts only"),
    fault("NaN among queries", search(["a", NAN]), r"queries\[1\] is nan: give texts only"),
    fault("an empty catalog", lambda _: BM25Index([]), "the catalog is empty: an index needs at least one text"),
    fault("one string for a catalog", lambda _: BM25Index("rose"), "the catalog is 'rose', .*give a list"),
    fault("no catalog", lambda _: BM25Index(None), "the catalog is 'None'.* give a list"),
    fault("a catalog with a gap", lambda _: BM25Index(["a", NAN]), r"the catalog\[1\] is nan: give texts only"),
    fault(
        "an unknown retriever", lambda _: dense.build_index("bm52", TEXTS), "unknown retriever 'bm52': did you mean"
    ),
    fault(
        "an unknown encoder",
        lambda _: dense.load_encoder("minilmm", "float32"),
        "unknown encoder 'minilmm': did you mean 'minilm'",
    ),
    fault("an unknown policy", rank(policy="scor"), "unknown policy 'scor': did you mean 'score'"),
    fault("a number for a policy", rank(policy=3), "unknown policy '3': Known: beam_order"),
    fault("a list of no items", rank(k=0), f"^k is 0: {WHOLE}"),
    fault("a list beyond memory", rank(k=10**10), f"^k is 10000000000: {WHOLE}"),
    fault("no texts per user", rank(queries_per_user=0), "queries_per_user is 0: it must be a whole number from 1"),
    fault("texts that do not divide", rank(queries_per_user=3), "2 queries cannot be split into 3 per user"),
    fault("a weight that is NaN", rank(weight=NAN), "weight is nan: it must be a number from 0 to 1"),
    fault("a weight of 2", rank(weight=2), "weight is 2: it must be a number from 0 to 1"),
    fault("a weight in words", rank(weight="all"), "weight is 'all': it must be a number from 0 to 1"),
    fault(
        "an infinite likelihood",
        rank(policy="calrec", query_scores=[INF, 0]),
        "one log-probability per text, none of them inf",
    ),
    fault(
        "too few likelihoods", rank(query_scores=[0.0]), "1 query_scores for 2 queries: one log-probability per text"
    ),
    fault(
        "CALRec without likelihoods",
        rank(policy="calrec"),
        r"'calrec' needs query_scores: take a queries file .*notebook 04",
    ),
    fault("unseen without seen", rank(policy="unseen"), "policy 'unseen' needs seen: pass each user's item numbers"),
    fault(
        "hits that are NaN",
        rank(hits=Hits(np.array([[0], [1]]), np.array([[NAN], [1.0]]))),
        "hits are not item numbers with finite scores",
    ),
    fault(
        "hits that are infinite",
        rank(hits=Hits(np.array([[0], [1]]), np.array([[INF], [1.0]]))),
        "not item numbers with finite scores",
    ),
    fault(
        "hits that are floats",
        rank(hits=Hits(np.array([[0.0], [1.0]]), np.ones((2, 1)))),
        "hits are not item numbers",
    ),
    fault("seen of other users", rank(seen=[np.array([0])] * 3), "seen has 3 users, the hits have 1"),
    fault(
        "seen below -1",
        rank(seen=[np.array([-2])]),
        "seen holds something else than item numbers: give integers from 0, or -1",
    ),
    fault("seen of asins", rank(seen=[np.array(["B1"])]), "seen holds something else than item numbers"),
    fault("seen of floats", rank(seen=[np.array([1.5])]), "seen holds something else than item numbers"),
    fault(
        "seen beyond the catalog",
        lambda _: baselines.hide_seen(np.zeros((1, 3)), [np.array([7])]),
        "an item of seen is 7: it must be a whole number from 0 to 2",
    ),
    fault(
        "targets in words",
        score(targets=("B1",)),
        r"targets must be item numbers \(int\): got <U2, see `prepared.item_numbers`",
    ),
    fault("items that are floats", score(ranked=((0.0, 1.0),)), r"ranked must be item numbers \(int\): got float64"),
    fault("too few targets", score(targets=()), r"ranked must be \[num_users, k\]: got \(1, 2\) for 0 targets"),
    fault("a flat list", score(ranked=(0, 1)), r"ranked must be \[num_users, k\]: got \(2,\)"),
    fault("a cutoff of 0", score(ks=(0,)), "a cutoff of ks is 0: it must be a whole number from 1 up"),
    fault("a cutoff in words", score(ks=("5",)), "a cutoff of ks is '5': it must be a whole number"),
    fault(
        "nobody to summarize", lambda _: metrics.summarize(metrics.score_ranks([])), "there are no users to summarize"
    ),
    fault(
        "pairs of other users",
        lambda _: metrics.compare(metrics.score_ranks([1, 2]), metrics.score_ranks([1])),
        "2 users against 1: a paired comparison needs the same users",
    ),
    fault(
        "weights of 0",
        lambda _: fusion.WeightedSum({"text": None}, {"text": 0}),
        "every weight is zero: give at least one signal",
    ),
    fault(
        "a signal's weight NaN",
        lambda _: fusion.WeightedSum({"text": None}, {"text": NAN}),
        "the weight of 'text' is nan: it must be a number",
    ),
    fault(
        "a signal's weight infinite",
        lambda _: fusion.WeightedSum({"text": None}, {"text": INF}),
        "the weight of 'text' is inf",
    ),
    fault(
        "an unknown signal",
        lambda _: fusion.fit_signals([], np.zeros((2, 2)), ["txt"]),
        "unknown signal 'txt': did you mean 'text'",
    ),
    fault(
        "thresholds upside down",
        lambda _: metrics.assign_segments(np.array([3]), (9, 5)),
        r"thresholds \(9, 5\): the first must be the smaller",
    ),
    fault(
        "no history", recommend(None), "the history holds None: give a list of asins or titles, .* for a new visitor"
    ),
    fault("a number for a history", recommend(7), "the history holds 7: give a list of asins or titles"),
    fault("NaN in a history", recommend(["Rose Soap", NAN]), "the history holds nan"),
    fault("bytes in a history", recommend([b"Rose"]), "the history holds b'Rose'"),
    fault("a recommendation of 0", recommend(k=0), "^k is 0: it must be a whole number from 1 up$"),
    fault("recommendations in words", recommend(k="3"), "^k is '3': it must be a whole number from 1 up$"),
    fault(
        "an empty prompt",
        lambda _: prompts.build_prompt([]),
        "a prompt needs at least one item: this history is empty",
    ),
)
def test_calls_that_are_refused(fault):
    """Many of these gave a traceback, an answer for another user, or NaN, and no word about it."""
    refused(lambda: fault.call(None), fault.sentence)
    assert recommend()(None)["title"].tolist() == ["Mint Soap", "Mint Cream", "Rose Cream"], (
        "the next call is as good as before"
    )


@rows(
    fault("a misspelt dataset", as_dataset("sampel"), r"unknown DATASET 'sampel': did you mean 'sample'\?"),
    fault(
        "a name with a blank",
        as_dataset("my shop"),
        r"unknown DATASET 'my shop': .*a directory of your own has a slash: \./my shop",
    ),
    fault(
        "the folder above",
        as_dataset(".."),
        r"unknown DATASET '\.\.': give a name, or a directory of its own such as \./my_store",
    ),
    fault("this folder", as_dataset("."), r"unknown DATASET '\.': give a name"),
    fault(
        "the folder above, with a slash", as_dataset("../"), r"unknown DATASET '\.\./': give a name, or a directory"
    ),
    fault("the project itself", as_dataset("./"), r"unknown DATASET '\./': give a name, or a directory"),
    fault("the root", as_dataset("/"), "unknown DATASET '/': give a name, or a directory"),
    fault("no name", as_dataset(""), "unknown DATASET '': give a name"),
    fault("nothing for a name", as_dataset(None), "unknown DATASET 'None': .*Known: beauty"),
    fault("a number for a name", as_dataset(3), "unknown DATASET '3': .*Known: beauty"),
    fault(
        "a known one that is not there",
        as_dataset("beauty"),
        "no interactions for 'beauty' .*run notebook 01 with DATASET=beauty",
    ),
    fault(
        "a directory that is not there", as_dataset("./nowhere"), "no interactions for 'nowhere' .*run notebook 01"
    ),
    fault("an unknown policy", load(policy="scor"), "unknown policy 'scor': did you mean 'score'"),
    fault(
        "no retriever of that name",
        lambda root: dense.build_index("bm 25", splits.load_prepared(f"{root}/").catalog["text"]),
        "unknown retriever 'bm 25': did you mean 'bm25'",
    ),
    fault(
        "metrics that are not there",
        lambda root: metrics.load_metrics(splits.load_prepared(f"{root}/"), "test", System("lis")),
        r"no metrics for 'store' .*: run notebook 05 with DATASET=store",
    ),
    fault(
        "results that are not there",
        lambda root: metrics.load_results(splits.load_prepared(f"{root}/")),
        "no results for 'store' .*: run notebook 02",
    ),
    fault(
        "a user who is not there",
        lambda root: splits.load_task(splits.load_prepared(f"{root}/")).subset(["u99"]),
        "reviewer 'u99' is not in this task of 12 users",
    ),
    fault(
        "users below zero",
        lambda root: splits.sample_users(splits.load_task(splits.load_prepared(f"{root}/")), -5),
        "max_users is -5: it must be a whole number from 0",
    ),
    fault(
        "half a user",
        lambda root: splits.sample_users(splits.load_task(splits.load_prepared(f"{root}/")), 0.5),
        "max_users is 0.5: it must be a whole number",
    ),
    fault(
        "a user without interactions",
        lambda root: metrics.history_lengths(splits.load_prepared(f"{root}/"), ["u99"]),
        "user 'u99' has no interactions in 'store'",
    ),
)
def test_names_that_are_refused(fault, store):
    refused(lambda: fault.call(store), fault.sentence, store.parent)


@pytest.mark.parametrize("injected_cell", ["NUM_BEAM = 3", "num_beams = 3", "NUM_BEAMS_ = 3"])
def test_a_parameter_that_a_notebook_does_not_have(injected_cell):
    """Plain papermill only warned, and ran on with the default."""
    name = injected_cell.split()[0]
    notebook = {"In": ["", "# Parameters\n" + injected_cell], "__annotations__": {"NUM_BEAMS": int, "SEED": int}}
    near = "" if name.islower() else "did you mean 'NUM_BEAMS'"
    refused(lambda: paths.check_parameters(notebook), f"unknown parameter '{name}': {near}.*Known: NUM_BEAMS, SEED")


# Results


def results_of_prepared(prepared):
    task = splits.load_task(prepared)
    for model in ("random", "lis"):
        metrics.save_results(prepared, "test", System(model), np.tile(np.arange(5), (12, 1)), None, task, ks=(5,))
    return prepared


def results_of(root):
    return results_of_prepared(splits.load_prepared(f"{root}/"))


def drop_header(path):
    path.write_text(path.read_text().split("\n", 1)[1])


def drop_column(path, name):
    pd.read_csv(path).drop(columns=name).to_csv(path, index=False)


LIS = System("lis")


@rows(
    Fault(
        "results empty",
        lambda p: injected.empty(p.paths.results),
        metrics.load_results,
        r"results\.csv is damaged .*: delete it and run notebook 02",
    ),
    Fault(
        "results of bytes",
        lambda p: p.paths.results.write_bytes(b"\x93NUMPY\xff"),
        metrics.load_results,
        r"results\.csv is damaged",
    ),
    Fault(
        "results of bytes, and a row to add",
        lambda p: p.paths.results.write_bytes(b"\xff\n"),
        lambda p: metrics.upsert_rows(p.paths.results, pd.DataFrame({"model": ["x"]}), ["model"]),
        r"results\.csv is damaged .*: delete it and run notebooks 02",
    ),
    Fault(
        "results without their header",
        lambda p: drop_header(p.paths.results),
        metrics.load_results,
        r"results\.csv is damaged .*it has no 'dataset'\): delete it and run notebook 02 with",
    ),
    Fault(
        "results without a column, and rows to add",
        lambda p: drop_column(p.paths.results, "policy"),
        results_of_prepared,
        r"results\.csv is damaged .*it has no 'policy'\): delete it and run notebooks 02, 05 and 07",
    ),
    Fault(
        "metrics cut",
        lambda p: injected.cut(p.paths.metrics("test", LIS.name)),
        lambda p: metrics.load_metrics(p, "test", LIS),
        r"lis__none__none__none\.parquet is damaged .*: delete it and run notebook 05 with DATASET=store",
    ),
    Fault(
        "metrics empty",
        lambda p: injected.empty(p.paths.metrics("test", LIS.name)),
        lambda p: metrics.load_metrics(p, "test", LIS),
        r"lis__none__none__none\.parquet is damaged",
    ),
)
def test_results_that_are_refused(fault, store):
    prepared = results_of(store)
    right = injected.files(store)
    fault.inject(prepared)
    refused(lambda: fault.call(prepared), fault.sentence, store)
    prepared.paths.results.unlink()
    results_of(store)
    assert injected.files(store).keys() == right.keys() and metrics.load_results(prepared)["model"].nunique() == 2


@pytest.mark.parametrize("left", [0, 0.05, 0.3, 0.5, 0.7, 0.9])
def test_a_cut_results_file_is_made_whole(left, store):
    """Half a line stayed for good, and its notebook counted as up to date."""
    prepared = results_of(store)
    right = prepared.paths.results.read_text()
    prepared.paths.results.write_text(right[: int(left * len(right))])
    results_of(store)
    assert prepared.paths.results.read_text() == right


@pytest.mark.parametrize("damage", [injected.cut, injected.empty, lambda path: path.write_text("vectors")])
def test_a_damaged_cache_of_vectors_is_made_again(damage, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(dense, "fast_dtype", lambda: "float32")
    monkeypatch.setattr(
        dense, "_encode_distinct", lambda texts, *_: made.append(1) or np.eye(len(texts), dtype=np.float32)
    )
    right = dense.encode(TEXTS, cache_dir=tmp_path)
    (cached,) = tmp_path.iterdir()
    whole = cached.read_bytes()
    damage(cached)
    assert (dense.encode(TEXTS, cache_dir=tmp_path) == right).all() and cached.read_bytes() == whole
    dense.encode(TEXTS, cache_dir=tmp_path)
    assert len(made) == 2


# What is odd, but right


def test_a_query_of_100_000_characters():
    long = "rose " * 20_000
    assert index().search([long], 2).items.tolist() == index().search(["rose"], 2).items.tolist()
    assert index().search(["x" * 100_000], 2).items.tolist() == [[-1, -1]]
    assert len(recommend([long], 3)(None)) == 3


def test_k_beyond_the_catalog(capsys):
    assert len(recommend(k=10**9)(None)) == 7
    assert "7 items instead of 1000000000" in capsys.readouterr().out


EVIL = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</td></table><h1>",
    "&lt;b&gt;",
    "${7*7}{{7*7}}",
    "\x1b[31m",
]


@pytest.mark.parametrize("title", EVIL)
def test_markup_in_a_title_is_text_in_every_table(title, tmp_path):
    """A <script> in a title lived on in the page of chapter 04."""
    _, items = injected.own_tables()
    items.loc[0, "title"] = title
    made = injected.prepare(injected.write_tables(tmp_path / "s", items=items))
    shown = plotting.table(made.catalog, rows=0)._repr_html_() + plotting.table(pd.Series({title: 1}))._repr_html_()
    assert not {"<script", "<img", "<h1"} & set(injected.re.findall(r"<\w+", shown)), shown
