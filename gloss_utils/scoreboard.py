"""The papers' tables and our own results, side by side where that is fair."""

import pandas as pd

from .metrics import MEASURED, RESULT_KEYS
from .paths import PROJECT_ROOT

PAPER = PROJECT_ROOT / "data" / "paper_results.csv"
SYSTEM = ["model", "strategy", "retriever", "policy"]
VALUES = ["value", "low", "high", "num_users", "command", "source", "date", "note"]
FLOOR = ("random", "most-popular", "popularity-weighted", "repeat-last")
OVERALL_TABLES = ("1", "2", "8", "field")  # one row per system; the others split by retriever, segment, strategy
TEST_USERS = {"beauty": 22_363, "toys": 19_406, "sports": 35_597}  # the paper's Table 4
# How a policy says that ties were not in the field's order, or that it reads that order off as a signal.
OTHER_TIES = "shuffled|reverse|after_last"


def load_paper() -> pd.DataFrame:
    """Read the papers' tables: table, method, group, dataset, metric, value, source, grade, comparable, note."""
    return pd.read_csv(PAPER, dtype={"table": str}, keep_default_na=False)


def load_measured(dataset: str) -> pd.DataFrame:
    """Read our results on a real dataset, with command, source, date and note; empty where there are none."""
    if not MEASURED.exists():
        return pd.DataFrame(columns=[*RESULT_KEYS, *VALUES])
    table = pd.read_csv(MEASURED, keep_default_na=False)
    return table[table["dataset"] == dataset].reset_index(drop=True)


def name_systems(results: pd.DataFrame) -> pd.Series:
    """One readable name per row out of model, strategy, retriever and policy; "none" is left out."""
    rows = results[SYSTEM].astype(str).itertuples(index=False)
    names = [" · ".join(part for part in row if part not in ("none", "nan", "")) for row in rows]
    return pd.Series(names, index=results.index, dtype=object)


def published(paper: pd.DataFrame, dataset: str, metric: str) -> pd.DataFrame:
    """Every published system once, on one dataset and metric.

    A system that several tables print is taken from the first of them; the tables agree (there is a test).
    """
    rows = paper[(paper["dataset"] == dataset) & (paper["metric"] == metric) & paper["table"].isin(OVERALL_TABLES)]
    return rows.drop_duplicates("method").reset_index(drop=True)


def same_protocol(measured: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Keep our rows that may stand beside the papers': all test users, ties by asin and not used as a signal."""
    rows = measured[(measured["split"] == "test") & (measured["metric"] == metric)]
    everyone = rows["num_users"].astype(float) >= 0.99 * rows["dataset"].map(TEST_USERS)
    return rows[everyone & ~rows["policy"].str.contains(OTHER_TIES)].reset_index(drop=True)


def worth_drawing(ours: pd.DataFrame) -> pd.DataFrame:
    """Keep the best of each kind of system, LIS as the paper runs it, and STAR with transitions.

    Args:
        ours: from `same_protocol`. The floor (chance, popularity, the last item again) is left to the tables.
    """
    rows = ours[~ours["model"].isin(FLOOR)].sort_values("value", ascending=False)
    named = (rows["policy"] == "STAR + ½ next") | ((rows["retriever"] == "bm25") & (rows["policy"] == "keep-seen"))
    return rows[~rows["model"].duplicated() | named].reset_index(drop=True)


def side_by_side(paper: pd.DataFrame, measured: pd.DataFrame, groups: list[str]) -> pd.DataFrame:
    """Stack published systems of some groups and our own, for `plotting.scoreboard`.

    Args:
        paper: from `published`; rows that are not comparable are left out.
        measured: from `same_protocol`.
        groups: of the paper's systems.
    """
    theirs = paper[paper["group"].isin(groups) & (paper["comparable"] == "yes")]
    theirs = theirs.assign(label=theirs["method"], kind=theirs["group"])
    ours = measured.assign(label=name_systems(measured), kind="ours, this repository")
    columns = ["label", "kind", "value", "low", "high"]
    parts = [part.reindex(columns=columns).astype(dict.fromkeys(columns[2:], float)) for part in (theirs, ours)]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)
