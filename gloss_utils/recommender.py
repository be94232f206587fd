"""One object: a history in, ranked items out.

recommender = Recommender.load("sample", model="tiny-llama")
recommender.recommend(["a title", "or an asin"], k=5)     # rank, asin, title, score, text
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from . import prompts
from .paths import check_choice
from .ranking import CALREC_WEIGHT, POLICIES, rank_with_scores
from .splits import load_prepared, training_histories

DEPTH = 20  # hits per text
ASIN = re.compile(r"[A-Z0-9]{10}")
COLUMNS = ["rank", "asin", "title", "score", "text"]


@dataclass
class Recommender:
    """Generate texts from a history, search the catalog with them, rank what was found.

    Attributes:
        catalog: `asin, title, text`; the row position is the item's number.
        index: a search index over `catalog.text`.
        write_texts: from one prompt to (texts, log-probabilities).
        fit_history: from item texts, earliest first, to the most recent of them that fit the context.
        popular: item numbers, most bought first: for a visitor without a history.
        policy: how the texts' hits become one list; see `ranking.POLICIES`.
        weight: of the log-probability in policy `calrec`.
    """

    catalog: pd.DataFrame
    index: object
    write_texts: Callable[[str], tuple[list[str], list[float]]]
    fit_history: Callable[[list[str]], list[str]]
    popular: np.ndarray
    policy: str = "round_robin"
    weight: float = CALREC_WEIGHT

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
        weight: float = CALREC_WEIGHT,
    ) -> "Recommender":
        """Open the artifacts of notebooks 01 and 03.

        Args:
            dataset, data_dir: where the artifacts are.
            model: a fine-tuned model of notebook 03.
            retriever: `bm25`, `dense` or `hybrid`.
            policy: see `ranking.POLICIES`; `round_robin` fills a list of any length.
            strategy: see `generation.STRATEGIES`.
            encoder: of `dense` and `hybrid`.
            weight: of the log-probability in policy `calrec`.

        Raises:
            FileNotFoundError: an artifact is missing; the message says which notebook makes it.
            ValueError: an unknown retriever, policy, strategy or encoder.
        """
        check_choice(policy, POLICIES, "policy")  # before the model, which takes seconds
        from .dense import build_index
        from .language_models import load_finetuned
        from .generation import CatalogTrie, generate, get_strategy

        strategy = get_strategy(strategy)
        prepared = load_prepared(dataset, data_dir)
        catalog_texts = prepared.catalog["text"].tolist()
        index = build_index(retriever, catalog_texts, encoder=encoder, cache_dir=prepared.paths.cache)
        language_model, tokenizer = load_finetuned(prepared.paths, model)
        trie = CatalogTrie(catalog_texts, tokenizer) if strategy.constrained else None
        settings = json.loads(prepared.paths.run_json(model).read_text())["settings"]
        max_tokens = settings["max_seq_length"]  # as in training

        def write_texts(prompt: str) -> tuple[list[str], list[float]]:
            written = generate(language_model, tokenizer, [prompt], strategy, max_seq_length=max_tokens, trie=trie)
            return written[0].texts, written[0].scores

        fit_history = partial(
            prompts.fit_history, tokenizer=tokenizer, max_tokens=max_tokens - strategy.max_new_tokens
        )
        counts = np.bincount(np.concatenate(training_histories(prepared)), minlength=len(prepared.catalog))
        popular = np.argsort(-counts, kind="stable")
        return cls(prepared.catalog, index, write_texts, fit_history, popular, policy, weight)

    def recommend(self, history: Sequence[str] | str, k: int = 5) -> pd.DataFrame:
        """Recommend what may come next.

        What had to be adjusted is printed, and kept in the table's `attrs["notes"]`: an entry that is neither an
        asin nor a title of the catalog is used as text (left out where the catalog's asins are Amazon's and it
        looks like one), items too old for the model's context are left out, and without any history the list is the
        store's most popular items. Items of the history are never recommended.

        Args:
            history: asins or titles, earliest first.
            k: rows wanted; fewer come back where the texts find fewer items, which is noted too.

        Returns:
            rank (from 1), asin, title, score (see `rank_with_scores`), and the text that found the item.

        Raises:
            ValueError: k below 1.
        """
        if k < 1:
            raise ValueError(f"k={k}: ask for at least one item")
        notes: list[str] = []
        texts, seen = self._read_history([history] if isinstance(history, str) else list(history), notes)
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
        for entry in (str(entry).strip() for entry in history):
            rows = self._rows.get(entry) or self._titles.get(_key(entry), [])
            if rows:
                texts.append(self.catalog["text"].iloc[rows[0]])
                seen += rows  # several items may share a title
            elif self._amazon_ids and ASIN.fullmatch(entry):
                notes.append(f"no item '{entry}' in the catalog: left out of the history")
            elif entry:
                notes.append(f"no item '{entry}' in the catalog: used as text")
                texts.append(prompts.item_text(entry.removeprefix(prompts.ITEM_PREFIX)))
        return texts, np.array(seen, dtype=np.int64)

    def _search(self, texts: list[str], seen: np.ndarray, k: int, notes: list[str]):
        """Generate, search, rank: items, scores, and for each item the text that found it."""
        recent = self.fit_history(texts)
        if len(recent) < len(texts):
            notes.append(f"the history is long: its oldest {len(texts) - len(recent)} items do not fit the context")
        queries, log_probs = self.write_texts(prompts.build_prompt(recent))
        # Deep enough that seen items and items found by another text leave k.
        hits = self.index.search(queries, k=max(DEPTH, k + len(seen)))
        items, scores = rank_with_scores(hits, len(queries), self.policy, k, [seen], log_probs, self.weight)
        items, scores = (part[0][items[0] >= 0] for part in (items, scores))
        return items, scores, [queries[_finder(hits.items, item)] for item in items]


def _finder(hit_items: np.ndarray, item: int) -> int:
    """The text in whose hits an item stands highest, the earlier text where several tie."""
    texts, places = np.nonzero(hit_items == item)
    return int(texts[np.argmin(places)])


def _key(title: str) -> str:
    """What two spellings of a title share: case, blanks and the item prefix do not count."""
    return " ".join(title.removeprefix(prompts.ITEM_PREFIX).casefold().split())
