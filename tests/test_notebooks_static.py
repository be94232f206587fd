"""A gate over the notebooks that needs no kernel and no torch: seconds."""

import ast
import re
import statistics
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXPECTED = [
    "00_start_here",
    "01_data_processing",
    "02_lis_baselines",
    "03_qlora_finetuning",
    "04_generation_strategies",
    "05_retrieval_and_ranking",
    "06_user_segments",
    "07_beyond_text",
    "08_scoreboard",
    "09_in_the_shop",
]
MAX_CELL_LINES = 30
MAX_MEDIAN_LINES = 6
WORDS = (900, 1500)
# What a chapter teaches stands in its own cells, in the libraries' own words.
IN_THE_OPEN = {
    "03_qlora_finetuning": [
        "BitsAndBytesConfig(",
        "LoraConfig(",
        "get_peft_model(",
        "SFTConfig(",
        "SFTTrainer(",
        "FastLanguageModel",
        "AutoModelForCausalLM.from_pretrained(",
    ],
    "04_generation_strategies": ["num_beams=", "do_sample=True", "temperature=", "top_p="],
    "05_retrieval_and_ranking": ["retriv", "faiss.IndexHNSWFlat("],
}
MAX_BYTES = 500_000
MACHINE_PATH = re.compile(r"(^|[^a-zA-Z0-9_.])/(home|root|tmp|work|Users|mnt|opt)/[a-zA-Z0-9_.-]+")


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def parameters_cell(path):
    cells = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1, f"{path.name} has {len(cells)} cells tagged 'parameters'"
    return cells[0]


def parameter_names(path):
    return [line.target.id for line in ast.parse(parameters_cell(path).source).body]


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_the_ten_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == EXPECTED


@each_notebook
def test_is_valid_small_and_run_once_from_top_to_bottom(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_BYTES
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs, "committed without outputs: make publish"
    assert not [output for output in outputs if output.output_type == "error"]


@each_notebook
def test_every_cell_parses_and_is_short(path):
    for cell in code_cells(path):
        ast.parse(re.sub(r"^\s*[%!].*$", "pass", cell.source, flags=re.M))
        assert len(cell.source.splitlines()) <= MAX_CELL_LINES, cell.source[:80]
        assert "if False" not in cell.source and ".style" not in cell.source
    assert statistics.median(len(cell.source.splitlines()) for cell in code_cells(path)) <= MAX_MEDIAN_LINES


@each_notebook
def test_is_as_long_as_a_lesson(path):
    words = sum(len(cell.source.split()) for cell in read(path).cells if cell.cell_type == "markdown")
    assert WORDS[0] <= words <= WORDS[1], words


@pytest.mark.parametrize("stem", IN_THE_OPEN)
def test_the_lesson_is_in_the_cells(stem):
    """Chapter 03 taught QLoRA without naming one of its classes: the reader saw three calls of the helper."""
    code = "\n".join(cell.source for cell in code_cells(ROOT / "notebooks" / f"{stem}.ipynb"))
    assert [name for name in IN_THE_OPEN[stem] if name not in code] == []


@each_notebook
def test_a_misspelt_parameter_is_refused_without_the_runner_too(path):
    """Plain papermill took NUM_BEAM with a warning, and ran on with the default."""
    cells = code_cells(path)
    place = cells.index(parameters_cell(path))
    assert cells[place + 1].source.startswith("check_parameters(globals())")


@each_notebook
def test_parameters_are_annotated_literals_with_a_comment(path):
    cell = parameters_cell(path)
    for node, line in zip(ast.parse(cell.source).body, cell.source.splitlines(), strict=True):
        assert isinstance(node, ast.AnnAssign), f"not `NAME: type = literal`: {line}"
        ast.literal_eval(node.value)
        assert node.target.id.isupper() and "  # " in line, line


@each_notebook
def test_opens_and_closes_as_the_course_does(path):
    markdown = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert markdown[0].startswith(f"# {path.stem[:2]} · ")
    for part in ("**Goal", "**You will learn", "**Needs", "**Time and memory"):
        assert part in markdown[0], part
    ending = "\n".join(markdown[-8:])
    for part in ("## Recap", "## Exercises", "<details>", "## Next"):
        assert part in ending, part


@each_notebook
def test_names_no_machine_path(path):
    text = path.read_text()
    found = MACHINE_PATH.search(text)
    assert found is None, text[max(0, found.start() - 60) : found.end() + 20]


def test_a_parameter_means_the_same_type_everywhere():
    types = {}
    for path in NOTEBOOKS:
        for node in ast.parse(parameters_cell(path).source).body:
            kind = ast.unparse(node.annotation)
            assert types.setdefault(node.target.id, kind) == kind, f"{path.name}: {node.target.id}"


@pytest.mark.parametrize("profile", ["smoke", "sample", "paper", "laptop"])
def test_profiles_name_only_known_parameters(profile):
    given = yaml.safe_load((ROOT / "notebooks" / "profiles" / f"{profile}.yaml").read_text()) or {}
    known = {name for path in NOTEBOOKS for name in parameter_names(path)}
    assert set(given) <= known, set(given) - known


def test_machine_paths_are_caught():
    """The gate above is worth nothing if its pattern matches nothing."""
    assert MACHINE_PATH.search('"see /home/someone/data"') and not MACHINE_PATH.search("https://a.org/home/x")
