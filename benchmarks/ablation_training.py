"""How much each stage of fine-tuning matters, on the sample store: one parametrized run per variant.

    python benchmarks/ablation_training.py            # about 25 minutes on two cores

Writes benchmarks/results/ablation.csv: group, variant, Recall@5 with its interval, the paired difference to QLoRA
on the same users with its interval, best validation loss, trainable parameters. Chapter 03 shows it.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd

from gloss_utils import (
    baselines,
    finetuning,
    generation,
    language_models,
    metrics,
    ranking,
    raw_data,
    splits,
    tiny_llama,
)
from gloss_utils.dense import encode
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
KEPT = ["group", "variant", "reviewer_id", "recall@5"]
NUMBERS = ["best_validation_loss", "trainable_parameters"]
NEW_TOKENS = 24  # room for any answer of the sample store, whose titles have at most 15
SHORT = 60  # tokens of prompt and answer: seven of ten histories of the sample store do not fit
# (group, variant): settings. A full-precision model with all parameters free wants a smaller learning rate.
VARIANTS = {
    ("stage", "QLoRA"): SAMPLE,
    ("stage", "LoRA, full precision"): replace(SAMPLE, method="lora"),
    ("stage", "all parameters"): replace(SAMPLE, method="full", learning_rate=1e-3),
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
ORDER = ["LIS", "STAR", "base alone", "QLoRA", "LoRA, full precision", "all parameters", "4", "16", "64"]
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


def paired(per_user: pd.DataFrame, reference: pd.DataFrame) -> dict:
    """The mean difference in Recall@5 to the reference on the same users, with its 95 % interval."""
    line = metrics.compare(per_user, reference).set_index("metric").loc["recall@5"]
    return {"difference": line["difference"], "difference_low": line["low"], "difference_high": line["high"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="keep sample store and models here; default: a temporary directory")
    parser.add_argument("--users", type=int, default=300, help="test users to generate for")
    parser.add_argument("--out", default="benchmarks/results/ablation.csv")
    options = parser.parse_args()
    out = Path(options.out)
    partial = out.with_suffix(".partial.csv")  # a row per variant and user: a run that was cut off goes on from here
    # Never the course's own directory: a new base would lie under the adapter that chapter 03 saved.
    with tempfile.TemporaryDirectory() as scratch:
        measure(options.data_dir or scratch, options.users, partial)
    write_atomically(out, lambda path: summarize(pd.read_csv(partial)).to_csv(path, index=False))
    partial.unlink()


def measure(data_dir: str, num_users: int, partial: Path) -> None:
    """Run what `partial` does not hold yet, one variant at a time."""
    prepared = raw_data.prepare("sample", data_dir=data_dir, progress=False)
    task = splits.sample_users(splits.load_task(prepared), num_users)
    texts = prepared.catalog["text"].tolist()
    index = BM25Index(texts)
    if not prepared.paths.base_model("tiny-llama").exists():
        tiny_llama.pretrain_base(texts, prepared.paths.base_model("tiny-llama"))

    done = pd.read_csv(partial) if partial.exists() else pd.DataFrame(columns=["group", "variant", "reviewer_id"])
    if len(done) and set(done["reviewer_id"]) != set(task.reviewer_ids):
        raise SystemExit(f"{partial} was begun with other users: delete it, or take as many")
    have = set(zip(done["group"], done["variant"].astype(str)))

    def keep(group: str, variant: str, per_user: pd.DataFrame, **numbers) -> None:
        print(group, variant, f"{per_user['recall@5'].mean():.3f}", numbers, flush=True)
        rows = per_user.assign(group=group, variant=variant, **{name: numbers.get(name) for name in NUMBERS})
        rows[[*KEPT, *NUMBERS]].to_csv(partial, mode="a", header=not partial.exists(), index=False)

    if ("without training", "LIS") not in have:
        counts = baselines.cooccurrence(splits.training_histories(prepared), len(texts))
        star = baselines.star(task, encode(texts), counts).items[:, :5]
        for name, ranked in {"LIS": baselines.lis(task, index, k=5, drop="seen"), "STAR": star}.items():
            per_user = metrics.evaluate(ranked, task.targets, ks=(5,), reviewer_ids=task.reviewer_ids)
            keep("without training", name, per_user)
        base = language_models.for_generation(*language_models.load_base("tiny-llama", prepared.paths))
        keep("stage", "base alone", recall(*base, task, index, SAMPLE))
    for (group, variant), settings in VARIANTS.items():
        if (group, variant) in have:
            continue
        finetuning.finetune(prepared, "tiny-llama", settings, name="ablation")
        run = language_models.read_run(prepared.paths, "ablation")
        per_user = recall(*language_models.load_finetuned(prepared.paths, "ablation"), task, index, settings)
        keep(group, variant, per_user, **{name: run[name] for name in NUMBERS})


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per variant: Recall@5 with its interval, and the paired difference to QLoRA."""
    rows["variant"] = rows["variant"].astype(str)
    users = {key: part for key, part in rows.groupby(["group", "variant"], sort=False)}
    reference = users["stage", "QLoRA"]
    users |= {key: reference for key in SAME_AS_QLORA}
    lines = []
    for (group, variant), part in sorted(users.items(), key=lambda item: ORDER.index(item[0][1])):
        summary = metrics.summarize(part[["reviewer_id", "recall@5"]]).set_index("metric").loc["recall@5"]
        line = {"group": group, "variant": variant, **summary[["value", "low", "high", "num_users"]]}
        same = part is reference
        difference = {} if same else paired(part[["reviewer_id", "recall@5"]], reference[["reviewer_id", "recall@5"]])
        lines.append(line | difference | part[NUMBERS].iloc[0].to_dict())
    return pd.DataFrame(lines)


if __name__ == "__main__":
    main()
