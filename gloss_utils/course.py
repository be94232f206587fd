"""Run the notebooks in order, without a browser: `python -m gloss_utils.course --help`."""

import argparse
import html
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import papermill
import yaml
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from . import course_report, paths
from .choices import check
from .course_state import CourseState, fingerprints

NOTEBOOKS = paths.PROJECT_ROOT / "notebooks"
HEARTBEAT_SECONDS = 20  # a cell that runs longer says so, with its progress bar's last words
ALLOWED_TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list}


class CourseClient(PapermillNotebookClient):
    """Papermill's client, which also keeps the last words of a cell's progress bar."""

    last_words = "no progress bar"

    def process_message(self, message, cell, cell_index):
        self.last_words = progress_text(message) or self.last_words
        return super().process_message(message, cell, cell_index)


class CellLines:
    """One line per code cell when it ends, and one every `HEARTBEAT_SECONDS` while it runs."""

    def __init__(self, client: CourseClient, num_cells: int):
        self.client, self.num_cells = client, num_cells
        self.heading, self.running, self.started = "", None, 0.0
        self.stopped = threading.Event()

    def start(self, cell, cell_index: int) -> None:
        if cell.cell_type == "markdown":
            self.heading = (re.findall(r"^#+ (.+)$", cell.source, re.M) or [self.heading])[-1]
            return
        self.client.last_words = CourseClient.last_words
        self.running, self.started = cell_index, time.monotonic()

    def end(self, cell, cell_index: int) -> None:
        if cell.cell_type == "code":
            self.running = None
            seconds = time.monotonic() - self.started
            say(f"    cell {cell_index + 1:>3}/{self.num_cells}  {seconds:6.1f} s  {self.heading}")

    def beat(self) -> None:
        """Runs in a thread of its own: a cell may be silent for minutes."""
        while not self.stopped.wait(HEARTBEAT_SECONDS):
            running = self.running
            if running is not None and time.monotonic() - self.started >= HEARTBEAT_SECONDS:
                seconds = time.monotonic() - self.started
                say(f"      cell {running + 1} is running, {seconds:.0f} s: {self.client.last_words}")


class CourseEngine(NBClientEngine):
    """Papermill's engine with a line per cell."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, start_timeout=60, **kwargs):
        client = CourseClient(nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, timeout=None)
        client.extra_arguments = ["--IPKernelApp.log_level=40"]  # errors only
        lines = CellLines(client, len(nb_man.nb.cells))
        report_start, report_end = nb_man.cell_start, nb_man.cell_complete

        def cell_start(cell, cell_index=None, **options):
            lines.start(cell, cell_index)
            report_start(cell, cell_index, **options)

        def cell_complete(cell, cell_index=None, **options):
            report_end(cell, cell_index, **options)
            lines.end(cell, cell_index)

        nb_man.cell_start, nb_man.cell_complete = cell_start, cell_complete
        threading.Thread(target=lines.beat, daemon=True).start()
        try:
            return client.execute()
        finally:
            lines.stopped.set()


def progress_text(message: dict) -> str:
    """Take the words of a progress bar out of a kernel message: a widget's label, or text on stderr."""
    content = message.get("content", {})
    if message.get("msg_type") == "stream" and content.get("name") == "stderr":
        lines = content["text"].strip().splitlines()
        return lines[-1].strip()[-100:] if lines else ""
    state = content.get("data", {}).get("state", {}) if message.get("msg_type") == "comm_msg" else {}
    label = state.get("value")
    return html.unescape(re.sub(r"<[^>]+>", "", label)).strip() if isinstance(label, str) else ""


def peak_memory() -> float:
    """The largest resident memory of any notebook's kernel so far, in GiB."""
    units = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * units / 2**30


def say(line: str) -> None:
    print(line, flush=True)


def find_notebooks() -> list[Path]:
    """All numbered notebooks, in the order in which they run."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def known_parameters(notebooks: Iterable[Path]) -> dict[str, dict[str, str]]:
    """Per notebook: the names in its tagged cell, and the type each one is annotated with."""
    inspected = {notebook.stem: papermill.inspect_notebook(str(notebook)) for notebook in notebooks}
    return {
        stem: {name: found["inferred_type_name"] for name, found in parameters.items()}
        for stem, parameters in inspected.items()
    }


def read_profile(name: str) -> dict:
    """Read `notebooks/profiles/<name>.yaml`, a flat papermill parameter file.

    Raises:
        ValueError: there is no such profile.
    """
    check(name, [path.stem for path in (NOTEBOOKS / "profiles").glob("*.yaml")], "profile")
    return yaml.safe_load((NOTEBOOKS / "profiles" / f"{name}.yaml").read_text()) or {}


def check_parameters(given: dict, known: dict[str, dict[str, str]]) -> dict:
    """Refuse a name that no notebook has and a value of another type; text is read as YAML.

    Raises:
        ValueError: one sentence that names the parameter and the near match.
    """
    types = {name: kind for parameters in known.values() for name, kind in parameters.items()}
    checked = {}
    for name, value in given.items():
        kind = types[check(name, types, "parameter")]
        if isinstance(value, str) and kind != "str":
            value = yaml.safe_load(value)
        wrong_bool = isinstance(value, bool) and kind != "bool"
        if wrong_bool or not isinstance(value, ALLOWED_TYPES.get(kind, object)):
            raise ValueError(f"parameter {name} takes {kind}, not {value!r}")
        checked[name] = float(value) if kind == "float" else value
    return checked


def select(notebooks: list[Path], only: list[str] | None, start: str | None) -> list[Path]:
    """Apply `--only 02 05` or `--from 03`; a number or a whole name will do.

    Raises:
        ValueError: a notebook that does not exist.
    """
    numbers = [notebook.stem[:2] for notebook in notebooks]
    chosen = {check(name[:2].zfill(2), numbers, "notebook") for name in only or numbers}
    first = check(start[:2].zfill(2), numbers, "notebook") if start else numbers[0]
    return [notebook for notebook in notebooks if notebook.stem[:2] in chosen and notebook.stem[:2] >= first]


def run_notebook(notebook: Path, executed: Path, parameters: dict) -> None:
    """Execute one notebook from the project's root and write it, with HTML beside it."""
    papermill_engines.register("course", CourseEngine)
    executed.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        os.path.relpath(notebook, paths.PROJECT_ROOT),
        os.path.relpath(executed, paths.PROJECT_ROOT),
        parameters=parameters,
        engine_name="course",
        kernel_name="python3",
        progress_bar=False,
        cwd=paths.PROJECT_ROOT,
    )


def run_if_stale(
    notebook: Path, executed: Path, parameters: dict, state: CourseState, fingerprint: str, force: bool
) -> tuple[str, str, float]:
    """Run one notebook, unless its result is up to date.

    Returns:
        The notebook's name, what became of it (`up to date`, `ran`, `FAILED`), and the seconds it took.
    """
    stem = notebook.stem
    if not force and state.is_current(stem, fingerprint, executed):
        say(f"{stem}: up to date, skipped (--force runs it again)")
        return stem, "up to date", 0.0
    say(f"{stem}: running")
    started, before, outcome = time.monotonic(), state.snapshot(), "ran"
    state.forget(stem)
    try:
        run_notebook(notebook, executed, parameters)
    except PapermillExecutionError as error:
        say(course_report.describe_failure(stem, error, executed))
        outcome = "FAILED"
    seconds = time.monotonic() - started
    course_report.write_html(executed)
    if outcome == "ran":
        state.finished(stem, fingerprint, before)
        say(f"{stem}: done in {seconds:.0f} s")
    return stem, outcome, seconds


def run(arguments: argparse.Namespace) -> int:
    """Run what is stale of the chosen notebooks.

    Returns:
        0, or 1 if a notebook failed.
    """
    notebooks = find_notebooks()
    known = known_parameters(notebooks)
    given = check_parameters({**read_profile(arguments.profile), **dict(arguments.parameters)}, known)
    parameters = {stem: {k: v for k, v in given.items() if k in known[stem]} for stem in known}
    dataset_paths = paths.dataset_paths(given.get("DATASET", "sample"), given.get("DATA_DIR", "data"))
    raw_dir = paths.resolve(given["RAW_DIR"]) if given.get("RAW_DIR") else dataset_paths.raw
    out_dir = paths.resolve(arguments.out) / f"{dataset_paths.dataset}-{arguments.profile}"
    state, prints = CourseState(dataset_paths), fingerprints(notebooks, parameters, raw_dir)
    chosen, outcomes = select(notebooks, arguments.only, arguments.start), []
    for notebook in chosen:
        place, stem = out_dir / notebook.name, notebook.stem
        outcomes.append(run_if_stale(notebook, place, parameters[stem], state, prints[stem], arguments.force))
        if outcomes[-1][1] == "FAILED":
            break
    figures_dir = given.get("FIGURES_DIR", "figures")
    say(course_report.summary(outcomes, out_dir, dataset_paths, figures_dir, peak_memory()))
    if outcomes and outcomes[-1][1] == "FAILED":
        return 1
    if arguments.publish:
        publish(chosen, out_dir, parameters)
    if arguments.site:
        course_report.write_site(out_dir, paths.resolve(arguments.site))
    return 0


def publish(chosen: list[Path], out_dir: Path, parameters: dict[str, dict]) -> None:
    """Write the executed notebooks back; 00 once more, since it opens with a recommendation by 03's model."""
    first = chosen[0]
    if first.stem.startswith("00"):
        say(f"{first.stem}: running once more, with the model of notebook 03")
        run_notebook(first, out_dir / first.name, parameters[first.stem])
        course_report.write_html(out_dir / first.name)
    course_report.publish([out_dir / notebook.name for notebook in chosen], NOTEBOOKS)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gloss_utils.course", description=__doc__)
    parser.add_argument("--profile", default="sample", help="parameter file in notebooks/profiles (default: sample)")
    parser.add_argument("--only", nargs="+", metavar="NN", help="run only these notebooks")
    parser.add_argument("--from", dest="start", metavar="NN", help="start at this notebook")
    parser.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="one parameter",
    )
    parser.add_argument("--force", action="store_true", help="run also what is up to date")
    parser.add_argument("--out", default="runs", help="where executed notebooks go (default: runs)")
    parser.add_argument("--publish", action="store_true", help="write the executed notebooks back to notebooks/")
    parser.add_argument("--site", metavar="DIR", help="write all executed notebooks as HTML pages with an index")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    try:
        return run(parse(argv))
    except (ValueError, FileNotFoundError) as error:
        print(f"course: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("course: stopped; the same command goes on where it was", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
