"""Run the notebooks in order, without a browser: `python -m tools.course --help`."""

import argparse
import json
import os
import re
import resource
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import yaml
from filelock import FileLock, Timeout
from papermill.exceptions import PapermillExecutionError

from gloss_utils import paths
from gloss_utils.metrics import name_systems, read_results
from gloss_utils.paths import PROJECT_ROOT, DatasetPaths, check_choice, digest, write_atomically
from tools import download, pages

NOTEBOOKS = PROJECT_ROOT / "notebooks"
OPENING = "00_start_here"  # shows a recommendation by the model of a later notebook
HEARTBEAT_SECONDS = 20  # a cell that runs longer says so, with the last line that it printed
ERROR_LINES = 8  # how much of a traceback the terminal shows; all of it is in the notebook
ALLOWED_TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list}
# Several notebooks add rows to it, so its time of change says nothing about one of them.
SHARED_FILES = {"results.csv"}
MADE = ("interactions", "catalog", "splits", "report", "results", "course_state", "cache", "ranker")
MADE_FOLDERS = ("models", "queries", "rankings", "metrics")


def say(line: str) -> None:
    print(line, flush=True)


def here(path: Path) -> str:
    """Name a file on the terminal so that it can be opened: from the project's root, or in full."""
    return str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else str(path)


# What is asked for


def find_notebooks() -> list[Path]:
    """All numbered notebooks, in the order in which they run."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def known_parameters(notebooks: list[Path]) -> dict[str, dict[str, str]]:
    """Per notebook: the names in its tagged cell, and the type each one is annotated with."""

    def read(notebook: Path) -> dict:
        return papermill.inspect_notebook(str(notebook))

    inspected = {path.stem: paths.read_file(path, read, "take it from git again") for path in notebooks}
    return {
        stem: {name: found["inferred_type_name"] for name, found in parameters.items()}
        for stem, parameters in inspected.items()
    }


def read_profile(name: str) -> dict:
    """Read `notebooks/profiles/<name>.yaml`, a flat papermill parameter file.

    Raises:
        ValueError: there is no such profile, or it is not YAML.
    """
    check_choice(name, [path.stem for path in (NOTEBOOKS / "profiles").glob("*.yaml")], "profile")
    path = NOTEBOOKS / "profiles" / f"{name}.yaml"

    def read(path: Path) -> dict:
        return dict(yaml.safe_load(path.read_text()) or {})

    return paths.read_file(path, read, "write one NAME: value per line")


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
            with suppress(yaml.YAMLError):  # it stays text, which is refused below
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


# What is up to date


def package_digest() -> str:
    """Hash the helper package that every notebook imports."""
    return digest([module.read_text() for module in sorted((PROJECT_ROOT / "gloss_utils").glob("*.py"))])


def fingerprints(notebooks: list[Path], parameters: dict[str, dict], raw_dir: Path) -> dict[str, str]:
    """Chain one fingerprint per notebook: its code, its parameters, the package, the raw files, and all before it.

    Of a raw file counts its name, size and time, not its content, which may be gigabytes.
    """
    raw = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in raw_dir.glob("*") if p.is_file())
    chained, previous = {}, digest([package_digest(), raw])
    for notebook in notebooks:
        cells = nbformat.read(notebook, as_version=4).cells
        code = [cell.source for cell in cells if cell.cell_type == "code"]
        chained[notebook.stem] = previous = digest([previous, code, parameters[notebook.stem]])
    return chained


class CourseState:
    """What ran in one dataset's directory, kept in `course_state.json` beside the artifacts.

    It sits with the data and not with the executed notebooks, because two profiles may write the same
    directory: the second one's run makes the first one's record stale, as it should.
    """

    def __init__(self, dataset: DatasetPaths):
        self.dataset, self.notebooks, self.files = dataset, {}, {}
        try:
            state = json.loads(dataset.course_state.read_text())
            keys = ("fingerprint", "files", "rows")
            self.notebooks = {stem: {key: record[key] for key in keys} for stem, record in state["notebooks"].items()}
            self.files = dict(state["files"])
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError):
            self.notebooks = {}
            say(f"{here(dataset.course_state)} cannot be read: every notebook runs again")

    def is_current(self, stem: str, fingerprint: str, executed: Path) -> bool:
        """True if this very notebook ran to its end and every file it wrote is as the course left it."""
        record = self.notebooks.get(stem)
        if record is None or record["fingerprint"] != fingerprint or not executed.exists():
            return False
        now = self.snapshot()
        return self._rows() >= record["rows"] and all(
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
        self.notebooks[stem] = {"fingerprint": fingerprint, "files": written, "rows": self._rows()}
        self._save()

    def _rows(self) -> int:
        """Whole lines of results.csv. A notebook only adds or replaces: where there are fewer now, some are lost."""
        return self.dataset.results.read_bytes().count(b"\n") if self.dataset.results.exists() else 0

    def snapshot(self) -> dict[str, list[int]]:
        """Size and time of every artifact; raw files, caches and hidden files are not artifacts of a notebook."""
        skipped = (self.dataset.raw, self.dataset.cache, self.dataset.course_state)
        return {
            path.relative_to(self.dataset.root).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns]
            for path in sorted(self.dataset.root.rglob("[!.]*"))
            if path.is_file() and not any(path == skip or skip in path.parents for skip in skipped)
        }

    def _save(self) -> None:
        state = json.dumps({"notebooks": self.notebooks, "files": self.files}, indent=1)
        write_atomically(self.dataset.course_state, lambda temporary: temporary.write_text(state))


# Running


class CellLines:
    """One line per code cell when it ends, and one every `HEARTBEAT_SECONDS` while it runs.

    Its methods are nbclient's hooks, which papermill passes on.
    """

    def __init__(self, num_cells: int):
        self.num_cells, self.heading, self.running, self.started = num_cells, "", None, 0.0
        self.stopped = threading.Event()

    def start(self, cell, cell_index: int) -> None:
        if cell.cell_type == "markdown":
            self.heading = (re.findall(r"^#+ (.+)$", cell.source, re.M) or [self.heading])[-1]
        else:
            self.running, self.started = (cell_index, cell), time.monotonic()

    def end(self, cell, cell_index: int, **_) -> None:
        self.running = None
        seconds = time.monotonic() - self.started
        say(f"    cell {cell_index + 1:>3}/{self.num_cells}  {seconds:6.1f} s  {self.heading}")

    def beat(self) -> None:
        """Runs in a thread of its own: a cell may be silent for minutes."""
        while not self.stopped.wait(HEARTBEAT_SECONDS):
            running, seconds = self.running, time.monotonic() - self.started
            if running and seconds >= HEARTBEAT_SECONDS:
                say(f"      cell {running[0] + 1} is running, {seconds:.0f} s: {last_words(running[1])}")


def last_words(cell) -> str:
    """The last line that a cell has printed so far, a progress bar's included."""
    printed = [output.text for output in cell.get("outputs", []) if output.output_type == "stream"]
    lines = re.split(r"[\r\n]+", printed[-1].strip()) if printed else [""]
    return lines[-1].strip()[-100:] or "nothing printed yet"


def run_notebook(notebook: Path, executed: Path, parameters: dict) -> None:
    """Execute one notebook from the project's root and write it as it goes.

    Raises:
        PapermillExecutionError: a cell failed; the notebook is kept with the traceback.
    """
    executed.parent.mkdir(parents=True, exist_ok=True)
    lines = CellLines(len(nbformat.read(notebook, as_version=4).cells) + bool(parameters))
    threading.Thread(target=lines.beat, daemon=True).start()
    try:
        papermill.execute_notebook(
            os.path.relpath(notebook, PROJECT_ROOT),
            os.path.relpath(executed, PROJECT_ROOT),
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            cwd=PROJECT_ROOT,
            on_cell_start=lines.start,
            on_cell_executed=lines.end,
            extra_arguments=["--IPKernelApp.log_level=50"],  # else Ctrl-C prints its traceback
        )
    finally:
        lines.stopped.set()


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
    pages.write_page(executed)
    if outcome == "ran":
        state.finished(stem, fingerprint, before)
        say(f"{stem}: done in {seconds:.0f} s")
    return stem, outcome, seconds


def describe_failure(stem: str, error: PapermillExecutionError, executed: Path) -> str:
    """Name the notebook, the cell and the last lines of the error."""
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
    last = [line for line in trace if line.strip()][-ERROR_LINES:] or [f"{error.ename}: {error.evalue}"]
    return "\n".join(
        [f"{stem}: FAILED in cell {error.cell_index + 1} (In [{error.exec_count}]):"]
        + [f"    {line}" for line in last]
        + [f"    what ran so far is kept in {here(executed)}"]
    )


@contextmanager
def locked(dataset: DatasetPaths) -> Iterator[None]:
    """Keep a second run out of the dataset's directory: two of them would lose each other's rows.

    Raises:
        ValueError: another run is at work there.
    """
    dataset.root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(dataset.root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another run of the course works on '{dataset.dataset}': wait for it, or set another DATA_DIR"
        ) from None
    try:
        yield
    finally:
        lock.release()


def run(arguments: argparse.Namespace) -> int:
    """Run what is stale of the chosen notebooks.

    Returns:
        0, or 1 if a notebook failed.
    """
    notebooks = find_notebooks()
    known = known_parameters(notebooks)
    given = check_parameters({**read_profile(arguments.profile), **dict(arguments.parameters)}, known)
    dataset = paths.find_dataset(given.get("DATASET", "sample"), given.get("DATA_DIR", "data"))
    if arguments.clean:
        return clean(dataset)
    if arguments.publish:
        given |= {"FIGURES_DIR": "figures"}
    parameters = {stem: {name: given[name] for name in names if name in given} for stem, names in known.items()}
    raw_dir = paths.resolve(given["RAW_DIR"]) if given.get("RAW_DIR") else dataset.raw
    out_dir = paths.resolve(arguments.out) / f"{dataset.dataset}-{arguments.profile}"
    chosen = select(notebooks, arguments.only, arguments.start)
    with locked(dataset):
        if any(notebook.stem[:2] in ("00", "01") for notebook in chosen):  # they read the raw files
            download.fetch_missing(given.get("DATASET", "sample"), raw_dir)
        state, prints = CourseState(dataset), fingerprints(notebooks, parameters, raw_dir)
        outcomes = []
        for notebook in order(chosen, dataset, given.get("MODEL", "tiny-llama"), out_dir):
            place, stem = out_dir / notebook.name, notebook.stem
            again = arguments.force or any(stem == ran for ran, *_ in outcomes)
            outcomes.append(run_if_stale(notebook, place, parameters[stem], state, prints[stem], again))
            if outcomes[-1][1] == "FAILED":
                break
    say(summary(outcomes, out_dir, dataset, paths.resolve(given.get("FIGURES_DIR", "runs/figures"))))
    if outcomes and outcomes[-1][1] == "FAILED":
        return 1
    if arguments.publish:
        publish([out_dir / notebook.name for notebook in chosen], NOTEBOOKS)
    if arguments.site:
        pages.write_site(out_dir, paths.resolve(arguments.site))
    return 0


def order(chosen: list[Path], dataset: DatasetPaths, model: str, out_dir: Path) -> Iterator[Path]:
    """The chosen notebooks, and the opening one again where the model that it shows is newer than its page."""
    yield from chosen
    opening = [notebook for notebook in chosen if notebook.stem == OPENING]
    adapter = dataset.run_json(model)
    if opening and adapter.exists() and adapter.stat().st_mtime > (out_dir / opening[0].name).stat().st_mtime:
        say(f"{OPENING}: once more, with the fine-tuned model")
        yield opening[0]


# What is left behind


def peak_memory() -> float:
    """The largest resident memory of any notebook's kernel so far, in GiB."""
    units = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * units / 2**30


def summary(outcomes: list, out_dir: Path, dataset: DatasetPaths, figures_dir: Path) -> str:
    """Say what ran, how long, and where everything is, with one table of results."""
    lines = ["", "notebook                        outcome      time"]
    lines += [f"{stem:<30}  {outcome:<10}  {seconds:5.0f} s" for stem, outcome, seconds in outcomes]
    lines += [
        f"total {sum(seconds for *_, seconds in outcomes):.0f} s; largest process {peak_memory():.1f} GiB",
        f"executed notebooks: {here(out_dir)}/*.ipynb, each with an .html beside it",
        f"figures:            {here(figures_dir / dataset.dataset)}/*.png",
    ]
    if dataset.results.exists():
        lines += [f"results:            {here(dataset.results)}", ""]
        lines += [results_table(dataset.read(dataset.results, "results", read_results), dataset.dataset)]
    return "\n".join(lines)


def results_table(results: pd.DataFrame, dataset: str, most: int = 20) -> str:
    """The test users' best systems by Recall@5, each with its 95 % interval."""
    test = results[results["split"] == "test"].copy()
    test["system"] = name_systems(test)
    test["cell"] = [f"{r.value:.4f} [{r.low:.4f}, {r.high:.4f}]" for r in test.itertuples()]
    wide = test.pivot_table(index=["system", "num_users"], columns="metric", values="cell", aggfunc="last")
    wide = wide.reset_index().sort_values("recall@5", ascending=False, kind="stable").head(most)
    wide["system"] = wide["system"].str.ljust(wide["system"].str.len().max())
    title = f"dataset '{dataset}', test users, mean and 95 % interval, best {len(wide)} by Recall@5"
    return title + "\n" + wide[["system", "num_users", "recall@5", "ndcg@5"]].to_string(index=False)


def publish(executed: list[Path], notebooks_dir: Path) -> None:
    """Write executed notebooks back over their sources, without what belongs to one run or machine."""
    for path in executed:
        notebook = pages.without_run_traces(nbformat.read(path, as_version=4))
        notebook.metadata = nbformat.from_dict(
            {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
            | {"language_info": {"name": "python"}}
        )
        text = nbformat.writes(notebook) + "\n"
        write_atomically(notebooks_dir / path.name, lambda temporary, text=text: temporary.write_text(text))
        say(f"published {here(notebooks_dir / path.name)}")


def clean(dataset: DatasetPaths) -> int:
    """Remove what the notebooks made for a dataset: known names only, never raw files or anything else."""
    for path in [getattr(dataset, name) for name in MADE] + [dataset.root / name for name in MADE_FOLDERS]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    say(f"{here(dataset.root)}: what the notebooks made is gone, raw files are kept")
    return 0


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.course", description=__doc__)
    parser.add_argument("--profile", default="sample", help="parameter file in notebooks/profiles (default: sample)")
    parser.add_argument("--only", nargs="+", metavar="NN", help="run only these notebooks")
    parser.add_argument("--from", dest="start", metavar="NN", help="start at this notebook")
    one = {"nargs": 2, "action": "append", "default": [], "metavar": ("KEY", "VALUE")}
    parser.add_argument("-p", dest="parameters", help="one parameter", **one)
    parser.add_argument("--force", action="store_true", help="run also what is up to date")
    parser.add_argument("--out", default="runs", help="where executed notebooks go (default: runs)")
    parser.add_argument("--publish", action="store_true", help="write the executed notebooks back to notebooks/")
    parser.add_argument("--site", metavar="DIR", help="write all executed notebooks as HTML pages with an index")
    parser.add_argument("--clean", action="store_true", help="remove what the notebooks made for DATASET, and stop")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    try:
        return run(parse(argv))
    except (ValueError, OSError) as error:
        where = f"{error.filename}: {error.strerror}; " if getattr(error, "filename", None) else ""
        remedy = "make room, or give DATA_DIR and --out folders that can be written" if where else error
        print(f"course: {where}{remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("course: stopped; the same command goes on where it was", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
