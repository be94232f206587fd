"""Generation: at least twice the users per second of unsorted batches of 8, with the same texts.

python benchmarks/bench_generation.py    # the sample store's tiny-llama: run notebooks 01 and 03 first

The baseline is the primer's loop: users in the file's order, eight at a time, and transformers repeats each prompt
for each of its beams before it reads it. Each step towards ours is measured: sorted by length, the prompt read
once, larger batches. The runs take turns, so that a busy machine slows all of them alike.
Writes benchmarks/results/generation.csv.
"""

import argparse
import time

import pandas as pd
import torch

from gloss_utils.language_models import load_finetuned
from gloss_utils.generation import generate
from gloss_utils.paths import PROJECT_ROOT, show, write_atomically
from gloss_utils.splits import load_prepared, load_task, sample_users

LIMIT_RATIO = 2.0
WAYS = {
    "unsorted, 8 users": {"batch_size": 8, "bucket": False, "share_prompt": False},
    "+ sorted by length": {"batch_size": 8, "bucket": True, "share_prompt": False},
    "+ prompt read once": {"batch_size": 8, "bucket": True, "share_prompt": True},
    "+ larger batches": {"bucket": True, "share_prompt": True},
}


def time_once(model, tokenizer, prompts: list[str], strategy: str, options: dict) -> tuple[float, list]:
    """Seconds for all prompts, and their results."""
    start = time.perf_counter()
    results = generate(model, tokenizer, prompts, strategy, **options)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, results


def compare_ways(model, tokenizer, prompts: list[str], strategy: str, batch_size: int, rounds: int) -> pd.DataFrame:
    """One row per way: users per second (best of the rounds), ratio to the first, share of the same texts."""
    ways = {name: {"batch_size": batch_size, **options} for name, options in WAYS.items()}
    seconds = {name: [] for name in ways}
    texts = {}
    for _ in range(rounds):
        for name, options in ways.items():
            taken, results = time_once(model, tokenizer, prompts, strategy, options)
            seconds[name].append(taken)
            texts[name] = [result.texts for result in results]
    first = next(iter(ways))
    same = {
        name: sum(ours == theirs for ours, theirs in zip(texts[name], texts[first])) / len(prompts) for name in ways
    }
    rows = [(strategy, name, len(prompts) / min(seconds[name]), same[name]) for name in ways]
    table = pd.DataFrame(rows, columns=["strategy", "way", "users_per_second", "same_texts"])
    table.insert(3, "ratio", table["users_per_second"] / table["users_per_second"][0])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw-dir", help="not needed: the model of notebook 03 is")
    parser.add_argument("--dataset", default="sample")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--model", default="tiny-llama")
    parser.add_argument("--users", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    prepared = load_prepared(options.dataset, options.data_dir)
    prompts = sample_users(load_task(prepared), options.users).prompts
    model, tokenizer = load_finetuned(prepared.paths, options.model)
    tables = [
        compare_ways(model, tokenizer, prompts, strategy, options.batch_size, options.rounds)
        for strategy in ("beam5", "temp0.2")
    ]
    table = pd.concat(tables, ignore_index=True)
    print(table.to_string(index=False, float_format="%.3f"))
    results = PROJECT_ROOT / "benchmarks/results/generation.csv"
    write_atomically(results, lambda path: table.round(4).to_csv(path, index=False))
    print("wrote", show(results))
    slowest = table[table["way"] == list(WAYS)[-1]]["ratio"].min()
    if slowest < LIMIT_RATIO:
        raise SystemExit(f"{slowest:.2f} times as fast: less than {LIMIT_RATIO}")


if __name__ == "__main__":
    main()
