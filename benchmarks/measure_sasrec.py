"""Train chapter 07's SASRec and trees on a real category, rank the test users with both, and keep their rows.

    python benchmarks/measure_sasrec.py --dataset toys --raw-dir <folder>

What the chapter defines in its cells (`train_sasrec`, `learn`) is taken from there. With `--cache-dir` a model that
was trained is read from there, so that a run that was cut off goes on, and `choose_learned.py` shares its models.
"""

import argparse
import tempfile
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import keep_measured
import numpy as np
import pandas as pd
from lessons import lesson
from safetensors.torch import load_file, save_file

from gloss_utils import fusion, metrics, rankers, raw_data, splits
from gloss_utils.dense import encode
from gloss_utils.paths import digest, write_atomically

TAUGHT = ("evaluate", "train_epoch", "train_sasrec", "learn")  # in chapter 07's cells
LEARNING_USERS, TREES = 15_000, 300  # as in the chapter
Signals = dict[str, fusion.Signal]


@dataclass
class Category:
    """One category, one seed: signals, SASRec, and what they are learned on; each is made when it is asked for."""

    prepared: splits.Prepared
    vectors: np.ndarray
    epochs: int = 60
    titles: bool = True
    seed: int = 42
    cache: Path | None = None  # a folder for SASRec's parameters
    ties: str = "asin"  # the order of one day's purchases, for the cache
    logs: dict[str, pd.DataFrame] = field(default_factory=dict)

    @cached_property
    def taught(self) -> SimpleNamespace:
        return lesson("07_beyond_text", *TAUGHT, num_items=len(self.vectors), SEED=self.seed)

    @cached_property
    def held_out(self):
        """Histories without each learner's last training purchase, and the learners, validation users first."""
        return fusion.extend_validation(self.prepared, LEARNING_USERS, self.seed, share=1.0)

    def fit(self, histories, names=fusion.FUSION) -> Signals:
        return fusion.fit_signals(histories, self.vectors, names, splits.purchase_days(self.prepared))

    def train(self, which: str, histories, epochs: int, validation=None) -> rankers.SASRecSignal:
        """SASRec on these histories; a trained one is read from the cache."""
        about = self.prepared.fingerprint, self.epochs, LEARNING_USERS, self.titles
        stem = f"{self.prepared.dataset}_{self.ties}_{self.seed}_{which}_{digest(about)}"
        path = self.cache and Path(self.cache) / f"{stem}.safetensors"
        vectors = self.vectors if self.titles else None
        if path and path.exists():
            model = rankers.SASRec(len(self.vectors), vectors)
            model.load_state_dict(load_file(path))
            self.logs[which] = pd.read_csv(path.with_suffix(".csv"))
            return rankers.SASRecSignal(model)
        signal, log = self.taught.train_sasrec(histories, epochs, vectors, validation)
        print(log.to_string(), flush=True)
        self.logs[which] = log
        if path:
            write_atomically(path.with_suffix(".csv"), lambda file: log.to_csv(file, index=False))
            write_atomically(path, lambda file: save_file(signal.model.state_dict(), file))
        return signal

    @cached_property
    def early(self) -> rankers.SASRecSignal:
        """SASRec without the learners' last training purchase, which stops its training."""
        return self.train("early", self.held_out[0], self.epochs, self.held_out[1])

    @cached_property
    def sasrec(self) -> rankers.SASRecSignal:
        """SASRec on the whole training part, for as many epochs."""
        _ = self.early  # its log says for how many epochs
        best = 1 + int(self.logs["early"]["ndcg@10"].argmax())
        return self.train("whole", splits.training_histories(self.prepared), best)

    @cached_property
    def learning(self) -> Signals:
        """All signals, without the learners' last training purchase."""
        histories = self.held_out[0]
        return self.fit(histories) | {"sasrec": self.early}

    @cached_property
    def known(self) -> Signals:
        """All signals of the whole training part, in the same order."""
        histories = splits.training_histories(self.prepared)
        return self.fit(histories) | {"sasrec": self.sasrec}


def learn_ranking(taught: SimpleNamespace, table: fusion.Candidates, learners: splits.Task, most: int = TREES):
    """The weights of a sum of the signals, the trees that correct it, and their curve of cross-validation."""
    weights = fusion.choose_weights(table)
    factors = np.array([weights[name] for name in table.names])
    return weights, *taught.learn(table, factors, learners, most)


def rank_test(category: Category) -> tuple[dict[str, pd.DataFrame], int]:
    """Per-user metrics of the chapter's systems on the test users, and the number of trees."""
    prepared, learners = category.prepared, category.held_out[1]
    test, trained = splits.load_task(prepared), "SASRec + titles" if category.titles else "SASRec"
    shorter, held_out = fusion.extend_validation(prepared, seed=category.seed)
    fused = fusion.choose_weights(fusion.gather_candidates(category.fit(shorter), held_out))
    table = fusion.gather_candidates(category.learning, learners)
    joined, trees, curve = learn_ranking(category.taught, table, learners)
    print(f"cross-validation: {curve[0]:.4f} after one tree, {max(curve):.4f} after {trees.num_trees()}")
    ranked = {
        "fused": fusion.fuse(category.known, fused, test),
        trained: fusion.fuse(category.known, {"sasrec": 1.0}, test),
        f"fused + {trained}": fusion.fuse(category.known, joined, test),
        "learned ranking": rankers.rank_learned(trees, category.known, joined, test),
    }
    return {name: category.taught.evaluate(hits, test) for name, hits in ranked.items()}, trees.num_trees()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="beauty")
    parser.add_argument("--raw-dir", default="")
    parser.add_argument("--epochs", type=int, default=60, help="at most; training stops early")
    parser.add_argument("--no-titles", action="store_true", help="SASRec from item numbers alone")
    parser.add_argument("--ties", default="asin", choices=("asin", "shuffled"), help="order of one day's purchases")
    parser.add_argument("--cache-dir", type=Path, help="where trained models are kept between runs")
    options = parser.parse_args()
    dataset, titles, other = options.dataset, not options.no_titles, options.ties != "asin"
    with tempfile.TemporaryDirectory() as scratch:
        prepared = raw_data.prepare(dataset, options.raw_dir, scratch, tie_order=options.ties, progress=False)
        vectors = encode(prepared.catalog["text"].tolist(), cache_dir=options.cache_dir)
        category = Category(prepared, vectors, options.epochs, titles, cache=options.cache_dir, ties=options.ties)
        measured, num_trees = rank_test(category)
    print(pd.DataFrame({name: table.mean(numeric_only=True) for name, table in measured.items()}).T.round(4))
    log, joined = category.logs["early"], f"fused + {'SASRec + titles' if titles else 'SASRec'}"
    systems = {joined: metrics.System("fusion", retriever="minilm", policy=joined)}
    if titles:  # the trees have no row without titles
        systems["learned ranking"] = metrics.System("fusion", retriever="minilm", policy="learned ranking")
    if other:
        systems = {name: replace(each, policy=f"{each.policy}, shuffled ties") for name, each in systems.items()}
    else:
        rival = joined.removeprefix("fused + ")
        systems[rival] = metrics.System(rival if titles else "sasrec", policy="drop-seen")
    note = f"ties {'shuffled' if other else 'by asin'}; at most {options.epochs} epochs, {len(log)} trained"
    note += f", best {1 + log['ndcg@10'].argmax()}" + f"; {num_trees} trees" * titles
    command = f"python benchmarks/measure_sasrec.py --dataset {dataset} --raw-dir RAW_DIR"
    command += " --no-titles" * (not titles) + " --ties shuffled" * other
    tables = {system: measured[name] for name, system in systems.items()}
    keep_measured.keep_results(dataset, "test", tables, command=command, note=note)
    if titles and not other:
        keep_pairs(dataset, measured, (joined, "fused"), command, note)


def keep_pairs(dataset: str, measured: dict[str, pd.DataFrame], others: tuple, command: str, note: str) -> None:
    """Keep the learned ranking's differences from the sums, and from GLoSS's published ranks."""
    against = {name: measured[name] for name in others}
    against["GLoSS-8B"] = keep_measured.published_metrics(dataset)["GLoSS-8B"]
    pairs = [
        keep_measured.pair(measured["learned ranking"], table).assign(
            dataset=dataset, system="learned ranking", against=name
        )
        for name, table in against.items()
    ]
    keep_measured.keep_pairs(pd.concat(pairs), command=command, note=note)


if __name__ == "__main__":
    main()
