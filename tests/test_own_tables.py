"""A data set of one's own: CSV or Parquet, other column names, four kinds of timestamps."""

import doctest

import pandas as pd
import pytest

from gloss_utils import raw_data, raw_files, splits

TITLES = {"001": "Blue Mug", "002": "Red Mug", "003": "Tea &amp; Spoon", "004": "Tray"}
SECONDS = 1406073600  # 2014-07-23


def shop(users: int = 4) -> tuple[pd.DataFrame, pd.DataFrame]:
    interactions = pd.DataFrame(
        [(str(user), item, SECONDS + day * 86_400) for user in range(users) for day, item in enumerate(TITLES)],
        columns=["user", "item", "timestamp"],
    )
    return interactions, pd.DataFrame({"item": list(TITLES), "title": list(TITLES.values())})


def write_shop(root, suffix="csv", interactions=None, items=None):
    made = shop()
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
def test_a_shop_of_ones_own_is_prepared_like_any_other(tmp_path, suffix):
    root = write_shop(tmp_path / "my_shop", suffix)
    made = raw_data.prepare(str(root))
    assert made.dataset == "my_shop"
    assert made.catalog["asin"].tolist() == ["001", "002", "003", "004"], "ids stay text"
    assert made.catalog["title"][2] == "Tea & Spoon"
    assert made.interactions["timestamp"].tolist()[:2] == [SECONDS, SECONDS + 86_400]
    loaded = splits.load_prepared(str(root))
    assert splits.load_task(loaded).targets.tolist() == [3] * 4
    assert len(splits.load_task(loaded, "validation")) == 1
    assert made.report["step"][0] == "rows read"


def test_ids_and_titles_that_pandas_takes_for_missing_stay(tmp_path):
    """'NA' is a country, 'None' a brand and 'null' a nickname: none of them is a missing value."""
    interactions, items = shop()
    names = {"user": {"0": "null"}, "item": {"001": "NA", "002": "None"}}
    interactions, items = interactions.replace(names), items.replace(names)
    items.loc[2, "title"] = "N/A"
    made = raw_data.prepare(str(write_shop(tmp_path / "s", interactions=interactions, items=items)))
    assert "null" in set(made.interactions["reviewer_id"])
    assert {"NA", "None"} <= set(made.catalog["asin"]) and "N/A" in set(made.catalog["title"])


def test_columns_may_have_other_names_and_others_beside_them(tmp_path):
    interactions, items = shop()
    interactions = interactions.rename(columns={"user": "customer", "timestamp": "when"}).assign(price=3)
    root = write_shop(tmp_path / "s", interactions=interactions, items=items.rename(columns={"title": "name"}))
    columns = {"user": "customer", "timestamp": "when", "title": "name"}
    assert len(raw_data.prepare(str(root), columns=columns).catalog) == 4


def test_a_raw_dir_elsewhere(tmp_path):
    write_shop(tmp_path / "elsewhere")
    made = raw_data.prepare(str(tmp_path / "my_shop"), raw_dir=tmp_path / "elsewhere" / "raw")
    assert made.paths.catalog == tmp_path / "my_shop" / "catalog.parquet"


def test_a_missing_column_is_named(tmp_path):
    root = write_shop(tmp_path / "s", interactions=shop()[0].rename(columns={"user": "customer"}))
    with pytest.raises(ValueError, match=r"interactions.csv has no column 'user': it has customer, item, timestamp"):
        raw_data.prepare(str(root))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no interactions.csv or interactions.parquet in"):
        raw_data.prepare(str(tmp_path / "nothing"))


def test_a_misspelt_column_role(tmp_path):
    with pytest.raises(ValueError, match="unknown column role 'usr'"):
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
    interactions, _ = shop()
    interactions.loc[3, "user"] = None
    with pytest.raises(ValueError, match=r"row 4 of interactions.csv has no 'user'"):
        raw_data.prepare(str(write_shop(tmp_path / "s", interactions=interactions)))


def test_examples_in_docstrings():
    assert doctest.testmod(own_tables).failed == 0
