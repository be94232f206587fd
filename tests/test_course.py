"""The runner, on notebooks of a few cells."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest

from gloss_utils import paths
from tools import course, pages
from tools.course import CourseState


def write_notebook(path, *sources, parameters="DATASET: str = 'toy'\nDATA_DIR: str = 'data'\nSTEPS: int = 3"):
    cells = [nbformat.v4.new_markdown_cell(f"# {path.stem}"), nbformat.v4.new_code_cell(parameters)]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


WRITE = "from gloss_utils.paths import dataset_paths\nroot = dataset_paths(DATASET, DATA_DIR).root\n"


@pytest.fixture
def toy_course(tmp_path, monkeypatch):
    """Two notebooks: the first writes a file that the second reads."""
    notebooks = tmp_path / "notebooks"
    (notebooks / "profiles").mkdir(parents=True)
    (notebooks / "profiles" / "sample.yaml").write_text("# defaults\n")
    (notebooks / "profiles" / "smoke.yaml").write_text("STEPS: 1\n")
    write_notebook(
        notebooks / "01_first.ipynb",
        WRITE + "root.mkdir(parents=True, exist_ok=True)\n(root / 'a.txt').write_text(str(STEPS))",
    )
    write_notebook(
        notebooks / "02_second.ipynb", WRITE + "(root / 'b.txt').write_text((root / 'a.txt').read_text() * 2)"
    )
    monkeypatch.setattr(course, "NOTEBOOKS", notebooks)
    monkeypatch.setattr(course, "package_digest", lambda: "package")  # someone may be editing it
    monkeypatch.setattr(paths, "DATASETS", ("sample", "toy"))

    def run(*arguments):
        places = ["--out", str(tmp_path / "runs"), "-p", "DATA_DIR", str(tmp_path / "data"), "-p", "DATASET", "toy"]
        return course.main([*places, *arguments])

    run.notebooks, run.data, run.out = notebooks, tmp_path / "data" / "toy", tmp_path / "runs" / "toy-sample"
    return run


def test_runs_in_order_and_leaves_notebooks_pages_and_a_summary(toy_course, capsys):
    assert toy_course() == 0
    printed = capsys.readouterr().out
    assert (toy_course.data / "b.txt").read_text() == "33"
    assert (toy_course.out / "01_first.ipynb").exists() and (toy_course.out / "02_second.html").exists()
    assert printed.index("01_first: running") < printed.index("02_second: running")
    assert "cell   4/4" in printed and "executed notebooks" in printed


def test_up_to_date_notebooks_are_skipped_and_said_so(toy_course, capsys):
    assert toy_course() == 0
    capsys.readouterr()
    assert toy_course() == 0
    printed = capsys.readouterr().out
    assert printed.count("up to date, skipped") == 2 and "running" not in printed


def test_another_parameter_a_lost_file_or_changed_code_make_a_notebook_stale(toy_course, capsys):
    assert toy_course() == 0
    assert toy_course("-p", "STEPS", "7") == 0
    assert (toy_course.data / "b.txt").read_text() == "77"

    (toy_course.data / "b.txt").unlink()
    capsys.readouterr()
    assert toy_course("-p", "STEPS", "7") == 0
    printed = capsys.readouterr().out
    assert "01_first: up to date" in printed and "02_second: running" in printed

    write_notebook(toy_course.notebooks / "01_first.ipynb", WRITE + "(root / 'a.txt').write_text('new')")
    assert toy_course("-p", "STEPS", "7") == 0
    assert (toy_course.data / "b.txt").read_text() == "newnew"


def test_an_artifact_changed_outside_the_course_is_made_again(toy_course, capsys):
    assert toy_course() == 0
    (toy_course.data / "a.txt").write_text("edited by hand")
    capsys.readouterr()
    assert toy_course() == 0
    assert "01_first: running" in capsys.readouterr().out
    assert (toy_course.data / "a.txt").read_text() == "3"


def test_only_and_from_choose_notebooks(toy_course, capsys):
    assert toy_course("--only", "1") == 0
    assert not (toy_course.data / "b.txt").exists()
    assert toy_course("--from", "02_second") == 0
    assert (toy_course.data / "b.txt").exists()
    assert toy_course("--only", "09") == 2
    assert "unknown notebook '09'" in capsys.readouterr().err


def test_a_failing_cell_names_itself_keeps_the_partial_notebook_and_exits_with_1(toy_course, capsys):
    write_notebook(toy_course.notebooks / "01_first.ipynb", "print('before')", "1 / 0", "print('after')")
    assert toy_course() == 1
    printed = capsys.readouterr().out
    assert "01_first: FAILED in cell 5 (In [4])" in printed and "ZeroDivisionError" in printed
    assert "02_second" not in printed
    kept = (toy_course.out / "01_first.ipynb").read_text()
    assert "before" in kept and "ZeroDivisionError" in kept
    assert toy_course() == 1, "a failed notebook is not taken for a finished one"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", "STEP", "3"], "unknown parameter 'STEP': did you mean 'STEPS'?"),
        (["-p", "STEPS", "many"], "parameter STEPS takes int, not 'many'"),
        (["-p", "STEPS", "true"], "parameter STEPS takes int, not True"),
        (["--profile", "smok"], "unknown profile 'smok': did you mean 'smoke'?"),
        (["-p", "DATASET", "sampel"], "unknown DATASET 'sampel': did you mean 'sample'?"),
        (["-p", "DATASET", "my shop"], "./my shop"),
        (["-p", "DATASET", ".."], "unknown DATASET '..'"),
    ],
)
def test_a_misspelt_name_or_a_wrong_value_is_one_sentence(toy_course, capsys, arguments, sentence):
    before = sorted(toy_course.out.parent.parent.rglob("*"))
    assert toy_course(*arguments) == 2
    assert sentence in capsys.readouterr().err
    assert sorted(toy_course.out.parent.parent.rglob("*")) == before, "a refusal leaves nothing behind"


def test_a_profile_sets_parameters_and_the_command_line_wins(toy_course):
    assert toy_course("--profile", "smoke") == 0
    assert (toy_course.data / "b.txt").read_text() == "11"
    assert toy_course("--profile", "smoke", "-p", "STEPS", "5") == 0
    assert (toy_course.data / "b.txt").read_text() == "55"


def test_a_killed_run_goes_on_where_it_was(toy_course, tmp_path, capsys):
    """Killed in notebook 02, the next run must skip 01 and run 02 from its start."""
    slow = WRITE + "(root / 'begun').touch()\nimport time\ntime.sleep(600)"
    write_notebook(toy_course.notebooks / "02_second.ipynb", slow)
    script = (
        "import pathlib, sys; from gloss_utils import paths; from tools import course; paths.DATASETS = ('toy',);"
        "course.package_digest = lambda: 'package';"
        f"course.NOTEBOOKS = pathlib.Path({str(toy_course.notebooks)!r}); sys.exit(course.main(sys.argv[1:]))"
    )
    places = ["--out", str(tmp_path / "runs"), "-p", "DATA_DIR", str(tmp_path / "data"), "-p", "DATASET", "toy"]
    child = subprocess.Popen(
        [sys.executable, "-c", script, *places], stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (toy_course.data / "begun").exists():
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.2)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    write_notebook(toy_course.notebooks / "02_second.ipynb", WRITE + "(root / 'b.txt').write_text('done')")
    assert toy_course() == 0
    printed = capsys.readouterr().out
    assert "01_first: up to date" in printed and "02_second: done" in printed


def test_publishing_writes_outputs_back_without_traces_of_the_run(toy_course):
    write_notebook(toy_course.notebooks / "01_first.ipynb", "print(STEPS)", "STEPS + 1")
    assert toy_course("--only", "1", "--publish") == 0
    notebook = nbformat.read(toy_course.notebooks / "01_first.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3]
    assert code[1].outputs[0].text == "3\n" and code[2].outputs[0].data["text/plain"] == "4"
    text = (toy_course.notebooks / "01_first.ipynb").read_text()
    assert "papermill" not in text and "injected" not in text and str(toy_course.data.parent) not in text


def test_site_gathers_the_pages(toy_course, tmp_path):
    assert toy_course("--site", str(tmp_path / "site")) == 0
    index = (tmp_path / "site" / "index.html").read_text()
    assert '<a href="02_second.html">02_second</a>' in index
    page = (tmp_path / "site" / "02_second.html").read_text()
    assert '<a href="01_first.html">← 01_first</a>' in page and "<title>02_second</title>" in page
    assert "<script" not in page and "https://" not in page


def test_formulas_are_drawn_without_a_network():
    """MathJax came from another host, so a page read offline showed raw LaTeX."""
    text = pages.to_mathml("the update $\\frac{\\alpha}{r} B A$ and `$HOME`, or $$a + b$$")
    assert text.count("<math") == 2 and "`$HOME`" in text and "frac" not in text.replace("mfrac", "")


def test_a_page_leaves_out_what_belongs_to_one_run(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# 01 · Title\n\nsee [next](02_second.ipynb)"),
            nbformat.v4.new_code_cell("X = 1", metadata={"tags": ["injected-parameters"]}),
            nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", name="stderr", text="noise")]),
        ]
    )
    nbformat.write(notebook, tmp_path / "01_first.ipynb")
    page = pages.write_page(tmp_path / "01_first.ipynb").read_text()
    assert 'href="02_second.html"' in page and "X = 1" not in page and "noise" not in page


def test_cleaning_removes_what_was_made_and_nothing_else(toy_course, tmp_path):
    """`make clean` ran an unquoted `cd … && rm -rf …`: a name with a blank deleted another folder's models."""
    root = tmp_path / "data" / "my store"
    for name in ("models/m/a", "queries/q", "raw/items.csv", "notes.txt", "results.csv"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    assert course.main(["--clean", "-p", "DATASET", str(root)]) == 0
    assert sorted(path.name for path in root.iterdir()) == ["notes.txt", "raw"]
    for name in ("", ".", ".."):
        assert course.main(["--clean", "-p", "DATASET", name]) == 2
    assert (root / "raw" / "items.csv").exists()


def test_two_runs_on_one_dataset_do_not_mix(toy_course, capsys):
    """Two runs at once lost rows of results.csv for good."""
    with course.locked(paths.DatasetPaths("toy", toy_course.data)):
        assert toy_course() == 2
    assert "another run of the course works on 'toy'" in capsys.readouterr().err
    assert toy_course() == 0


def test_a_state_file_cut_in_half_makes_everything_run_again(toy_course, capsys):
    """A cut course_state.json blocked every later run with a traceback."""
    assert toy_course() == 0
    (toy_course.data / "course_state.json").write_text('{"notebooks": {"01')
    capsys.readouterr()
    assert toy_course() == 0
    printed = capsys.readouterr().out
    assert "cannot be read: every notebook runs again" in printed and "01_first: running" in printed


def test_the_opening_runs_again_once_a_later_notebook_has_made_the_model(toy_course, capsys):
    """Chapter 00 ran before 03, found no model, and counted as up to date: a full course showed no result."""
    model = (
        "from gloss_utils.paths import dataset_paths\nrun = dataset_paths(DATASET, DATA_DIR).run_json('tiny-llama')\n"
    )
    write_notebook(toy_course.notebooks / "00_start_here.ipynb", model + "print('model:', run.exists())")
    write_notebook(
        toy_course.notebooks / "01_first.ipynb", model + "run.parent.mkdir(parents=True); run.write_text('{}')"
    )
    (toy_course.notebooks / "02_second.ipynb").unlink()
    assert toy_course() == 0
    assert "model: True" in (toy_course.out / "00_start_here.ipynb").read_text()
    capsys.readouterr()
    assert toy_course() == 0
    assert "running" not in capsys.readouterr().out


def test_results_table_lists_test_users_best_first():
    rows = [("lis", "test", 0.1), ("tiny", "test", 0.3), ("tiny", "validation", 0.9)]
    results = pd.DataFrame(
        [
            dict(dataset="toy", split=split, model=model, strategy="none", retriever="bm25", policy="score",
                 metric=metric, value=value, low=value - 0.01, high=value + 0.01, num_users=10)
            for model, split, value in rows
            for metric in ("recall@5", "ndcg@5")
        ]
    )  # fmt: skip
    table = course.results_table(results, "toy")
    assert table.index("tiny · BM25") < table.index("LIS · BM25") and "0.9000" not in table and "none" not in table


def test_state_survives_a_data_directory_that_is_gone(tmp_path):
    found = paths.dataset_paths("toy", tmp_path)
    state = CourseState(found)
    state.finished("01", "abc", {})
    assert json.loads(found.course_state.read_text())["notebooks"]["01"]["fingerprint"] == "abc"
    shutil.rmtree(found.root)
    assert CourseState(found).notebooks == {}


def test_a_changed_module_changes_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "PROJECT_ROOT", tmp_path)
    (tmp_path / "gloss_utils").mkdir()
    module = tmp_path / "gloss_utils" / "splits.py"
    module.write_text("a = 1")
    before = course.package_digest()
    module.write_text("a = 2")
    assert course.package_digest() != before


def test_a_long_silent_cell_says_that_it_is_running(toy_course, capsys, monkeypatch):
    """The line hung on the kernel's messages, so a cell that printed nothing for minutes looked dead."""
    monkeypatch.setattr(course, "HEARTBEAT_SECONDS", 0.4)
    write_notebook(toy_course.notebooks / "01_first.ipynb", "import time; time.sleep(1.5)")
    assert toy_course("--only", "1") == 0
    assert "cell 4 is running" in capsys.readouterr().out


def test_pictures_in_the_text_are_in_the_page(tmp_path):
    """A picture in a notebook's text was a broken link in the page, which lies in another folder."""
    picture = "![loss](../figures/beauty/07_ties.png)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(picture)])
    nbformat.write(notebook, tmp_path / "03.ipynb")
    page = pages.write_page(tmp_path / "03.ipynb").read_text()
    assert "data:image/png;base64," in page and "../figures" not in page
