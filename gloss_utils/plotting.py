"""One style for every figure, and one small function per figure."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

FIGURE_SIZE = (6.0, 3.5)  # inches
DPI = 110  # keeps a PNG under 100 KB
COLORS = sns.color_palette("colorblind")


def use_style() -> None:
    """Set the course's look: white ground, light grid, colour-blind palette."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind", font_scale=0.85)
    plt.rcParams.update(
        {
            "figure.figsize": FIGURE_SIZE,
            "figure.dpi": DPI,
            "savefig.dpi": DPI,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.alpha": 0.4,
        }
    )


def save(figure: plt.Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all.

    Args:
        figure: the figure.
        path: from `paths.figure_path`.
    """
    from .paths import write_atomically

    return write_atomically(Path(path), lambda temporary: figure.savefig(temporary, format="png"))


def bars_with_intervals(
    table: pd.DataFrame,
    label: str,
    value: str = "value",
    low: str = "low",
    high: str = "high",
    xlabel: str = "",
) -> plt.Figure:
    """Horizontal bars, one per row and in the table's order from the top, with 95 % intervals.

    Args:
        table: one row per bar.
        label, value, low, high: its columns.
        xlabel: what the value is, with its unit.
    """
    figure, axis = plt.subplots(figsize=(FIGURE_SIZE[0], max(2.0, 0.36 * len(table) + 0.9)))
    errors = [table[value] - table[low], table[high] - table[value]]
    axis.barh(table[label], table[value], xerr=errors, color=COLORS[0], error_kw={"elinewidth": 1, "capsize": 2})
    axis.invert_yaxis()
    axis.set_xlabel(xlabel or value)
    axis.grid(axis="y", visible=False)
    return figure
