"""Tokens per second of fine-tuning: batches of like lengths against shuffled ones, and the loss of both.

python benchmarks/bench_training.py [--raw-dir DIR] [--epochs 1] [--batch-size 16]

With --raw-dir on 1,000 users of real Beauty, else on the sample store. Both runs start from the same base and see
the same texts; only the order differs. Padding is not counted as tokens. Writes benchmarks/results/training.csv.
"""

import argparse
import tempfile
from dataclasses import replace

import numpy as np
import pandas as pd

from gloss_utils import finetuning, language_models, metrics, raw_data, tiny_llama
from gloss_utils.finetuning import SeededOrder, TrainingSettings, choose_texts, tokenize
from gloss_utils.paths import PROJECT_ROOT

FASTER = 1.5  # what batches of like lengths must reach
SAME_LOSS = 0.03  # nats: the validation losses of the two may differ by so much


def padding_factor(prepared, tokenizer, settings: TrainingSettings) -> float:
    """Work out how many positions the batches of an epoch have for each token in them."""
    texts = tokenize(choose_texts(prepared, "train", settings), tokenizer, settings)
    lengths = [len(ids) for ids in texts["input_ids"]]
    order = np.random.default_rng(settings.seed).permutation(len(lengths)).tolist()
    if settings.order == "by_length":
        order = list(SeededOrder(lengths, settings.batch_size, settings.seed))
    batches = [order[start : start + settings.batch_size] for start in range(0, len(order), settings.batch_size)]
    positions = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return positions / sum(lengths)


def measure(prepared, settings: TrainingSettings) -> dict:
    """Fine-tune once and read the log: tokens per second over all steps, and the last validation loss."""
    _, tokenizer = language_models.load_base("tiny-llama", prepared.paths)
    log = finetuning.finetune(prepared, "tiny-llama", settings, name="bench")
    train = log[log["split"] == "train"]
    tokens = (train["tokens_per_second"] * train["step_seconds"]).sum()
    return {
        "order": settings.order,
        "positions_per_token": padding_factor(prepared, tokenizer, settings),
        "tokens_per_second": tokens / train["step_seconds"].sum(),
        "validation_loss": log.loc[log["split"] == "validation", "loss"].iloc[-1],
        "peak_resident_mib": train["resident_mib"].max(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw-dir", default="", help="where the Amazon 2014 files are")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()

    dataset = "beauty" if options.raw_dir else "sample"
    raw_dir = options.raw_dir or PROJECT_ROOT / "data" / "sample" / "raw"
    settings = TrainingSettings(
        learning_rate=5e-3,
        alpha=32,
        warmup_steps=5,
        epochs=options.epochs,
        batch_size=options.batch_size,
        gradient_accumulation=1,
        evaluations=1,
    )
    with tempfile.TemporaryDirectory() as scratch:
        max_users = 1000 if options.raw_dir else 0
        prepared = raw_data.prepare(dataset, raw_dir, scratch, max_users=max_users, progress=False)
        tiny_llama.pretrain_base(
            prepared.catalog["text"], prepared.paths.base_model("tiny-llama"), tiny_llama.Recipe(epochs=6)
        )
        rows = [measure(prepared, replace(settings, order=order)) for order in ("shuffled", "by_length")]
    table = pd.DataFrame(rows).assign(dataset=dataset, batch_size=options.batch_size)
    table["speedup"] = table["tokens_per_second"] / table["tokens_per_second"].iloc[0]
    print(table.round(3).to_string(index=False))
    path = PROJECT_ROOT / "benchmarks" / "results" / "training.csv"
    metrics.upsert_rows(path, table, ["dataset", "order"])
    faster, losses = table["speedup"].iloc[-1], table["validation_loss"].iloc[-2:]
    assert faster >= FASTER, f"batches of like lengths reach only {faster:.2f} times the tokens per second"
    assert losses.max() - losses.min() < SAME_LOSS, f"the losses differ: {losses.tolist()}"


if __name__ == "__main__":
    main()
