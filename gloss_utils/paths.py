"""Where every artifact lives. No other module knows a file name."""

import difflib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

PROJECT_ROOT = Path(__file__).resolve().parent.parent
SAMPLE_RAW = PROJECT_ROOT / "data/sample/raw"
DATASETS = ("sample", "beauty", "toys", "sports")

# Which notebook makes which artifact: what an error message tells the reader to run.
MADE_BY = {"interactions": "01", "catalog": "01", "splits": "01", "report": "01", "base model": "03", "adapter": "03"}
MADE_BY |= {"queries": "04", "metrics": "05", "results": "02", "trained ranking": "07"}


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
    if not name.strip("./"):
        raise ValueError(f"'{name}' is no name for a folder of its own: give letters or digits")
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
    ranker = _in_root("ranker")

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

    def read(self, path: Path, artifact: str, read: Callable[[Path], Any]) -> Any:
        """`read` an artifact; where it is missing or damaged, say which notebook makes it."""
        again = f"delete it and run notebook {MADE_BY[artifact]} with DATASET={self.dataset}"
        return read_file(self.require(path, artifact), read, again)


def dataset_paths(dataset: str = "sample", data_dir: str | Path = "data") -> DatasetPaths:
    """Locate a dataset: a name under `data_dir`, or a directory of one's own (anything with a slash)."""
    own = "/" in str(dataset) or "\\" in str(dataset)
    root = resolve(dataset if own else Path(data_dir) / str(dataset))
    if dataset in ("", ".", "..") or root.resolve() in (PROJECT_ROOT, *PROJECT_ROOT.parents):
        raise ValueError(f"unknown DATASET '{dataset}': give a name, or a directory of its own such as ./my_store")
    return DatasetPaths(root.name if own else dataset, root)


def find_dataset(dataset: str = "sample", data_dir: str | Path = "data") -> DatasetPaths:
    """As `dataset_paths`, for a name that is known or was prepared here; any other is refused with the nearest."""
    paths = dataset_paths(dataset, data_dir)
    made = [path.parent.name for path in paths.root.parent.glob("*/interactions.parquet")]
    if paths.dataset == dataset:
        check_choice(dataset, {*DATASETS, *made}, "DATASET", f"; a directory of your own has a slash: ./{dataset}")
    return paths


def figure_path(figures_dir: str | Path, dataset: str, name: str) -> Path:
    """One PNG per figure and dataset: `figures/<dataset>/<chapter>_<what>.png`."""
    return resolve(figures_dir) / Path(dataset).name / f"{name}.png"


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file or directory beside `path`, then rename it.

    An interrupted run leaves the old file or none, never half of a new one.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
            temporary = Path(scratch) / path.name
            write(temporary)
            if path.is_dir():
                path.rename(Path(scratch) / "before")  # removed with the rest, and never half there
            os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{show(path)} cannot be written ({reason}): make room, or set DATA_DIR elsewhere") from error
    return path


def read_file(path: Path, read: Callable[[Path], Any], remedy: str) -> Any:
    """Let `read` open a file; whatever damage it stumbles over becomes one sentence that ends in the remedy."""
    try:
        return read(path)
    except Exception as error:  # each library has its own
        words = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        if isinstance(error, OSError) and error.filename:  # without the folders of this machine
            words = f"{Path(error.filename).name}: {error.strerror}"
        reason = " ".join(words.split())[:120] or type(error).__name__
        raise ValueError(f"{show(path)} is damaged or no such file ({reason}): {remedy}") from error


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_choice(value: str, choices: Iterable[str], what: str, more: str = "") -> str:
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
    raise ValueError(f"unknown {what} '{value}': {hint}Known: {', '.join(choices)}{more}")


def check_number(value: float, what: str, least: float, most: float = float("inf"), whole: bool = True) -> None:
    """Refuse what is no number, NaN, no whole number, or outside least..most, in one ValueError."""
    right = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not right or not least <= value <= most:
        span = f"{least:,} up" if most == float("inf") else f"{least:,} to {most:,}"
        raise ValueError(f"{what} is {value!r}: it must be a {'whole ' * whole}number from {span}")


def digest(value: object) -> str:
    """Tell one value from another: 16 hexadecimal digits of the SHA-256 of its JSON."""
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
