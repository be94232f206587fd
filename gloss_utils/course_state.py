"""Which notebooks are up to date: fingerprints of what went in, and the files that came out."""

import hashlib
import json
from pathlib import Path

import nbformat

from .paths import PROJECT_ROOT, DatasetPaths, write_atomically

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
