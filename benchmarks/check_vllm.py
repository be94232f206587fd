"""vLLM's log-probabilities are transformers': on tiny-llama with its adapter, in requirements-vllm.txt's environment.

make check-vllm    # builds .venv-vllm, then runs this; run notebooks 01 and 03 first

Checked: the log-probability of a vLLM sample and of a vLLM beam is what transformers gives to that text in a second
pass. Printed besides: how many of transformers' beams `LLM.beam_search` finds, by its other rule for where a text may
end (see `vllm_engine`), and seconds per user and memory of both engines. Writes benchmarks/results/vllm.csv.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; a small model needs no more
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import numpy as np
import pandas as pd
import psutil
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from gloss_utils.generation import encode_prompts, generate_batches
from gloss_utils.language_models import load_tokenizer, locate
from gloss_utils.paths import PROJECT_ROOT, dataset_paths, show, write_atomically
from gloss_utils.splits import load_prepared, load_task, sample_users

sys.path.insert(0, str(PROJECT_ROOT))  # where `tools` lies: a script is started with its own folder there
from tools import vllm_engine

SAME_SCORE = 0.005  # nats per text
MAX_SEQ_LENGTH = 1024


def load_transformers(paths, model: str):
    """Base in full precision, and adapter: what vLLM runs too (bitsandbytes' 4 bits are not for its CPU build)."""
    base = AutoModelForCausalLM.from_pretrained(locate(model, paths, quantize=False), dtype=torch.float32)
    adapter = str(paths.adapter(model))
    return PeftModel.from_pretrained(base, adapter).eval(), load_tokenizer(adapter)


def memory_gib() -> float:
    """Resident memory of this process and of those it started."""
    process = psutil.Process()
    return sum(part.memory_info().rss for part in [process, *process.children(recursive=True)]) / 2**30


def run(engine: str, model, tokenizer, prompts: list[str], strategy: str) -> tuple[dict, list]:
    """Time and memory of one engine and strategy, and its results in the order of the prompts."""
    start, results = time.perf_counter(), {}
    write = getattr(type(model), "generate_batches", generate_batches)  # a VllmModel has its own
    for rows, batch in write(model, tokenizer, prompts, strategy, max_seq_length=MAX_SEQ_LENGTH):
        results |= dict(zip(rows, batch))
    seconds = time.perf_counter() - start
    row = {"engine": engine, "strategy": strategy, "users": len(prompts), "seconds_per_user": seconds / len(prompts)}
    return row | {"memory_gib": memory_gib()}, [results[row] for row in range(len(prompts))]


def second_pass(model, tokenizer, prompt: str, text: str) -> float:
    """Total log-probability of an answer, its end included, from one pass over prompt and answer."""
    start = encode_prompts(tokenizer, [prompt], MAX_SEQ_LENGTH, 50)[0]
    answer = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([start + answer])).logits[0, len(start) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="sample")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--model", default="tiny-llama")
    parser.add_argument("--users", type=int, default=24)
    options = parser.parse_args()
    paths = dataset_paths(options.dataset, options.data_dir)
    prompts = sample_users(load_task(load_prepared(options.dataset, options.data_dir)), options.users).prompts

    plain, tokenizer = load_transformers(paths, options.model)
    rows, found = [], {}
    for strategy in ("beam5", "temp0.5"):
        cost, found["transformers", strategy] = run("transformers", plain, tokenizer, prompts, strategy)
        rows.append(cost)
    started, before = time.perf_counter(), memory_gib()
    served = vllm_engine.load(paths, options.model, MAX_SEQ_LENGTH, dtype="float32", enforce_eager=True)
    print(f"vLLM started in {time.perf_counter() - started:.0f} s")
    for strategy in ("beam5", "temp0.5"):
        cost, found["vllm", strategy] = run("vllm", served, tokenizer, prompts, strategy)
        rows.append(cost | {"memory_gib": cost["memory_gib"] - before})  # without the other engine's share
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="%.3f"))

    pairs = zip(found["vllm", "beam5"], found["transformers", "beam5"])
    shared = np.mean([len(set(ours.texts) & set(theirs.texts)) / len(set(theirs.texts)) for ours, theirs in pairs])
    print(f"of transformers' beams, vLLM's search by its own rule finds {shared:.0%}")
    off = {}
    for strategy in ("beam5", "temp0.5"):  # the median: a text may be spelt in other tokens than the second pass's
        firsts = [(prompt, *next(zip(*result))) for prompt, result in zip(prompts, found["vllm", strategy])]
        passes = [abs(score - second_pass(plain, tokenizer, prompt, text)) for prompt, text, score in firsts]
        off[strategy] = np.median(passes)
    print("median difference of a log-probability from transformers' second pass:", off)
    results = PROJECT_ROOT / "benchmarks/results/vllm.csv"
    write_atomically(results, lambda path: table.round(4).to_csv(path, index=False))
    print("wrote", show(results))
    if max(off.values()) > SAME_SCORE:
        raise SystemExit("vLLM and transformers disagree")


if __name__ == "__main__":
    main()
