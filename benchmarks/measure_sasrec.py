"""Train chapter 07's SASRec on a real category, rank the test users with it and with the trees, and keep their rows.

    python benchmarks/measure_sasrec.py --dataset toys --raw-dir <folder>

Runs the chapter's own cells, those of sections 7.1, 7.3 to 7.5, 7.10 and 7.11; the others would take longer.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import keep_measured
import pandas as pd

from gloss_utils import raw_data
from gloss_utils.paths import PROJECT_ROOT

CHAPTER = PROJECT_ROOT / "notebooks/07_beyond_text.ipynb"
SECTIONS = ("", "7.1", "7.3", "7.4", "7.5", "7.10", "7.11")  # the first is what stands above 7.1
LEFT_OUT = ("alone =", "constants =", "other_draw =", "claims checked")  # nothing of theirs is used later


def cells_of(chapter: Path, sections: tuple[str, ...]) -> list[str]:
    """The code cells of some sections."""
    section, found = "", []
    for cell in json.loads(chapter.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heads = [line.split()[1] for line in source.splitlines() if line.startswith("## ")]
            section = heads[-1] if heads else section
        elif section in sections and not any(words in source for words in LEFT_OUT):
            found.append(source)
    return found


def run_cells(given: dict) -> dict:
    """Run the chapter's cells with these parameters; returns what they bind."""
    names = {"__name__": "__main__", "display": print}
    sections = SECTIONS if given["SASREC_TITLES"] else SECTIONS[:-1]  # the trees have no row without titles
    for source in cells_of(CHAPTER, sections):
        exec(source, names)
        if source.startswith("DATASET: str"):  # the parameters: as papermill, behind them
            names |= given
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="beauty")
    parser.add_argument("--raw-dir", default="")
    parser.add_argument("--epochs", type=int, default=60, help="at most; training stops early")
    parser.add_argument("--no-titles", action="store_true", help="SASRec from item numbers alone")
    parser.add_argument("--ties", default="asin", choices=("asin", "shuffled"), help="order of one day's purchases")
    options = parser.parse_args()
    dataset, titles, other = options.dataset, not options.no_titles, options.ties != "asin"
    with tempfile.TemporaryDirectory() as scratch:
        raw_data.prepare(dataset, options.raw_dir, scratch, tie_order=options.ties, progress=False)
        given = {"DATASET": dataset, "DATA_DIR": scratch, "FIGURES_DIR": scratch, "SASREC_EPOCHS": options.epochs}
        names = run_cells(given | {"SASREC_TITLES": titles})
    log, measured = names["log"], names["measured"]
    print(log.to_string())
    tables = {names["joined"]: measured[names["joined"].policy]}
    if titles:
        tables[names["learned"]] = measured["learned ranking"]
    if other:
        tables = {
            replace(system, policy=f"{system.policy}, shuffled ties"): table for system, table in tables.items()
        }
    else:
        tables[names["rival"]] = measured[names["trained"]]
    note = f"ties {'shuffled' if other else 'by asin'}; at most {options.epochs} epochs, {len(log)} trained"
    note += f", best {log['ndcg@10'].idxmax() + 1}" + (f"; {names['trees'].num_trees()} trees" if titles else "")
    command = f"python benchmarks/measure_sasrec.py --dataset {dataset} --raw-dir RAW_DIR"
    command += " --no-titles" * (not titles) + " --ties shuffled" * other
    keep_measured.keep_results(dataset, "test", tables, command=command, note=note)
    if titles and not other:
        keep_pairs(dataset, measured, names["joined"].policy, command, note)


def keep_pairs(dataset: str, measured: dict[str, pd.DataFrame], joined: str, command: str, note: str) -> None:
    """Keep the learned ranking's differences from the sum, from `fused` and from GLoSS's published ranks."""
    learned, published = measured["learned ranking"], keep_measured.published_metrics(dataset)
    others = {name: measured[name] for name in (joined, "fused")} | {"GLoSS-8B": published["GLoSS-8B"]}
    pairs = [
        keep_measured.pair(learned, table).assign(dataset=dataset, system="learned ranking", against=name)
        for name, table in others.items()
    ]
    keep_measured.keep_pairs(pd.concat(pairs), command=command, note=note)


if __name__ == "__main__":
    main()
