"""A notebook that JupyterLab opens and saves unrun: as committed, to the byte."""

import json
import re
import shutil
from pathlib import Path

import pytest
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from traitlets.config.loader import PyFileConfigLoader

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
# What JupyterLab 4.6 was seen to write where it opens a notebook, on Python 3.11.7.
SEEN = {
    "kernelspec": {"display_name": "GLoSS, step by step", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
        "version": "3.11.7",
    },
}


def config_folder() -> Path:
    """Where `make lab` has Jupyter look for its settings."""
    command = re.search(r"^lab:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    return ROOT / re.match(r"JUPYTER_CONFIG_PATH=(\S+) .* -m jupyter lab ", command)[1]


def save(folder: Path, name: str, metadata: dict) -> None:
    """Open and save as JupyterLab does, through the server's own contents manager."""
    config = PyFileConfigLoader("jupyter_server_config.py", path=str(config_folder())).load_config()
    manager = LargeFileManager(root_dir=str(folder), config=config)
    model = json.loads(json.dumps(manager.get(name, type="notebook"), default=str))
    model["content"]["metadata"] = json.loads(json.dumps(metadata))
    manager.save(model, name)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_saved_unrun_differs_in_nothing(notebook, tmp_path):
    """JupyterLab put the kernel's name and Python's version into each notebook that was opened."""
    shutil.copy(notebook, tmp_path)
    save(tmp_path, notebook.name, SEEN)
    assert (tmp_path / notebook.name).read_bytes() == notebook.read_bytes()


def test_another_kernel_keeps_its_name(tmp_path):
    """A notebook of the reader's own, for another language, is not ours to change."""
    shutil.copy(NOTEBOOKS[0], tmp_path / "own.ipynb")
    other = {"kernelspec": {"display_name": "R", "language": "R", "name": "ir"}, "language_info": {"name": "R"}}
    save(tmp_path, "own.ipynb", other)
    assert json.loads((tmp_path / "own.ipynb").read_text())["metadata"] == other
