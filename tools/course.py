"""Run the notebooks in order, without a browser: `python -m gloss_utils.course --help`."""

import argparse
import hashlib
import html
import json
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import yaml
from nbconvert import HTMLExporter
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from gloss_utils import paths
from gloss_utils.paths import PROJECT_ROOT, DatasetPaths, check_choice, resolve, write_atomically

# These shape the runner's output, not an artifact: a change there makes no notebook stale.
NOT_FINGERPRINTED = {"course.py", "course_state.py", "course_report.py"}
# Several notebooks add rows to it, so its time of change says nothing about one of them.
SHARED_FILES = {"results.csv", "course_state.json"}


def code_digest(notebook: Path) -> str:
    """Hash a notebook's code cells; prose and outputs may change freely."""
    cells = nbformat.read(notebook, as_version=4).cells
    return _digest([cell.source for cell in cells if cell.cell_type == "code"])


def package_digest() -> str:
    """Hash the helper package that every notebook imports."""
    modules = sorted((PROJECT_ROOT / "gloss_utils").glob("*.py"))
    return _digest([module.read_text() for module in modules if module.name not in NOT_FINGERPRINTED])


def raw_digest(raw_dir: Path) -> str:
    """Hash names, sizes and times of the raw files; their content may be gigabytes."""
    files = sorted(path for path in raw_dir.glob("*") if path.is_file()) if raw_dir.is_dir() else []
    return _digest([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files])


def fingerprints(notebooks: list[Path], parameters: dict[str, dict], raw_dir: Path) -> dict[str, str]:
    """Chain one fingerprint per notebook: its code, its parameters, the package, and all before it."""
    chained, previous = {}, _digest([package_digest(), raw_digest(raw_dir)])
    for notebook in notebooks:
        previous = _digest([previous, code_digest(notebook), parameters[notebook.stem]])
        chained[notebook.stem] = previous
    return chained


class CourseState:
    """What ran in one dataset's directory, kept in `course_state.json` beside the artifacts.

    It sits with the data and not with the executed notebooks, because two profiles may write the same
    directory: the second one's run makes the first one's record stale, as it should.
    """

    def __init__(self, paths: DatasetPaths):
        self.paths = paths
        state = json.loads(paths.course_state.read_text()) if paths.course_state.exists() else {}
        self.notebooks: dict[str, dict] = state.get("notebooks", {})
        self.files: dict[str, list[int]] = state.get("files", {})

    def is_current(self, stem: str, fingerprint: str, executed: Path) -> bool:
        """True if this very notebook ran to its end and every file it wrote is as the course left it."""
        record = self.notebooks.get(stem)
        if record is None or record["fingerprint"] != fingerprint or not executed.exists():
            return False
        now = self.snapshot()
        return all(
            name in now and (Path(name).name in SHARED_FILES or now[name] == self.files.get(name))
            for name in record["files"]
        )

    def forget(self, stem: str) -> None:
        """Drop a notebook's record before it runs, so that a killed run is not taken for a finished one."""
        self.notebooks.pop(stem, None)
        self._save()

    def finished(self, stem: str, fingerprint: str, before: dict[str, list[int]]) -> None:
        """Record a notebook and the files that it made or changed since `before`."""
        now = self.snapshot()
        written = [name for name, stat in now.items() if before.get(name) != stat]
        self.files.update({name: now[name] for name in written})
        self.notebooks[stem] = {"fingerprint": fingerprint, "files": written}
        self._save()

    def snapshot(self) -> dict[str, list[int]]:
        """Size and time of every artifact; raw files and caches are not artifacts of a notebook."""
        skipped = (self.paths.raw, self.paths.cache, self.paths.course_state)
        return {
            path.relative_to(self.paths.root).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns]
            for path in sorted(self.paths.root.rglob("*"))
            if path.is_file() and not any(path == skip or skip in path.parents for skip in skipped)
        }

    def _save(self) -> None:
        state = json.dumps({"notebooks": self.notebooks, "files": self.files}, indent=1)
        write_atomically(self.paths.course_state, lambda temporary: temporary.write_text(state))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


ERROR_LINES = 8  # how much of a traceback the terminal shows; all of it is in the notebook
WIDGET = "application/vnd.jupyter.widget-view+json"


def here(path: Path) -> str:
    """Name a file on the terminal so that it can be opened: from the project's root, or in full."""
    return str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else str(path)


def describe_failure(stem: str, error: PapermillExecutionError, executed: Path) -> str:
    """Name the notebook, the cell and the last lines of the error."""
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
    last = [line for line in trace if line.strip()][-ERROR_LINES:] or [f"{error.ename}: {error.evalue}"]
    return "\n".join(
        [f"{stem}: FAILED in cell {error.cell_index + 1} (In [{error.exec_count}]):"]
        + [f"    {line}" for line in last]
        + [f"    what ran so far is kept in {here(executed)}"]
    )


def write_html(executed: Path) -> Path:
    """Render an executed notebook beside itself; pictures that its text shows go into the page.

    Their paths are relative to `notebooks/`, where the notebook comes from, and not to where it was executed.
    """
    notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](../figures/", "](figures/")
    origin = {"metadata": {"name": executed.stem, "path": str(PROJECT_ROOT)}}
    body, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook, resources=origin)
    return write_atomically(executed.with_suffix(".html"), lambda temporary: temporary.write_text(body))


def summary(outcomes: list, out_dir: Path, paths: DatasetPaths, figures_dir: str, peak_gib: float) -> str:
    """Say what ran, how long, and where everything is, with one table of results."""
    lines = ["", "notebook                        outcome      time"]
    lines += [f"{stem:<30}  {outcome:<10}  {seconds:5.0f} s" for stem, outcome, seconds in outcomes]
    lines += [
        f"total {sum(seconds for *_, seconds in outcomes):.0f} s; largest process {peak_gib:.1f} GiB",
        f"executed notebooks: {here(out_dir)}/*.ipynb, each with an .html beside it",
        f"figures:            {here(resolve(figures_dir) / paths.dataset)}/*.png",
        f"results:            {here(paths.results)}",
    ]
    if paths.results.exists():
        lines += ["", results_table(pd.read_csv(paths.results), paths.dataset)]
    return "\n".join(lines)


def results_table(results: pd.DataFrame, dataset: str, most: int = 20) -> str:
    """The test users' best systems by Recall@5, each with its 95 % interval."""
    test = results[results["split"] == "test"].copy()
    keys = ["model", "strategy", "retriever", "policy", "num_users"]
    test["cell"] = [f"{r.value:.4f} [{r.low:.4f}, {r.high:.4f}]" for r in test.itertuples()]
    wide = test.pivot_table(index=keys, columns="metric", values="cell", aggfunc="last").reset_index()
    wide = wide.sort_values("recall@5", ascending=False, kind="stable").head(most)
    title = f"dataset '{dataset}', test users, mean and 95 % interval, best {len(wide)} by Recall@5"
    return title + "\n" + wide[keys + ["recall@5", "ndcg@5"]].to_string(index=False)


def publish(executed: list[Path], notebooks_dir: Path) -> None:
    """Write executed notebooks back over their sources, without what belongs to one run or machine."""
    for path in executed:
        notebook = nbformat.read(path, as_version=4)
        notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
        notebook.metadata = nbformat.from_dict(
            {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
            | {"language_info": {"name": "python"}}
        )
        for count, cell in enumerate([c for c in notebook.cells if c.cell_type == "code"], start=1):
            cell.execution_count = count
            cell.outputs = [clean_output(o, count) for o in cell.outputs if not is_noise(o)]
        for cell in notebook.cells:
            cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags" and v})
        text = nbformat.writes(notebook) + "\n"
        write_atomically(notebooks_dir / path.name, lambda temporary, text=text: temporary.write_text(text))
        print(f"published {here(notebooks_dir / path.name)}")


def is_noise(output: dict) -> bool:
    """Progress bars and stderr: of use while a cell runs, not after."""
    return WIDGET in output.get("data", {}) or output.get("name") == "stderr"


def clean_output(output: nbformat.NotebookNode, count: int) -> nbformat.NotebookNode:
    """Give an output its cell's number and drop the run's metadata."""
    if "execution_count" in output:
        output.execution_count = count
    if "metadata" in output:
        output.metadata = nbformat.from_dict({})
    return output


def write_site(out_dir: Path, site: Path) -> Path:
    """Gather the rendered notebooks under one folder with an index page."""
    pages = sorted(out_dir.glob("*.html"))
    for page in pages:
        write_atomically(site / page.name, lambda temporary, page=page: temporary.write_text(page.read_text()))
    links = "\n".join(f'<li><a href="{page.name}">{html.escape(_title(page))}</a></li>' for page in pages)
    heading = "<!doctype html><meta charset='utf-8'><title>GLoSS, step by step</title>\n<h1>GLoSS, step by step</h1>"
    index = f"{heading}\n<ol start='0'>\n{links}\n</ol>\n"
    write_atomically(site / "index.html", lambda temporary: temporary.write_text(index))
    print(f"site: {here(site / 'index.html')}")
    return site / "index.html"


def _title(page: Path) -> str:
    notebook = nbformat.read(page.with_suffix(".ipynb"), as_version=4)
    return notebook.cells[0].source.splitlines()[0].lstrip("# ")


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
    check_choice(name, [path.stem for path in (NOTEBOOKS / "profiles").glob("*.yaml")], "profile")
    return yaml.safe_load((NOTEBOOKS / "profiles" / f"{name}.yaml").read_text()) or {}


def check_parameters(given: dict, known: dict[str, dict[str, str]]) -> dict:
    """Refuse a name that no notebook has and a value of another type; text is read as YAML.

    Raises:
        ValueError: one sentence that names the parameter and the near match.
    """
    types = {name: kind for parameters in known.values() for name, kind in parameters.items()}
    checked = {}
    for name, value in given.items():
        kind = types[check_choice(name, types, "parameter")]
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
    chosen = {check_choice(name[:2].zfill(2), numbers, "notebook") for name in only or numbers}
    first = check_choice(start[:2].zfill(2), numbers, "notebook") if start else numbers[0]
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
        say(describe_failure(stem, error, executed))
        outcome = "FAILED"
    seconds = time.monotonic() - started
    write_html(executed)
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
    say(summary(outcomes, out_dir, dataset_paths, figures_dir, peak_memory()))
    if outcomes and outcomes[-1][1] == "FAILED":
        return 1
    if arguments.publish:
        publish_all(chosen, out_dir, parameters)
    if arguments.site:
        write_site(out_dir, paths.resolve(arguments.site))
    return 0


def publish_all(chosen: list[Path], out_dir: Path, parameters: dict[str, dict]) -> None:
    """Write the executed notebooks back; 00 once more, since it opens with a recommendation by 03's model."""
    first = chosen[0]
    if first.stem.startswith("00"):
        say(f"{first.stem}: running once more, with the model of notebook 03")
        run_notebook(first, out_dir / first.name, parameters[first.stem])
        write_html(out_dir / first.name)
    publish([out_dir / notebook.name for notebook in chosen], NOTEBOOKS)


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
