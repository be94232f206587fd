"""The bundled store is what the code makes, and has the habits of the real data."""

import gzip
import zlib
from collections import Counter

import numpy as np
import pytest

from gloss_utils import splits
from gloss_utils.paths import dataset_paths
from tools import make_sample_store


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    return make_sample_store.make()


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


def test_sizes(prepared):
    lengths = prepared.interactions["reviewer_id"].value_counts()
    assert 1_000 <= len(lengths) <= 1_500
    assert 500 <= len(prepared.catalog) <= 1_000
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


def test_ties_and_long_tail(prepared):
    interactions = prepared.interactions
    last_two = interactions.groupby("reviewer_id")["timestamp"].agg(lambda days: days.iloc[-1] == days.iloc[-2])
    assert 0.35 < last_two.mean() < 0.5  # Beauty: 0.435
    assert (interactions["timestamp"] % make_sample_store.SECONDS_PER_DAY == 0).all()
    counts = interactions["asin"].value_counts()
    assert counts.iloc[: len(counts) // 10].sum() > 0.25 * counts.sum()


def test_titles_are_short_and_of_few_words(prepared):
    lengths = prepared.catalog["title"].str.split().str.len()
    assert lengths.min() >= 5 and lengths.max() <= 14
    assert len(set(" ".join(prepared.catalog["title"]).split())) < 400


def test_the_next_item_can_be_learned_from_the_one_before(prepared):
    """Counting what followed what in the training part already predicts four times what one guess would need."""
    follows = Counter()
    for history in splits.training_histories(prepared):
        follows.update(zip(history[:-1].tolist(), history[1:].tolist()))
    best = {}
    for (item, after), count in follows.items():
        if count > best.get(item, (0, -1))[0]:
            best[item] = (count, after)
    task = splits.load_task(prepared)
    hits = [best.get(seen[-1], (0, -1))[1] == target for seen, target in zip(task.seen_items.copy(), task.targets)]
    assert np.mean(hits) > 0.3
