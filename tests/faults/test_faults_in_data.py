"""Faults in the raw files of UCSD, in tables of one's own, and in what notebook 01 makes of them."""

import functools
import gzip
import json
import os
import shutil
import subprocess
import sys
import zipfile

import injected
import nbformat
import pandas as pd
import pytest
from injected import DAY, START, TITLES, Fault, contents, cut, empty, own_tables, prepare, refused, rows

from gloss_utils import paths, raw_data, splits

REVIEWS, META = "reviews_Toys_and_Games_5.json.gz", "meta_Toys_and_Games.json.gz"


# UCSD's files


def review_lines(users: int = 40) -> list[str]:
    return [
        json.dumps({"reviewerID": f"A{user}", "asin": f"B{(user + step) % 8}", "unixReviewTime": START + step * DAY})
        for user in range(users)
        for step in range(4)
    ]


def meta_lines(prefix: str = "B") -> list[str]:
    return [str({"asin": f"{prefix}{row}", "title": TITLES[row % 8], "price": row}) for row in range(150)]


def write_gz(path, lines) -> None:
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"), mtime=0))


def prepare_toys(raw):
    return raw_data.prepare("toys", raw, raw.parent / "data", progress=False)


@pytest.fixture(scope="module")
def toys_template(tmp_path_factory):
    raw = tmp_path_factory.mktemp("toys") / "raw"
    raw.mkdir()
    write_gz(raw / REVIEWS, review_lines())
    write_gz(raw / META, meta_lines())
    prepare_toys(raw)
    return raw.parent


@pytest.fixture
def toys(toys_template, tmp_path):
    return injected.copy(toys_template, tmp_path / "toys") / "raw"


def lines_of(name, lines):
    return lambda raw: write_gz(raw / name, lines)


def bytes_of(name, content):
    return lambda raw: (raw / name).write_bytes(content)


def flip(raw):
    content = bytearray((raw / REVIEWS).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (raw / REVIEWS).write_bytes(bytes(content))


PAGE = ["<html>", "<body>502 Bad Gateway</body>", "</html>"]


@rows(
    Fault(
        "reviews cut short", lambda raw: cut(raw / REVIEWS), prepare_toys, rf"{REVIEWS} is truncated: delete it and"
    ),
    Fault("metadata cut short", lambda raw: cut(raw / META), prepare_toys, rf"{META} is truncated: delete it and"),
    Fault(
        "reviews not compressed", bytes_of(REVIEWS, b'{"a": 1}'), prepare_toys, rf"{REVIEWS} is damaged .*download"
    ),
    Fault("a web page as metadata", bytes_of(META, b"<html>404"), prepare_toys, rf"{META} is damaged .*download it"),
    Fault("a zip file", bytes_of(REVIEWS, b"PK\x03\x04more"), prepare_toys, rf"{REVIEWS} is damaged"),
    Fault("no byte at all", bytes_of(REVIEWS, b""), prepare_toys, rf"{REVIEWS} is empty: put the right file"),
    Fault("no line inside", lines_of(META, []), prepare_toys, rf"{META} is empty: put the right file"),
    Fault("a web page inside", lines_of(REVIEWS, PAGE), prepare_toys, r"3 of 3 lines .*First: .*, line 1: <html>"),
    Fault(
        "a byte turned over",
        flip,
        prepare_toys,
        rf"{REVIEWS} (is (damaged|truncated): ?.*delete it|.*cannot be read)|is damaged",
    ),
    Fault(
        "one line in fifty broken",
        lines_of(REVIEWS, review_lines() + ["{"] * 4),
        prepare_toys,
        rf"{REVIEWS}: 4 of 164 lines cannot be read \(more than 1 %\).*line 161: {{",
    ),
    Fault(
        "files swapped",
        lambda raw: (raw / REVIEWS).write_bytes((raw / META).read_bytes()),
        prepare_toys,
        rf"{REVIEWS}: 150 of 150 lines cannot be read",
    ),
    Fault("metadata of another category", lines_of(META, meta_lines("X")), prepare_toys, "Do the two files belong"),
    Fault("reviews as metadata", lines_of(META, review_lines()), prepare_toys, "Do the two files belong together"),
    Fault(
        "nobody with three purchases",
        lines_of(REVIEWS, review_lines()[::2]),
        prepare_toys,
        "no user has 3 purchases of items with a title",
    ),
    Fault(
        "the sample's files are gone",
        lambda raw: None,
        lambda raw: raw_data.prepare("sample", raw, raw.parent / "data", progress=False),
        r"reviews_Sample_5.json.gz is missing from raw: it comes with the repository",
    ),
)
def test_raw_files_that_are_refused(fault, toys, toys_template):
    fault.inject(toys)
    refused(lambda: fault.call(toys), fault.sentence, toys.parent)
    injected.copy(toys_template / "raw", toys.parent / "again")
    prepare_toys(toys.parent / "again")
    assert contents(toys.parent / "data") == contents(toys_template / "data")


BROKEN_REVIEWS = {
    "an empty reviewer": '{"reviewerID": "", "asin": "B1", "unixReviewTime": 1400000000}',
    "a blank item": '{"reviewerID": "A1", "asin": "  ", "unixReviewTime": 1400000000}',
    "a lone surrogate": '{"reviewerID": "\\ud800", "asin": "B1", "unixReviewTime": 1400000000}',
    "a time beyond numbers": '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1e400}',
    "a yes for a time": '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": true}',
    "a rating in words": '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1400000000, "overall": "five"}',
    "nested brackets": '{"reviewerID": ' + "[" * 100_000,
    "a list": '["A1", "B1", 1400000000]',
    "half a line": '{"reviewerID": "A1", "as',
}
BROKEN_ITEMS = {
    "an unhashable key": "{'asin': 'B1', 'title': 'x', {}: 1}",
    "an unhashable member": "{'asin': 'B1', 'title': {[]}}",
    "nested brackets": "{'asin': 'B1', 'title': " + "[" * 100_000,
    "a row of signs": "{'asin': 'B1', 'title': " + "-" * 50_000 + "1}",
    "a lone surrogate in a title": "{'asin': 'B1', 'title': '\\ud800'}",
    "a lone surrogate in an asin": "{'title': 'x', 'asin': '\\udfff'}",
    "a number for an asin": "{'title': 'x', 'asin': 7}",
    "no asin": "{'title': 'x'}",
    "a call": "{'asin': 'B1', 'title': open('never', 'w')}",
    "a null byte": "{'asin': 'B1', 'title': \x00}",
    "a line of a page": "<td>B1</td>",
}


@pytest.mark.parametrize("what", BROKEN_REVIEWS)
def test_a_review_that_cannot_be_read_counts_and_changes_nothing(what, toys, toys_template):
    lines = review_lines()
    write_gz(toys / REVIEWS, [*lines[:50], BROKEN_REVIEWS[what], *lines[50:]])
    made = prepare_toys(toys)
    assert f"{REVIEWS}, line 51: " in made.report["note"][0] and made.report["removed"][0] == 1
    made = {name: data for name, data in contents(toys.parent / "data").items() if name.endswith("parquet")}
    assert made.items() <= contents(toys_template / "data").items()


@pytest.mark.parametrize("what", BROKEN_ITEMS)
def test_an_item_that_cannot_be_read_counts_and_changes_nothing(what, toys, toys_template):
    """One metadata line stopped everything: TypeError, RecursionError, UnicodeEncodeError."""
    write_gz(toys / META, [*meta_lines(), BROKEN_ITEMS[what]])
    made = prepare_toys(toys)
    assert f"{META}, line 151: " in made.report["note"][1] and made.report["removed"][1] == 1
    made = {name: data for name, data in contents(toys.parent / "data").items() if name.endswith("parquet")}
    assert made.items() <= contents(toys_template / "data").items()


# Tables of one's own


def raw_bytes(change, name="interactions.csv"):
    def inject(root):
        path = root / "raw" / name
        path.write_bytes(change(path.read_text(encoding="utf-8")))

    return inject


def column(name, change):
    """Change one column of the interactions."""

    def inject(root):
        table = own_tables()[0]
        table[name] = change(table[name].astype(object))
        injected.write_tables(root, table)

    return inject


def first(value):
    return lambda old: pd.Series([value, *old[1:]], dtype=object)


def excel(root):
    with zipfile.ZipFile(root / "raw" / "interactions.csv", "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("xl/worksheets/sheet1.xml", "<row/>" * 500)


def parquet(change):
    def inject(root):
        path = root / "raw" / "interactions.parquet"
        pd.read_csv(root / "raw" / "interactions.csv").to_parquet(path)
        change(path)
        (root / "raw" / "interactions.csv").unlink()

    return inject


def as_day(form):
    return lambda times: pd.to_datetime(times.astype("int64"), unit="s").dt.strftime(form)


def with_format(form):
    return functools.partial(prepare, time_format=form)


NOT_CSV = r"interactions\.csv is damaged or no such file .*: save it as CSV in UTF-8, with commas, or as Parquet"
UNSURE = r"in row {} of the interactions cannot be read with certainty: use seconds or dates .* time_format"


@rows(
    Fault("UTF-16", raw_bytes(lambda text: text.encode("utf-16")), prepare, NOT_CSV),
    Fault(
        "Latin-1",
        raw_bytes(lambda text: text.encode("latin-1"), "items.csv"),
        prepare,
        r"items\.csv is damaged .*UTF-8",
    ),
    Fault("gzip under .csv", raw_bytes(lambda text: gzip.compress(text.encode())), prepare, NOT_CSV),
    Fault("Excel under .csv", excel, prepare, NOT_CSV),
    Fault("an empty table", raw_bytes(lambda text: b""), prepare, NOT_CSV),
    Fault("an empty list of items", raw_bytes(lambda text: b"", "items.csv"), prepare, r"items\.csv is damaged"),
    Fault("an unclosed quote", raw_bytes(lambda text: text.encode() + b'"u1,i1,5\n'), prepare, NOT_CSV),
    Fault("a row too long", raw_bytes(lambda text: text.encode() + b"u1,i1,5,6,7\n"), prepare, NOT_CSV),
    Fault(
        "a folder of that name",
        lambda root: [(root / "raw/interactions.csv").unlink(), (root / "raw/interactions.csv").mkdir()],
        prepare,
        NOT_CSV,
    ),
    Fault(
        "semicolons",
        raw_bytes(lambda text: text.replace(",", ";").encode()),
        prepare,
        r"interactions\.csv has no column 'user': it has user;item;timestamp; separate them by commas",
    ),
    Fault("tabs", raw_bytes(lambda text: text.replace(",", "\t").encode()), prepare, "separate them by commas"),
    Fault("Parquet cut short", parquet(cut), prepare, r"interactions\.parquet is damaged .*: save it as"),
    Fault("empty Parquet", parquet(empty), prepare, r"interactions\.parquet is damaged"),
    Fault(
        "text under .parquet",
        parquet(lambda path: path.write_text("user,item")),
        prepare,
        r"interactions\.parquet is damaged",
    ),
    Fault(
        "both CSV and Parquet",
        lambda root: pd.DataFrame({"user": ["a"]}).to_parquet(root / "raw/interactions.parquet"),
        prepare,
        r"both interactions\.parquet and interactions\.csv are in .*: keep one of them",
    ),
    Fault(
        "no interactions",
        lambda root: (root / "raw/interactions.csv").unlink(),
        prepare,
        r"no interactions\.csv or interactions\.parquet in raw: put one there",
    ),
    Fault(
        "no items", lambda root: (root / "raw/items.csv").unlink(), prepare, r"no items\.csv or items\.parquet in raw"
    ),
    Fault(
        "no column of users",
        raw_bytes(lambda text: text.replace("user", "customer").encode()),
        prepare,
        r"interactions\.csv has no column 'user': it has customer, .*name yours: -p USER_COLUMN …, or columns=",
    ),
    Fault(
        "no column of titles",
        raw_bytes(lambda text: text.replace("title", "name").encode(), "items.csv"),
        prepare,
        r"items\.csv has no column 'title'",
    ),
    Fault(
        "a misspelt column role",
        lambda root: None,
        functools.partial(prepare, columns={"usr": "user"}),
        "unknown column role 'usr': did you mean 'user'",
    ),
    Fault(
        "an empty user",
        column("user", first("")),
        prepare,
        r"row 1 of interactions\.csv has no 'user': fill it or drop",
    ),
    Fault("a blank user", column("user", first("  ")), prepare, r"row 1 of interactions\.csv has no 'user'"),
    Fault("a blank item", column("item", first(" \t")), prepare, r"row 1 of interactions\.csv has no 'item'"),
    Fault(
        "an item without an id",
        raw_bytes(lambda text: text.encode() + b",Nameless\n", "items.csv"),
        prepare,
        r"row 9 of items\.csv has no 'item': fill it or drop the row",
    ),
    Fault(
        "days before months", column("timestamp", as_day("%d.%m.%Y")), prepare, r"'13.05.2014' " + UNSURE.format(1)
    ),
    Fault(
        "days or months",
        column("timestamp", lambda old: ["03.04.2014"] * 48),
        prepare,
        r"'03.04.2014' " + UNSURE.format(1),
    ),
    Fault("American dates", column("timestamp", as_day("%m/%d/%Y")), prepare, UNSURE.format(1)),
    Fault("dates without dashes", column("timestamp", as_day("%Y%m%d")), prepare, "'20140513' " + UNSURE.format(1)),
    Fault(
        "seconds among milliseconds",
        column("timestamp", lambda old: [START, *(old[1:] * 1000)]),
        prepare,
        UNSURE.format(1),
    ),
    Fault("milliseconds among seconds", column("timestamp", first(START * 1000)), prepare, UNSURE.format(1)),
    Fault("25 digits", column("timestamp", first("1" * 25)), prepare, f"'{'1' * 25}' " + UNSURE.format(1)),
    Fault("25 digits everywhere", column("timestamp", lambda old: ["1" * 25] * 48), prepare, UNSURE.format(1)),
    Fault("no time", column("timestamp", first("")), prepare, UNSURE.format(1)),
    Fault("a word for a time", column("timestamp", first("soon")), prepare, "'soon' " + UNSURE.format(1)),
    Fault("an infinite time", column("timestamp", first("inf")), prepare, "'inf' " + UNSURE.format(1)),
    Fault(
        "31 February",
        column("timestamp", lambda old: ["2014-02-31"] * 48),
        prepare,
        "'2014-02-31' " + UNSURE.format(1),
    ),
    Fault(
        "a format that does not fit",
        column("timestamp", as_day("%d.%m.%Y")),
        with_format("%Y-%m-%d"),
        UNSURE.format(1),
    ),
    Fault(
        "a format in letters",
        lambda root: None,
        with_format("dd.mm.yyyy"),
        r"unknown time format 'dd.mm.yyyy': .* %d\.%m\.%Y",
    ),
    Fault("headings only", raw_bytes(lambda text: b"user,item,timestamp\n"), prepare, "no user has 3 purchases"),
    Fault(
        "nobody with three purchases",
        raw_bytes(lambda text: "\n".join(text.splitlines()[:3]).encode()),
        prepare,
        "no user has 3 purchases of items with a title",
    ),
    Fault(
        "tables of two stores",
        lambda root: injected.write_tables(root, items=own_tables(prefix="x")[1]),
        prepare,
        "no user has 3 purchases .*Do the two files belong together",
    ),
    Fault(
        "an unknown tie order",
        lambda root: None,
        functools.partial(prepare, tie_order="shufled"),
        "unknown tie order 'shufled': did you mean 'shuffled'",
    ),
    Fault(
        "users below zero",
        lambda root: None,
        functools.partial(prepare, max_users=-1),
        "max_users is -1: it must be a whole",
    ),
    Fault(
        "users in words",
        lambda root: None,
        functools.partial(prepare, max_users="many"),
        "max_users is 'many': it must be",
    ),
    Fault(
        "half a seed",
        lambda root: None,
        functools.partial(prepare, seed=0.5),
        "seed is 0.5: it must be a whole number",
    ),
)
def test_own_tables_that_are_refused(fault, store, store_template):
    fault.inject(store)
    refused(lambda: fault.call(store), fault.sentence, store)
    shutil.rmtree(store / "raw")
    injected.copy(store_template / "raw", store / "raw")
    prepare(store)
    assert contents(store) == contents(store_template)


@pytest.mark.parametrize(
    ("inject", "form"),
    [
        (column("timestamp", lambda old: old * 1000), ""),
        (column("timestamp", lambda old: old * 10**9), "ns"),
        (column("timestamp", lambda old: old.astype(float)), "s"),
        (raw_bytes(lambda text: text.encode("utf-8-sig")), ""),
        (raw_bytes(lambda text: text.replace("\n", "\r\n").encode()), ""),
        (raw_bytes(lambda text: text.encode() + b"\n\n"), ""),
        (lambda root: parquet(lambda path: None)(root), ""),
    ],
    ids=["milliseconds", "nanoseconds", "floats", "a byte-order mark", "Windows line ends", "blank lines", "Parquet"],
)
def test_own_tables_that_say_the_same(inject, form, store, store_template):
    inject(store)
    prepare(store, time_format=form)
    assert contents(store) == contents(store_template)


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%m/%d/%Y", "%Y%m%d"])
def test_a_named_format_is_read(form, store):
    """03.04.2014 was read as the fourth of March, and 20140513 as a day of 1970."""
    column("timestamp", as_day(form))(store)
    days = prepare(store, time_format=form).interactions["timestamp"]
    column("timestamp", as_day("%Y-%m-%d"))(store)
    assert days.tolist() == prepare(store).interactions["timestamp"].tolist() and days.min() == START // DAY * DAY


@pytest.mark.parametrize("name", ["my shop", "it's 100 %", "Läden", "a;b&c", "--force", "..hidden"])
def test_odd_names_of_directories(name, store_template, tmp_path):
    root = injected.copy(store_template, tmp_path / name)
    assert prepare(root).fingerprint == splits.load_prepared(f"{root}/").fingerprint
    assert contents(root) == contents(store_template) and list(tmp_path.iterdir()) == [root]


# What notebook 01 makes


def load(root):
    return splits.load_prepared(f"{root}/")


def other(name):
    """The artifact of another store."""

    def inject(root):
        there = injected.write_tables(root.parent / "other", *own_tables(9))
        prepare(there)
        if (root / name).is_dir():
            shutil.rmtree(root / name)
            injected.copy(there / name, root / name)
        else:
            (root / name).write_bytes((there / name).read_bytes())
        shutil.rmtree(there)

    return inject


def at(name, change):
    return lambda root: change(root / name)


ARROW = "splits/test/data-00000-of-00001.arrow"
AGAIN = r"is damaged or no such file .*: delete it and run notebook 01 with DATASET=store"
OTHERS = r"splits was made from other interactions, catalog or report than those beside it: run notebook 01"


@rows(
    Fault("interactions cut", at("interactions.parquet", cut), load, rf"interactions\.parquet {AGAIN}"),
    Fault("interactions empty", at("interactions.parquet", empty), load, rf"interactions\.parquet {AGAIN}"),
    Fault(
        "interactions gone",
        at("interactions.parquet", lambda path: path.unlink()),
        load,
        r"no interactions for 'store' .*notebook 01",
    ),
    Fault("interactions of another store", other("interactions.parquet"), load, OTHERS),
    Fault("catalog cut", at("catalog.parquet", cut), load, rf"catalog\.parquet {AGAIN}"),
    Fault("catalog empty", at("catalog.parquet", empty), load, rf"catalog\.parquet {AGAIN}"),
    Fault(
        "catalog gone",
        at("catalog.parquet", lambda path: path.unlink()),
        load,
        r"no catalog for 'store' .*run notebook 01",
    ),
    Fault(
        "catalog with a title changed",
        at("catalog.parquet", lambda path: pd.read_parquet(path).replace("Rose Soap", "Rose").to_parquet(path)),
        load,
        OTHERS,
    ),
    Fault("report cut", at("cleaning_report.csv", cut), load, f"{OTHERS}|{AGAIN}"),
    Fault("report empty", at("cleaning_report.csv", empty), load, rf"cleaning_report\.csv {AGAIN}"),
    Fault(
        "report gone",
        at("cleaning_report.csv", lambda path: path.unlink()),
        load,
        r"no report for 'store' .*run notebook 01",
    ),
    Fault("splits cut", at(ARROW, cut), load, f"splits {AGAIN}"),
    Fault("splits empty", at(ARROW, empty), load, f"splits {AGAIN}"),
    Fault("a split gone", at("splits/test", shutil.rmtree), load, f"splits {AGAIN}"),
    Fault("splits of another store", other("splits"), load, OTHERS),
    Fault(
        "splits without a mark", at("splits/test/dataset_info.json", lambda path: path.write_text("{}")), load, OTHERS
    ),
    Fault("the state of the splits cut", at("splits/test/state.json", cut), load, f"splits {AGAIN}"),
    Fault("the list of the splits empty", at("splits/dataset_dict.json", empty), load, f"splits {AGAIN}"),
    Fault(
        "an unknown split",
        lambda root: None,
        lambda root: splits.load_task(load(root), "tst"),
        "unknown split 'tst': did you mean 'test'",
    ),
)
def test_prepared_data_that_are_refused(fault, store, store_template):
    fault.inject(store)
    refused(lambda: fault.call(store), fault.sentence, store)
    prepare(store)
    assert contents(store) == contents(store_template) and len(splits.load_task(load(store))) == 12


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["a stop", "a full disk"]
)
@pytest.mark.parametrize("write", [1, 2, 3])
def test_data_of_two_generations_are_refused(write, error, store, store_template, monkeypatch):
    """New interactions beside old splits: the target was in the user's own history, and nothing said so."""
    injected.write_tables(store, own_tables(9)[0])
    whole, writes = raw_data.write_atomically, iter(range(4))

    def stop(path, fill):
        if next(writes) == write:
            raise error
        return whole(path, fill)

    monkeypatch.setattr(raw_data, "write_atomically", stop)
    with pytest.raises((KeyboardInterrupt, OSError)):
        prepare(store)
    monkeypatch.undo()
    refused(lambda: load(store), OTHERS, store)
    injected.write_tables(store)
    prepare(store)
    assert contents(store) == contents(store_template)


@pytest.mark.parametrize("number", [13, 28, 30])
@pytest.mark.parametrize("name", ["mkdir", "replace"])
def test_a_disk_that_takes_nothing(number, name, store, monkeypatch):
    """Read-only and full disks were a raw OSError without a remedy."""

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)
    before = injected.files(store)
    with pytest.raises(
        OSError, match=r"cleaning_report\.csv cannot be written \([A-Z].*\): make room, or set DATA_DIR"
    ):
        prepare(store)
    monkeypatch.undo()
    assert injected.files(store) == before


def test_chapter_00_goes_on_after_a_stop(store, store_template):
    """It only asked whether there are splits, and a course that was stopped in chapter 01 stopped there for good."""
    cells = nbformat.read(paths.PROJECT_ROOT / "notebooks" / "00_start_here.ipynb", as_version=4).cells
    (cell,) = [cell.source for cell in cells if cell.cell_type == "code" and "load_prepared(DATASET" in cell.source]
    cut(store / "catalog.parquet")
    names = {
        "DATASET": f"{store}/",
        "DATA_DIR": "data",
        "RAW_DIR": "",
        "TIE_ORDER": "asin",
        "MAX_USERS": 0,
        "SEED": 42,
    }
    exec(cell, names | {"TIME_FORMAT": "", "columns": {}, "raw_data": raw_data} | vars(splits))
    assert contents(store) == contents(store_template)


def test_a_locale_without_accents(store_template, tmp_path):
    """The same data where the system's own encoding is ASCII."""
    root = injected.copy(store_template / "raw", tmp_path / "store" / "raw").parent
    code = (
        "import sys; from gloss_utils import load_prepared, prepare; prepare(sys.argv[1]); load_prepared(sys.argv[1])"
    )
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, f"{root}/"], check=True, env=plain, cwd=paths.PROJECT_ROOT)
    assert contents(root) == contents(store_template)
