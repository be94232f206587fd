"""Where every artifact lives. No other module knows a file name."""

import difflib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
SAMPLE_RAW = PROJECT_ROOT / "data/sample/raw"
DATASETS = ("sample", "beauty", "toys", "sports")

# Which notebook makes which artifact: what an error message tells the reader to run.
MADE_BY = {"interactions": "01", "catalog": "01", "splits": "01", "base model": "03", "adapter": "03"}
MADE_BY |= {"queries": "04", "metrics": "05", "results": "02"}


def resolve(path: str | Path) -> Path:
    """Turn a path of a parameter into a usable one; relative paths count from the project's root.

    So a notebook finds the same files under JupyterLab, which starts in `notebooks/`, and under papermill.
    """
    path = Path(path).expanduser()
    return path if path.is_absolute() else PROJECT_ROOT / path


def show(path: str | Path) -> str:
    """Print a path without naming the machine: relative to the project's root where it lies inside it."""
    path = resolve(path)
    return str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else path.name


def slug(name: str) -> str:
    """A file name for a model or system id: 'unsloth/Llama-3.2-1B' becomes 'unsloth--Llama-3.2-1B'."""
    return name.strip("/").replace("/", "--")


def _in_root(name: str) -> property:
    return property(lambda paths: paths.root / name, doc=f"`{name}` in the dataset's directory.")


@dataclass(frozen=True)
class DatasetPaths:
    """The files of one dataset (the name that messages use), all in the directory `root`."""

    dataset: str
    root: Path

    interactions = _in_root("interactions.parquet")
    catalog = _in_root("catalog.parquet")
    splits = _in_root("splits")
    report = _in_root("cleaning_report.csv")
    results = _in_root("results.csv")
    course_state = _in_root("course_state.json")
    cache = _in_root("cache")

    @property
    def raw(self) -> Path:
        """The raw files; those of the sample store come with the repository, wherever `data_dir` is."""
        own = self.root / "raw"
        return SAMPLE_RAW if self.dataset == "sample" and not own.exists() else own

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
        """Return `path`, or say in a FileNotFoundError which notebook makes it."""
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
    """Return `value` if it is one of `choices`; `what` names the kind ("policy") in the ValueError.

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


def check_parameters(namespace: dict) -> None:
    """Refuse a parameter that papermill was given and the notebook's tagged cell does not have.

    papermill itself only warns, and runs on with the default. `namespace` is the notebook's `globals()`: `In` has
    the cells' sources, `__annotations__` the tagged cell's names.
    """
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):  # papermill's injected cell
            for name in re.findall(r"^(\w+) =", source, re.M):
                check_choice(name, namespace.get("__annotations__", {}), "parameter")
