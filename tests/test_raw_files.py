"""Reading the UCSD files and tables of one's own: broken lines, damaged files, wrong columns."""

import gzip
import json

import pandas as pd
import pytest

from gloss_utils import raw_data, raw_files, splits

REVIEW = {"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1365984000, "overall": 4.0}


def write_gz(path, lines) -> object:
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))
    return path


def reviews_file(tmp_path, extra=(), count=300):
    lines = [json.dumps(REVIEW | {"reviewerID": f"A{number}"}) for number in range(count)]
    for position, line in extra:
        lines.insert(position, line)
    return write_gz(tmp_path / "reviews_Test_5.json.gz", lines)


def test_reviews_come_in_the_files_order(tmp_path):
    frame, broken = raw_files.read_reviews(reviews_file(tmp_path), progress=False)
    assert frame.columns.tolist() == ["reviewer_id", "asin", "timestamp", "rating"]
    assert frame["reviewer_id"].tolist() == [f"A{number}" for number in range(300)]
    assert frame["timestamp"].dtype == "int64" and frame["timestamp"].unique().tolist() == [1365984000]
    assert (broken.lines, broken.count) == (300, 0)


def test_blocks_do_not_cut_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_files, "BLOCK_BYTES", 200)
    frame, broken = raw_files.read_reviews(reviews_file(tmp_path, [(250, "{oops")]), progress=False)
    assert len(frame) == 300
    assert broken.examples == ["reviews_Test_5.json.gz, line 251: {oops"]


def test_fields_that_are_not_needed_are_ignored_and_ratings_may_be_absent(tmp_path):
    line = json.dumps({"reviewText": "fine", "helpful": [1, 2], "reviewerID": "A", "asin": "B", "unixReviewTime": 5})
    frame, _ = raw_files.read_reviews(write_gz(tmp_path / "reviews.json.gz", [line] * 2), progress=False)
    assert frame["rating"].isna().all() and frame["timestamp"].tolist() == [5, 5]


@pytest.mark.parametrize(
    "line",
    [
        '{"reviewerID": "A1", "asin": "B1", "unixRev',
        "<html>502 Bad Gateway</html>",
        '{"reviewerID": "A1", "asin": "B1"}',
        '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": "April"}',
        '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1e40}',
        '{"reviewerID": 7, "asin": "B1", "unixReviewTime": 5}',
        '{"reviewerID": "A1", "asin": null, "unixReviewTime": 5}',
        json.dumps(REVIEW) + json.dumps(REVIEW),
        "[1, 2]",
        "null",
    ],
)
def test_a_broken_line_is_counted_shown_and_left_out(tmp_path, line):
    frame, broken = raw_files.read_reviews(reviews_file(tmp_path, [(41, line)]), progress=False)
    assert len(frame) == 300
    assert broken.count == 1
    assert broken.examples[0].startswith("reviews_Test_5.json.gz, line 42: ")


def test_blank_lines_do_no_harm(tmp_path):
    frame, broken = raw_files.read_reviews(reviews_file(tmp_path, [(10, ""), (301, " ")]), progress=False)
    assert len(frame) == 300 and broken.count == 0


def test_more_than_one_per_cent_is_an_error(tmp_path):
    few = reviews_file(tmp_path, [(5, "{")] * 3)
    assert raw_files.read_reviews(few, progress=False)[1].count == 3
    many = reviews_file(tmp_path, [(5, "{")] * 4)
    with pytest.raises(ValueError, match=r"reviews_Test_5.json.gz: 4 of 304 lines .* line 6: \{"):
        raw_files.read_reviews(many, progress=False)


def test_a_truncated_archive_says_so(tmp_path):
    path = reviews_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"reviews_Test_5.json.gz is truncated: delete it and download it again"):
        raw_files.read_reviews(path, progress=False)


def test_a_web_page_under_the_files_name_says_so(tmp_path):
    path = tmp_path / "reviews_Test_5.json.gz"
    path.write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"reviews_Test_5.json.gz is damaged"):
        raw_files.read_reviews(path, progress=False)


def test_damage_in_the_middle_says_so(tmp_path):
    path = reviews_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"is (damaged|truncated)"):
        raw_files.read_reviews(path, progress=False)


def test_an_empty_file_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"reviews_Test_5.json.gz is empty"):
        raw_files.read_reviews(write_gz(tmp_path / "reviews_Test_5.json.gz", []), progress=False)


METADATA = [
    "{'asin': 'B1', 'title': 'Soap &amp; Co.', 'price': 3.5}",
    "{'asin': 'B2', 'price': 1}",
    "{'asin': 'B9', 'title': 'not asked for', 'oops': undefined_name}",
    "{'title': \"Baker's\", 'asin': 'B3'}",
    "{'asin': 'B1', 'title': 'second one'}",
]


def test_metadata_are_python_literals_and_only_wanted_lines_are_kept(tmp_path):
    path = write_gz(tmp_path / "meta_Test.json.gz", METADATA)
    frame, broken = raw_files.read_metadata(path, {"B1", "B2", "B3"}, progress=False)
    assert frame["asin"].tolist() == ["B1", "B2", "B3", "B1"]
    assert frame["title"].tolist() == ["Soap &amp; Co.", None, "Baker's", "second one"]
    assert (broken.lines, broken.count) == (5, 0)


@pytest.mark.parametrize("line", ["{'asin': 'B1', 'title': 'cut o", "{'title': 'no asin'}", "{'asin': 5}", "<html>"])
def test_a_broken_metadata_line_is_counted(tmp_path, line):
    path = write_gz(tmp_path / "meta_Test.json.gz", METADATA * 50 + [line])
    frame, broken = raw_files.read_metadata(path, {"B1"}, progress=False)
    assert len(frame) == 100
    assert broken.examples == [f"meta_Test.json.gz, line 251: {line}"]


def test_wanted_metadata_lines_must_evaluate(tmp_path):
    path = write_gz(tmp_path / "meta_Test.json.gz", METADATA * 50)
    with pytest.raises(ValueError, match=r"meta_Test.json.gz: 50 of 250 lines"):
        raw_files.read_metadata(path, {"B9"}, progress=False)


TITLES = {"001": "Blue Mug", "002": "Red Mug", "003": "Tea &amp; Spoon", "004": "Tray"}
SECONDS = 1406073600  # 2014-07-23


def own_tables(users: int = 4) -> tuple[pd.DataFrame, pd.DataFrame]:
    interactions = pd.DataFrame(
        [(str(user), item, SECONDS + day * 86_400) for user in range(users) for day, item in enumerate(TITLES)],
        columns=["user", "item", "timestamp"],
    )
    return interactions, pd.DataFrame({"item": list(TITLES), "title": list(TITLES.values())})


def write_tables(root, suffix="csv", interactions=None, items=None):
    made = own_tables()
    raw = root / "raw"
    raw.mkdir(parents=True)
    for name, table in (
        ("interactions", made[0] if interactions is None else interactions),
        ("items", made[1] if items is None else items),
    ):
        table.to_csv(raw / f"{name}.csv", index=False) if suffix == "csv" else table.to_parquet(
            raw / f"{name}.parquet"
        )
    return root


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_own_tables_are_prepared_like_any_other(tmp_path, suffix):
    root = write_tables(tmp_path / "my_store", suffix)
    made = raw_data.prepare(str(root))
    assert made.dataset == "my_store"
    assert made.catalog["asin"].tolist() == ["001", "002", "003", "004"], "ids stay text"
    assert made.catalog["title"][2] == "Tea & Spoon"
    assert made.interactions["timestamp"].tolist()[:2] == [SECONDS, SECONDS + 86_400]
    loaded = splits.load_prepared(str(root))
    assert splits.load_task(loaded).targets.tolist() == [3] * 4
    assert len(splits.load_task(loaded, "validation")) == 1
    assert made.report["step"][0] == "rows read"


def test_ids_and_titles_that_pandas_takes_for_missing_stay(tmp_path):
    """'NA' is a country, 'None' a brand and 'null' a nickname: none of them is a missing value."""
    interactions, items = own_tables()
    names = {"user": {"0": "null"}, "item": {"001": "NA", "002": "None"}}
    interactions, items = interactions.replace(names), items.replace(names)
    items.loc[2, "title"] = "N/A"
    made = raw_data.prepare(str(write_tables(tmp_path / "s", interactions=interactions, items=items)))
    assert "null" in set(made.interactions["reviewer_id"])
    assert {"NA", "None"} <= set(made.catalog["asin"]) and "N/A" in set(made.catalog["title"])


def test_columns_may_have_other_names_and_others_beside_them(tmp_path):
    interactions, items = own_tables()
    interactions = interactions.rename(columns={"user": "customer", "timestamp": "when"}).assign(price=3)
    root = write_tables(tmp_path / "s", interactions=interactions, items=items.rename(columns={"title": "name"}))
    columns = {"user": "customer", "timestamp": "when", "title": "name"}
    assert len(raw_data.prepare(str(root), columns=columns).catalog) == 4


def test_a_raw_dir_elsewhere(tmp_path):
    write_tables(tmp_path / "elsewhere")
    made = raw_data.prepare(str(tmp_path / "my_store"), raw_dir=tmp_path / "elsewhere" / "raw")
    assert made.paths.catalog == tmp_path / "my_store" / "catalog.parquet"


def test_a_missing_column_is_named(tmp_path):
    root = write_tables(tmp_path / "s", interactions=own_tables()[0].rename(columns={"user": "customer"}))
    with pytest.raises(ValueError, match=r"interactions.csv has no column 'user': it has customer, item, timestamp"):
        raw_data.prepare(str(root))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no interactions.csv or interactions.parquet in"):
        raw_data.prepare(str(tmp_path / "nothing"))


def test_a_misspelt_column_role(tmp_path):
    with pytest.raises(ValueError, match="unknown column role 'usr': did you mean 'user'"):
        raw_files.read_tables(tmp_path, {"usr": "customer"})


@pytest.mark.parametrize(
    "values",
    [
        [SECONDS, SECONDS + 86_400],
        [SECONDS * 1000 + 7, (SECONDS + 86_400) * 1000],
        [SECONDS * 1_000_000_000, (SECONDS + 86_400) * 1_000_000_000],
        [float(SECONDS), float(SECONDS + 86_400)],
        [str(SECONDS), str(SECONDS + 86_400)],
        ["2014-07-23", "2014-07-24"],
        ["2014-07-23T00:00:00Z", "2014-07-24T02:00:00+02:00"],
        pd.to_datetime(["2014-07-23", "2014-07-24"]),
    ],
    ids=["seconds", "milliseconds", "nanoseconds", "floats", "text", "dates", "zones", "datetimes"],
)
def test_timestamps_become_seconds(values):
    seconds = raw_files.to_seconds(pd.Series(values))
    assert seconds.tolist() == [SECONDS, SECONDS + 86_400]
    assert seconds.dtype == "int64"


@pytest.mark.parametrize("values", [["2014-07-23", "soon"], [SECONDS, None], ["12", "later"]])
def test_a_timestamp_that_cannot_be_read_is_shown(values):
    with pytest.raises(ValueError, match=r"timestamp .* in row 2 of the interactions cannot be read"):
        raw_files.to_seconds(pd.Series(values))


def test_a_missing_user_is_an_error(tmp_path):
    interactions, _ = own_tables()
    interactions.loc[3, "user"] = None
    with pytest.raises(ValueError, match=r"row 4 of interactions.csv has no 'user'"):
        raw_data.prepare(str(write_tables(tmp_path / "s", interactions=interactions)))


@pytest.mark.parametrize("inside", [True, False], ids=["in the project", "elsewhere"])
def test_a_missing_raw_file_is_one_sentence_with_the_command(tmp_path, inside):
    """In a notebook `prepare` began to download; the runner does that now, and `prepare` names the command."""
    data_dir, folder = ("not_here", "not_here/beauty/raw") if inside else (tmp_path, "FOLDER")
    command = rf"`python -m tools\.download beauty --raw-dir {folder}` gets it, or set RAW_DIR to where it is"
    with pytest.raises(FileNotFoundError, match=rf"reviews_Beauty_5\.json\.gz is missing from .*raw: {command}"):
        raw_data.prepare("beauty", data_dir=data_dir, progress=False)
