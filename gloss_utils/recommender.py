"""One object: a history in, ranked items out.

recommender = Recommender.load("sample", system="fused")
recommender.recommend(["a title", "or an asin"], k=5, explain=True)     # rank, asin, title, score, text, reason
recommender.save("runs/shop")                                           # Recommender.open("runs/shop")
"""

import difflib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from . import fusion, paths, prompts, rankers
from .baselines import item_counts, keep_unseen
from .dense import RETRIEVERS, build_index, encode
from .paths import check_choice, check_number, file_sha256
from .ranking import POLICIES, rank_with_scores
from .raw_data import clean_title
from .raw_files import to_seconds
from .splits import Prepared, Task, load_prepared, load_task, purchase_days, training_histories

TRAINED = ("sasrec", "fused + sasrec", "learned ranking")  # by notebook 07
SYSTEMS = ("most-popular", "lis", "star", "star + transitions", "fused", "texts", "fused + texts", *TRAINED)
HALVES = {"star": dict.fromkeys(("text", "cooccurrence"), 0.5)}  # weights that are not fitted
HALVES["star + transitions"] = HALVES["star"] | {"transitions": 0.5}
DEPTH = 20  # hits per text
NEAR = 0.85  # how alike a misspelt title and a title of the catalog must be, 0 to 1
ASIN = re.compile(r"[A-Z0-9]{10}")
HALF = re.compile("[\ud800-\udfff]")  # of a pair of surrogates: no text of its own, and nothing can write it
Found = tuple[np.ndarray, np.ndarray, list[str], list[str]]  # items, scores, texts, reasons; best first
COLUMNS = ["rank", "asin", "title", "score", "text"]
REASONS = {
    "text": "its title is close to '{}'",
    "cooccurrence": "bought by the same people as '{}'",
    "random_walk": "bought by people who share purchases with the buyers of '{}'",
    "transitions": "bought next after '{}'",
    "two_step": "bought two purchases after '{}'",
    "skip_transitions": "bought soon after '{}'",
    "time_decayed": "bought within days of '{}'",
    "popularity": "popular",
    "generated": "the model wrote '{}'",
    "sasrec": "SASRec expects it after '{}'",
}
ABOUT, CATALOG, PURCHASES, VECTORS = "recommender.json", "catalog.parquet", "purchases.parquet", "vectors.npy"


class Visitor(NamedTuple):
    """A history as the systems read it."""

    texts: list[str]  # for a language model
    items: list[int]  # for counts
    days: list[float]  # when these were bought
    seen: list[int]  # the items that the history names
    notes: list[str]  # what had to be adjusted


@dataclass
class Recommender:
    """Rank the catalog for a history, by any of the course's systems."""

    catalog: pd.DataFrame  # asin, title, text; the row position is the item's number
    index: object  # over catalog.text
    write_texts: Callable[[list[str]], list] | None  # from prompts to `generation.Generated`
    fit_history: Callable[[list[str]], list[str]] | None  # the most recent item texts that fit the context
    popular: np.ndarray  # item numbers, most bought first: for a visitor without a history
    policy: str = "round_robin"  # see ranking.POLICIES
    system: str = "texts"  # one of SYSTEMS
    settings: dict = field(default_factory={"retriever": "bm25", "encoder": "minilm"}.copy)  # of `load`
    signals: dict[str, fusion.Signal] = field(default_factory=dict, repr=False)
    weights: dict[str, float] = field(default_factory=dict)  # of the signals
    vectors: np.ndarray | None = field(default=None, repr=False)  # of catalog.text
    purchases: pd.DataFrame | None = field(default=None, repr=False)  # per user, items and days: what is counted
    trained: rankers.Trained | None = field(default=None, repr=False)  # SASRec and trees, where the system has them
    models: Sequence[Path] = ()  # the folders of the language model, and of its base where that was made here
    removed: Sequence[int] = ()  # item numbers

    def __post_init__(self):
        check_choice(self.policy, POLICIES, "policy")
        self._take_catalog(self.catalog)

    def _take_catalog(self, catalog: pd.DataFrame) -> None:
        self.catalog, self._texts = catalog, catalog["text"].tolist()
        self._rows = {asin: [row] for row, asin in enumerate(catalog["asin"])}
        # With other ids, ten capital letters are more likely a title than an unknown asin.
        self._amazon_ids = all(map(ASIN.fullmatch, self._rows))
        self._titles: dict[str, list[int]] = {}
        for row, title in enumerate(catalog["title"]):
            self._titles.setdefault(_key(title), []).append(row)

    @classmethod
    def load(
        cls,
        dataset: str = "sample",
        model: str = "tiny-llama",
        retriever: str = "bm25",
        policy: str = "round_robin",
        data_dir: str | Path = "data",
        strategy: str = "beam5",
        encoder: str = "minilm",
        system: str = "texts",
        everything: bool = False,
    ) -> "Recommender":
        """Open what the notebooks made; an error says what is missing, or the nearest known name.

        `texts` needs a model of notebook 03, `fused + texts` its validation texts (04) too, those of `TRAINED` what
        notebook 07 trained, all others 01 alone. `retriever` is for `lis` and `texts`, `policy` for `texts`; see
        `ranking.POLICIES`, `generation.STRATEGIES`. `everything` counts the last purchases too, which the notebooks
        hold out: for a shop, not for a comparison. What was trained or chosen on less stays as it is.
        """
        check_choice(system, SYSTEMS, "system")  # names first: the model takes seconds
        check_choice(policy, POLICIES, "policy")
        check_choice(retriever, RETRIEVERS, "retriever")
        prepared = load_prepared(dataset, data_dir)
        if "texts" in system:
            from .generation import get_strategy
            from .language_models import find_adapter

            get_strategy(strategy)
            find_adapter(prepared.paths, model)
        settings = {"dataset": dataset, "model": model, "retriever": retriever, "policy": policy}
        settings |= {"strategy": strategy, "encoder": encoder, "system": system}
        texts = prepared.catalog["text"].tolist()
        needed = system not in ("most-popular", "lis", "texts") or retriever != "bm25"
        trained = rankers.load(prepared, encoder) if system in TRAINED else None
        vectors = encode(texts, encoder, cache_dir=prepared.paths.cache) if needed else None
        weights = trained.about["weights"][system] if trained else _choose_weights(prepared, vectors, settings)
        histories, days = training_histories(prepared, everything), purchase_days(prepared).values()
        known = [dates[: len(items)] for dates, items in zip(days, histories)]
        purchases = pd.DataFrame({"items": histories, "days": known})
        return cls._fit(settings, prepared.catalog, purchases, vectors, weights, trained, prepared.paths)

    @classmethod
    def _fit(cls, settings, catalog, purchases, vectors, weights, trained, home) -> "Recommender":
        """Index and count; open the language model where the system needs one."""
        system, policy, texts = settings["system"], settings["policy"], catalog["text"].tolist()
        index = build_index(settings["retriever"], texts, settings["encoder"], vectors=vectors)
        counts = item_counts(purchases["items"], len(catalog))
        popular = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        signals = _count(system, purchases, vectors, weights, trained)
        write, fit, models = _open_model(home, settings, texts) if "texts" in system else (None, None, ())
        counted = signals, weights, vectors, purchases, trained, models
        return cls(catalog, index, write, fit, popular, policy, system, settings, *counted)

    def save(self, folder: str | Path) -> Path:
        """Write all that `open` needs into one folder, whole or not at all; of a base, what notebook 03 made."""
        folder = paths.resolve(folder)
        if folder.exists() and not (folder / ABOUT).exists():
            raise ValueError(f"{paths.show(folder)} is there and holds no recommender: save into a folder of its own")

        def write(path: Path) -> None:
            path.mkdir()
            self.catalog.assign(removed=self.catalog.index.isin(self.removed)).to_parquet(path / CATALOG)
            self.purchases.to_parquet(path / PURCHASES)
            if self.vectors is not None:
                np.save(path / VECTORS, self.vectors)
            if self.trained:
                self.trained.write(path)
            for source in self.models:
                shutil.copytree(source, path / "models" / source.name, ignore=lambda *_: ["checkpoints"])
            files = filter(Path.is_file, sorted(path.rglob("*")))
            files = {file.relative_to(path).as_posix(): file_sha256(file) for file in files}
            about = {"settings": self.settings, "weights": self.weights, "files": files}
            (path / ABOUT).write_text(json.dumps(about | {"digest": paths.digest(about)}, indent=1), encoding="utf-8")

        return paths.write_atomically(folder, write)

    @classmethod
    def open(cls, folder: str | Path) -> "Recommender":
        """Open what `save` wrote, and count again; nothing else is read, but a base that notebook 03 did not make."""
        folder = paths.resolve(folder)
        about, catalog, *counted, trained = paths.read_file(folder, _read_folder, "save the recommender again")
        removed, home = np.flatnonzero(catalog.pop("removed")), paths.DatasetPaths(folder.name, folder)
        counted += [about["weights"], trained, home]
        return replace(cls._fit(about["settings"], catalog, *counted), removed=removed)

    def add_items(self, table: pd.DataFrame) -> None:
        """Add items by `asin` and `title`, which finds them at once: nothing is trained. A removed one comes back."""
        table = pd.DataFrame(table)
        if missing := {"asin", "title"} - set(table.columns):
            raise ValueError(f"the table of new items has no column '{min(missing)}': it needs asin and title")
        new = pd.DataFrame({"asin": table["asin"].map(clean_title), "title": table["title"].map(clean_title)})
        rows = self._find_items(new["asin"])
        faults = {"has no asin, or no title": (new == "").any(axis=1), "is there twice": new["asin"].duplicated()}
        faults["holds half a character"] = (new["asin"] + new["title"]).astype(str).str.contains(HALF)
        faults["is in the catalog already"] = (rows >= 0) & ~np.isin(rows, self.removed)
        for fault, wrong in faults.items():
            if wrong.any():
                raise ValueError(f"new item {new['asin'][wrong].iloc[0]!r} {fault}: nothing was added")
        new = new[rows < 0].assign(text=lambda items: items["title"].map(prompts.item_text))
        retriever, encoder = self.settings["retriever"], self.settings["encoder"]
        if self.vectors is not None:  # what may fail comes before anything changes
            self.vectors = np.concatenate([self.vectors, encode(new["text"].tolist(), encoder)])
            self.signals = _count(self.system, self.purchases, self.vectors, self.weights, self.trained)
        self.removed = np.setdiff1d(self.removed, rows)
        self._take_catalog(pd.concat([self.catalog, new], ignore_index=True))
        self.index = build_index(retriever, self._texts, encoder, vectors=self.vectors)

    def remove_items(self, asins: Sequence[str]) -> None:
        """Recommend these items no more; in a history they still count."""
        rows = self._find_items(asins := _as_list(asins))
        if (rows < 0).any():
            raise ValueError(f"no item '{asins[int(np.argmin(rows))]}' in the catalog: nothing was removed")
        self.removed = np.union1d(self.removed, rows).astype(np.int64)

    def _find_items(self, asins: Sequence[str]) -> np.ndarray:
        return np.array([self._rows.get(asin, [-1])[0] if isinstance(asin, str) else -1 for asin in asins], np.int64)

    def recommend(self, history, k: int = 5, dates=None, hide_seen=True, explain=False) -> pd.DataFrame:
        """Recommend what may come after a history of asins or titles, earliest first; seen items only if asked for.

        What had to be adjusted is printed, and kept in the table's `attrs["notes"]`: a misspelt title is read as the
        nearest one, another text is used as it is, and counts as the item with the closest text, an unknown Amazon
        asin is left out, as are items too old for the model's context, and an empty history gets the best-sellers.
        Without `dates` (or seconds since 1970) all purchases are of one day; `explain` adds a `reason`: what lifts
        the item most, SASRec and the trees aside, and the purchase behind it. Returns rank (from 1), asin, title,
        score (comparable within a list), and the text that found the item, if any; fewer than k if no more are found.
        """
        table = self._recommend([history], k, None if dates is None else [dates], hide_seen, explain)
        table.attrs["notes"] = [note for _, note in table.attrs["notes"]]
        for note in table.attrs["notes"]:
            print("note:", note)
        return table[COLUMNS + ["reason"] * explain]

    def recommend_many(self, histories: Sequence, k: int = 5, dates: Sequence | None = None) -> pd.DataFrame:
        """`recommend` for many histories, each with its dates; `user`, in front, is the history's position from 0."""
        histories = _as_list(histories)
        if any(isinstance(history, str) for history in histories):
            raise ValueError("recommend_many takes a list of histories: put each into a list of its own")
        return self._recommend(histories, k, dates)[["user", *COLUMNS]]

    def _recommend(self, histories: Sequence, k: int, dates, hide_seen=True, explain=False) -> pd.DataFrame:
        check_number(k, "k", 1)
        histories, depth = list(map(_check_history, histories)), min(k, len(self.catalog))
        visitors = list(map(self._read_history, histories, _read_dates(dates, histories)))
        hidden = [np.array([*visitor.seen * bool(hide_seen), *self.removed], dtype=np.int64) for visitor in visitors]
        known = [row for row, visitor in enumerate(visitors) if visitor.texts and self.system != "most-popular"]
        search = {"lis": self._search_last, "texts": self._search_written}.get(self.system, self._sum_signals)
        asked = [visitors[row] for row in known], [hidden[row] for row in known], depth, explain
        answers = dict(zip(known, search(*asked) if known else ()))
        found = [answers.get(row) or self._best_sellers(items, depth) for row, items in enumerate(hidden)]
        for visitor, (items, *_) in zip(visitors, found):
            if not visitor.texts:
                visitor.notes.append("the history is empty: these are the store's most popular items")
            if len(items) < k:
                visitor.notes.append(f"the list is short: {len(items)} items instead of {k}")
        lengths = [len(items) for items, *_ in found]
        items, scores, texts, reasons = (list(chain(*parts)) for parts in zip(*found)) if found else [[]] * 4
        ranks = [rank + 1 for length in lengths for rank in range(length)]
        table = {"user": np.repeat(np.arange(len(found)), lengths), "rank": ranks}
        table |= {column: self.catalog[column].to_numpy()[items] for column in ("asin", "title")}
        table = pd.DataFrame(table | {"score": scores, "text": texts, "reason": reasons})
        table.attrs["notes"] = [(user, note) for user, visitor in enumerate(visitors) for note in visitor.notes]
        return table

    def _read_history(self, history: list[str], days: np.ndarray) -> Visitor:
        notes, seen, kept = [], [], []
        for entry, day in zip(map(str.strip, history), days):
            rows, text, item = self._look_up(entry, notes) if entry else ([], "", -1)
            seen.extend(rows)  # several items may share a title
            kept.extend([(text, item, day)] if text else [])
        return Visitor(*map(list, zip(*kept)) if kept else ([], [], []), seen, notes)

    def _look_up(self, entry: str, notes: list[str]) -> tuple[list[int], str, int]:
        """The items that an asin or a title names, its text ("" leaves it out), and the item to count it as."""
        rows = self._rows.get(entry) or self._titles.get(_key(entry), [])
        unknown = f"no item '{entry[:60]}' in the catalog"
        is_asin = self._amazon_ids and ASIN.fullmatch(entry)
        if not rows and not is_asin and (near := difflib.get_close_matches(_key(entry), self._titles, 1, NEAR)):
            rows = self._titles[near[0]]
            notes.append(f"{unknown}: read as '{self.catalog['title'].iloc[rows[0]]}'")
        if rows:
            return rows, self._texts[rows[0]], rows[0]
        title = entry.removeprefix(prompts.ITEM_PREFIX)
        if self.system == "texts" and not is_asin:
            notes.append(f"{unknown}: used as text")
            return [], prompts.item_text(title), -1
        closest = -1 if is_asin else self.index.search([title], 1).items[0, 0]
        if closest < 0:
            notes.append(f"{unknown}: left out of the history")
            return [], "", -1
        notes.append(f"{unknown}: counted as the closest by text, '{self.catalog['title'].iloc[closest]}'")
        return [], prompts.item_text(title), closest

    def _best_sellers(self, hidden: np.ndarray, k: int) -> Found:
        best = self.popular[: k + len(hidden)]
        items = best[~np.isin(best, hidden)][:k]
        return items, 1.0 / (np.arange(len(items)) + 1), [""] * len(items), [REASONS["popularity"]] * len(items)

    def _search_last(self, visitors: list[Visitor], hidden: list, k: int, _) -> Iterator[Found]:
        """Search with the last item's text."""
        texts = [self._texts[visitor.items[-1]] for visitor in visitors]
        hits = keep_unseen(self.index.search(texts, k + max(map(len, hidden))), hidden, k)
        for visitor, text, items, scores in zip(visitors, texts, *hits):
            count, last = int((items >= 0).sum()), self.catalog["title"].iloc[visitor.items[-1]]
            yield items[:count], scores[:count], [text] * count, [REASONS["text"].format(last)] * count

    def _search_written(self, visitors: list[Visitor], hidden: list, k: int, _) -> Iterator[Found]:
        """Generate, search, rank."""
        for hide, (texts, log_probs) in zip(hidden, self._write(visitors)):
            # Deep enough that hidden items and items found by another text leave k.
            hits = self.index.search(texts, k=max(DEPTH, k + len(hide)))
            items, scores = rank_with_scores(hits, len(texts), self.policy, k, [hide], log_probs)
            items, scores = (part[0][items[0] >= 0] for part in (items, scores))
            found_by = [texts[_finder(hits.items, item)] for item in items]
            yield items, scores, found_by, list(map(REASONS["generated"].format, found_by))

    def _write(self, visitors: list[Visitor]) -> list:
        recent = [self.fit_history(visitor.texts) for visitor in visitors]
        for visitor, texts in zip(visitors, recent):
            if old := len(visitor.texts) - len(texts):
                visitor.notes.append(f"the history is long: its oldest {old} items do not fit the context")
        return self.write_texts(list(map(prompts.build_prompt, recent)))

    def _sum_signals(self, visitors: list[Visitor], hidden: list, k: int, explain: bool) -> Iterator[Found]:
        """Rank by the weighted sum of signals."""
        users, items = np.arange(len(visitors)).astype(str), [np.array(visitor.items) for visitor in visitors]
        task, signals = Task(users, [""] * len(users), items, np.full(len(users), -1)), dict(self.signals)
        if "time_decayed" in signals:
            days = {user: np.array(visitor.days) for user, visitor in zip(users, visitors)}
            signals["time_decayed"] = replace(signals["time_decayed"], days=days)
        if "texts" in self.system:
            written = [texts for texts, _ in self._write(visitors)]
            signals["generated"] = embed_texts(users, written, self.vectors, self.settings["encoder"])
        rank = partial(rankers.rank_learned, self.trained.trees) if self.system == "learned ranking" else fusion.fuse
        for row, (ranked, scores) in enumerate(zip(*rank(signals, self.weights, task, k, hidden))):
            ranked, scores = ranked[ranked >= 0], scores[ranked >= 0]
            texts = [""] * len(ranked)
            if "texts" in self.system:
                closest = signals["generated"].score_texts(users[row])[:, ranked].argmax(axis=0)
                texts = [written[row][text] for text in closest]
            reasons = self._reasons(signals, task.take(np.array([row])), ranked, texts) if explain else texts
            yield ranked, scores, texts, list(reasons)

    def _reasons(self, signals: dict, task: Task, items: np.ndarray, texts: list[str]) -> Iterator[str]:
        """The signal that lifts each item most above the catalog's mean; SASRec, which names no purchase, last."""
        weights = self.weights | {"sasrec": 1e-9}
        names = [name for name, weight in self.weights.items() if weight]
        scores = [weights[name] * signals[name].score(task)[0] for name in names]
        lifts = np.stack([np.where(row[items] > 0, row[items] - row.mean(), -np.inf) for row in scores])
        for name, item, text in zip(np.array(names)[lifts.argmax(axis=0)], items, texts):
            if isinstance(signals[name], fusion.ItemSignal):
                text = self.catalog["title"].iloc[signals[name].main_purchase(task, item)]
            elif name == "sasrec":
                text = self.catalog["title"].iloc[task.seen_items[0][-1]]
            yield REASONS[name].format(text)


def _count(system: str, purchases: pd.DataFrame, vectors, weights: dict, trained) -> dict:
    """Fit the signals of the weights, in their order; STAR adds its signals as they are, without a root."""
    names = [name for name in weights if name not in ("generated", "sasrec")]
    days = {str(user): dates for user, dates in enumerate(purchases["days"])}
    signals = fusion.fit_signals(list(purchases["items"]), vectors, names, days) if names else {}
    if trained:
        signals["sasrec"] = trained.signal(vectors)
        signals = {name: signals[name] for name in weights}  # the trees' columns have this order
    return {name: replace(signal, power=1) for name, signal in signals.items()} if system in HALVES else signals


def _choose_weights(prepared: Prepared, vectors: np.ndarray | None, settings: dict) -> dict[str, float]:
    """The weights of a system's signals: STAR's halves, or on validation users, as notebook 07 chooses them."""
    if "fused" not in settings["system"]:
        return HALVES.get(settings["system"], {})
    histories, held_out = fusion.extend_validation(prepared)
    signals = fusion.fit_signals(histories, vectors, days=purchase_days(prepared))
    weights = fusion.choose_weights(fusion.gather_candidates(signals, held_out))
    if settings["system"] == "fused":
        return weights
    from .queries import load_queries

    records = load_queries(prepared.paths.queries(settings["model"], settings["strategy"], "validation"), prepared)
    users = [record["reviewer_id"] for record in records]
    texts = embed_texts(users, [record["generated_sequences"] for record in records], vectors, settings["encoder"])
    pair = {"fused": fusion.WeightedSum(signals, weights), "generated": texts}
    shares = fusion.choose_weights(fusion.gather_candidates(pair, load_task(prepared, "validation").subset(users)))
    return {name: shares["fused"] * weight for name, weight in weights.items()} | {"generated": shares["generated"]}


def embed_texts(users: Sequence, texts: Sequence, vectors: np.ndarray, encoder: str) -> fusion.GeneratedTexts:
    """Each user's texts as a signal of the fused ranking; `vectors` are the catalog's."""
    parts = np.split(encode(list(chain(*texts)), encoder), np.cumsum([len(own) for own in texts])[:-1])
    return fusion.GeneratedTexts(dict(zip(users, parts)), vectors)


def _open_model(home: paths.DatasetPaths, settings: dict, catalog_texts: list[str]) -> tuple[Callable, Callable, set]:
    """Load the language model: a call that writes texts, one that cuts a history to its context, and its folders."""
    from .generation import CatalogTrie, generate, get_strategy
    from .language_models import load_finetuned, read_run

    strategy = get_strategy(settings["strategy"])
    network, tokenizer = load_finetuned(home, settings["model"])
    trie = CatalogTrie(catalog_texts, tokenizer) if strategy.constrained else None
    run = read_run(home, settings["model"])
    length, folders = run["settings"]["max_seq_length"], {home.model(settings["model"]), home.model(run["model"])}
    write_texts = partial(generate, network, tokenizer, strategy=strategy, max_seq_length=length, trie=trie)
    fit_history = partial(prompts.fit_history, tokenizer=tokenizer, max_tokens=length - strategy.max_new_tokens)
    return write_texts, fit_history, set(filter(Path.exists, folders))


def _read_folder(folder: Path) -> tuple[dict, pd.DataFrame, pd.DataFrame, np.ndarray | None]:
    about = paths.read_json(folder / ABOUT)
    if about.pop("digest") != paths.digest(about):
        raise ValueError(f"{ABOUT} was altered")
    for name, sha256 in about["files"].items():
        if file_sha256(folder / name) != sha256:
            raise ValueError(f"{name} is cut, or of another catalog")
    vectors = np.load(folder / VECTORS) if VECTORS in about["files"] else None
    trained = rankers.Trained.read(folder) if rankers.FILES[0] in about["files"] else None
    return about, pd.read_parquet(folder / CATALOG), pd.read_parquet(folder / PURCHASES), vectors, trained


def _as_list(given) -> list:
    """A list of what was given; one text, or what is no list at all, is a list of itself."""
    return [given] if isinstance(given, str) or not hasattr(given, "__iter__") else list(given)


def _check_history(history: Sequence[str] | str) -> list[str]:
    """The history as a list of texts; None, a number, or a list that holds one is a ValueError."""
    entries = _as_list(history)
    wrong = [entry for entry in entries if not isinstance(entry, str) or HALF.search(entry)]
    if wrong:
        raise ValueError(f"the history holds {wrong[0]!r}: give a list of asins or titles, [] for a new visitor")
    return entries


def _read_dates(dates: Sequence | None, histories: list[list[str]]) -> list[np.ndarray]:
    """When each history's items were bought, in days since 1970."""
    lengths = list(map(len, histories))
    if dates is None:
        return list(map(np.zeros, lengths))
    given = [_as_list(own) for own in _as_list(dates)]
    if list(map(len, given)) != lengths:
        raise ValueError(f"{sum(map(len, given))} dates for {sum(lengths)} items: give each item of a history one")
    seconds = to_seconds(pd.Series(list(chain(*given))), place="the dates").to_numpy()
    days = np.split(seconds / 86_400, np.cumsum(lengths)[:-1])
    if any((np.diff(own) < 0).any() for own in days):
        raise ValueError("the dates go back in time: give a history earliest first")
    return days


def _finder(hit_items: np.ndarray, item: int) -> int:
    """The text in whose hits an item stands highest, the earlier text where several tie."""
    texts, ranks = np.nonzero(hit_items == item)
    return int(texts[np.argmin(ranks)])


def _key(title: str) -> str:
    """What two spellings of a title share: case, blanks and the item prefix do not count."""
    return " ".join(title.removeprefix(prompts.ITEM_PREFIX).casefold().split())
