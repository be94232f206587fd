"""The recommender, with a writer that stands in for the language model."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from gloss_utils import prompts, recommender
from gloss_utils.paths import dataset_paths
from gloss_utils.recommender import COLUMNS, Recommender
from gloss_utils.retrieval import BM25Index

TITLES = ["rose soap", "rose cream", "mint soap", "mint cream", "lemon oil", "rose soap"]


def make(texts, max_items=10, policy="round_robin", prefix="B00000000"):
    """A recommender over six items, whose model always writes `texts` and reads `max_items` items."""
    asins = [f"{prefix}{row}" for row in range(len(TITLES))]
    catalog = pd.DataFrame({"asin": asins, "title": TITLES, "text": [prompts.item_text(t) for t in TITLES]})
    read = []

    def write(asked):
        read.extend(asked)
        return [(texts, [-float(place) for place in range(len(texts))]) for _ in asked]

    recommender = Recommender(
        catalog,
        BM25Index(catalog["text"]),
        write,
        lambda items: items[-max_items:],
        np.array([2, 0, 1, 3, 4, 5]),
        policy,
    )
    recommender.read = read
    return recommender


def test_asins_and_titles_and_the_text_that_found_each_item():
    table = make(["Title: mint cream", "Title: lemon oil"]).recommend(["B000000001", "mint soap"], k=3)
    assert table.columns.tolist() == COLUMNS
    assert table["rank"].tolist() == [1, 2, 3]
    assert table["title"].tolist()[:2] == ["mint cream", "lemon oil"]
    assert table["text"].tolist()[:2] == ["Title: mint cream", "Title: lemon oil"]
    assert table["score"].is_monotonic_decreasing


def test_the_prompt_holds_the_history_in_order():
    recommender = make(["Title: lemon oil"])
    recommender.recommend(["B000000003", "Title: Rose  Cream", "something else"], k=1)
    assert prompts.split_prompt(recommender.read[0])[1] == [
        "Title: mint cream",
        "Title: rose cream",
        "Title: something else",
    ]


def test_nothing_of_the_history_comes_back():
    """By title too: two items are called 'rose soap', and neither may return."""
    table = make(["Title: rose soap"]).recommend("Rose Soap", k=6)
    assert not set(table["asin"]) & {"B000000000", "B000000005"}


def test_unknown_asin_is_left_out_and_said(capsys):
    recommender = make(["Title: lemon oil"])
    table = recommender.recommend(["B0NOTTHERE", "mint soap"], k=1)
    assert "no item 'B0NOTTHERE' in the catalog" in capsys.readouterr().out
    assert table.attrs["notes"] and "NOTTHERE" not in recommender.read[0]


@pytest.mark.parametrize("entry", ["sku-17", "CHAMOMILES"])
def test_what_the_catalog_does_not_have_is_used_as_text_and_said(entry, capsys):
    """With ids of one's own, ten capital letters are a title and no unknown asin."""
    recommender = make(["Title: lemon oil"], prefix="sku-")
    table = recommender.recommend([entry, "sku-2"], k=1)
    assert table.attrs["notes"] == [f"no item '{entry}' in the catalog: used as text"]
    assert "used as text" in capsys.readouterr().out
    assert prompts.split_prompt(recommender.read[0])[1] == [f"Title: {entry}", "Title: mint soap"]


@pytest.mark.parametrize("history", [[], [" "], ["B0NOTTHERE"]])
def test_without_a_history_the_popular_items_come_and_it_is_said(history, capsys):
    table = make(["Title: lemon oil"]).recommend(history, k=2)
    assert table["title"].tolist() == ["mint soap", "rose soap"] and table["text"].tolist() == ["", ""]
    assert "the history is empty" in capsys.readouterr().out


def test_a_long_history_loses_its_oldest_items_and_it_is_said(capsys):
    recommender = make(["Title: lemon oil"], max_items=2)
    recommender.recommend(["rose soap", "mint soap", "rose cream", "mint cream"], k=1)
    assert prompts.split_prompt(recommender.read[0])[1] == ["Title: rose cream", "Title: mint cream"]
    assert "its oldest 2 items do not fit" in capsys.readouterr().out


def test_a_short_list_is_said(capsys):
    # Without "Title:", which every item's text shares, only one item has a word in common with the text.
    table = make(["lemon oil", ""]).recommend(["rose soap"], k=500)
    assert table["title"].tolist() == ["lemon oil"]
    assert "1 items instead of 500" in capsys.readouterr().out


def test_only_empty_texts_give_an_empty_table():
    table = make(["", ""]).recommend(["rose soap"], k=3)
    assert len(table) == 0 and table.columns.tolist() == COLUMNS


def test_a_misspelt_title_is_read_as_the_nearest_and_said(capsys):
    recommender = make(["Title: lemon oil"])
    table = recommender.recommend(["mint creem"], k=1)
    assert table.attrs["notes"] == ["no item 'mint creem' in the catalog: read as 'mint cream'"]
    assert "read as 'mint cream'" in capsys.readouterr().out
    assert prompts.split_prompt(recommender.read[0])[1] == ["Title: mint cream"]


@pytest.mark.parametrize("history", [None, 7, float("nan"), ["mint soap", None], [3]])
def test_what_is_no_text_is_refused_in_one_sentence(history):
    with pytest.raises(ValueError, match=r"^the history holds [^\n]+: give a list of asins or titles[^\n]+\Z"):
        make([""]).recommend(history)


@pytest.mark.parametrize("k", [0, -1, 2.5, "5", None, True, float("nan")])
def test_a_wrong_k_is_refused_in_one_sentence(k):
    with pytest.raises(ValueError, match=rf"^k is {k!r}: it must be a whole number from 1 up\Z"):
        make([""]).recommend(["rose soap"], k=k)
    assert len(make(["Title: mint soap"]).recommend(["rose soap"], k=np.int64(1))) == 1


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"policy": "best"}, "unknown policy 'best'"),
        ({"strategy": "beem5"}, "did you mean 'beam5'"),
        ({"model": "tiny-lama"}, "did you mean 'tiny-llama'"),
    ],
)
def test_an_unknown_name_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, names, words):
    """`tiny-lama` said that notebook 03 had to run."""
    there = SimpleNamespace(paths=dataset_paths("sample", tmp_path))
    monkeypatch.setattr(recommender, "load_prepared", lambda dataset, data_dir: there)
    with pytest.raises(ValueError, match=words):
        Recommender.load("sample", **names)
    with pytest.raises(ValueError, match="unknown policy 'robin'"):
        make([""], policy="robin")
