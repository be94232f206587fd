"""One style for figures and tables, and the figures that several chapters share or that are long."""

import base64
import html
import io
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from PIL import Image

from .paths import write_atomically

FIGURE_SIZE = (6.0, 3.5)  # inches
DPI = 220  # twice what the page shows, for sharp screens
COLORS = sns.color_palette("colorblind")
UNBROKEN = 44  # a table's cell up to this many characters stays on one line


def use_style() -> None:
    """Set the course's look: white ground, light grid, colour-blind palette."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind", font_scale=0.85)
    plt.rcParams.update(
        {
            "figure.figsize": FIGURE_SIZE,
            "figure.dpi": DPI / 2,
            "savefig.dpi": DPI,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.titlelocation": "left",
            "grid.alpha": 0.4,
        }
    )


def save(figure: plt.Figure, path: str | Path) -> Path:
    """Write a figure as a PNG of at most 256 colours, a third of the size; the path is from `paths.figure_path`."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    picture = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    return write_atomically(Path(path), lambda temporary: picture.save(temporary, format="PNG", optimize=True))


def show(figure: plt.Figure, path: str | Path, description: str) -> None:
    """Save a figure and display it, with a description of what it shows as its alt text.

    As HTML, since JupyterLab and nbconvert's template ignore the alt text of an `image/png` output.
    """
    data = save(figure, path).read_bytes()
    width = Image.open(io.BytesIO(data)).width // 2
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    picture = f'<img width="{width}" alt="{html.escape(description)}" src="{source}">'
    display({"text/html": picture, "text/plain": description}, raw=True)
    plt.close(figure)  # else the inline backend shows it a second time


class Table:
    """A table that is ready to be read, as HTML in Lab and on a page, as plain text in a terminal."""

    def __init__(self, columns: list[str], rows: list[list[str]], left: list[bool], more: int):
        self.columns, self.rows, self.left, self.more = columns, rows, left, more

    def _line(self, cells: list[str], tag: str) -> str:
        styles = ("left" if left else "right" for left in self.left)
        breaks = (";white-space:nowrap" if len(cell) <= UNBROKEN else "" for cell in cells)
        parts = [
            f'<{tag} style="text-align:{side}{fixed}">{html.escape(cell)}</{tag}>'
            for side, fixed, cell in zip(styles, breaks, cells)
        ]
        return f"<tr>{''.join(parts)}</tr>"

    def _repr_html_(self) -> str:
        body = "".join(self._line(row, "td") for row in self.rows)
        more = f"<p>… and {self.more:,} more rows</p>" if self.more else ""
        head = self._line(self.columns, "th")
        return f'<div style="overflow-x:auto"><table><thead>{head}</thead><tbody>{body}</tbody></table>{more}</div>'

    def __repr__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines)]
        fitted = [
            [cell.ljust(width) if left else cell.rjust(width) for cell, width, left in zip(line, widths, self.left)]
            for line in lines
        ]
        more = [f"… and {self.more:,} more rows"] if self.more else []
        return "\n".join(["  ".join(line).rstrip() for line in fitted] + more)


def table(frame: pd.DataFrame | pd.Series, digits: int = 4, rows: int = 12) -> Table:
    """Make a frame readable: whole texts on the left, numbers on the right, "–" for what is missing.

    Columns `low` and `high` join `value` or `difference` as "0.0605 [0.0576, 0.0633]". An index with a name or
    with words becomes columns. By hand, because `to_html` aligns all columns alike and cuts texts, and `Styler`
    escapes no header and prints nothing in a terminal.

    Args:
        frame: what to show.
        digits: decimals of a column within ± 1; others have two at most.
        rows: how many to show; 0 for all.
    """
    frame = pd.DataFrame(frame)
    if any(frame.index.names) or not pd.api.types.is_integer_dtype(frame.index):
        frame = frame.reset_index(names=[name or "" for name in frame.index.names], allow_duplicates=True)
    shown = (frame.head(rows) if rows else frame).reset_index(drop=True)
    left = [not pd.api.types.is_numeric_dtype(column) for _, column in frame.items()]
    texts = [_column(shown.iloc[:, place], digits) for place in range(shown.shape[1])]
    names = [_header(name) for name in frame.columns]
    if {"low", "high"} <= set(names) and (value := {"value", "difference"} & set(names)):
        place, low, high = names.index(value.pop()), names.index("low"), names.index("high")
        texts[place] = [f"{v} [{a}, {b}]" for v, a, b in zip(texts[place], texts[low], texts[high])]
        kept = [number for number in range(len(names)) if number not in (low, high)]
        names, left, texts = ([part[number] for number in kept] for part in (names, left, texts))
    return Table(names, [list(row) for row in zip(*texts)], left, len(frame) - len(shown))


def _header(name: object) -> str:
    return " · ".join(str(part) for part in name if part != "") if isinstance(name, tuple) else str(name)


def _column(values: pd.Series, digits: int) -> list[str]:
    """The cells of a column as texts."""
    pattern = "{}"
    if pd.api.types.is_bool_dtype(values):
        values = values.map({True: "yes", False: "no"})
    elif pd.api.types.is_integer_dtype(values):
        pattern = "{:,}"
    elif pd.api.types.is_float_dtype(values):
        pattern = f"{{:,.{digits if values.abs().max() <= 1 else min(digits, 2)}f}}"
    return ["–" if missing else pattern.format(value) for value, missing in zip(values, values.isna())]


def bars_with_intervals(
    table: pd.DataFrame,
    label: str,
    xlabel: str,
    title: str = "",
    group: str | None = None,
    reference: tuple[str, float] | None = None,
) -> plt.Figure:
    """Horizontal bars in the table's order from the top, with 95 % intervals where there are some.

    Args:
        table: one row per bar, with a column `value`, and `low` and `high` if there are intervals.
        label: the column that names the bars.
        xlabel: what the value is, with its unit.
        title: the question that the figure answers.
        group: a column that colour and legend show; one colour without it.
        reference: a label and a value for a dashed line.
    """
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, "low", "high"]))).reset_index(drop=True)
    figure, axis = plt.subplots(figsize=(FIGURE_SIZE[0] + 1, 0.3 * len(table) + 1.2))
    parts = table.groupby(group, sort=False) if group else [(None, table)]
    for color, (name, part) in zip(COLORS, parts):
        errors = np.nan_to_num([part["value"] - part["low"], part["high"] - part["value"]])
        whiskers = {"xerr": errors, "error_kw": {"elinewidth": 1, "capsize": 2}}
        axis.barh(part.index, part["value"], color=color, label=name, **whiskers)
    if reference:
        axis.axvline(reference[1], color="0.3", linestyle="--", linewidth=1, label=reference[0])
    axis.set_yticks(table.index, table[label])
    axis.margins(y=0.02)
    axis.invert_yaxis()
    axis.set(xlabel=xlabel, title=title)
    axis.grid(axis="y", visible=False)
    if group or reference:
        figure.legend(fontsize=8, loc="outside lower center", ncols=2)
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
    """Write a title in a rounded box, on three lines at most."""
    words = textwrap.fill(textwrap.shorten(line, 78, placeholder=" …"), 30)
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
    table: pd.DataFrame,
    group: str,
    series: str,
    ylabel: str,
    reference: tuple[str, float] | None = None,
    title: str = "",
) -> plt.Figure:
    """Points with 95 % intervals, side by side within a group.

    Args:
        table: columns `value, low, high` and the two named next; one row per point.
        group: the column along the x axis.
        series: the column that colour and marker show.
        ylabel: what the value is.
        reference: a label and a value for a dashed line across.
        title: the question that the figure answers.
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
    axis.set(ylabel=ylabel, title=title)
    axis.set_ylim(bottom=0)
    axis.grid(axis="x", visible=False)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
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


# 01 · data processing


def history_lengths(lengths: np.ndarray, cuts: tuple[int, int]) -> plt.Figure:
    """Users by history length, with the cuts between cold-start, regular and power users.

    Args:
        lengths: items per user.
        cuts: the last length of the first and of the second segment.
    """
    figure, axis = plt.subplots()
    longest = int(np.percentile(lengths, 99))
    clipped = np.minimum(lengths, longest)
    segments = np.searchsorted(cuts, lengths)
    names = (f"cold-start (≤ {cuts[0]})", f"regular (≤ {cuts[1]})", "power")
    bins = np.arange(lengths.min(), longest + 2) - 0.5
    for number, name in enumerate(names):
        axis.hist(clipped[segments == number], bins=bins, color=COLORS[number], label=name)
    axis.set(xlabel="history length (items; the last bar holds all longer ones)", ylabel="users")
    axis.legend()
    return figure


def long_tail(counts: np.ndarray) -> plt.Figure:
    """Share of all purchases that the most popular items take.

    Args:
        counts: purchases per item.
    """
    figure, axis = plt.subplots()
    share = np.cumsum(np.sort(counts)[::-1]) / counts.sum()
    items = np.arange(1, len(counts) + 1) / len(counts)
    axis.plot(100 * items, 100 * share, color=COLORS[0])
    tenth = share[max(0, len(counts) // 10 - 1)]
    axis.plot([10, 10, 0], [0, 100 * tenth, 100 * tenth], color=COLORS[3], linestyle="dashed", linewidth=1)
    axis.text(12, 100 * tenth - 4, f"the top 10 % of items take {tenth:.0%}", va="top")
    axis.set(xlabel="items, most popular first (%)", ylabel="purchases (%)", xlim=(0, 100), ylim=(0, 102))
    return figure


def purchases_per_day(counts: np.ndarray) -> plt.Figure:
    """How many items a user buys on one day: the share of purchases by the size of their day.

    Args:
        counts: purchases of each user and day.
    """
    figure, axis = plt.subplots()
    sizes = np.bincount(np.minimum(counts, 10), minlength=11)[1:] * np.arange(1, 11)
    axis.bar(np.arange(1, 11), 100 * sizes / sizes.sum(), color=[COLORS[0]] + [COLORS[1]] * 9)
    axis.set_xticks(range(1, 11), [*map(str, range(1, 10)), "10+"])
    axis.set(xlabel="items that the user bought on that day", ylabel="purchases (%)")
    axis.text(0.97, 0.9, "orange: their order is not known", ha="right", transform=axis.transAxes)
    return figure


def prompt_lengths(tokens: np.ndarray, limit: int) -> plt.Figure:
    """Tokens per prompt, with the limit of the context.

    Args:
        tokens: one count per prompt.
        limit: tokens that fit.
    """
    figure, axis = plt.subplots()
    axis.hist(tokens, bins=60, color=COLORS[0], log=True)
    axis.axvline(limit, color=COLORS[3], linestyle="dashed", label=f"limit: {limit} tokens")
    axis.set(xlabel="tokens per prompt", ylabel="users (log scale)")
    axis.legend(loc="upper right")
    return figure


# 03 · fine-tuning


def loss_curves(log: pd.DataFrame, best_step: int | None = None) -> plt.Figure:
    """Training loss solid, validation loss dashed, the best step marked.

    Args:
        log: `training_log.csv`.
        best_step: the step whose adapter was kept.
    """
    figure, axis = plt.subplots()
    train, validation = log[log["split"] == "train"], log[log["split"] == "validation"]
    axis.plot(train["step"], train["loss"], color=COLORS[0], alpha=0.25, linewidth=0.8)
    smooth = train["loss"].rolling(max(1, len(train) // 30), min_periods=1, center=True).mean()
    axis.plot(train["step"], smooth, color=COLORS[0], label="training")
    axis.plot(validation["step"], validation["loss"], "--o", color=COLORS[1], markersize=4, label="validation")
    if best_step is not None:
        axis.axvline(best_step, color="0.4", linestyle=":", linewidth=1, label=f"best step, {best_step}")
    axis.set_ylim(0.9 * min(smooth.min(), validation["loss"].min()), train["loss"].quantile(0.99))
    axis.set(xlabel="step", ylabel="loss (nats per token)")
    axis.legend()
    return figure


def memory_and_time(log: pd.DataFrame, memory: dict[str, str]) -> plt.Figure:
    """Memory and seconds of each training step, one panel each.

    Args:
        log: `training_log.csv`.
        memory: columns to draw (MiB), with their label.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.0, 3.0))
    train = log[log["split"] == "train"]
    for number, (column, label) in enumerate(memory.items()):
        left.plot(train["step"], train[column] / 1024, color=COLORS[number], label=label)
    left.set(xlabel="step", ylabel="memory (GiB)")
    left.set_ylim(bottom=0)
    left.legend(loc="lower right")
    right.plot(train["step"], train["step_seconds"], ".", color=COLORS[2], markersize=2)
    right.axhline(train["step_seconds"].median(), color="0.3", linewidth=1, label="median")
    right.set(xlabel="step", ylabel="time (s per step)")
    right.set_ylim(0, 1.5 * train["step_seconds"].quantile(0.98))
    right.legend()
    return figure


def memory_parts(table: pd.DataFrame, parts: list[str], peak: str) -> plt.Figure:
    """Stacked bars of estimated memory, one per model, with the published peak as a line across each.

    Args:
        table: one row per model, GB.
        parts: columns to stack.
        peak: the column with the published peak.
    """
    figure, axis = plt.subplots()
    bottom = np.zeros(len(table))
    for number, part in enumerate(parts):
        axis.bar(table["model"], table[part], bottom=bottom, color=COLORS[number], width=0.5, label=part)
        bottom += table[part].to_numpy()
    places = np.arange(len(table))
    axis.hlines(table[peak], places - 0.4, places + 0.4, color="black", linewidth=2, label="paper: stays under")
    axis.set_ylabel("memory (GB)")
    axis.grid(axis="x", visible=False)
    axis.legend(fontsize=8)
    return figure


def stages(table: pd.DataFrame, reference: tuple[str, float]) -> plt.Figure:
    """Recall of training variants, one panel per question.

    Args:
        table: `group, variant, value, low, high`.
        reference: a label and a value for a dashed line across.
    """
    groups = list(dict.fromkeys(table["group"]))
    widths = [(table["group"] == group).sum() for group in groups]
    figure, axes = plt.subplots(
        1, len(groups), figsize=(7.5, 3.2), sharey=True, gridspec_kw={"width_ratios": widths}, squeeze=False
    )
    for number, (axis, group) in enumerate(zip(axes[0], groups)):
        part = table[table["group"] == group]
        value, low, high = (part[column].to_numpy() for column in ("value", "low", "high"))
        errors = [value - low, high - value]
        axis.errorbar(part["variant"].tolist(), value, yerr=errors, fmt="o", color=COLORS[number], capsize=2)
        axis.axhline(reference[1], color="0.4", linestyle="--", linewidth=1, label=reference[0])
        axis.set_title(group, fontsize=9)
        axis.tick_params(axis="x", labelsize=7)
        plt.setp(axis.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
        axis.grid(axis="x", visible=False)
        axis.margins(x=0.25)
    axes[0, 0].set_ylabel("Recall@5")
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].legend(fontsize=7)
    return figure


# 07 and 08 · beyond text, scoreboard

# One colour per kind of system, the same in every figure; what is not named here is ours.
KIND_COLORS = {
    "GLoSS": COLORS[1],
    "training-free": COLORS[2],
    "LLM-based": COLORS[4],
    "classic ID": COLORS[7],
    "feature-enhanced ID": COLORS[9],
    "semantic ID": COLORS[3],
}


def scoreboard(table: pd.DataFrame, xlabel: str) -> plt.Figure:
    """Horizontal bars, best at the top, coloured by kind of system; whiskers where there is an interval.

    Args:
        table: columns `label, value, low, high, kind`; low and high may be missing.
        xlabel: the metric.
    """
    table = table.sort_values("value", ascending=False, kind="stable").reset_index(drop=True)
    figure, axis = plt.subplots(figsize=(7.0, 0.27 * len(table) + 1.1))
    for kind, part in table.groupby("kind", sort=True):
        errors = [(part["value"] - part["low"]).fillna(0), (part["high"] - part["value"]).fillna(0)]
        color = KIND_COLORS.get(kind, COLORS[0])
        axis.barh(part.index, part["value"], xerr=errors, label=kind, color=color, error_kw={"elinewidth": 1})
    axis.set_yticks(table.index, table["label"], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(xlabel)
    axis.grid(axis="y", visible=False)
    if table["kind"].nunique() > 1:
        axis.legend(fontsize=8, loc="lower right")
    return figure


def tiers(table: pd.DataFrame, metric: str) -> plt.Figure:
    """Draw users per second against a metric; a larger point holds more memory, the legend says how much.

    Args:
        table: columns `system, users_per_second, memory_mib, value, low, high`.
        metric: what the value is.
    """
    figure, axis = plt.subplots(figsize=(FIGURE_SIZE[0] + 1.5, FIGURE_SIZE[1]))
    for color, row in zip(COLORS, table.itertuples()):
        axis.errorbar(
            row.users_per_second,
            row.value,
            yerr=[[row.value - row.low], [row.high - row.value]],
            fmt="o",
            color=color,
            capsize=2,
            markersize=2 * np.log2(4 + row.memory_mib),
            label=f"{row.system}, {row.memory_mib:,.0f} MiB",
        )
    axis.set(xscale="log", xlabel="users per second (log)", ylabel=metric)
    axis.margins(x=0.15, y=0.2)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure
