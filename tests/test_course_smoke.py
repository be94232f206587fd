"""The whole course on the smoke profile, as a reader would start it. The longest test, so the last."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from gloss_utils import Recommender
from gloss_utils.paths import dataset_paths
from gloss_utils.queries import load_queries
from gloss_utils.splits import load_prepared, load_task

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))

pytestmark = [pytest.mark.slow, pytest.mark.course]


def run_course(directory, *arguments):
    """Run the course into `directory`, away from the working copy's own data and figures."""
    command = [sys.executable, "-m", "tools.course", "--profile", "smoke", "--out", str(directory / "runs")]
    places = {"DATA_DIR": directory / "data", "FIGURES_DIR": directory / "figures", "RAW_DIR": "data/sample/raw"}
    for name, value in places.items():
        command += ["-p", name, str(value)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, text=True, capture_output=True)


@pytest.fixture(scope="module")
def course_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("course")
    finished = run_course(directory)
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-2000:]
    return directory, finished.stdout


@pytest.fixture(scope="module")
def results(course_run):
    table = pd.read_csv(dataset_paths("sample", course_run[0] / "data").results)
    return table[table["split"] == "test"]


def test_every_notebook_ran_and_has_a_page(course_run):
    directory, printed = course_run
    for stem in NOTEBOOKS:
        executed = directory / "runs" / "sample-smoke" / f"{stem}.ipynb"
        cells = nbformat.read(executed, as_version=4).cells
        assert not [o for c in cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
        assert executed.with_suffix(".html").stat().st_size > 10_000
        assert f"{stem}: done" in printed


def test_every_artifact_of_the_design_is_on_disk(course_run):
    paths = dataset_paths("sample", course_run[0] / "data")
    for artifact in (paths.interactions, paths.catalog, paths.splits, paths.results):
        assert artifact.exists(), artifact
    for artifact in (paths.adapter("tiny-llama"), paths.training_log("tiny-llama"), paths.run_json("tiny-llama")):
        assert artifact.exists(), artifact
    assert paths.queries("tiny-llama", "beam5", "test").exists()
    assert list((paths.root / "rankings" / "test").glob("*.parquet"))
    assert list((paths.root / "metrics" / "test").glob("*.parquet"))


def test_every_chapter_drew_its_figures(course_run):
    drawn = {path.name[:2] for path in (course_run[0] / "figures").rglob("*.png")}  # 08 draws a real category
    assert drawn >= {"00", "01", "02", "03", "04", "05", "06", "07", "08", "09"}


def test_results_are_probabilities_inside_their_intervals(results):
    assert (results["low"] <= results["value"] + 1e-9).all() and (results["value"] <= results["high"] + 1e-9).all()
    assert results["value"].between(0, 1).all() and (results["num_users"] > 0).all()


def test_baselines_stand_in_the_expected_order(results):
    """Even the smoke profile's few users tell last-item search from chance."""
    recall = results[results["metric"] == "recall@5"].groupby("model")["value"].max()
    assert recall["lis"] > recall["random"]
    assert recall["lis"] > 0.02


@pytest.mark.parametrize("retriever, ranking", [("bm25", "bm25"), ("dense", "dense-minilm")])
def test_the_recommender_gives_what_the_notebooks_ranked(course_run, retriever, ranking):
    """One user at a time, from the adapter on disk: the texts of notebook 04 and the list of notebook 05."""
    prepared = load_prepared("sample", course_run[0] / "data")
    ranked = pd.read_parquet(
        prepared.paths.root / "rankings" / "test" / f"tiny-llama__beam5__{ranking}__round_robin.parquet"
    )
    written = {
        r["reviewer_id"]: r["generated_sequences"]
        for r in load_queries(prepared.paths.queries("tiny-llama", "beam5", "test"), prepared)
    }
    task = load_task(prepared).subset(list(written)[:5])
    recommender = Recommender.load("sample", retriever=retriever, data_dir=course_run[0] / "data")
    for reviewer_id, seen in zip(task.reviewer_ids, task.seen_items):
        table = recommender.recommend(prepared.catalog["asin"].iloc[seen].tolist(), k=5)
        expected = ranked[ranked["reviewer_id"] == reviewer_id].sort_values("rank")["asin"][:5]
        assert table["asin"].tolist() == expected.tolist()
        assert set(table["text"]) <= set(written[reviewer_id])


@pytest.mark.parametrize("model", ["tiny-llama", "with-eos"])  # the second's base lies with the first
def test_a_saved_language_model_needs_nothing_but_its_folder(course_run, tmp_path, model):
    """The folder named the model and the dataset: a model trained anew gave other lists, another machine none."""
    data_dir = shutil.copytree(course_run[0] / "data", tmp_path / "data")
    recommender = Recommender.load("sample", model, data_dir=data_dir)
    folder, history = recommender.save(tmp_path / "shop"), recommender.catalog["asin"][:3].tolist()
    expected = recommender.recommend(history)
    shutil.rmtree(data_dir)
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / "shop")
    again = Recommender.open(moved)
    assert again.recommend(history).equals(expected)
    assert Recommender.open(again.save(moved)).recommend(history).equals(expected)
    weights = moved / "models" / model / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"models/{model}/adapter/adapter_model.safetensors is cut"):
        Recommender.open(moved)


def test_a_queries_file_from_elsewhere_is_ranked(course_run, tmp_path):
    """In the layout that GLoSS publishes: no scores beside the texts, and a name that the course did not give."""
    data_dir = shutil.copytree(course_run[0] / "data", tmp_path / "data")
    records = load_queries(dataset_paths("sample", data_dir).queries("tiny-llama", "beam5", "test"))[:50]
    for record in records:
        del record["sequence_scores"]
    elsewhere = tmp_path / "their_1B_beams.json"
    elsewhere.write_text(json.dumps(records))
    finished = run_course(tmp_path, "--only", "05", "-p", "QUERIES_FILE", str(elsewhere))
    assert finished.returncode == 0, finished.stdout[-4000:]
    table = pd.read_csv(dataset_paths("sample", data_dir).results)
    theirs = table[(table["model"] == "their_1B_beams") & (table["metric"] == "recall@5")]
    assert set(theirs["retriever"]) >= {"bm25", "dense-minilm"} and (theirs["num_users"] == 50).all()


def test_a_second_run_skips_everything(course_run):
    finished = run_course(course_run[0])
    assert finished.returncode == 0
    assert finished.stdout.count("up to date, skipped") == len(NOTEBOOKS), finished.stdout[-3000:]


def test_a_chapter_without_its_input_says_which_notebook_to_run(tmp_path):
    finished = run_course(tmp_path, "--only", "02")
    assert finished.returncode == 1
    assert "run notebook 01 with DATASET=sample" in finished.stdout
