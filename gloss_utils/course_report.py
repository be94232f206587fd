"""What the runner leaves behind: HTML pages, a summary, notebooks with their outputs."""

import html
import re
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError

from .paths import PROJECT_ROOT, DatasetPaths, resolve, write_atomically

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
