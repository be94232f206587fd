"""Generation: at least twice the users per second of unsorted batches of 8, with the same texts.

python benchmarks/bench_generation.py    # the sample store's tiny-llama: run notebooks 01 and 03 first

The baseline is the primer's loop: users in the file's order, eight at a time, and transformers repeats each prompt
for each of its texts before it reads it. Each step towards ours is measured: sorted by length, the prompt read
once, larger batches. The runs take turns, so that a busy machine slows all of them alike.
Writes benchmarks/results/generation.csv.
"""

import argparse
import time

import pandas as pd
import torch

from gloss_utils.generation import clean_text, encode_prompts, generate, get_strategy, plan_batches
from gloss_utils.language_models import load_finetuned
from gloss_utils.paths import PROJECT_ROOT, show, write_atomically
from gloss_utils.splits import load_prepared, load_task, sample_users

LIMIT_RATIO = 2.0
MAX_SEQ_LENGTH = 1024


def plain_loop(model, tokenizer, prompts: list[str], name: str, batches: list[list[int]]) -> list[list[str]]:
    """Texts by transformers' own call, batch by batch."""
    strategy = get_strategy(name)
    encoded = encode_prompts(tokenizer, prompts, MAX_SEQ_LENGTH, strategy.max_new_tokens)
    draw = {"do_sample": True, "temperature": strategy.temperature, "top_k": strategy.top_k, "top_p": strategy.top_p}
    beams = {"num_beams": strategy.num_texts, "length_penalty": strategy.length_penalty, "do_sample": False}
    settings = draw if strategy.temperature else beams
    texts = [[]] * len(prompts)
    for rows in batches:
        inputs = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt").to(model.device)
        found = model.generate(
            **inputs,
            **settings,
            num_return_sequences=strategy.num_texts,
            max_new_tokens=strategy.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        answers = tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for place, row in enumerate(rows):
            mine = answers[place * strategy.num_texts : (place + 1) * strategy.num_texts]
            texts[row] = [clean_text(text) for text in mine]
    return texts


def make_ways(model, tokenizer, prompts: list[str], name: str, batch_size: int) -> dict:
    """From the primer's loop to ours, a step each."""
    lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    in_order = [list(range(start, min(start + 8, len(prompts)))) for start in range(0, len(prompts), 8)]

    def ours(size: int) -> list[list[str]]:
        return [result.texts for result in generate(model, tokenizer, prompts, name, batch_size=size)]

    return {
        "unsorted, 8 users": lambda: plain_loop(model, tokenizer, prompts, name, in_order),
        "+ sorted by length": lambda: plain_loop(model, tokenizer, prompts, name, plan_batches(lengths, 8)),
        "+ prompt read once": lambda: ours(8),
        "+ larger batches": lambda: ours(batch_size),
    }


def compare_ways(model, tokenizer, prompts: list[str], name: str, batch_size: int, rounds: int) -> pd.DataFrame:
    """One row per way: users per second (best of the rounds), ratio to the first, share of the same texts."""
    ways = make_ways(model, tokenizer, prompts, name, batch_size)
    seconds, texts = {way: [] for way in ways}, {}
    for _ in range(rounds):
        for way, write in ways.items():
            start = time.perf_counter()
            with torch.inference_mode():
                texts[way] = write()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[way].append(time.perf_counter() - start)
    first = texts[next(iter(ways))]
    same = {way: sum(a == b for a, b in zip(found, first)) / len(prompts) for way, found in texts.items()}
    rows = [(name, way, len(prompts) / min(seconds[way]), same[way]) for way in ways]
    table = pd.DataFrame(rows, columns=["strategy", "way", "users_per_second", "same_texts"])
    table.insert(3, "ratio", table["users_per_second"] / table["users_per_second"][0])
    if get_strategy(name).temperature:  # other random streams, other samples
        table["same_texts"] = float("nan")
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
        compare_ways(model, tokenizer, prompts, name, options.batch_size, options.rounds)
        for name in ("beam5", "temp0.2")
    ]
    table = pd.concat(tables, ignore_index=True)
    print(table.to_string(index=False, float_format="%.3f"))
    results = PROJECT_ROOT / "benchmarks/results/generation.csv"
    write_atomically(results, lambda path: table.round(4).to_csv(path, index=False))
    print("wrote", show(results))
    slowest = table[table["way"] == "+ larger batches"]["ratio"].min()
    if slowest < LIMIT_RATIO:
        raise SystemExit(f"{slowest:.2f} times as fast: less than {LIMIT_RATIO}")


if __name__ == "__main__":
    main()
