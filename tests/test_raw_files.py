"""Reading the UCSD files: streaming, broken lines, damaged archives."""

import gzip
import json

import pytest

from gloss_utils import raw_files

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
