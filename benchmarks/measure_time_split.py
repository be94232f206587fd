"""Measure the systems of chapter 09 under one date for all beside leave-last-out, on real data.

    python benchmarks/measure_time_split.py --dataset beauty --raw-dir <folder>

Everything is fitted on what was bought before the date that has `--share` of the interactions before it: items are
numbered, counts are made and weights are chosen without a later row. Each user's next purchase is the target.
The catalog is whole: titles that nobody has bought yet stand in it, with text as their only trace. Writes
data/measured_shop.csv; `--sasrec` trains chapter 07's SASRec and trees on the same purchases and writes their rows.
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain

import keep_measured
import numpy as np
import pandas as pd
import torch
from lessons import lesson
from measure_sasrec import LEARNING_USERS, TAUGHT, learn_ranking

from gloss_utils import baselines, fusion, rankers, raw_data, splits
from gloss_utils.dense import encode
from gloss_utils.metrics import compare, evaluate, summarize
from gloss_utils.paths import PROJECT_ROOT
from gloss_utils.retrieval import BM25Index
from gloss_utils.splits import Task

MEASURED = PROJECT_ROOT / "data" / "measured_shop.csv"
KEYS = ["dataset", "split", "system", "part", "metric"]
DAY, MONTH = 86_400, 30  # seconds; days
TIME, LAST = "one date for all", "leave-last-out"
LISTED = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
OF_LAST, OF_LEARNERS = "fused, weights of last purchases", "fused, weights of the learners"
PAIRS = (("STAR", "LIS"), ("fused", "STAR"), ("fused", OF_LAST))
HALVES = {"text": "text alone", "cooccurrence": "co-occurrence alone"}  # of STAR
COUNTED = ("most popular", "STAR", "fused")  # what counting anew can change
LEAST_USERS = 30  # of a part: an interval over fewer says nothing
COMMON_SHARE = 0.5  # the most bought items that together make up this share of the purchases are no long tail
OVERLAP_PAIRS = 10_000
TITLED, OF_NINE, LEARNED = "SASRec + titles", "fused + SASRec + titles", "learned ranking"
ZERO = "own vectors zero"  # of items that nobody bought
ZEROED = f"{TITLED}, {ZERO}"
MOST_USERS = 3000  # who choose the weights


@dataclass(frozen=True)
class Past:
    """What is known on a date, and what each known user bought next."""

    date: float  # seconds; purchases before it are known
    catalog: pd.DataFrame  # asin, title, text; bought items as the histories meet them, then the others by asin
    histories: dict[str, np.ndarray]  # per user, item numbers in time order
    days: dict[str, np.ndarray]  # per user, the days of these purchases
    test: Task  # users with a purchase before the date and one after it
    test_days: np.ndarray  # float64 [U], when each target was bought
    newcomers: np.ndarray  # item numbers of the first purchases of users who have none before the date

    @property
    def number(self) -> pd.Series:
        """The number of each asin."""
        return pd.Series(np.arange(len(self.catalog)), self.catalog["asin"])

    @property
    def counts(self) -> np.ndarray:
        return baselines.item_counts(list(self.histories.values()), len(self.catalog))


def find_date(interactions: pd.DataFrame, share: float) -> float:
    """The midnight before which about this share of the interactions lies, in seconds."""
    return float(interactions["timestamp"].quantile(share) // DAY * DAY)


def split_at(interactions: pd.DataFrame, catalog: pd.DataFrame, date: float) -> Past:
    """Cut everybody at one date; `interactions` are in each user's order, `catalog` says what is on the shelf."""
    met = interactions["asin"][interactions["timestamp"] < date].unique()
    catalog = catalog.set_index("asin").loc[[*met, *pd.Index(catalog["asin"]).difference(met)]].reset_index()
    number = pd.Series(np.arange(len(catalog)), catalog["asin"])
    histories, days = histories_before(interactions, date, number)
    future = interactions[interactions["timestamp"] >= date]
    test, test_days = next_purchases(future, histories, number)
    newcomers = future[~future["reviewer_id"].isin(histories)].groupby("reviewer_id").head(1)
    return Past(date, catalog, histories, days, test, test_days, number[newcomers["asin"]].to_numpy())


def histories_before(interactions: pd.DataFrame, date: float, number: pd.Series) -> tuple[dict, dict]:
    """Everybody's item numbers, and the days of these purchases, before a date."""
    past = interactions[interactions["timestamp"] < date]
    ids, bounds = splits.user_bounds(past)
    columns = number[past["asin"]].to_numpy(), past["timestamp"].to_numpy() / DAY
    return tuple(dict(zip(ids, np.split(column, bounds[1:-1]))) for column in columns)


def next_purchases(rows: pd.DataFrame, histories: Mapping, number: pd.Series) -> tuple[Task, np.ndarray]:
    """The first of these purchases of each user who has a history, and its day."""
    first = rows.groupby("reviewer_id").head(1)
    first = first[first["reviewer_id"].isin(histories)]
    task = to_task(first["reviewer_id"].tolist(), histories, number[first["asin"]].to_numpy())
    return task, first["timestamp"].to_numpy() / DAY


def to_task(users: list[str], histories: Mapping[str, np.ndarray], targets: np.ndarray) -> Task:
    """Histories and targets of some users; there are no prompts, since no model writes texts here."""
    return Task(np.array(users, dtype=str), [""] * len(users), [histories[user] for user in users], targets)


def hold_out(
    past: Past, most_users: int = MOST_USERS, share: float = fusion.EXTRA_SHARE, seed: int = 42
) -> tuple[dict[str, np.ndarray], Task]:
    """Hold out the last known purchase of some users, to choose weights on: the shorter histories, and the task.

    At most this share of them, as in chapter 07.
    """
    free = [user for user, items in past.histories.items() if len(items) > 1]
    count = min(most_users, int(len(past.histories) * share))
    drawn = sorted(np.random.default_rng(seed).permutation(free)[:count])
    shorter = past.histories | {user: past.histories[user][:-1] for user in drawn}
    return shorter, to_task(drawn, shorter, np.array([past.histories[user][-1] for user in drawn]))


def weights_of(shorter: Mapping, held_out: Task, vectors: np.ndarray, days: Mapping) -> dict[str, float]:
    """Choose the fused weights on held-out purchases, with signals of the histories without them."""
    signals = fusion.fit_signals(list(shorter.values()), vectors, fusion.FUSION, days)
    return fusion.choose_weights(fusion.gather_candidates(signals, held_out))


def weights_by_date(past: Past, interactions: pd.DataFrame, vectors: np.ndarray, share: float) -> dict[str, float]:
    """Choose them on next purchases after an earlier date, so that validation users are tested as test users are.

    The earlier date has `share` of the known purchases before it; the signals know nothing after it.
    """
    known = interactions[interactions["timestamp"] < past.date]
    early_date = find_date(known, share)
    histories, days = histories_before(known, early_date, past.number)
    held_out, _ = next_purchases(known[known["timestamp"] >= early_date], histories, past.number)
    return weights_of(histories, splits.sample_users(held_out, MOST_USERS), vectors, days)


@dataclass(frozen=True)
class Fitted:
    """The fused signals of chapter 07 with their weights, and what the other systems need."""

    signals: dict
    weights: dict[str, dict]  # of each fused system
    counts: np.ndarray
    vectors: np.ndarray
    index: BM25Index

    @classmethod
    def fit(cls, histories: Mapping, days: Mapping, weights: dict, vectors: np.ndarray, index: BM25Index) -> "Fitted":
        signals = fusion.fit_signals(list(histories.values()), vectors, fusion.FUSION, days)
        counts = baselines.item_counts(list(histories.values()), len(vectors))
        return cls(signals, weights, counts, vectors, index)

    def rank(self, task: Task, names: Iterable[str] = ()) -> dict[str, np.ndarray]:
        """The named systems' item numbers [U, 10], by default those of a scoreboard; seen items are dropped."""
        cooccurrence = self.signals["cooccurrence"].matrices[0]
        calls = {
            "most popular": lambda: baselines.most_popular(task, self.counts, drop="seen"),
            "LIS": lambda: baselines.lis(task, self.index, drop="seen"),
            "STAR": lambda: baselines.star(task, self.vectors, cooccurrence).items,
            **{name: partial(self._fuse, chosen, task) for name, chosen in self.weights.items()},
        }
        halves = {half: partial(self._fuse, {name: 1.0}, task) for name, half in HALVES.items()}
        return {name: (calls | halves)[name]() for name in tuple(names) or calls}

    def _fuse(self, weights: dict, task: Task) -> np.ndarray:
        return fusion.fuse(self.signals, weights, task).items


def evaluate_lists(ranked: Mapping[str, np.ndarray], task: Task) -> dict[str, pd.DataFrame]:
    """The per-user metrics of each system's items."""
    return {name: evaluate(items, task.targets, reviewer_ids=task.reviewer_ids) for name, items in ranked.items()}


def describe(split: str, part: str, per_user: Mapping[str, pd.DataFrame], pairs=PAIRS) -> pd.DataFrame:
    """A row per system and metric, and per paired difference, each with its interval over users."""
    rows = [summarize(table).assign(system=name) for name, table in per_user.items()]
    for a, b in pairs:
        if a in per_user and b in per_user:
            gain = compare(per_user[a], per_user[b]).rename(columns={"difference": "value"})
            rows.append(gain.assign(system=f"{a} − {b}"))
    return pd.concat(rows).query("metric in @LISTED").assign(split=split, part=part)


def count(split: str, part: str, system: str, num_users: int, **values: float) -> pd.DataFrame:
    """Rows of plain numbers, without an interval."""
    row = {"split": split, "part": part, "system": system, "num_users": num_users}
    return pd.DataFrame([row | {"metric": metric, "value": value} for metric, value in values.items()])


def long_tail(counts: np.ndarray) -> np.ndarray:
    """Which items are not among the most bought ones that make up `COMMON_SHARE` of the purchases, bool [items]."""
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    tail = np.ones(len(counts), dtype=bool)
    tail[order[before < COMMON_SHARE * counts.sum()]] = False
    return tail


def overlap(items: np.ndarray, pairs: int = OVERLAP_PAIRS, seed: int = 42) -> float:
    """The mean share of a list that two users' lists have in common, over drawn pairs of users."""
    first, second = np.random.default_rng(seed).integers(0, len(items), (2, pairs))
    first, second = first[first != second], second[first != second]
    common = (items[first][:, :, None] == items[second][:, None, :]) & (items[first] >= 0)[:, :, None]
    return common.any(axis=2).mean()


def beyond_accuracy(items: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Coverage, share of long-tail items, overlap of two users' lists of ten."""
    shown = items[items >= 0]
    tail = long_tail(counts)
    return {
        "coverage@10": len(np.unique(shown)) / len(counts),
        "tail@10": tail[shown].mean(),
        "overlap@10": overlap(items),
    }


def measure_last(prepared: splits.Prepared, vectors: np.ndarray, index: BM25Index) -> Iterator[pd.DataFrame]:
    """The systems under leave-last-out, and what that split leaks."""
    ids = splits.user_bounds(prepared.interactions)[0].astype(str)
    shorter, held_out = fusion.extend_validation(prepared)
    histories, days = splits.training_histories(prepared), splits.purchase_days(prepared)
    weights = {"fused": weights_of(dict(zip(ids, shorter)), held_out, vectors, days)}
    fitted = Fitted.fit(dict(zip(ids, histories)), days, weights, vectors, index)
    task = splits.load_task(prepared)
    ranked = fitted.rank(task)
    per_user = evaluate_lists(ranked, task)
    target_day = np.array([days[str(user)][-1] for user in task.reviewer_ids])
    known = np.sort(np.concatenate([dates[: len(items)] for dates, items in zip(days.values(), histories)]))
    later = 1 - np.searchsorted(known, target_day, side="right") / len(known)
    same_day = np.array([days[str(user)][-1] // 1 == days[str(user)][-2] // 1 for user in task.reviewer_ids])
    cold = fitted.counts[task.targets] == 0
    chosen = count(LAST, "weights", "fused", len(task), **weights["fused"])
    facts = count(LAST, "all", "data", len(task), later=later.mean(), same_day=same_day.mean(), cold=cold.mean())
    parts = {"all": same_day | True, "target on the last known day": same_day, "target on a later day": ~same_day}
    yield pd.concat([*(describe(LAST, part, keep(per_user, rows)) for part, rows in parts.items()), facts, chosen])


def keep(per_user: Mapping[str, pd.DataFrame], rows: np.ndarray) -> dict[str, pd.DataFrame]:
    """The metrics of some users."""
    return {name: table[rows] for name, table in per_user.items()}


def describe_parts(parts: Mapping[str, np.ndarray], per_user: Mapping, pairs=PAIRS) -> pd.DataFrame:
    """`describe` under one date, for each part that has `LEAST_USERS` users."""
    parts = {part: kept for part, kept in parts.items() if kept.sum() >= LEAST_USERS}
    return pd.concat(describe(TIME, part, keep(per_user, kept), pairs) for part, kept in parts.items())


def measure_time(past: Past, interactions, vectors, index: BM25Index, share: float) -> Iterator[pd.DataFrame]:
    """The systems under one date, a piece after the other: users, lists, months, what others' future is worth."""
    shorter, held_out = hold_out(past)
    weights = {"fused": weights_by_date(past, interactions, vectors, share)}
    weights[OF_LAST] = weights_of(shorter, held_out, vectors, past.days)
    fitted = Fitted.fit(past.histories, past.days, weights, vectors, index)
    counts, test = past.counts, past.test
    ranked = fitted.rank(test) | fitted.rank(test, HALVES.values())
    per_user = evaluate_lists(ranked, test)
    cold, lengths = counts[test.targets] == 0, np.array([len(items) for items in test.seen_items])
    parts = {"all": cold | True, "target bought before": ~cold, "target never bought": cold}
    parts |= {"one purchase": lengths == 1, "two or more": lengths > 1}
    yield describe_parts(parts, per_user)
    yield measure_lists(past, ranked, weights)
    yield measure_months(past, interactions, fitted, per_user)
    yield measure_knowing_others(past, interactions, fitted, per_user["fused"])


def measure_lists(past: Past, ranked: Mapping[str, np.ndarray], weights: Mapping[str, dict]) -> pd.DataFrame:
    """What is cold, what newcomers find, the fused weights, and what lies beyond accuracy."""
    counts, test = past.counts, past.test
    best = baselines.most_popular(test.take(np.zeros(1, dtype=int)), counts)
    popular = evaluate(np.repeat(best, len(past.newcomers), axis=0), past.newcomers)
    rows = [describe(TIME, "no purchase", {"most popular": popular})]
    facts = {
        "cold": (counts[test.targets] == 0).mean(),
        "cold of newcomers": (counts[past.newcomers] == 0).mean(),
        "date": past.date,
    }
    rows.append(count(TIME, "all", "data", len(test), **facts))
    rows += [count(TIME, "weights", name, len(test), **chosen) for name, chosen in weights.items()]
    for name, items in ranked.items():
        rows.append(count(TIME, "lists", name, len(test), **beyond_accuracy(items, counts)))
    bought = long_tail(counts)[test.targets].mean()
    rows.append(count(TIME, "lists", "what was bought", len(test), **{"tail@10": bought}))
    return pd.concat(rows)


def measure_months(past: Past, interactions, fitted: Fitted, per_user: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """By months since the date: the systems as fitted then, and counted anew at each month's start; then all months.

    A target is its user's next purchase, so the history is the same in both: only the counts are fresher.
    """
    month = ((past.test_days - past.date / DAY) // MONTH).astype(int)
    rows, fresh = [], {name: [per_user[name][month == 0]] for name in COUNTED}
    for which in range(1, month.max() + 1):
        start = past.date + which * MONTH * DAY
        later = Fitted.fit(
            *histories_before(interactions, start, past.number), fitted.weights, fitted.vectors, fitted.index
        )
        task = past.test.take(np.flatnonzero(month == which))
        for name, items in (later.rank(task, COUNTED) if len(task) else {}).items():
            fresh[name].append(evaluate(items, task.targets, reviewer_ids=task.reviewer_ids))
    anew = {f"{name}, counted monthly": pd.concat(tables) for name, tables in fresh.items()}
    pairs = [(f"{name}, counted monthly", name) for name in COUNTED]
    pairs.append(("fused, counted monthly", "STAR, counted monthly"))
    every = {name: table.set_index("reviewer_id") for name, table in (per_user | anew).items()}
    every = {name: table.loc[past.test.reviewer_ids].reset_index() for name, table in every.items()}
    for which in range(month.max() + 1):
        if (month == which).sum() >= LEAST_USERS:
            rows.append(describe(TIME, f"month {which + 1}", keep(every, month == which), (*PAIRS, *pairs)))
    whole = describe(TIME, "all", every, pairs)
    return pd.concat([*rows, whole[whole["system"].str.contains("monthly")]])


def measure_knowing_others(past: Past, interactions, fitted: Fitted, fused: pd.DataFrame) -> pd.DataFrame:
    """What it is worth to know what *others* bought after the date: the same users, targets, histories and weights.

    The users are halved by position; the counts for each half hold all later purchases of everybody else.
    """
    everything, all_days = histories_before(interactions, np.inf, past.number)
    halves, found = np.arange(len(past.test)) % 2, []
    for half in (0, 1):
        task = past.test.take(np.flatnonzero(halves == half))
        own = set(task.reviewer_ids)
        histories = {user: past.histories[user] if user in own else items for user, items in everything.items()}
        days = {user: all_days[user][: len(items)] for user, items in histories.items()}
        signals = fusion.fit_signals(list(histories.values()), fitted.vectors, fusion.FUSION, days)
        items = fusion.fuse(signals, fitted.weights["fused"], task).items
        found.append(evaluate(items, task.targets, reviewer_ids=task.reviewer_ids))
    knowing = "fused, knowing others' later purchases"
    tables = {"fused": fused, knowing: pd.concat(found)}
    return describe(TIME, "all", tables, [(knowing, "fused")]).query("system != 'fused'")


def at_zero(signal: rankers.SASRecSignal, histories: list[np.ndarray]) -> rankers.SASRecSignal:
    """SASRec with the own vectors of items that nobody bought at zero: of these, the titles speak alone."""
    model = copy.deepcopy(signal.model)
    never = baselines.item_counts(histories, model.num_items) == 0
    model.items.weight.data[:-1][torch.tensor(never)] = 0
    return rankers.SASRecSignal(model)


def rank_trained(chapter, table: fusion.Candidates, learners: Task, known: Mapping, test: Task) -> dict:
    """Learn weights and trees from the learners' table, and rank the test users with them; items by system."""
    weights, trees, _ = learn_ranking(chapter, table, learners)
    hits = {TITLED: fusion.fuse(known, {"sasrec": 1.0}, test), OF_NINE: fusion.fuse(known, weights, test)}
    hits[LEARNED] = rankers.rank_learned(trees, known, weights, test)
    return {name: found.items for name, found in hits.items()}


def rehearse(early: Mapping[str, rankers.SASRecSignal], shorter: list[np.ndarray], learners: Task) -> pd.DataFrame:
    """What SASRec, as it is and with zeros, finds of the learners' held-out purchases: those choose, not the test."""
    ranked = {
        name: fusion.fuse({"sasrec": signal}, {"sasrec": 1.0}, learners).items for name, signal in early.items()
    }
    tables = evaluate_lists(ranked, learners)
    cold = baselines.item_counts(shorter, early[TITLED].model.num_items)[learners.targets] == 0
    parts = {"learners": cold | True, "learners, target never bought": cold}
    return describe_parts(parts, tables, [(ZEROED, TITLED)])


def measure_sasrec(past: Past, interactions, vectors: np.ndarray, share: float, epochs: int) -> pd.DataFrame:
    """Chapter 07's SASRec with titles and its trees, trained on the known purchases as the chapter trains them.

    Some users' last known purchases are held out: they stop the training, fit the sums and teach the trees. Then the
    signals, SASRec among them, are fitted on all known purchases. All of it once more with `at_zero`.
    """
    shorter, learners = hold_out(past, LEARNING_USERS, share=1.0)
    known, less, test = list(past.histories.values()), list(shorter.values()), past.test
    chapter = lesson("07_beyond_text", *TAUGHT, SEED=42, num_items=len(vectors))
    early, log = chapter.train_sasrec(less, epochs, vectors, learners)
    print(log.round(4).to_string(index=False), flush=True)
    sasrec, _ = chapter.train_sasrec(known, 1 + int(log["ndcg@10"].argmax()), vectors)
    early, sasrec = {TITLED: early, ZEROED: at_zero(early, less)}, {TITLED: sasrec, ZEROED: at_zero(sasrec, known)}
    learning, after = (fusion.fit_signals(part, vectors, fusion.FUSION, past.days) for part in (less, known))
    tables = {name: fusion.gather_candidates(learning | {"sasrec": of}, learners) for name, of in early.items()}
    ranked = {OF_LEARNERS: fusion.fuse(after, fusion.choose_weights(tables[TITLED], fusion.FUSION), test).items}
    for name, ending in {TITLED: "", ZEROED: f", {ZERO}"}.items():
        found = rank_trained(chapter, tables[name], learners, after | {"sasrec": sasrec[name]}, test)
        ranked |= {system + ending: items for system, items in found.items()}
    ranked["fused"] = fusion.fuse(after, weights_by_date(past, interactions, vectors, share), test).items
    ranked["STAR"] = baselines.star(test, vectors, after["cooccurrence"].matrices[0]).items
    per_user, cold = evaluate_lists(ranked, test), past.counts[test.targets] == 0
    pairs = [(TITLED, "STAR"), ("fused", TITLED), (OF_NINE, OF_LEARNERS)]
    pairs += [(LEARNED, name) for name in (OF_NINE, OF_LEARNERS, "fused")]
    pairs += [(f"{name}, {ZERO}", name) for name in (TITLED, OF_NINE, LEARNED)] + [(f"{LEARNED}, {ZERO}", "fused")]
    parts = {"all": cold | True, "target bought before": ~cold, "target never bought": cold}
    rows = describe_parts(parts, per_user, pairs)
    rows = rows[rows["system"].str.contains("SASRec|learned")]
    lists = [
        count(TIME, "lists", name, len(test), **beyond_accuracy(ranked[name], past.counts))
        for name in (TITLED, LEARNED, ZEROED, f"{LEARNED}, {ZERO}")
    ]
    return pd.concat([rows, rehearse(early, less, learners), *lists])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="beauty")
    parser.add_argument("--raw-dir", default="")
    parser.add_argument("--share", type=float, default=0.8, help="of the interactions, before the date")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--data-dir", default="", help="of a prepared dataset, instead of the raw files")
    parser.add_argument("--cache-dir", default=None, help="where vectors are kept between runs")
    parser.add_argument(
        "--sasrec", type=int, default=0, metavar="EPOCHS", help="train SASRec and the trees instead, at most so long"
    )
    options = parser.parse_args()
    if reason := keep_measured.NO_DATES.get(options.dataset):
        sys.exit(f"'{options.dataset}' cannot be split by date: {reason}")
    with tempfile.TemporaryDirectory() as scratch:
        if options.data_dir:
            prepared = splits.load_prepared(options.dataset, options.data_dir)
        else:
            prepared = raw_data.prepare(options.dataset, options.raw_dir, scratch)
    if reason := keep_measured.refusal(prepared):
        sys.exit(reason)
    interactions, texts = prepared.interactions, prepared.catalog["text"].tolist()
    vectors = encode(
        texts, options.encoder, options.cache_dir or (prepared.paths.cache if options.data_dir else None)
    )
    past = split_at(interactions, prepared.catalog, find_date(interactions, options.share))
    again = prepared.item_numbers(past.catalog["asin"])
    mine = vectors[again], BM25Index(past.catalog["text"].tolist())
    command = f"python benchmarks/measure_time_split.py --dataset {options.dataset} --raw-dir RAW_DIR"
    command += f" --sasrec {options.sasrec}" if options.sasrec else ""
    if options.sasrec:
        pieces = [measure_sasrec(past, interactions, mine[0], options.share, options.sasrec)]
    else:
        last = measure_last(prepared, vectors, BM25Index(texts))
        pieces = chain(measure_time(past, interactions, *mine, options.share), last)
    for rows in pieces:  # kept as they come: a run that is stopped has written what it knew
        rows = rows.assign(dataset=options.dataset)[[*KEYS, "value", "low", "high", "num_users"]]
        print(rows[rows["metric"].isin(["recall@5", "coverage@10", "same_day"])].round(4).to_string(index=False))
        keep_measured.keep(MEASURED, rows, KEYS, command, f"ties by asin; {options.share:.0%} before the date")


if __name__ == "__main__":
    main()
