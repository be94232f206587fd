"""How much each stage of fine-tuning matters, on the sample store: one parametrized run per variant.

    python benchmarks/ablation_training.py            # about 25 minutes on two cores

Writes benchmarks/results/ablation.csv: group, variant, Recall@5 with its interval, best validation loss,
trainable weights. Chapter 03 draws it.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from gloss_utils import baselines, finetuning, generation, metrics, ranking, raw_data, splits, tiny_llama
from gloss_utils.finetuning import TrainingSettings
from gloss_utils.paths import write_atomically
from gloss_utils.retrieval import BM25Index

SAMPLE = TrainingSettings(
    learning_rate=5e-3,
    alpha=32,
    warmup_steps=30,
    epochs=3,
    batch_size=8,
    gradient_accumulation=1,
    order="by_length",
)
NEW_TOKENS = 30  # room for any answer of the sample store
SHORT = 80  # tokens of prompt and answer: six of seven histories of the sample store do not fit
# (group, variant): settings. A full-precision model with all weights free wants a smaller learning rate.
VARIANTS = {
    ("stage", "QLoRA"): SAMPLE,
    ("stage", "LoRA, full precision"): replace(SAMPLE, method="lora"),
    ("stage", "all weights"): replace(SAMPLE, method="full", learning_rate=1e-3),
    ("rank", "4"): replace(SAMPLE, rank=4, alpha=8),  # the adapter's scale is alpha / rank: 2 in all three
    ("rank", "64"): replace(SAMPLE, rank=64, alpha=128),
    ("users", "25 %"): replace(SAMPLE, user_share=0.25),
    ("users", "50 %"): replace(SAMPLE, user_share=0.5),
    ("loss on", "answer"): replace(SAMPLE, loss_on="answer"),
    ("truncation", "left"): replace(SAMPLE, max_seq_length=SHORT, truncation="left"),
    ("truncation", "oldest"): replace(SAMPLE, max_seq_length=SHORT, truncation="oldest"),
}
SAME_AS_QLORA = [("rank", "16"), ("users", "100 %"), ("loss on", "whole text")]
# How the panels are drawn: from little to much.
ORDER = ["seen dropped", "base alone", "QLoRA", "LoRA, full precision", "all weights", "4", "16", "64"]
ORDER += ["25 %", "50 %", "100 %", "answer", "whole text", "left", "oldest"]


def recall(model, tokenizer, task, index, settings: TrainingSettings) -> pd.DataFrame:
    """Beams of every user, looked up with BM25, ranked by `unseen`; metrics per user.

    The prompts are cut as the training texts were, with room for the answer.
    """
    strategy = generation.Strategy("beam5", max_new_tokens=NEW_TOKENS)
    cut = {"max_seq_length": settings.max_seq_length, "truncation": settings.truncation}
    texts = generation.generate(model, tokenizer, task.prompts, strategy, batch_size=64, **cut)
    hits = index.search([text for user in texts for text in user.texts], k=20)
    ranked = ranking.rank_items(hits, queries_per_user=5, policy="unseen", k=5, seen=task.seen_items)
    return metrics.evaluate(ranked, task.targets, ks=(5,), reviewer_ids=task.reviewer_ids)


def row(group: str, variant: str, per_user: pd.DataFrame, **more) -> dict:
    """One line of the results: Recall@5 with its 95 % interval."""
    summary = metrics.summarize(per_user).set_index("metric").loc["recall@5"]
    return {"group": group, "variant": variant, **summary[["value", "low", "high", "num_users"]], **more}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="keep sample store and models here; default: a temporary directory")
    parser.add_argument("--users", type=int, default=300, help="test users to generate for")
    parser.add_argument("--out", default="benchmarks/results/ablation.csv")
    options = parser.parse_args()
    # Never the course's own directory: a new base would lie under the adapter that chapter 03 saved.
    with tempfile.TemporaryDirectory() as scratch:
        measure(options.data_dir or scratch, options.users, Path(options.out))


def measure(data_dir: str, num_users: int, out: Path) -> None:
    """Run what `out`'s partial results do not hold yet, a row at a time."""
    prepared = raw_data.prepare("sample", data_dir=data_dir, progress=False)
    task = splits.sample_users(splits.load_task(prepared), num_users)
    index = BM25Index(prepared.catalog["text"])
    tiny_llama.pretrain_base(prepared.catalog["text"], prepared.paths.base_model("tiny-llama"))

    partial = out.with_suffix(".partial.csv")  # a run that was cut off goes on from here
    rows = pd.read_csv(partial).to_dict("records") if partial.exists() else []
    if rows and rows[0]["num_users"] != num_users:
        raise SystemExit(f"{partial} was begun with {rows[0]['num_users']:.0f} users: delete it, or take as many")
    if not rows:
        lis = baselines.lis(task, index, k=5, drop="seen")
        rows = [row("LIS", "seen dropped", metrics.evaluate(lis, task.targets, ks=(5,)))]
        base = finetuning.for_generation(*finetuning.load_base("tiny-llama", prepared.paths))
        rows.append(row("stage", "base alone", recall(*base, task, index, SAMPLE), trainable_weights=0))
    done = {(line["group"], line["variant"]) for line in rows}
    for (group, variant), settings in VARIANTS.items():
        if (group, variant) in done:
            continue
        finetuning.finetune(prepared, "tiny-llama", settings, name="ablation")
        run = json.loads(prepared.paths.run_json("ablation").read_text())
        per_user = recall(*finetuning.load_finetuned(prepared.paths, "ablation"), task, index, settings)
        numbers = {name: run[name] for name in ("best_validation_loss", "trainable_weights")}
        rows.append(row(group, variant, per_user, **numbers))
        print(rows[-1], flush=True)
        if variant == "QLoRA":
            rows += [{**rows[-1], "group": other, "variant": name} for other, name in SAME_AS_QLORA]
        pd.DataFrame(rows).to_csv(partial, index=False)
    rows.sort(key=lambda line: ORDER.index(str(line["variant"])))
    write_atomically(out, lambda path: pd.DataFrame(rows).to_csv(path, index=False))
    partial.unlink()


if __name__ == "__main__":
    np.random.seed(42)
    main()
