"""One object: a history in, ranked items out.

recommender = Recommender.load("sample", model="tiny-llama")
recommender.recommend(["a title", "or an asin"], k=5)     # rank, asin, title, score, text
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from . import prompts
from .baselines import item_counts
from .paths import check_choice, check_number
from .ranking import POLICIES, rank_with_scores
from .splits import load_prepared, training_histories

DEPTH = 20  # hits per text
NEAR = 0.85  # how alike a misspelt title and a title of the catalog must be, 0 to 1
ASIN = re.compile(r"[A-Z0-9]{10}")
COLUMNS = ["rank", "asin", "title", "score", "text"]


@dataclass
class Recommender:
    """Generate texts from a history, search the catalog with them, rank what was found."""

    catalog: pd.DataFrame  # asin, title, text; the row position is the item's number
    index: object  # over catalog.text
    write_texts: Callable[[str], tuple[list[str], list[float]]]  # from one prompt to texts and log-probabilities
    fit_history: Callable[[list[str]], list[str]]  # the most recent item texts that fit the context
    popular: np.ndarray  # item numbers, most bought first: for a visitor without a history
    policy: str = "round_robin"  # see ranking.POLICIES

    def __post_init__(self):
        check_choice(self.policy, POLICIES, "policy")
        self._rows = {asin: [row] for row, asin in enumerate(self.catalog["asin"])}
        # With other ids, ten capital letters are more likely a title than an unknown asin.
        self._amazon_ids = all(map(ASIN.fullmatch, self._rows))
        self._titles: dict[str, list[int]] = {}
        for row, title in enumerate(self.catalog["title"]):
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
    ) -> "Recommender":
        """Open the artifacts of notebooks 01 and 03; an error says what is missing, or the nearest known name.

        `retriever` is `bm25`, `dense` or `hybrid`; see `ranking.POLICIES` and `generation.STRATEGIES`.
        """
        check_choice(policy, POLICIES, "policy")  # names first: the model takes seconds
        from .dense import build_index
        from .generation import CatalogTrie, generate, get_strategy
        from .language_models import find_adapter, load_finetuned, read_run

        strategy = get_strategy(strategy)
        prepared = load_prepared(dataset, data_dir)
        find_adapter(prepared.paths, model)
        catalog_texts = prepared.catalog["text"].tolist()
        index = build_index(retriever, catalog_texts, encoder=encoder, cache_dir=prepared.paths.cache)
        network, tokenizer = load_finetuned(prepared.paths, model)
        trie = CatalogTrie(catalog_texts, tokenizer) if strategy.constrained else None
        length = read_run(prepared.paths, model)["settings"]["max_seq_length"]  # as in training

        def write_texts(prompt: str) -> tuple[list[str], list[float]]:
            return generate(network, tokenizer, [prompt], strategy, max_seq_length=length, trie=trie)[0]

        room = length - strategy.max_new_tokens
        fit_history = partial(prompts.fit_history, tokenizer=tokenizer, max_tokens=room)
        counts = item_counts(training_histories(prepared), len(catalog_texts))
        return cls(prepared.catalog, index, write_texts, fit_history, np.argsort(-counts, kind="stable"), policy)

    def recommend(self, history: Sequence[str] | str, k: int = 5) -> pd.DataFrame:
        """Recommend what may come next; items of the history never come back.

        What had to be adjusted is printed, and kept in the table's `attrs["notes"]`: a misspelt title is read as the
        nearest one, any other text is used as it is (but an unknown Amazon asin is left out), items too old for the
        model's context are left out, and without a history the list is the store's most popular items.

        Args:
            history: asins or titles, earliest first.
            k: rows wanted; fewer come back where the texts find fewer items, which is noted too.

        Returns:
            rank (from 1), asin, title, score (see `rank_with_scores`), and the text that found the item.
        """
        check_number(k, "k", 1)
        notes: list[str] = []
        texts, seen = self._read_history(_check_history(history), notes)
        if texts:
            items, scores, found_by = self._search(texts, seen, k, notes)
        else:
            notes.append("the history is empty: these are the store's most popular items")
            items, scores, found_by = self.popular[:k], 1.0 / (np.arange(len(self.popular[:k])) + 1), None
        if len(items) < k:
            notes.append(f"the list is short: {len(items)} items instead of {k}")
        table = self.catalog.iloc[items][["asin", "title"]].reset_index(drop=True)
        table = table.assign(rank=np.arange(len(items)) + 1, score=scores, text=found_by or "")[COLUMNS]
        table.attrs["notes"] = notes
        for note in notes:
            print("note:", note)
        return table

    def _read_history(self, history: list[str], notes: list[str]) -> tuple[list[str], np.ndarray]:
        """Turn asins and titles into item texts, and into the numbers of the items they name."""
        texts, seen = [], []
        for entry in filter(None, map(str.strip, history)):
            rows = self._rows.get(entry) or self._titles.get(_key(entry), [])
            unknown = f"no item '{entry[:60]}' in the catalog"
            if not rows and self._amazon_ids and ASIN.fullmatch(entry):
                notes.append(f"{unknown}: left out of the history")
                continue
            if not rows and (near := difflib.get_close_matches(_key(entry), self._titles, n=1, cutoff=NEAR)):
                rows = self._titles[near[0]]
                notes.append(f"{unknown}: read as '{self.catalog['title'].iloc[rows[0]]}'")
            if not rows:
                notes.append(f"{unknown}: used as text")
            seen += rows  # several items may share a title
            own = prompts.item_text(entry.removeprefix(prompts.ITEM_PREFIX))
            texts.append(self.catalog["text"].iloc[rows[0]] if rows else own)
        return texts, np.array(seen, dtype=np.int64)

    def _search(self, texts: list[str], seen: np.ndarray, k: int, notes: list[str]):
        """Generate, search, rank: items, scores, and for each item the text that found it."""
        recent = self.fit_history(texts)
        if len(recent) < len(texts):
            notes.append(f"the history is long: its oldest {len(texts) - len(recent)} items do not fit the context")
        queries, log_probs = self.write_texts(prompts.build_prompt(recent))
        # Deep enough that seen items and items found by another text leave k.
        k = min(k, len(self.catalog))
        hits = self.index.search(queries, k=max(DEPTH, k + len(seen)))
        items, scores = rank_with_scores(hits, len(queries), self.policy, k, [seen], log_probs)
        items, scores = (part[0][items[0] >= 0] for part in (items, scores))
        return items, scores, [queries[_finder(hits.items, item)] for item in items]


def _check_history(history: Sequence[str] | str) -> list[str]:
    """The history as a list of texts; None, a number, or a list that holds one is a ValueError."""
    entries = [history] if isinstance(history, str) or not hasattr(history, "__iter__") else list(history)
    wrong = [entry for entry in entries if not isinstance(entry, str)]
    if wrong:
        raise ValueError(f"the history holds {wrong[0]!r}: give a list of asins or titles, [] for a new visitor")
    return entries


def _finder(hit_items: np.ndarray, item: int) -> int:
    """The text in whose hits an item stands highest, the earlier text where several tie."""
    texts, ranks = np.nonzero(hit_items == item)
    return int(texts[np.argmin(ranks)])


def _key(title: str) -> str:
    """What two spellings of a title share: case, blanks and the item prefix do not count."""
    return " ".join(title.removeprefix(prompts.ITEM_PREFIX).casefold().split())
