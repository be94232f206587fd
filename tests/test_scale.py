"""Past one machine: several processes train the model that one trains, and the work of millions is cut into parts."""

import os
import socket
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from gloss_utils import finetuning, generation, raw_data, retrieval, splits, tiny_llama
from gloss_utils.finetuning import TrainingSettings
from gloss_utils.generation import Generated
from gloss_utils.language_models import load_finetuned, read_run
from gloss_utils.paths import PROJECT_ROOT
from tools import at_scale, finetune

SMALL = tiny_llama.Recipe(vocab_size=400, hidden_size=64, num_layers=2, mlp_size=128, epochs=1, block_length=64)
STEPS = TrainingSettings(
    alpha=32,
    learning_rate=5e-3,
    warmup_steps=2,
    max_steps=6,
    batch_size=2,
    gradient_accumulation=4,
    evaluations=1,
    user_share=0.1,
    validation_users=16,
)


# Training


def test_the_trainers_settings_are_those_of_notebook_03():
    """The tool reads them from the notebook's own call: each is a field, and its name a parameter of the notebook."""
    names = finetune.setting_names()
    assert names["rank"] == "LORA_RANK" and names["validation_users"] == "LOSS_USERS"
    assert set(names) <= {field.name for field in fields(TrainingSettings)}
    assert set(names.values()) <= set(finetune.read_parameters("sample", {}))


def test_parameters_are_the_notebooks_then_the_profiles_then_the_given():
    parameters = finetune.read_parameters("paper", {"TRAIN_EPOCHS": "2", "BATCH_ORDER": "by_length"})
    assert parameters["GRADIENT_ACCUMULATION"] == 4 and parameters["WARMUP_STEPS"] == 300  # the profile
    assert parameters["TRAIN_EPOCHS"] == 2 and parameters["BATCH_ORDER"] == "by_length"
    assert parameters["LORA_RANK"] == 16  # the notebook's default
    with pytest.raises(ValueError, match="unknown parameter 'TRAIN_EPOCH': did you mean 'TRAIN_EPOCHS'"):
        finetune.read_parameters("paper", {"TRAIN_EPOCH": "2"})


def test_a_step_that_the_processes_cannot_share_is_refused():
    finetune.share_batches(STEPS, 2)
    with pytest.raises(ValueError, match="GRADIENT_ACCUMULATION is 4, which 3 processes cannot share"):
        finetune.share_batches(STEPS, 3)


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}


@pytest.mark.parametrize(
    ("environment", "method", "gpus", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "lora", 2, "DeepSpeed is not supported: launch with --multi_gpu"),
        (FSDP, "lora", 0, "divides a model among GPUs, and there is none here: launch with --multi_gpu"),
        (FSDP | {"FSDP_VERSION": "1"}, "lora", 2, "FSDP needs --fsdp_version 2"),
        (FSDP | {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "lora", 2, "--fsdp_state_dict_type FULL_STATE_DICT"),
        (FSDP, "qlora", 2, "FSDP does not divide a 4-bit base: set METHOD to lora or full"),
    ],
)
def test_a_launcher_that_cannot_run_is_refused(environment, method, gpus, words):
    with pytest.raises(ValueError, match=words):
        finetune.check_launcher(environment, method, gpus)


def test_launchers_that_can_run_are_told_apart():
    assert finetune.check_launcher(FSDP, "lora", 2) and finetune.check_launcher(FSDP, "full", 2)
    assert not finetune.check_launcher({"ACCELERATE_USE_CPU": "true"}, "qlora", 0)


WEIGHTS = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}
# accelerate takes FSDP on accelerators only. Told that these processes have one, PyTorch's FSDP runs on a CPU too.
FSDP_ON_CPU = """
import sys
from accelerate import state
from accelerate.utils import DistributedType
from tools import finetune

start = state.AcceleratorState.__init__


def start_divided(self, *given, **options):
    start(self, *given, **options)
    if options.get("fsdp_plugin"):
        self.fsdp_plugin, self.distributed_type = options["fsdp_plugin"], DistributedType.FSDP
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP


state.AcceleratorState.__init__ = start_divided
finetune.torch.cuda.device_count = lambda: 2
finetune.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_model_divided_between_two_processes_trains_as_a_whole_one(tmp_path, method):
    """FSDP: the losses of one process; the adapter or model that is saved is whole, and loads."""
    prepared = raw_data.prepare("sample", data_dir=tmp_path, progress=False)
    tiny_llama.pretrain_base(prepared.catalog["text"], prepared.paths.base_model("tiny-llama"), SMALL)
    settings = replace(STEPS, order="by_length", method=method)
    one = finetuning.finetune(prepared, "tiny-llama", settings, name="one-process")
    (tmp_path / "divided.py").write_text(FSDP_ON_CPU)
    given = {parameter: getattr(settings, setting) for setting, parameter in finetune.setting_names().items()}
    command = [sys.executable, str(tmp_path / "divided.py"), "--data-dir", str(tmp_path), "--name", "divided"]
    for parameter, value in given.items():
        command += ["--set", parameter, str(value)]
    common = (
        os.environ | FSDP | {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    )
    common |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    common |= {"FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer", "LOCAL_WORLD_SIZE": "2"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        common["MASTER_PORT"] = str(free.getsockname()[1])
    pair = [
        subprocess.Popen(command, env=common | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    said = [process.communicate(timeout=300)[1][-3000:] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    paths, two = prepared.paths, finetuning.read_log(prepared.paths.training_log("divided"))
    runs = [read_run(paths, run) for run in ("one-process", "divided")]
    assert [run["processes"] for run in runs] == [1, 2]
    assert runs[0]["trainable_parameters"] == runs[1]["trainable_parameters"]
    assert abs(runs[0]["best_validation_loss"] - runs[1]["best_validation_loss"]) < 0.01
    assert (two["loss"] - one["loss"]).abs().max() < 0.02
    saved = [load_file(paths.adapter(run) / WEIGHTS[method]) for run in ("one-process", "divided")]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.allclose(saved[0][name], saved[1][name], atol=0.02) for name in saved[0])
    load_finetuned(paths, "divided")


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
    """Steps of the same texts, each half of them in one of two processes, on a CPU over gloo.

    With batches of like lengths, whose order is our own code; the shuffled order is the libraries'.
    """
    prepared = raw_data.prepare("sample", data_dir=tmp_path, progress=False)
    tiny_llama.pretrain_base(prepared.catalog["text"], prepared.paths.base_model("tiny-llama"), SMALL)
    settings = replace(STEPS, order="by_length")
    one = finetuning.finetune(prepared, "tiny-llama", settings, name="one-process")
    given = {parameter: getattr(settings, setting) for setting, parameter in finetune.setting_names().items()}
    launcher = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    command = [sys.executable, "-m", *launcher.split(), "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [finetune.__file__, "--data-dir", str(tmp_path), "--name", "two-processes"]
    for parameter, value in given.items():
        command += ["--set", parameter, str(value)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    paths, two = prepared.paths, finetuning.read_log(prepared.paths.training_log("two-processes"))
    runs = [read_run(paths, run) for run in ("one-process", "two-processes")]
    assert [run["processes"] for run in runs] == [1, 2] and runs[0]["steps"] == runs[1]["steps"] == 6
    assert abs(runs[0]["best_validation_loss"] - runs[1]["best_validation_loss"]) < 0.01
    assert two["step"].tolist() == one["step"].tolist()  # a row per step, not one per process
    # The same texts in every step: its mean loss is over the same tokens.
    assert (two["loss"] - one["loss"]).abs().max() < 0.02
    assert not (paths.model("two-processes") / "checkpoints").exists()


# Generation and ranking


class StubWorker(at_scale.Worker):
    """A worker without a model: a user's one text names the user; the fourth batch fails while `broken`."""

    broken, written = False, []

    def __init__(self, job):
        self.job = job

    def recommend(self, reviewer_ids, ptexts, histories):
        if StubWorker.broken and len(StubWorker.written) == 3:
            raise KeyboardInterrupt
        StubWorker.written.append(reviewer_ids)
        lists = [list(history)[::-1] for history in histories]
        texts = [[f"Title: {name}"] for name in reviewer_ids]
        return pa.table([reviewer_ids, texts, [[-1.0]] * len(texts), lists], schema=at_scale.LISTS)


@pytest.fixture
def job(prepared, tmp_path, monkeypatch):
    """The first fifty test users, in batches of eight, for one process."""
    monkeypatch.setattr(at_scale, "Worker", StubWorker)
    monkeypatch.setattr(StubWorker, "broken", False)
    monkeypatch.setattr(StubWorker, "written", [])
    run = prepared.paths.run_json("stub")
    run.parent.mkdir(parents=True, exist_ok=True)
    run.write_text("{}")
    users = prepared.splits["test"].data.table.select(["reviewer_id", "seen_asins"])[:50]
    pq.write_table(users, tmp_path / "users.parquet", row_group_size=7)  # not the batches' size
    return at_scale.Job(
        users=str(tmp_path / "users.parquet"),
        out=str(tmp_path / "lists"),
        data_dir=str(prepared.paths.root.parent),
        model="stub",
        batch=8,
        workers=0,
    )


def test_every_user_is_served_once_and_in_order(prepared, job):
    lists = pq.read_table(at_scale.recommend(job)).to_pylist()
    expected = prepared.splits["test"][:50]
    assert [row["reviewer_id"] for row in lists] == expected["reviewer_id"]
    assert [row["asins"][::-1] for row in lists] == expected["seen_asins"]
    assert [len(batch) for batch in StubWorker.written] == [8] * 6 + [2]
    assert not list(job.folder.glob("parts/*"))


def test_a_run_that_was_cut_off_goes_on_with_what_is_missing(job, monkeypatch, capsys):
    StubWorker.broken = True
    with pytest.raises(KeyboardInterrupt):
        at_scale.recommend(job)
    StubWorker.broken, before = False, StubWorker.written.copy()
    cut_off = at_scale.recommend(job).read_bytes()
    assert "going on: 3 of 7 batches are done" in capsys.readouterr().out
    users = [name for batch in StubWorker.written for name in batch]
    assert len(before) == 3 and len(users) == len(set(users)) == 50  # nobody twice
    at_once = at_scale.recommend(at_scale.Job(**vars(job) | {"out": job.out + "-at-once"})).read_bytes()
    assert cut_off == at_once
    at_scale.recommend(job)
    assert "is up to date" in capsys.readouterr().out


def test_another_job_in_the_same_folder_is_refused(job):
    at_scale.recommend(job)
    with pytest.raises(ValueError, match=r"begun as another job \(strategy\): give another --out"):
        at_scale.recommend(at_scale.Job(**vars(job) | {"strategy": "temp0.5"}))
    at_scale.recommend(at_scale.Job(**vars(job) | {"workers": 0, "gpus": 1.0}))  # these may change


@pytest.mark.parametrize(("name", "wrong"), [("policy", "scor"), ("strategy", "beam"), ("engine", "vlm"), ("k", 0)])
def test_a_wrong_name_is_refused_before_a_worker_starts(job, name, wrong):
    """It came out of a worker, wrapped in Ray's own error, after the folder was begun."""
    with pytest.raises(ValueError, match=name):
        at_scale.recommend(at_scale.Job(**vars(job) | {name: wrong}))
    assert not job.folder.exists()


@pytest.mark.parametrize(("names", "twice"), [(["u2", "u1"], False), (["u1", "u1"], True)])
def test_users_out_of_order_are_refused(tmp_path, names, twice):
    path = tmp_path / "users.parquet"
    pq.write_table(pa.table({"reviewer_id": names, "ptext": ["a", "b"]}), path)
    with pytest.raises(ValueError, match="not sorted by reviewer_id, or names a user twice"):
        list(at_scale.read_users(path, 10))


def test_users_without_a_history_or_a_prompt_are_refused(tmp_path):
    pq.write_table(pa.table({"reviewer_id": ["u1"]}), tmp_path / "users.parquet")
    with pytest.raises(ValueError, match="needs reviewer_id, and seen_asins or ptext"):
        list(at_scale.read_users(tmp_path / "users.parquet", 10))


def stub_of(toy, **options) -> at_scale.Worker:
    """A worker that has everything but a model."""
    worker = at_scale.Worker.__new__(at_scale.Worker)
    worker.job = at_scale.Job(users="", out="", **options)
    worker.prepared, worker.catalog, worker.options = toy, toy.catalog, {}
    worker.model = worker.tokenizer = worker.strategy = None
    worker.index = retrieval.BM25Index(toy.catalog["text"].tolist())
    return worker


def test_a_worker_ranks_what_the_texts_find_and_hides_what_was_bought(toy, monkeypatch):
    """A history without a known item gets an empty list; it would have been a prompt without items."""

    def write(model, tokenizer, prompts, strategy, **options):
        yield [1, 0], [Generated(["Title: Mint Toner"], [-0.123456]), Generated(["Title: Rose Soap"], [-1.0])]

    monkeypatch.setattr(generation, "generate_batches", write)
    worker = stub_of(toy, k=2)
    rows = worker.recommend(["u1", "u2", "u3"], ["", "", ""], [["a1"], ["no such item"], ["a4", "a5"]]).to_pylist()
    assert rows[0]["generated_sequences"] == ["Title: Rose Soap"] and "a1" not in rows[0]["asins"]
    assert rows[1] == {"reviewer_id": "u2", "generated_sequences": [], "sequence_scores": [], "asins": []}
    assert rows[2]["sequence_scores"] == [-0.1235] and not {"a4", "a5"} & set(rows[2]["asins"])
    assert rows[2]["asins"] and all(len(row["asins"]) <= 2 for row in rows)


class TwoWays:
    """An index of seven items: one text finds them from the first to the last, the next one from the last."""

    def search(self, queries, depth):
        items = np.array([range(7), range(6, -1, -1)] * (len(queries) // 2))[:, :depth]
        return retrieval.Hits(items, np.ones(items.shape, dtype=np.float32))


def test_a_list_does_not_depend_on_the_other_users_of_a_batch(toy, monkeypatch):
    """A long history made the search deeper for its whole batch, and `rrf` counts every hit."""

    def write(model, tokenizer, prompts, strategy, **options):
        yield (
            list(range(len(prompts))),
            [Generated(["Title: Rose Soap Cream", "Title: Mint Cream"], [-1.0, -2.0])] * 2,
        )

    monkeypatch.setattr(generation, "generate_batches", write)
    monkeypatch.setattr(at_scale, "HITS", 1)
    worker = stub_of(toy, policy="rrf", k=1)
    worker.index = TwoWays()
    alone = worker.recommend(["u1"], [""], [["a7"]]).to_pylist()
    beside = worker.recommend(["u1", "u2"], ["", ""], [["a7"], ["a1", "a2", "a3", "a4", "a5"]]).to_pylist()
    assert alone == beside[:1]


# Data


@pytest.mark.parametrize("users", [20, 100, 10_000])
def test_splits_in_pieces_are_the_splits_at_once(prepared, tmp_path, users):
    """The validation users are drawn among all users, not anew in every piece; of 20 users there may be none."""
    rows = at_scale.write_splits(prepared.paths.interactions, prepared.catalog, tmp_path, users)
    for name, expected in prepared.splits.items():
        written = pq.read_table(tmp_path / f"{name}.parquet")
        assert written.to_pylist() == expected.to_list()
        assert rows[name] == len(expected)


def test_the_histories_written_with_the_splits_are_those_of_the_notebooks(prepared, tmp_path):
    """In row groups too, as Parquet cuts what has more than a million rows."""
    at_scale.write_splits(prepared.paths.interactions, prepared.catalog, tmp_path)
    written = pq.read_table(tmp_path / "histories.parquet")
    assert written["reviewer_id"].to_pylist() == splits.user_bounds(prepared.interactions)[0].tolist()
    expected = [items.tolist() for items in splits.training_histories(prepared)]
    for size in (len(written), 100):
        pq.write_table(written, tmp_path / "histories.parquet", row_group_size=size)
        assert [items.tolist() for items in at_scale.read_histories(tmp_path)] == expected


def test_a_store_of_two_files_is_split_and_a_wrong_one_refused(prepared, tmp_path, capsys):
    """The command opened notebook 01's splits, which are what does not fit in memory."""
    root = tmp_path / "shop"
    root.mkdir()
    prepared.catalog.to_parquet(root / "catalog.parquet")
    interactions = pd.read_parquet(prepared.paths.interactions)
    out = ["split", "--dataset", str(root), "--out", str(tmp_path / "splits")]
    interactions.to_parquet(root / "interactions.parquet")
    at_scale.main(out)
    assert f"test: {len(prepared.splits['test']):,} users" in capsys.readouterr().out
    one = interactions[interactions["reviewer_id"] == interactions["reviewer_id"][0]]
    one.assign(reviewer_id=7).to_parquet(root / "interactions.parquet")  # one user, with a number for an id
    at_scale.main(out)
    assert "test: 1 users" in capsys.readouterr().out
    for wrong in (one.iloc[::-1], interactions.iloc[::-1]):
        wrong.to_parquet(root / "interactions.parquet")
        with pytest.raises(SystemExit, match="is not sorted: sort it by reviewer_id, and each user"):
            at_scale.main(out)
    interactions.assign(asin=interactions["asin"].where(interactions.index != 7, "NOWHERE")).to_parquet(
        root / "interactions.parquet"
    )
    with pytest.raises(SystemExit, match="the item 'NOWHERE', which is not in the catalog"):
        at_scale.main(out)


def test_histories_of_other_splits_do_not_outlive_a_run_that_failed(prepared, tmp_path, monkeypatch):
    """A second run into the same folder failed midway, and the histories of the first one lay beside its splits."""
    at_scale.write_splits(prepared.paths.interactions, prepared.catalog, tmp_path)
    monkeypatch.setattr(splits, "build_splits", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        at_scale.write_splits(prepared.paths.interactions, prepared.catalog, tmp_path)
    with pytest.raises(FileNotFoundError):
        at_scale.read_histories(tmp_path)


def test_made_data_are_sorted_and_every_item_is_known(tmp_path):
    from benchmarks import bench_scale

    bench_scale.make_store("sample", "", 300_000, tmp_path)
    interactions, catalog = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("interactions", "catalog"))
    assert abs(len(interactions) / 300_000 - 1) < 0.05
    assert interactions["reviewer_id"].is_monotonic_increasing and interactions["asin"].isin(catalog["asin"]).all()
    times = interactions.groupby("reviewer_id")["timestamp"]
    assert times.is_monotonic_increasing.all() and times.size().min() >= splits.MIN_INTERACTIONS
    source = pd.read_parquet(tmp_path / "source/sample/catalog.parquet")
    copies = len(catalog) // len(source)
    assert copies == round(300_000 / bench_scale.PER_ITEM / len(source)) > 1 and catalog["asin"].is_unique
    words = [catalog["title"].str.split(" ").map(len).to_numpy()[: len(source)], source["title"].str.count(" ") + 1]
    assert np.array_equal(*words)
    changed = (catalog["title"].to_numpy()[: len(source)] != source["title"].to_numpy()).mean()
    assert 0.5 < changed < 1  # of some eight words one in five is another


def test_random_numbers_change_the_items_numbers_and_nothing_else(tmp_path):
    from benchmarks import bench_scale

    lengths, firsts = [], []
    for numbers in ("grouped", "random"):
        bench_scale.make_store("sample", "", 300_000, tmp_path / numbers, numbers)
        catalog = pd.read_parquet(tmp_path / numbers / "catalog.parquet").set_index("asin")
        bought = pd.read_parquet(tmp_path / numbers / "interactions.parquet")["asin"]
        lengths.append(catalog["title"].str.count(" ")[bought].to_numpy())  # words are exchanged, their number stays
        firsts.append(bought.iloc[0])
    assert np.array_equal(*lengths) and firsts[0] != firsts[1]
