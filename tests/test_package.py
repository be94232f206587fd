"""The package's front door, and the house rules: few rooms, few lines, arrows that go down."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import gloss_utils

ROOT = Path(gloss_utils.__file__).parent
ROOMS = {path.stem: path for path in sorted(ROOT.glob("**/*.py"))}
MAX_ROOMS, MAX_LINES, MAX_CODE_LINES = 22, 4500, 3200
# From the ground up. A room may import from its own floor and from those below.
FLOORS = [
    {"__init__"},
    {"paths", "prompts", "resources", "plotting"},
    {"raw_files", "raw_data", "splits"},
    {"retrieval", "dense"},
    {"baselines", "fusion"},
    {"tiny_llama", "language_models", "finetuning", "generation", "queries", "rankers"},
    {"ranking", "metrics"},
    {"recommender"},
]


def imports_of(tree: ast.AST) -> set[str]:
    """Rooms that a module imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("gloss_utils")):
            module = (node.module or "").split(".")[-1]
            names |= {module} if module in ROOMS else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("gloss_utils.")}
    return names & ROOMS.keys()


REACH = {name: imports_of(ast.parse(path.read_text())) for name, path in ROOMS.items()}


def code_lines(source: str) -> int:
    """Lines that hold code: no docstring, no comment, no blank line."""
    documented = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in skipped]
    return len({row for token in tokens for row in range(token.start[0], token.end[0] + 1)} - documented)


def find_circle(reach: dict[str, set[str]]) -> list[str]:
    """A chain of imports that comes back to where it began; empty where there is none."""

    def follow(name, trail):
        if name in trail:
            return [*trail[trail.index(name) :], name]
        return next((found for other in sorted(reach[name]) if (found := follow(other, [*trail, name]))), [])

    return next((found for name in reach if (found := follow(name, []))), [])


def test_the_house_stays_small():
    """It had grown to 46 files and 7,369 lines, because every module that passed 250 lines was split."""
    sources = [path.read_text() for path in ROOMS.values()]
    assert len(ROOMS) <= MAX_ROOMS
    assert sum(len(source.splitlines()) for source in sources) <= MAX_LINES
    assert sum(map(code_lines, sources)) <= MAX_CODE_LINES


def test_no_import_circle():
    """bm25 and retriv_engines imported each other, as did generation and the vLLM engine."""
    assert find_circle(REACH) == []
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_room_imports_one_above_it():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert floor.keys() == ROOMS.keys(), "a room without a floor, or a floor without its room"
    assert [(a, b) for a, others in REACH.items() for b in others if floor[b] > floor[a]] == []


def test_code_lines_leave_out_what_is_not_code():
    assert code_lines('"""A."""\n\n# b\ndef f(x):  # c\n    """D."""\n    return (\n        x\n    )\n') == 4


@pytest.mark.parametrize("name", gloss_utils.__all__)
def test_every_exported_name_is_there(name):
    assert callable(getattr(gloss_utils, name))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'recomender'"):
        _ = gloss_utils.recomender


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [("gloss_utils", "torch"), ("tools.course", "torch"), ("gloss_utils.language_models", "trl")],
)
def test_importing_does_not_load_more_than_is_needed(module, unwanted):
    code = f"import sys, {module}; assert '{unwanted}' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_waiting_threads_do_not_spin():
    """A recommendation took 6 to 13 seconds where the Makefile's OMP_WAIT_POLICY was missing, 0.3 with it."""
    code = "import gloss_utils, os; assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'"
    environment = {"PATH": "", "PYTHONPATH": str(ROOT.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
