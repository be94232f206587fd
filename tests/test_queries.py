"""Queries files: the published layout, a kill in the middle, and what is no such file."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_model import TITLES, make_prompts, tiny_model, tiny_tokenizer

from gloss_utils import queries
from gloss_utils.paths import dataset_paths
from gloss_utils.queries import generate_split, load_queries, read_cost
from gloss_utils.splits import Prepared, Task


def tiny_case(directory) -> tuple[Prepared, Task]:
    """Eight items, eight users: user 0 has one item, user 7 has eight."""
    catalog = pd.DataFrame({"asin": [f"B{n}" for n in range(8)], "title": TITLES, "text": TITLES})
    paths = dataset_paths(str(directory / "toy"))
    task = Task(
        reviewer_ids=np.array([f"R{n}" for n in range(8)]),
        prompts=make_prompts(),
        seen_items=[np.arange(user, 2 * user + 1) % 8 for user in range(8)],
        targets=np.arange(8),
    )
    return Prepared("toy", paths, None, catalog, None, None), task


def write(directory, strategy="beam5", task=None, **options):
    prepared, whole = tiny_case(directory)
    return generate_split(prepared, task or whole, tiny_model(), tiny_tokenizer(), strategy, **options)


def test_layout_and_order(tmp_path):
    path = write(tmp_path, batch_size=3)
    assert path.relative_to(tmp_path).as_posix() == "toy/queries/tiny-llama/beam5_test.json"
    records = json.loads(path.read_text())
    assert [record["reviewer_id"] for record in records] == [f"R{n}" for n in range(8)]
    assert list(records[2]) == ["reviewer_id", "asin", "seen_asins", "generated_sequences", "sequence_scores"]
    assert records[2]["asin"] == "B2" and records[2]["seen_asins"] == ["B2", "B3", "B4"]
    assert all(len(record["generated_sequences"]) == 5 for record in records)
    assert all(text.startswith("Title: ") for record in records for text in record["generated_sequences"][:1])
    assert load_queries(path, tiny_case(tmp_path)[0]) == records
    assert not path.with_suffix(".partial.jsonl").exists()


def test_a_published_file_has_no_scores_and_loads(tmp_path):
    path = tmp_path / "published.json"
    published = [
        {"reviewer_id": "A1", "asin": "B1", "seen_asins": ["B2"], "generated_sequences": ["Title: Rose", ""]}
    ]
    path.write_text(json.dumps(published))
    assert load_queries(path) == published
    assert read_cost(path) == {}


KILLED_RUN = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from gloss_utils import queries
import test_queries
from transformers import LlamaForCausalLM

network = LlamaForCausalLM.from_pretrained({model!r}).eval()
test_queries.tiny_model = lambda: network
append, done = queries.PartialFile.append, []

def append_then_die(self, records, seconds):
    append(self, records, seconds)
    done.append(records)
    if len(done) == 3:
        with self.path.open("a") as file:
            file.write('{{"seconds": 0.1, "records": [{{"reviewer_id": "R')
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

queries.PartialFile.append = append_then_die
test_queries.write(Path({directory!r}), "temp0.5", batch_size=1)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """Killed by the system in the middle of a line: what was whole is kept, the rest is done once."""
    tests = Path(__file__).parent
    tiny_model().save_pretrained(tmp_path / "model")  # trained twice, it could differ in its last bits
    script = KILLED_RUN.format(tests=str(tests), directory=str(tmp_path), model=str(tmp_path / "model"))
    environment = {**os.environ, "PYTHONPATH": str(tests.parent)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    final = tmp_path / "toy/queries/tiny-llama/temp0.5_test.json"
    assert not final.exists()

    asked = []
    original = queries.generation.generate_batches
    monkeypatch.setattr(
        queries.generation,
        "generate_batches",
        lambda model, tokenizer, prompts, *rest, **options: (
            asked.extend(prompts) or original(model, tokenizer, prompts, *rest, **options)
        ),
    )
    assert write(tmp_path, "temp0.5", batch_size=2) == final
    assert len(asked) == 5
    assert "going on after 3 users" in capsys.readouterr().out
    whole = load_queries(write(tmp_path / "whole", "temp0.5"))
    for resumed, record in zip(load_queries(final), whole, strict=True):
        assert resumed.pop("sequence_scores") == pytest.approx(record.pop("sequence_scores"), abs=1e-3)
        assert resumed == record


def test_a_finished_file_is_kept_until_something_changes(tmp_path, capsys):
    path = write(tmp_path, "temp0.5")
    before = path.stat().st_mtime_ns
    write(tmp_path, "temp0.5", batch_size=4)
    assert path.stat().st_mtime_ns == before
    assert "is up to date" in capsys.readouterr().out
    write(tmp_path, "temp0.5", seed=7)
    assert path.stat().st_mtime_ns > before
    assert read_cost(path)["num_users"] == 8
    _, task = tiny_case(tmp_path)
    write(tmp_path, "temp0.5", seed=7, task=task.take(np.array([4, 1])))
    assert [record["reviewer_id"] for record in load_queries(path)] == ["R4", "R1"]


def test_a_partial_file_of_another_run_is_started_again(tmp_path, capsys):
    prepared, _ = tiny_case(tmp_path)
    path = prepared.paths.queries("tiny-llama", "beam5", "test")
    partial = queries.PartialFile(path, {"seed": 1})
    partial.append([{"reviewer_id": "R0", "generated_sequences": ["stale"]}], 1.0)
    write(tmp_path)
    assert "starting again" in capsys.readouterr().out
    assert "stale" not in path.read_text()


def test_progress_tells_the_pace_and_the_time_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(queries, "PROGRESS_SECONDS", 0.0)
    prepared, task = tiny_case(tmp_path)
    generate_split(prepared, task, tiny_model(), tiny_tokenizer(), batch_size=4)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"  4 of 8 users, \d+\.\d users/s, \d+ s left", lines[0])
    assert re.search(r"beam5_test\.json: 8 users, \d+\.\d users/s", lines[-1])


def test_another_model_is_another_run(tmp_path):
    model = tiny_model()
    before = queries.fingerprint_model(model)
    weight = model.model.layers[0].mlp.up_proj.weight.data
    weight[0, 0] += 1
    assert queries.fingerprint_model(model) != before
    weight[0, 0] -= 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[{", "is damaged or no such file"),
        ('{"a": 1}', "holds no list of users"),
        ('[{"reviewer_id": "A", "asin": "B0"}]', "user 0 lacks seen_asins, generated_sequences"),
        (
            '[{"reviewer_id": "A", "asin": "B0", "seen_asins": [], "generated_sequences": ["x"],'
            ' "sequence_scores": []}]',
            "has 1 texts and 0 sequence_scores",
        ),
        (
            '[{"reviewer_id": "A", "asin": "C7", "seen_asins": [], "generated_sequences": []}]',
            "made from other data",
        ),
    ],
)
def test_a_file_that_is_not_one_is_refused(tmp_path, content, words):
    path = tmp_path / "queries.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"queries\.json") as error:
        load_queries(path, tiny_case(tmp_path)[0])
    assert words in str(error.value)


def test_a_missing_file_names_the_notebook_and_a_misspelt_strategy_the_near_one(tmp_path):
    """`beem5` sent the reader to notebook 04, which does not know it either."""
    prepared, _ = tiny_case(tmp_path)
    with pytest.raises(FileNotFoundError, match="run notebook 04"):
        load_queries(prepared.paths.queries("tiny-llama", "beam5", "test"), prepared)
    with pytest.raises(ValueError, match="did you mean 'beam5'"):
        load_queries(prepared.paths.queries("tiny-llama", "beem5", "test"), prepared)


def test_an_unknown_engine_is_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'vllm'"):
        write(tmp_path, engine="vlm")


def test_a_model_is_not_stamped_with_an_engine_that_did_not_write(tmp_path):
    """transformers wrote, and the file said vllm: with the name that decides what is up to date."""
    with pytest.raises(ValueError, match="does not fit a LlamaForCausalLM"):
        write(tmp_path, engine="vllm")


def test_constrained_texts_are_written_anew_for_another_catalog(tmp_path, capsys):
    prepared, task = tiny_case(tmp_path)
    assert {t for r in load_queries(write(tmp_path, "constrained5")) for t in r["generated_sequences"]} <= set(TITLES)
    prepared.catalog["text"] = TITLES[:5] * 1 + ["Title: Cedar Comb"] * 3
    path = generate_split(prepared, task, tiny_model(), tiny_tokenizer(), "constrained5")
    assert "up to date" not in capsys.readouterr().out
    assert TITLES[5] not in path.read_text()
