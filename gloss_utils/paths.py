"""Where every artifact lives. No other module knows a file name."""

import difflib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent

# Which notebook makes which artifact: what an error message tells the reader to run.
MADE_BY = {
    "interactions": "01",
    "catalog": "01",
    "splits": "01",
    "base model": "03",
    "adapter": "03",
    "queries": "04",
    "ranking": "05",
    "metrics": "05",
    "results": "02",
}


def resolve(path: str | Path) -> Path:
    """Turn a path of a parameter into a usable one.

    Relative paths count from the project's root, so that a notebook finds the same files under
    JupyterLab (which starts in `notebooks/`) and under papermill (which starts where it is called).
    """
    path = Path(path).expanduser()
    return path if path.is_absolute() else PROJECT_ROOT / path


def show(path: str | Path) -> str:
    """Print a path without naming the machine: relative to the project's root where it lies inside it."""
    path = resolve(path)
    return str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else path.name


@dataclass(frozen=True)
class DatasetPaths:
    """The files of one dataset, all in one directory.

    Attributes:
        dataset: the name that messages use.
        root: the dataset's directory, `data/<dataset>` unless the dataset is itself a directory.
    """

    dataset: str
    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def interactions(self) -> Path:
        return self.root / "interactions.parquet"

    @property
    def catalog(self) -> Path:
        return self.root / "catalog.parquet"

    @property
    def splits(self) -> Path:
        return self.root / "splits"

    @property
    def report(self) -> Path:
        return self.root / "cleaning_report.csv"

    @property
    def results(self) -> Path:
        return self.root / "results.csv"

    @property
    def course_state(self) -> Path:
        """What the runner remembers, so that it can skip what is up to date."""
        return self.root / "course_state.json"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def model(self, model: str) -> Path:
        """Base, adapter, tokenizer, `training_log.csv` and `run.json` of one model."""
        return self.root / "models" / slug(model)

    def base_model(self, model: str) -> Path:
        return self.model(model) / "base"

    def adapter(self, model: str) -> Path:
        return self.model(model) / "adapter"

    def training_log(self, model: str) -> Path:
        return self.model(model) / "training_log.csv"

    def run_json(self, model: str) -> Path:
        return self.model(model) / "run.json"

    def queries(self, model: str, strategy: str, split: str) -> Path:
        return self.root / "queries" / slug(model) / f"{strategy}_{split}.json"

    def ranking(self, split: str, system: str) -> Path:
        return self.root / "rankings" / split / f"{slug(system)}.parquet"

    def metrics(self, split: str, system: str) -> Path:
        return self.root / "metrics" / split / f"{slug(system)}.parquet"

    def require(self, path: Path, artifact: str) -> Path:
        """Return `path`, or say which notebook makes it.

        Raises:
            FileNotFoundError: the artifact is not there yet.
        """
        if path.exists():
            return path
        raise FileNotFoundError(
            f"no {artifact} for '{self.dataset}' ({show(path)}): "
            f"run notebook {MADE_BY[artifact]} with DATASET={self.dataset}"
        )


def dataset_paths(dataset: str = "sample", data_dir: str | Path = "data") -> DatasetPaths:
    """Locate a dataset: a name under `data_dir`, or a directory of one's own (anything with a slash).

    >>> dataset_paths("sample").catalog.relative_to(PROJECT_ROOT).as_posix()
    'data/sample/catalog.parquet'
    """
    if "/" in dataset or "\\" in dataset:
        root = resolve(dataset)
        return DatasetPaths(root.name, root)
    return DatasetPaths(dataset, resolve(data_dir) / dataset)


def figure_path(figures_dir: str | Path, dataset: str, name: str) -> Path:
    """One PNG per figure and dataset: `figures/<dataset>/<chapter>_<what>.png`."""
    return resolve(figures_dir) / Path(dataset).name / f"{name}.png"


def slug(name: str) -> str:
    """A file name for a model or system id: 'unsloth/Llama-3.2-1B' becomes 'unsloth--Llama-3.2-1B'."""
    return name.strip("/").replace("/", "--")


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file or directory beside `path`, then rename it.

    An interrupted run leaves the old file or none, never half of a new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        temporary = Path(scratch) / path.name
        write(temporary)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    return path


def check_choice(value: str, choices: Iterable[str], what: str) -> str:
    """Return `value` if it is one of `choices`.

    Args:
        value: what the caller gave.
        choices: the known names.
        what: what is being named, as the sentence should say it ("policy", "encoder").

    Raises:
        ValueError: it is not; the message lists the choices and the nearest one.

    >>> check_choice("scor", ["score", "rrf"], "policy")
    Traceback (most recent call last):
    ...
    ValueError: unknown policy 'scor': did you mean 'score'? Known: rrf, score
    """
    choices = sorted(choices)
    if value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(f"unknown {what} '{value}': {hint}Known: {', '.join(choices)}")


def digest(value: object) -> str:
    """Tell one value from another: 16 hexadecimal digits of the SHA-256 of its JSON.

    >>> digest(["a", 1]) == digest(["a", 1.5])
    False
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
