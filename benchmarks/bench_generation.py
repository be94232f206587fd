"""Generation: at least twice the users per second of unsorted batches of 8, with the same texts.

python benchmarks/bench_generation.py    # the sample store's tiny-llama: run notebooks 01 and 03 first
python benchmarks/bench_generation.py --dataset beauty --model smollm2-135m --users 32 --rounds 1

The baseline is the primer's loop: users in the file's order, eight at a time, and transformers repeats each prompt
for each of its texts before it reads it. Each step towards ours is measured: sorted by length, one copy of a prompt
for all its texts, larger batches. The runs take turns, so that a busy machine slows all of them alike; processor
seconds also leave out the time in which others were served. Prompts are cut as in the model's training.
Writes benchmarks/results/generation.csv; for another model than tiny-llama, generation_<model>.csv.
"""

import argparse
import time

import pandas as pd
import torch

from gloss_utils.generation import clean_text, encode_prompts, generate, get_strategy, plan_batches
from gloss_utils.language_models import TINY_LLAMA, load_finetuned, read_run
from gloss_utils.paths import PROJECT_ROOT, show, write_atomically
from gloss_utils.splits import load_prepared, load_task, sample_users

LIMIT_RATIO = 2.0


def plain_loop(model, tokenizer, prompts: list[str], name: str, cut: dict, batches: list[list[int]]) -> list:
    """Texts by transformers' own call, batch by batch."""
    strategy = get_strategy(name)
    encoded = encode_prompts(tokenizer, prompts, max_new_tokens=strategy.max_new_tokens, **cut)
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


def make_ways(model, tokenizer, prompts: list[str], name: str, cut: dict, batch_size: int) -> dict:
    """From the primer's loop to ours, a step each."""
    lengths = [len(ids) for ids in encode_prompts(tokenizer, prompts, max_new_tokens=50, **cut)]
    in_order = [list(range(start, min(start + 8, len(prompts)))) for start in range(0, len(prompts), 8)]

    def ours(size: int) -> list[list[str]]:
        return [result.texts for result in generate(model, tokenizer, prompts, name, batch_size=size, **cut)]

    return {
        "unsorted, 8 users": lambda: plain_loop(model, tokenizer, prompts, name, cut, in_order),
        "+ sorted by length": lambda: plain_loop(model, tokenizer, prompts, name, cut, plan_batches(lengths, 8)),
        "+ one copy of a prompt": lambda: ours(8),
        "+ larger batches": lambda: ours(batch_size),
    }


def compare_ways(model, tokenizer, prompts: list[str], name: str, cut: dict, batch_size: int, rounds: int):
    """One row per way: users per second (best of the rounds), ratio to the first, share of the same texts.

    `processor_seconds` are of one user, on all cores together.
    """
    ways = make_ways(model, tokenizer, prompts, name, cut, batch_size)
    seconds, processor, texts = {way: [] for way in ways}, {way: [] for way in ways}, {}
    for _ in range(rounds):
        for way, write in ways.items():
            start, spent = time.perf_counter(), time.process_time()
            with torch.inference_mode():
                texts[way] = write()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[way].append(time.perf_counter() - start)
            processor[way].append(time.process_time() - spent)
    first = texts[next(iter(ways))]
    same = {way: sum(a == b for a, b in zip(found, first)) / len(prompts) for way, found in texts.items()}
    users = len(prompts)
    rows = [(name, way, users / min(seconds[way]), min(processor[way]) / users, same[way]) for way in ways]
    table = pd.DataFrame(rows, columns=["strategy", "way", "users_per_second", "processor_seconds", "same_texts"])
    table.insert(3, "ratio", table["users_per_second"] / table["users_per_second"][0])
    if get_strategy(name).temperature:  # other random streams, other samples
        table["same_texts"] = float("nan")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw-dir", help="not needed: the model of notebook 03 is")
    parser.add_argument("--dataset", default="sample")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--model", default=TINY_LLAMA)
    parser.add_argument("--users", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    prepared = load_prepared(options.dataset, options.data_dir)
    prompts = sample_users(load_task(prepared), options.users).prompts
    model, tokenizer = load_finetuned(prepared.paths, options.model)
    trained = read_run(prepared.paths, options.model)["settings"]
    cut = {key: trained[key] for key in ("max_seq_length", "truncation")}
    tables = [
        compare_ways(model, tokenizer, prompts, name, cut, options.batch_size, options.rounds)
        for name in ("beam5", "temp0.2")
    ]
    table = pd.concat(tables, ignore_index=True)
    print(table.to_string(index=False, float_format="%.3f"))
    suffix = "" if options.model == TINY_LLAMA else f"_{options.model}"
    results = PROJECT_ROOT / f"benchmarks/results/generation{suffix}.csv"
    write_atomically(results, lambda path: table.round(4).to_csv(path, index=False))
    print("wrote", show(results))
    slowest = table[table["way"] == "+ larger batches"]["ratio"].min()
    if slowest < LIMIT_RATIO:
        raise SystemExit(f"{slowest:.2f} times as fast: less than {LIMIT_RATIO}")


if __name__ == "__main__":
    main()
