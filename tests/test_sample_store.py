"""The bundled store is what the script makes, and has the habits of the real data."""

import ast
import gzip
import html
import random
import zlib

import numpy as np
import pytest

from gloss_utils import raw_data, splits
from gloss_utils.paths import dataset_paths
from tools import make_sample_store


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    return make_sample_store.make()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> splits.Prepared:
    """The shipped files, prepared in a data directory of its own."""
    data_dir = tmp_path_factory.mktemp("data")
    return raw_data.prepare("sample", raw_dir=dataset_paths("sample").raw, data_dir=data_dir, progress=False)


@pytest.fixture(scope="module")
def counts(prepared) -> np.ndarray:
    """How often each item was bought in the training part."""
    return np.bincount(np.concatenate(splits.training_histories(prepared)), minlength=len(prepared.catalog))


def test_shipped_bytes_are_what_the_code_makes(made):
    raw_dir = dataset_paths("sample").raw
    assert sorted(path.name for path in raw_dir.iterdir()) == sorted(made)
    for name, content in made.items():
        shipped = (raw_dir / name).read_bytes()
        assert gzip.decompress(shipped) == gzip.decompress(content)
        if "ng" not in zlib.ZLIB_RUNTIME_VERSION:  # zlib-ng packs the same text into other bytes
            assert shipped == content


def test_making_it_twice_gives_the_same_bytes(made):
    assert make_sample_store.make() == made


def test_writing_fills_a_folder(made, tmp_path):
    folder = make_sample_store.write(tmp_path / "raw")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made


def test_sizes(prepared):
    lengths = prepared.interactions["reviewer_id"].value_counts()
    assert 1_000 <= len(lengths) <= 1_250
    assert 2_500 <= len(prepared.catalog) <= 4_500
    assert 8 < lengths.mean() < 10  # the real ones: 8.3 to 8.9
    assert lengths.min() >= 3 and lengths.max() > 40
    assert 0.2 < (lengths <= 5).mean() < 0.4


def test_every_blemish_of_the_real_files_is_there(prepared, made):
    removed = prepared.report.set_index("step")["removed"]
    assert (removed > 0).all(), "each cleaning step has something to do"
    broken = removed[["malformed lines in the reviews", "malformed lines in the metadata"]]
    lines = [gzip.decompress(content).count(b"\n") for content in made.values()]
    assert (broken.to_numpy() < 0.01 * np.array(lines)).all()
    metadata = gzip.decompress(made["meta_Sample.json.gz"]).decode()
    assert "&amp;" in metadata and "&#x27;" in metadata and "&eacute;" in metadata
    assert not prepared.catalog["title"].str.contains("&[a-z#]").any()
    unbought = metadata.count("Gift Set")
    assert unbought >= 20 and not prepared.catalog["title"].str.contains("Gift Set").any()
    shared = prepared.catalog["title"].duplicated(keep=False).mean()
    assert 0.005 < shared < 0.03


def test_nobody_buys_an_item_twice(prepared):
    assert not prepared.interactions.duplicated(["reviewer_id", "asin"]).any()


def test_ties_and_long_tail(prepared, counts):
    interactions = prepared.interactions
    last_two = interactions.groupby("reviewer_id")["timestamp"].agg(lambda days: days.iloc[-1] == days.iloc[-2])
    assert 0.35 < last_two.mean() < 0.5  # Beauty: 0.435
    assert (interactions["timestamp"] % make_sample_store.SECONDS_PER_DAY == 0).all()
    ordered = np.sort(counts)[::-1]
    assert ordered[: len(ordered) // 10].sum() > 0.25 * ordered.sum()


def test_titles_are_short_and_of_few_words(prepared):
    lengths = prepared.catalog["title"].str.split().str.len()
    assert lengths.min() >= 5 and lengths.max() <= 14
    assert len(set(" ".join(prepared.catalog["title"]).split())) < 400


def test_most_items_have_hardly_been_counted(prepared, counts):
    assert np.mean(counts <= 3) > 0.6
    targets = splits.load_task(prepared).targets
    cold = np.mean(counts[targets] == 0)
    assert 0.05 < cold < 0.3, "some test items were never bought before, most were"


def test_the_next_title_can_be_told_word_by_word(prepared, counts):
    """Line, scent and size stand in the last three titles, and the product is next in the routine."""
    items = {item.asin: item for item in make_sample_store.make_items(random.Random(make_sample_store.SEED))}
    asins, task = prepared.catalog["asin"].to_numpy(), splits.load_task(prepared)
    told = {"line": [], "scent": [], "size": []}
    following = []
    for seen, target in zip(task.seen_items, task.targets):
        history, bought = [items[asin] for asin in asins[seen[-3:]]], items[asins[target]]
        for slot, right in told.items():
            right.append(getattr(bought, slot) in {getattr(item, slot) for item in history})
        following.append((history[-1].product + 1) % len(make_sample_store.PRODUCTS) == bought.product)
    whole = np.all([*told.values(), following], axis=0)
    assert np.mean(following) > 0.6
    assert whole.mean() > 0.4
    hardly_bought = counts[task.targets] <= 1
    assert whole[hardly_bought].mean() > 0.35, "so can what was bought once or never"


def test_only_a_part_of_the_combinations_is_sold(made):
    """What a model composes may be no item: then the search has something to mend."""
    lines = gzip.decompress(made["meta_Sample.json.gz"]).decode().splitlines()
    titles = set()
    for line in lines:
        try:
            titles.add(" ".join(html.unescape(ast.literal_eval(line)["title"]).split()))
        except (SyntaxError, KeyError):  # broken, or without a title
            continue
    names = [f"{brand} {series}" for brand, series in make_sample_store.LINES]
    slots = len(names) * len(make_sample_store.SCENTS) * len(make_sample_store.SIZES)
    combinations = slots * len(make_sample_store.PRODUCTS)
    assert 0.1 * combinations < len(titles) < 0.7 * combinations
