"""Train chapter 07's SASRec on a real category, rank the test users with it, and keep its rows.

    python benchmarks/measure_sasrec.py --dataset toys --raw-dir <folder>

Runs the chapter's own cells, those of sections 7.1, 7.3 to 7.5 and 7.10; the others would take longer.
"""

import argparse
import json
import tempfile
from pathlib import Path

import keep_measured

from gloss_utils import raw_data
from gloss_utils.paths import PROJECT_ROOT

CHAPTER = PROJECT_ROOT / "notebooks/07_beyond_text.ipynb"
SECTIONS = ("", "7.1", "7.3", "7.4", "7.5", "7.10")  # the first is what stands above 7.1
LEFT_OUT = ("alone =", "constants =", "other_draw =", "claims checked")  # nothing of theirs is used later


def cells_of(chapter: Path, sections: tuple[str, ...]) -> list[str]:
    """The code cells of some sections."""
    section, found = "", []
    for cell in json.loads(chapter.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heads = [line.split()[1] for line in source.splitlines() if line.startswith("## 7.")]
            section = heads[-1] if heads else section
        elif section in sections and not any(words in source for words in LEFT_OUT):
            found.append(source)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="beauty")
    parser.add_argument("--raw-dir", default="")
    parser.add_argument("--epochs", type=int, default=60, help="at most; training stops early")
    options = parser.parse_args()
    dataset = options.dataset
    with tempfile.TemporaryDirectory() as scratch:
        raw_data.prepare(dataset, options.raw_dir, scratch, progress=False)
        given = {"DATASET": dataset, "DATA_DIR": scratch, "FIGURES_DIR": scratch, "SASREC_EPOCHS": options.epochs}
        names = {"__name__": "__main__", "display": print}
        for source in cells_of(CHAPTER, SECTIONS):
            exec(source, names)
            if source.startswith("DATASET: str"):  # the parameters: as papermill, behind them
                names |= given
    log = names["log"]
    print(log.to_string())
    tables = {names["rival"]: names["measured"]["SASRec"], names["joined"]: names["measured"]["fused + SASRec"]}
    note = f"ties by asin; at most {options.epochs} epochs, {len(log)} trained, best {log['ndcg@10'].idxmax() + 1}"
    command = f"python benchmarks/measure_sasrec.py --dataset {dataset} --raw-dir RAW_DIR"
    keep_measured.keep_results(dataset, "test", tables, command=command, note=note)


if __name__ == "__main__":
    main()
