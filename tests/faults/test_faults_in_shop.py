"""Faults of what serves: histories, dates, new and removed items, a saved folder, and the page for class."""

import json
import math
import os
import shutil

import injected
import numpy as np
import pandas as pd
import pytest
from injected import Fault, cut, empty, refused, rows
from test_faults_in_models import gone, text

from gloss_utils import recommender
from gloss_utils.recommender import SYSTEMS, TRAINED, Recommender

NAN, INF = math.nan, math.inf
ROSE, MINT = "Rose Soap", "Mint Soap"
DAY = 1_400_000_000


def load(root, system="lis"):
    return Recommender.load(f"{root}/", system=system)


@pytest.fixture(scope="module")
def served_template(store_template, tmp_path_factory):
    """One recommender that only searches, one that sums signals; each saved into a folder."""
    root = injected.copy(store_template, tmp_path_factory.mktemp("served") / "store")
    for system in ("lis", "fused"):
        load(root, system).save(root / "saved" / system)
    return root


@pytest.fixture
def served(served_template, tmp_path):
    return injected.copy(served_template, tmp_path / "store")


def opened(root, system="fused"):
    return Recommender.open(root / "saved" / system)


def state(served_one):
    """All that a call might have harmed, and a list."""
    listed = served_one.recommend([ROSE], 3)
    return listed.to_csv(), served_one.catalog.to_csv(), list(served_one.removed)


def fault(what, call, sentence):
    return Fault(what, None, call, sentence)


def recommend(*histories, **options):
    return lambda r: r.recommend(*histories, **options)


def many(*histories, **options):
    return lambda r: r.recommend_many(*histories, **options)


def dated(*dates):
    return lambda r: r.recommend([ROSE, MINT], 3, dates=list(dates))


def added(**columns):
    return lambda r: r.add_items(pd.DataFrame(columns))


def removed(asins):
    return lambda r: r.remove_items(asins)


UNREADABLE = "of the dates cannot be read with certainty: use seconds or dates such as 2014-07-23$"
HISTORY = "give a list of asins or titles"


@rows(
    fault("no histories", many(None), rf"the history holds None: {HISTORY}"),
    fault("a number for histories", many(7), rf"the history holds 7: {HISTORY}"),
    fault("one title for histories", many(ROSE), "recommend_many takes a list of histories: put each into a list"),
    fault("one history for many", many([ROSE]), "recommend_many takes a list of histories: put each into a list"),
    fault("NaN in the second history", many([[ROSE], [NAN]]), rf"the history holds nan: {HISTORY}"),
    fault("nothing for a history", many([[ROSE], None]), rf"the history holds None: {HISTORY}"),
    fault("half a character", recommend(["\ud800 soap"]), r"the history holds '\\ud800 soap': give a list"),
    fault("k of 0", recommend([ROSE], k=0), "k is 0: it must be a whole number from 1 up"),
    fault("k of 0 for many", many([[ROSE]], k=0), "k is 0: it must be a whole number from 1 up"),
    fault("k in words", recommend([ROSE], k="3"), "k is '3': it must be a whole number from 1 up"),
    fault("half a k", recommend([ROSE], k=2.5), "k is 2.5: it must be a whole number"),
    fault("a date that is NaN", dated(NAN, DAY), f"timestamp nan in row 1 {UNREADABLE}"),
    fault("a date that is missing", dated(DAY, None), f"timestamp nan in row 2 {UNREADABLE}"),
    fault("a date that is NaT", dated(pd.NaT, pd.Timestamp("2014-05-13")), f"timestamp NaT in row 1 {UNREADABLE}"),
    fault("a date in words", dated("2014-05-13", "yesterday"), f"timestamp 'yesterday' in row 2 {UNREADABLE}"),
    fault("a date that may be two", dated("03.04.2014", "05.04.2014"), rf"'03\.04\.2014' in row 1 {UNREADABLE}"),
    fault("a date without dashes", dated(20140513, 20140514), f"timestamp 20140513 in row 1 {UNREADABLE}"),
    fault("an infinite date", dated(DAY, INF), f"timestamp inf in row 2 {UNREADABLE}"),
    fault("a date of 25 digits", dated(DAY, 10**24), f"timestamp 1.* in row 2 {UNREADABLE}"),
    fault("seconds and milliseconds", dated(DAY, DAY * 1000), f"timestamp {DAY} in row 1 {UNREADABLE}"),
    fault("seconds and a date", dated(DAY, "2014-05-13"), f"timestamp '2014-05-13' in row 2 {UNREADABLE}"),
    fault("dates that go back", dated("2014-05-14", "2014-05-13"), "the dates go back in time: give a history earl"),
    fault("a date too few", dated(DAY), "1 dates for 2 items: give each item of a history one"),
    fault("a date too many", dated(DAY, DAY, DAY), "3 dates for 2 items: give each item of a history one"),
    fault("no dates in the list", dated(), "0 dates for 2 items: give each item of a history one"),
    fault("a number for dates", recommend([ROSE, MINT], dates=7), "1 dates for 2 items"),
    fault("one list of dates for two", many([[ROSE], [MINT]], dates=[[DAY]]), "1 dates for 2 items"),
    fault("dates of another history", many([[ROSE], [MINT]], dates=[[DAY, DAY], []]), "2 dates for 2 items"),
    fault("a number for many dates", many([[ROSE], [MINT]], dates=7), "1 dates for 2 items"),
    fault("no dates for one of two", many([[ROSE], [MINT]], dates=[[DAY], None]), f"nan in row 2 {UNREADABLE}"),
    fault("no table of new items", lambda r: r.add_items(None), "table of new items has no column 'asin': it needs"),
    fault("a list of new items", lambda r: r.add_items(["x"]), "table of new items has no column 'asin': it needs"),
    fault("new items without titles", added(asin=["x"]), "no column 'title': it needs asin and title"),
    fault("new items without asins", added(title=["x"]), "no column 'asin': it needs asin and title"),
    fault("a new item twice", added(asin=["x", "x"], title=["a", "b"]), "new item 'x' is there twice: nothing was"),
    fault(
        "an item that is there", added(asin=["y", "i1"], title=["a", "b"]), "new item 'i1' is in the catalog already"
    ),
    fault("a new item without a title", added(asin=["x"], title=[NAN]), "'x' has no asin, or no title: nothing was"),
    fault("a new item with a blank title", added(asin=["x"], title=[" "]), "'x' has no asin, or no title: nothing"),
    fault("a new item without an asin", added(asin=[None], title=["a"]), "'' has no asin, or no title: nothing was"),
    fault("a number for a title", added(asin=["x"], title=[7]), "'x' has no asin, or no title: nothing was added"),
    fault(
        "half a character in a title", added(asin=["x"], title=["\udfff a"]), "'x' holds half a character: nothing"
    ),
    fault("an unknown item to remove", removed(["i3", "nope"]), "no item 'nope' in the catalog: nothing was removed"),
    fault("nothing to remove", removed(None), "no item 'None' in the catalog: nothing was removed"),
    fault("a number to remove", removed(7), "no item '7' in the catalog: nothing was removed"),
    fault("NaN to remove", removed([NAN]), "no item 'nan' in the catalog: nothing was removed"),
    fault("a list of lists to remove", removed([["i3"]]), r"no item '\['i3'\]' in the catalog: nothing was removed"),
)
def test_calls_of_a_recommender_that_are_refused(fault, served_template):
    """Some were a traceback; half a character left a catalog with more items than vectors."""
    for system in ("lis", "fused"):
        one = opened(served_template, system)
        right = state(one)
        refused(lambda one=one: fault.call(one), fault.sentence)
        assert state(one) == right, "the next call is as good as before"


@pytest.mark.parametrize(
    ("table", "more"),
    [
        ({"asin": [], "title": []}, 0),
        ({"asin": ["x"], "title": ["Rose Oil " * 20_000]}, 1),
        ({"asin": ["x"], "title": ["<script>alert(1)</script> Rose Oil"]}, 1),
        ({"asin": ["x"], "title": ["Rose 🌹\u200b Öl"]}, 1),
    ],
    ids=["none", "a huge title", "markup", "other alphabets"],
)
@pytest.mark.parametrize("system", ["lis", "fused"])
def test_odd_new_items_are_taken_and_saved(table, more, system, served):
    one = opened(served, system)
    one.add_items(pd.DataFrame(table))
    assert len(one.catalog) == 8 + more
    one.save(served / "saved" / "more")
    again = opened(served, "more")
    assert again.recommend([ROSE], 9).equals(one.recommend([ROSE], 9))


@pytest.mark.parametrize("system", ["lis", "fused", "most-popular"])
def test_a_shop_that_is_sold_out(system, served):
    one = load(served, system)
    one.remove_items(one.catalog["asin"])
    assert one.recommend([ROSE], 3).attrs["notes"] == ["the list is short: 0 items instead of 3"]
    assert len(one.recommend([], 3)) == 0 and len(one.recommend_many([[ROSE], []], 3)) == 0


def test_histories_without_an_end_or_a_list(served):
    """A generator of histories was used up by its own check: no rows, and no word about it."""
    one = opened(served)
    right = one.recommend_many([[ROSE], [MINT]], 3)
    assert one.recommend_many((history for history in ([ROSE], [MINT])), 3).equals(right)
    assert len(right) == 6 and len(one.recommend_many([], 3)) == 0
    assert len(one.recommend(["soap " * 20_000] + [ROSE] * 2000, 3)) == 3


def in_saved(name, change):
    return lambda root: change(root / "saved" / "fused" / name)


def change_about(**changes):
    def change(path):
        about = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in (about | changes).items() if value is not None}))

    return change


def swap_catalogs(root):
    """The catalog of another store in the folder."""
    other = injected.prepare(injected.write_tables(root / "other", *injected.own_tables(9, "x")))
    recommender.Recommender.load(f"{other.paths.root}/", system="lis").save(root / "saved" / "other")
    shutil.copy(root / "saved" / "other" / "catalog.parquet", root / "saved" / "fused")


def keep_only_about(root):
    for file in (root / "saved" / "fused").iterdir():
        if file.name != "recommender.json":
            file.unlink()


AGAIN = r"\): save the recommender again$"
CATALOG = rf"fused is damaged or no such file \(catalog\.parquet is cut, or of another catalog{AGAIN}"
ALTERED = rf"fused is damaged or no such file \(recommender\.json was altered{AGAIN}"


@rows(
    *(
        Fault(f"{name} {how}", in_saved(name, damage), opened, rf"\({name}.*{AGAIN}")
        for name in ("catalog.parquet", "purchases.parquet", "vectors.npy")
        for how, damage in (("cut", cut), ("empty", empty), ("gone", gone), ("of text", text("none")))
    ),
    Fault("recommender.json cut", in_saved("recommender.json", cut), opened, AGAIN),
    Fault("recommender.json empty", in_saved("recommender.json", empty), opened, AGAIN),
    Fault("recommender.json gone", in_saved("recommender.json", gone), opened, r"\(recommender\.json: No such file"),
    Fault("recommender.json of a list", in_saved("recommender.json", text("[1]")), opened, AGAIN),
    Fault("recommender.json without keys", in_saved("recommender.json", text("{}")), opened, f"it has no .*{AGAIN}"),
    Fault("no settings", in_saved("recommender.json", change_about(settings=None)), opened, ALTERED),
    Fault("no weights", in_saved("recommender.json", change_about(weights=None)), opened, ALTERED),
    Fault("no list of files", in_saved("recommender.json", change_about(files={})), opened, ALTERED),
    Fault("other weights", in_saved("recommender.json", change_about(weights={"text": 2.0})), opened, ALTERED),
    Fault("another catalog", swap_catalogs, opened, CATALOG),
    Fault("all but one file gone", keep_only_about, opened, AGAIN),
    Fault("a folder that is not there", lambda root: shutil.rmtree(root / "saved" / "fused"), opened, "fused is dam"),
    Fault("a folder of something else", lambda root: None, lambda root: Recommender.open(root / "raw"), "raw is dam"),
    Fault(
        "a save over something else",
        lambda root: None,
        lambda root: opened(root).save(root / "raw"),
        "raw is there and holds no recommender: save into a folder of its own",
    ),
    Fault(
        "a save over a file",
        lambda root: None,
        lambda root: opened(root).save(root / "raw" / "items.csv"),
        "is there and holds no recommender: save into a folder of its own",
    ),
    Fault(
        "an unknown system",
        lambda root: None,
        lambda root: load(root, "fussed"),
        "unknown system 'fussed': did you mean 'fused'",
    ),
    Fault("no system", lambda root: None, lambda root: load(root, None), "unknown system 'None': Known: fused"),
    Fault(
        "a system whose model is not there",
        lambda root: None,
        lambda root: load(root, "texts"),
        r"no adapter for 'store' .*run notebook 03 with DATASET=store",
    ),
)
def test_folders_that_are_refused(fault, served, served_template):
    right = opened(served).recommend([ROSE], 5)
    fault.inject(served)
    refused(lambda: fault.call(served), fault.sentence, served)
    shutil.rmtree(served / "saved" / "fused", ignore_errors=True)
    load(served, "fused").save(served / "saved" / "fused")
    assert opened(served).recommend([ROSE], 5).equals(right)


def dies_in(call, module, name):
    """Run `call` in a process that dies when it comes to `module.name`, without a chance to tidy up."""
    pid = os.fork()
    if pid == 0:
        setattr(module, name, lambda *args, **options: os._exit(9))
        call()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.parametrize(
    ("module", "name"),
    [(pd.DataFrame, "to_parquet"), (np, "save"), (json, "dumps"), (os, "replace")],
    ids=["at the first file", "between the files", "before the last file", "before it is in place"],
)
def test_a_kill_while_a_recommender_is_saved(module, name, served):
    """The old folder or none, never half of one; the next save is right."""
    one = opened(served)
    right = one.recommend([ROSE], 5)
    one.add_items(pd.DataFrame({"asin": ["x"], "title": ["Rose Oil"]}))
    folder = served / "saved" / "fused"
    dies_in(lambda: one.save(folder), module, name)
    if folder.exists():
        assert opened(served).recommend([ROSE], 5).equals(right)
    else:
        refused(lambda: opened(served), "fused is damaged or no such file .*save the recommender again")
    one.save(folder)
    assert opened(served).recommend([ROSE], 9)["asin"].tolist() == one.recommend([ROSE], 9)["asin"].tolist()


EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def page(served):
    """The page for class, of a store with markup in its titles."""
    from fastapi.testclient import TestClient

    from tools import shop

    interactions, items = injected.own_tables()
    injected.prepare(injected.write_tables(served, interactions, items.assign(title=EVIL + items["title"])))
    client = TestClient(shop.make_app(f"{served}/"), base_url="http://127.0.0.1")
    return lambda **query: client.get("/", params=query)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({}, "alert"),
        ({"titles": EVIL}, "&lt;script&gt;"),
        ({"titles": "soap " * 10_000}, "<h2>lis</h2>"),
        ({"titles": "\x00"}, "<h2>lis</h2>"),
        ({"user": EVIL}, "<h2>lis</h2>"),
        ({"user": "nobody"}, "<h2>lis</h2>"),
        ({"left": EVIL}, "unknown system &#39;&lt;script&gt;"),
        ({"left": "fussed"}, "did you mean &#39;fused&#39;"),
        ({"left": ""}, "unknown system &#39;&#39;"),
        ({"left": "texts"}, "run notebook 03 with DATASET=store"),
        ({"titles": "Rose\r\n\r\n  \r\nMint", "right": "most-popular"}, "<h2>most-popular</h2>"),
    ],
    ids=lambda value: next(iter(value.items()), ("nothing",))[0] if isinstance(value, dict) else "",
)
def test_questions_to_the_page_for_class(query, sentence, page):
    """Titles, names and notes stay text, and no question is answered by a traceback."""
    query = {"right": "most-popular", **query} if query else {"left": "lis", "right": "most-popular"}
    answer = page(**query)
    assert answer.status_code == 200 and sentence in answer.text
    assert "<script" not in answer.text and "<img" not in answer.text and "Traceback" not in answer.text


def test_every_system_says_what_it_lacks(served):
    """A store where nothing is trained: four systems serve it, the others name their notebook."""
    said = {}
    for system in SYSTEMS:
        try:
            said[system] = len(load(served, system).recommend([ROSE], 3))
        except FileNotFoundError as error:
            said[system] = str(error).split(": ")[1][:15]
    expected = dict.fromkeys(("most-popular", "lis", "star", "star + transitions", "fused"), 3)
    expected |= dict.fromkeys(("texts", "fused + texts"), "run notebook 03")
    assert said == expected | dict.fromkeys(TRAINED, "run notebook 07")
