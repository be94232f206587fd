"""One style for every figure, and one small function per figure."""

import textwrap
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


# chapter 00: the pipeline, and the course as a map


def pipeline(
    history: list[str], texts: list[str], items: list[str], target: str, writer: str, searcher: str
) -> plt.Figure:
    """Draw one user's way through GLoSS: history, model, generated texts, index, recommended items.

    Args:
        history, texts, items: titles, top to bottom; the target is marked among the items.
        target: what the user bought next.
        writer, searcher: names of the model and of the index.
    """
    figure, axis = plt.subplots(figsize=(10.5, 3.6))
    axis.set(xlim=(0, 100), ylim=(0, 100))
    axis.axis("off")
    columns = [("what the user bought", history, 0), ("texts that it writes", texts, 38), ("items found", items, 76)]
    for heading, lines, left in columns:
        axis.text(left + 12, 97, heading, ha="center", va="top", weight="bold", fontsize=10)
        for row, line in enumerate(lines):
            marked = left == 76 and line == target
            _box(axis, left, 44 + 9.5 * (len(lines) - 1) - row * 19, line, COLORS[2] if marked else COLORS[0])
    for left, name in ((25, writer), (63, searcher)):
        axis.annotate(
            "", (left + 11.5, 50), (left + 0.5, 50), arrowprops={"arrowstyle": "-|>", "lw": 2, "color": "0.3"}
        )
        axis.text(left + 6, 55, textwrap.fill(name, 12), ha="center", va="bottom", fontsize=9)
    axis.text(88, 0, "green: what the user bought next", ha="center", va="bottom", fontsize=8, color="0.3")
    return figure


def _box(axis: plt.Axes, left: float, middle: float, line: str, color: tuple) -> None:
    """Write a title in a rounded box, on two lines at most."""
    words = textwrap.fill(textwrap.shorten(line, 52, placeholder=" …"), 28)
    box = {"boxstyle": "round,pad=0.35", "fc": (*color, 0.15), "ec": color}
    axis.text(left + 12, middle, words, ha="center", va="center", fontsize=7.5, bbox=box)


def course_map(chapters: list[tuple[str, str]]) -> plt.Figure:
    """Draw the chapters as a chain: number and name above the arrow, the artifact that each one adds below.

    Args:
        chapters: (name, artifact) pairs in the order in which they run.
    """
    figure, axis = plt.subplots(figsize=(10.5, 1.9))
    axis.set(xlim=(-0.55, len(chapters) - 0.45), ylim=(-0.9, 0.75))
    axis.axis("off")
    axis.plot([0, len(chapters) - 1], [0, 0], color="0.75", lw=2, zorder=0)
    for place, (name, artifact) in enumerate(chapters):
        axis.scatter(place, 0, s=420, color=COLORS[0], zorder=1)
        axis.text(place, 0, name[:2], ha="center", va="center", color="white", weight="bold", fontsize=9)
        axis.text(place, 0.28, textwrap.fill(name[3:], 12), ha="center", va="bottom", fontsize=8.5)
        axis.text(place, -0.28, textwrap.fill(artifact, 14), ha="center", va="top", fontsize=8, color="0.35")
    return figure


# chapters 05 and 06: systems side by side


def grouped_intervals(
    table: pd.DataFrame, group: str, series: str, ylabel: str, reference: tuple[str, float] | None = None
) -> plt.Figure:
    """Points with 95 % intervals, side by side within a group.

    Args:
        table: columns `value, low, high` and the two named next; one row per point.
        group: the column along the x axis.
        series: the column that colour and marker show.
        ylabel: what the value is.
        reference: a label and a value for a dashed line across.
    """
    figure, axis = plt.subplots(figsize=(7.0, 3.5))
    groups, names = list(dict.fromkeys(table[group])), list(dict.fromkeys(table[series]))
    for number, name in enumerate(names):
        part = table[table[series] == name]
        shift = 0.6 * ((number + 0.5) / len(names) - 0.5)
        x = [groups.index(value) + shift for value in part[group]]
        errors = [part["value"] - part["low"], part["high"] - part["value"]]
        axis.errorbar(
            x, part["value"], yerr=errors, fmt="osD^v<>"[number % 7], color=COLORS[number], capsize=2, label=name
        )
    if reference:
        axis.axhline(reference[1], color="0.4", linestyle="--", linewidth=1, label=reference[0])
    axis.set_xticks(range(len(groups)), groups)
    axis.set_ylabel(ylabel)
    axis.set_ylim(bottom=0)
    axis.grid(axis="x", visible=False)
    axis.legend(fontsize=8)
    return figure


def lines_with_bands(table: pd.DataFrame, x: str, series: str, xlabel: str, ylabel: str, marks=()) -> plt.Figure:
    """A line per series with its 95 % band.

    Args:
        table: columns `value, low, high` and the two named next.
        x: a numeric column, drawn on a logarithmic axis.
        series: the column that colour shows.
        xlabel, ylabel: with units.
        marks: positions of dotted vertical lines.
    """
    figure, axis = plt.subplots()
    for number, (name, part) in enumerate(table.groupby(series, sort=False)):
        axis.plot(part[x], part["value"], marker="o", markersize=3, color=COLORS[number], label=name)
        axis.fill_between(part[x], part["low"], part["high"], color=COLORS[number], alpha=0.15, linewidth=0)
    for mark in marks:
        axis.axvline(mark, color="0.4", linestyle=":", linewidth=1)
    axis.set_xscale("log")
    ticks = [tick for tick in (3, 5, 7, 10, 15, 20, 30, 50, 100) if table[x].min() <= tick <= table[x].max()]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)
    return figure
