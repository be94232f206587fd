"""The recommender, with a writer that stands in for the language model."""

from types import SimpleNamespace

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
import torch

from gloss_utils import baselines, fusion, prompts, rankers, recommender, splits
from gloss_utils.dense import encode
from gloss_utils.paths import dataset_paths
from gloss_utils.recommender import ABOUT, CATALOG, COLUMNS, SYSTEMS, VECTORS, Recommender
from gloss_utils.retrieval import BM25Index, Hits

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


COUNTED = [system for system in SYSTEMS if "texts" not in system]


@pytest.fixture(scope="module")
def store(prepared):
    """The sample store's test users: their histories as asins, and when they bought."""
    task, days = splits.load_task(prepared), splits.purchase_days(prepared)
    asins = prepared.catalog["asin"].to_numpy()
    histories = [asins[items].tolist() for items in task.seen_items]
    dates = [days[str(user)][: len(items)] * 86_400 for user, items in zip(task.reviewer_ids, histories)]
    return SimpleNamespace(prepared=prepared, task=task, days=days, histories=histories, dates=dates)


@pytest.fixture(scope="module")
def trained(prepared):
    """What notebook 07 leaves, without its minutes: SASRec untrained, trees of sixty users, weights by hand."""
    vectors = encode(prepared.catalog["text"].tolist(), cache_dir=prepared.paths.cache)
    torch.manual_seed(1)
    sasrec = rankers.SASRecSignal(rankers.SASRec(len(vectors), vectors))
    names = [*fusion.FUSION, "sasrec"]
    weights = {name: 0.1 + 0.05 * place for place, name in enumerate(names)}
    short, held_out = fusion.extend_validation(prepared)
    days = splits.purchase_days(prepared)
    signals = fusion.fit_signals(short, vectors, [name for name in names if name != "sasrec"], days)
    table = fusion.gather_candidates({name: {**signals, "sasrec": sasrec}[name] for name in names}, held_out)
    rows = np.diff([*table.starts, len(table.features)])
    columns = rankers.describe(np.repeat(table.users, rows), table.features, np.ones(len(table.features)))
    bought = np.isin(np.arange(len(columns)), table.bought).astype(int)
    options = {"objective": "lambdarank", "verbose": -1, "deterministic": True, "force_row_wise": True, "seed": 1}
    trees = lgb.train(options, lgb.Dataset(columns, bought, group=rows), 5)
    of_systems = {"sasrec": {"sasrec": 1.0}, "fused + sasrec": weights, "learned ranking": weights}
    rankers.save(prepared, sasrec, trees, of_systems, "minilm")
    return rankers.load(prepared, "minilm")


@pytest.fixture(scope="module")
def served(prepared, trained):
    """Every system without a language model."""
    data_dir = prepared.paths.root.parent
    return {system: Recommender.load("sample", system=system, data_dir=data_dir) for system in COUNTED}


@pytest.fixture
def fused(served):
    """One of its own, for a test that changes it."""
    return recommender.replace(served["fused"])


def notebook_ranks(store, system: str) -> np.ndarray:
    """The lists of ten as chapters 02 and 07 make them."""
    prepared, task = store.prepared, store.task
    texts, histories = prepared.catalog["text"].tolist(), splits.training_histories(prepared)
    if system == "most-popular":
        return baselines.most_popular(task, baselines.item_counts(histories, len(texts)), drop="seen")
    if system == "lis":
        return baselines.lis(task, BM25Index(texts), drop="seen")
    vectors = encode(texts, cache_dir=prepared.paths.cache)
    if system == "star":
        return baselines.star(task, vectors, baselines.cooccurrence(histories, len(texts))).items
    if system == "star + transitions":
        fitted = fusion.fit_signals(histories, vectors, ("text", "cooccurrence", "transitions"))
        cosines = {name: recommender.replace(signal, power=1) for name, signal in fitted.items()}
        return fusion.fuse(cosines, dict.fromkeys(cosines, 0.5), task).items
    if system in recommender.TRAINED:
        trained = rankers.load(prepared, "minilm")
        weights = trained.about["weights"][system]
        signals = fusion.fit_signals(histories, vectors, days=store.days)
        signals["sasrec"] = trained.signal(vectors)
        signals = {name: signals[name] for name in weights}
        if system == "learned ranking":
            return rankers.rank_learned(trained.trees, signals, weights, task).items
        return fusion.fuse(signals, weights, task).items
    short, held_out = fusion.extend_validation(prepared)
    choosing = fusion.fit_signals(short, vectors, days=store.days)
    weights = fusion.choose_weights(fusion.gather_candidates(choosing, held_out))
    return fusion.fuse(fusion.fit_signals(histories, vectors, days=store.days), weights, task).items


@pytest.mark.parametrize("system", COUNTED)
def test_every_user_gets_the_list_of_the_notebooks(served, store, system):
    """User by user; one user alone gets what the user got among all, but for scores that are equal up to rounding."""
    many = served[system].recommend_many(store.histories, k=10, dates=store.dates)
    ranked = np.full((len(store.histories), 10), -1)
    ranked[many["user"], many["rank"] - 1] = store.prepared.item_numbers(many["asin"])
    assert (ranked == notebook_ranks(store, system)).all()
    for user in range(0, len(store.histories), 40):
        alone = served[system].recommend(store.histories[user], k=10, dates=store.dates[user])
        among = many[many["user"] == user]
        same = (alone["asin"].to_numpy() == among["asin"].to_numpy()) | np.isclose(alone["score"], among["score"])
        assert len(alone) == 10 and same.all()
        np.testing.assert_allclose(alone["score"], among["score"], rtol=1e-4)


def test_dates_decide_how_much_a_purchase_counts(served, store):
    history = store.histories[0]
    now = served["fused"].recommend(history, dates=["2014-01-01"] * len(history))
    assert now.equals(served["fused"].recommend(history)), "without dates, all are of one day"
    then = served["fused"].recommend(history, dates=[*["2000-01-01"] * (len(history) - 1), "2014-01-01"])
    assert not np.allclose(now["score"], then["score"])


@pytest.mark.parametrize("dates", [["2014-01-02"], ["2014-01-02", "2014-01-01"], ["2014-01-02", "soon"]])
def test_dates_that_do_not_fit_are_one_sentence(served, dates):
    with pytest.raises(ValueError, match=r"\A[^\n]*(1 dates for 2 items|go back in time|cannot be read)[^\n]*\Z"):
        served["fused"].recommend(["Rose Soap", "Mint Soap"], dates=dates)


@pytest.mark.parametrize("system", COUNTED)
def test_seen_items_come_back_where_that_is_asked_for(served, store, system):
    history = store.histories[0]
    shown = served[system].recommend(history, k=3000, hide_seen=False)["asin"]
    assert set(history) & set(shown) and not set(history) & set(served[system].recommend(history, k=3000)["asin"])


def test_a_reason_names_the_signal_that_lifts_an_item_most_and_the_purchase_behind_it(served, store):
    """By hand, for the first items of some users: every signal for every purchase alone."""
    fused, titles = served["fused"], store.prepared.catalog["title"]
    for user in range(0, 100, 20):
        table = fused.recommend(store.histories[user], dates=store.dates[user], explain=True)
        task = store.task.take(np.array([user]))
        signals = fusion.fit_signals(
            splits.training_histories(store.prepared), fused.vectors, list(fused.weights), store.days
        )
        for asin, reason in zip(table["asin"], table["reason"]):
            item = store.prepared.item_numbers([asin])[0]
            rows = {name: fused.weights[name] * signals[name].score(task)[0] for name in fused.weights}
            lifts = {name: row[item] - row.mean() for name, row in rows.items() if row[item] > 0}
            best = max(lifts, key=lifts.get)
            before, _, rest = recommender.REASONS[best].partition("{}")
            assert reason.startswith(before) and reason.endswith(rest)
            if before != reason:
                assert reason.removeprefix(before).removesuffix(rest) in set(titles[store.task.seen_items[user]])


def test_the_purchase_behind_an_item_is_the_one_that_weighs_most():
    """The older purchase counts .7, so it is named only where it says much more."""
    matrix = fusion.sp.csr_matrix(np.array([[0, 0, 1.0, 0.5], [0, 0, 0.6, 0.4], [0, 0, 0, 0], [0, 0, 0, 0]]))
    signal = fusion.ItemSignal((matrix,), length=3)
    task = splits.Task(np.array(["u"]), [""], [np.array([0, 1])], np.array([-1]))
    assert signal.main_purchase(task, 2) == 0 and signal.main_purchase(task, 3) == 1


def test_every_system_gives_a_reason(served, store):
    for system, words in {"most-popular": "popular", "lis": "its title is close to", "star": "title|people"}.items():
        reasons = served[system].recommend(store.histories[0], explain=True)["reason"]
        assert reasons.str.contains(words).all()
    texts = make(["Title: lemon oil"]).recommend("mint soap", explain=True)
    assert texts["reason"][0] == "the model wrote 'Title: lemon oil'"


@pytest.mark.parametrize("system", recommender.TRAINED)
def test_a_trained_system_gives_reasons_and_takes_new_items(served, store, system):
    shop, history = recommender.replace(served[system]), store.histories[0]
    table = shop.recommend(history, dates=store.dates[0], explain=True)
    last = store.prepared.catalog["title"][store.task.seen_items[0][-1]]
    if system == "sasrec":
        assert set(table["reason"]) == {f"SASRec expects it after '{last}'"}
    else:  # it was every item's reason: its scores lie far above the catalog's mean
        assert not table["reason"].str.contains("SASRec").all()
    assert table["reason"].str.len().gt(0).all()
    shop.add_items(pd.DataFrame({"asin": ["NEW0000001"], "title": [f"{last} refill"]}))
    assert "NEW0000001" in set(shop.recommend(history, k=5000)["asin"])
    shop.remove_items(["NEW0000001"])
    assert "NEW0000001" not in set(shop.recommend(history, k=5000)["asin"])
    assert len(shop.recommend(["NEW0000001"])) == 5, "it can stand in a history"


@pytest.mark.parametrize("system", ["lis", "star", "fused"])
def test_a_new_item_is_found_by_its_title_at_once(served, store, system):
    shop, history = recommender.replace(served[system]), store.histories[0]
    last = store.prepared.catalog["title"][store.task.seen_items[0][-1]]
    before = shop.recommend_many(store.histories[:50], dates=store.dates[:50])
    shop.add_items(pd.DataFrame({"asin": ["NEW0000001"], "title": [f"{last} refill"]}))
    table = shop.recommend(history, k=100, explain=True)
    assert table.set_index("asin").loc["NEW0000001", "reason"] == f"its title is close to '{last}'"
    after = shop.recommend_many(store.histories[:50], k=6, dates=store.dates[:50])
    kept = after[after["asin"] != "NEW0000001"].groupby("user").head(5).reset_index(drop=True)
    if system != "lis":  # whose BM25 knows how often a word is used, the new item's among them
        assert kept["asin"].tolist() == before["asin"].tolist(), "item numbers and counts are as they were"
    assert len(shop.recommend(["NEW0000001"])) == 5, "it can stand in a history"
    assert "NEW0000001" not in served[system]._rows


def test_a_removed_item_is_recommended_no_more_and_may_come_back(fused, store):
    history = store.histories[0]
    first = fused.recommend(history)["asin"]
    fused.remove_items(first[:2])
    without = fused.recommend(history)["asin"]
    assert without[:3].tolist() == first[2:].tolist()
    assert not set(first[:2]) & set(fused.recommend([], k=3000)["asin"])
    assert len(fused.recommend([first[0]])) == 5, "in a history it still counts"
    fused.add_items(pd.DataFrame({"asin": first[:2], "title": ["any", "title"]}))
    assert fused.recommend(history)["asin"].tolist() == first.tolist()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"asin": ["x"]}, "has no column 'title'"),
        ({"title": ["x"]}, "has no column 'asin'"),
        ({"asin": ["x"], "title": [" "]}, "new item 'x' has no asin, or no title: nothing was added"),
        ({"asin": [""], "title": ["x"]}, "has no asin, or no title"),
        ({"asin": ["x"], "title": [None]}, "has no asin, or no title"),
        ({"asin": ["x", "x"], "title": ["a", "b"]}, "new item 'x' is there twice: nothing was added"),
        ({"asin": ["x", "B000000001"], "title": ["a", "b"]}, "new item 'B000000001' is in the catalog already"),
    ],
)
def test_new_items_that_are_refused_add_nothing(table, words):
    shop = make(["Title: lemon oil"])
    with pytest.raises(ValueError, match=rf"\A[^\n]*{words}[^\n]*\Z"):
        shop.add_items(pd.DataFrame(table))
    assert len(shop.catalog) == len(TITLES)
    with pytest.raises(ValueError, match=r"\Ano item 'y' in the catalog: nothing was removed\Z"):
        shop.remove_items(["B000000001", "y"])
    assert len(shop.removed) == 0


def test_unknown_items_stand_for_the_closest_and_unknown_asins_for_nothing(served, store):
    """A title that the shop does not have is no item, so the closest one may be recommended."""
    title = store.prepared.catalog["title"][0]
    table = served["star"].recommend(["B0NOTTHERE", f"my {title} from another brand altogether", "qqqq"], k=5)
    assert [note.partition(": ")[2].partition(",")[0] for note in table.attrs["notes"]] == [
        "left out of the history",
        "counted as the closest by text",
        "left out of the history",
    ]
    one = served["star"].recommend([store.prepared.catalog["asin"][0]], k=4, hide_seen=False)
    assert table["asin"][:4].tolist() == one["asin"].tolist()


def test_many_histories_of_all_kinds(served, store):
    kinds = [store.histories[0], [], ["B0NOTTHERE"], [store.histories[1][0]]]
    table = served["fused"].recommend_many(kinds, k=3)
    assert (
        table.columns.tolist() == ["user", *COLUMNS]
        and table["user"].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    )
    best = served["most-popular"].recommend([], k=3)["asin"].tolist()
    assert table["asin"][3:6].tolist() == table["asin"][6:9].tolist() == best
    assert [user for user, _ in table.attrs["notes"]] == [1, 2, 2]
    assert served["fused"].recommend_many([]).empty
    with pytest.raises(ValueError, match="takes a list of histories"):
        served["fused"].recommend_many(["Rose Soap", "Mint Soap"])


@pytest.mark.parametrize("system", COUNTED)
def test_a_saved_folder_gives_the_same_lists(served, store, system, tmp_path):
    shop = recommender.replace(served[system])
    shop.add_items(pd.DataFrame({"asin": ["NEW0000001"], "title": ["Rose Soap"]}))
    shop.remove_items([store.histories[0][0]])
    folder = shop.save(tmp_path / "shop")
    again = Recommender.open(folder)
    users = store.histories[:50], 10, store.dates[:50]
    assert again.recommend_many(*users).equals(shop.recommend_many(*users))
    assert not set(map(str, store.task.reviewer_ids)) & set(again.purchases.astype(str).to_numpy().ravel())
    assert again.save(folder) == folder and Recommender.open(folder).weights == shop.weights


@pytest.mark.parametrize("name", [ABOUT, CATALOG, VECTORS])
def test_a_damaged_folder_and_another_catalog_are_one_sentence(served, tmp_path, name):
    folder = served["star"].save(tmp_path / "shop")
    content = (folder / name).read_bytes()
    other = served["most-popular"].catalog.iloc[:-1].assign(removed=False)
    for damage in (content[: len(content) // 2], b"", None, "another"):
        if damage is None:
            (folder / name).unlink()
        elif damage == "another" and name == CATALOG:
            other.to_parquet(folder / name)
        else:
            (folder / name).write_bytes(damage if isinstance(damage, bytes) else content[:-1])
        with pytest.raises(
            ValueError, match=r"\Ashop is damaged or no such file \([^\n]+\): save the recommender again\Z"
        ):
            Recommender.open(folder)


def test_saving_never_replaces_what_is_no_recommender(served, tmp_path, monkeypatch):
    """`write_atomically` removes a folder of the same name."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.png").write_bytes(b"me")
    with pytest.raises(ValueError, match="photos is there and holds no recommender"):
        served["star"].save(tmp_path / "photos")
    folder = served["star"].save(tmp_path / "shop")
    monkeypatch.setattr(recommender.np, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        served["star"].save(folder)
    monkeypatch.undo()
    assert Recommender.open(folder).system == "star" and [path.name for path in tmp_path.glob(".*")] == []


def test_texts_are_weighed_beside_the_counts(served, store, monkeypatch):
    """`fused + texts`: the sum of chapter 07 with a writer in the model's place, and the text beside each item."""
    fused, item = served["fused"], store.task.seen_items[1][0]  # not in the history of user 0
    wanted = store.prepared.catalog["text"][item]
    weights = fused.weights | {"generated": 500.0}
    shop = recommender.replace(
        fused,
        system="fused + texts",
        weights=weights,
        write_texts=lambda asked: [([wanted, "Title: unheard of"], [-1.0, -2.0]) for _ in asked],
        fit_history=lambda texts: texts,
    )
    table = shop.recommend(store.histories[0], dates=store.dates[0], explain=True)
    assert table["asin"][0] == store.prepared.catalog["asin"][item] and table["text"][0] == wanted
    assert table["reason"][0] == f"the model wrote '{wanted}'"
    task, vectors = store.task.take(np.array([0])), fused.vectors
    texts = fusion.GeneratedTexts({task.reviewer_ids[0]: encode([wanted, "Title: unheard of"])}, vectors)
    signals = fusion.fit_signals(splits.training_histories(store.prepared), vectors, days=store.days)
    pair = {"fused": fusion.WeightedSum(signals, fused.weights), "generated": texts}
    expected: Hits = fusion.fuse(pair, {"fused": 1.0, "generated": 500.0}, task, k=5)
    assert store.prepared.item_numbers(table["asin"]).tolist() == expected.items[0].tolist()


def test_a_shop_counts_the_last_purchases_too(served, store):
    """A shop's recommender left out every customer's newest purchase, which the notebooks hold out."""
    data_dir = store.prepared.paths.root.parent
    shop = Recommender.load("sample", system="star", data_dir=data_dir, everything=True)
    own = [
        store.prepared.item_numbers(rows).tolist()
        for _, rows in store.prepared.interactions.groupby("reviewer_id")["asin"]
    ]
    assert [items.tolist() for items in shop.purchases["items"]] == own
    assert all(len(items) == len(days) for items, days in zip(shop.purchases["items"], shop.purchases["days"]))
    expected = baselines.cooccurrence([np.array(items) for items in own], len(shop.catalog))
    assert (shop.signals["cooccurrence"].matrices[0] != expected).nnz == 0
    held_out = sum(map(len, own)) - sum(map(len, served["star"].purchases["items"]))
    assert held_out == len(own) + len(store.prepared.splits["validation"]), "only where it is asked for"


def test_an_unknown_system_is_refused_first():
    with pytest.raises(ValueError, match="unknown system 'fusd': did you mean 'fused'"):
        Recommender.load("nowhere", system="fusd")
