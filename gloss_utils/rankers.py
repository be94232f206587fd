"""Trained rankers: SASRec, and trees over what the signals say. Chapter 07 trains both, `Recommender` serves them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import lightgbm as lgb
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .fusion import Signal, nominate, rank_blocks
from .paths import read_json, write_atomically
from .retrieval import Hits, top_k
from .splits import Prepared, Task

NO_CANDIDATE = -1e6  # a score below all others; among many of -inf np.partition is slow
FILES = ("sasrec.safetensors", "trees.txt", "weights.json")


class SASRec(nn.Module):
    """A small causal Transformer that predicts the next item at every position (Kang and McAuley, 2018).

    With `vectors` of the catalog's titles, [num_items, dimensions], an item is its own vector plus a linear map of
    its title's, so that like titles begin alike.
    """

    def __init__(self, num_items, vectors=None, width=64, layers=2, heads=2, dropout=0.5, length=50):
        super().__init__()
        self.num_items, self.length, self.scale = num_items, length, width**0.5
        self.items = nn.Embedding(num_items + 1, width, padding_idx=num_items)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(width, heads, width, dropout, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        for embedding in (self.items, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        if vectors is not None:
            self.register_buffer("vectors", torch.as_tensor(vectors), persistent=False)
        self.titles = None if vectors is None else nn.Linear(vectors.shape[1], width, bias=False)

    def table(self) -> torch.Tensor:
        """Every item's vector, [num_items + 1, width]; the last one pads."""
        own = self.items.weight
        return own if self.titles is None else own + nn.functional.pad(self.titles(self.vectors), (0, 0, 0, 1))

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """From item numbers [users, time] to states [users, time, width]; a state knows what came up to it."""
        embedded = self.scale * self.table()[items] + self.positions.weight[: items.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(items.shape[1])
        return self.blocks(self.dropout(embedded), mask=mask, is_causal=True)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """The catalog's scores: products of states with the items' own vectors."""
        return states @ self.table()[: self.num_items].T


def pad(histories: Sequence[np.ndarray], num_items: int) -> torch.Tensor:
    """Histories as one tensor [users, longest], filled up on the right, where the mask hides it from the items."""
    rows = [torch.as_tensor(items) for items in histories]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=num_items)


@dataclass(frozen=True)
class SASRecSignal:
    """SASRec's scores of the catalog after each user's last items; a `fusion.Signal`."""

    model: SASRec

    @torch.inference_mode()
    def score(self, task: Task) -> np.ndarray:
        recent = [items[-self.model.length :] for items in task.seen_items]
        states = self.model.eval()(pad(recent, self.model.num_items))
        last = states[torch.arange(len(recent)), torch.tensor([len(items) - 1 for items in recent])]
        return self.model.logits(last).numpy()


def describe(users: np.ndarray, features: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The trees' columns: each signal's score, its share of the user's largest, the history's length.

    A row per candidate: whose it is (ascending), `fusion.nominate`'s features, and how long the user's history is.
    """
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    largest = np.maximum.reduceat(np.abs(features), starts)
    shares = features / (np.repeat(largest, np.diff([*starts, len(users)]), axis=0) + 1e-9)
    return np.column_stack([features, shares, lengths]).astype(np.float32)


def rank_learned(
    trees: lgb.Booster, signals: Mapping[str, Signal], weights: Mapping, task: Task, k: int = 10, hidden=None
) -> Hits:
    """As `fusion.fuse`, by the weighted sum plus what the trees correct; of `nominate`'s candidates only."""
    factors = np.array([weights[name] for name in signals], np.float32)

    def rank(part: Task, hide: Sequence) -> Hits:
        users, items, features, num_items = nominate(signals, part, hide)
        scores = np.full((len(part), num_items), NO_CANDIDATE, dtype=np.float32)
        if len(users):
            columns = describe(users, features, np.array([len(seen) for seen in part.seen_items])[users])
            scores[users, items] = features @ factors + trees.predict(columns, num_threads=1)
        return top_k(scores, k, NO_CANDIDATE)

    return rank_blocks(rank, task, hidden, next(iter(signals.values())), len(signals))


class Trained(NamedTuple):
    """What chapter 07 trains and `Recommender` serves: SASRec's parameters, the trees, the weights of each sum."""

    state: dict[str, torch.Tensor]
    trees: lgb.Booster
    about: dict  # weights by system, encoder, data

    def write(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.state.items()}, folder / FILES[0])
        self.trees.save_model(folder / FILES[1])
        (folder / FILES[2]).write_text(json.dumps(self.about, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Trained":
        state, trees, about = (folder / name for name in FILES)
        return cls(load_file(state), lgb.Booster(model_file=trees), read_json(about))

    def signal(self, vectors: np.ndarray) -> SASRecSignal:
        """SASRec over a catalog that may have grown: a new item has its title, and no vector of its own yet."""
        own, titled = self.state["items.weight"], "titles.weight" in self.state
        model = SASRec(len(vectors), vectors if titled else None, own.shape[1])
        grown = nn.functional.pad(own[:-1], (0, 0, 0, len(vectors) + 2 - len(own)))  # the padding's row is zero
        model.load_state_dict(self.state | {"items.weight": grown})
        model.items.weight.data, model.titles = model.table().data, None  # mapped once, not at every call
        return SASRecSignal(model)


def save(prepared: Prepared, sasrec: SASRecSignal, trees: lgb.Booster, weights: dict, encoder: str) -> Path:
    """Save what chapter 07 trained on a dataset, all or nothing; `weights` of each system by its name."""
    about = {"weights": weights, "encoder": encoder, "data": prepared.fingerprint}
    return write_atomically(prepared.paths.ranker, Trained(sasrec.model.state_dict(), trees, about).write)


def load(prepared: Prepared, encoder: str) -> Trained:
    """Load what `save` wrote; refused where it was trained on other data, or on another encoder's vectors."""
    trained = prepared.paths.read(prepared.paths.ranker, "trained ranking", Trained.read)
    for what, now in {"data": prepared.fingerprint, "encoder": encoder}.items():
        if trained.about[what] != now:
            fault = f"the trained ranking of '{prepared.dataset}' was trained on {what} '{trained.about[what]}', not "
            raise ValueError(f"{fault}'{now}': run notebook 07 with DATASET={prepared.dataset}, ENCODER={encoder}")
    return trained
