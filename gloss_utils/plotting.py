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
    """Save a figure and display it as HTML: JupyterLab and nbconvert's template ignore an `image/png`'s alt text."""
    data = save(figure, path).read_bytes()
    width = Image.open(io.BytesIO(data)).width // 2
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    picture = f'<img width="{width}" alt="{html.escape(description)}" src="{source}">'
    display({"text/html": picture, "text/plain": description}, raw=True)
    plt.close(figure)  # else the inline backend shows it a second time


class Table:
    """A table that is ready to be read: HTML in Lab and on a page, plain text in a terminal."""

    def __init__(self, columns: list[str], rows: list[list[str]], left: list[bool], more: int):
        self.columns, self.rows, self.left = columns, rows, left
        self.more = f"… and {more:,} more rows" if more else ""

    def _line(self, cells: list[str], tag: str) -> str:
        parts = []
        for cell, left in zip(cells, self.left):
            style = f"text-align:{'left' if left else 'right'}" + ";white-space:nowrap" * (len(cell) <= UNBROKEN)
            parts.append(f'<{tag} style="{style}">{html.escape(cell)}</{tag}>')
        return f"<tr>{''.join(parts)}</tr>"

    def _repr_html_(self) -> str:
        head, body = self._line(self.columns, "th"), "".join(self._line(row, "td") for row in self.rows)
        lines = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{self.more and f'<p>{self.more}</p>'}"
        return f'<div style="overflow-x:auto">{lines}</div>'

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows)]
        lines = [
            "  ".join(f"{cell:{'<' if left else '>'}{width}}" for cell, width, left in zip(line, widths, self.left))
            for line in (self.columns, *self.rows)
        ]
        return "\n".join([line.rstrip() for line in lines] + [self.more] * bool(self.more))


def table(frame: pd.DataFrame | pd.Series, digits: int = 4, rows: int = 12) -> Table:
    """Make a frame readable: whole texts on the left, numbers on the right, "–" for what is missing, all escaped.

    Columns `low` and `high` join `value` or `difference` as "0.0605 [0.0576, 0.0633]". An index with a name or
    with words becomes columns. By hand, because `to_html` aligns all columns alike and cuts texts, and `Styler`
    escapes no header and prints nothing in a terminal.

    Args:
        digits: decimals of a column within ± 1; others have two at most.
        rows: how many to show; 0 for all.
    """
    frame = pd.DataFrame(frame)
    if any(frame.index.names) or not pd.api.types.is_integer_dtype(frame.index):
        frame = frame.reset_index(names=[name or "" for name in frame.index.names], allow_duplicates=True)
    shown = frame.head(rows or len(frame))
    columns = {  # keyed by place, since two columns may share a name
        place: (_header(name), not pd.api.types.is_numeric_dtype(column), _texts(column, digits))
        for place, (name, column) in enumerate(shown.items())
    }
    places = {header: place for place, (header, *_) in columns.items()}
    if value := {"low", "high"} <= set(places) and {"value", "difference"} & set(places):
        low, high = columns.pop(places["low"])[2], columns.pop(places["high"])[2]
        header, left, texts = columns[places[value.pop()]]
        columns[places[header]] = header, left, [f"{v} [{a}, {b}]" for v, a, b in zip(texts, low, high)]
    headers, left, texts = (list(part) for part in zip(*columns.values()))
    return Table(headers, [list(row) for row in zip(*texts)], left, len(frame) - len(shown))


def _header(name: object) -> str:
    return " · ".join(str(part) for part in name if part != "") if isinstance(name, tuple) else str(name)


def _texts(values: pd.Series, digits: int) -> list[str]:
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
    """Horizontal bars from column `value`, first row on top, with 95 % intervals where `low` and `high` are.

    Column `group` gives colours and a legend, `reference` (label, value) a dashed line.
    """
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, "low", "high"]))).reset_index(drop=True)
    figure, axis = plt.subplots(figsize=(FIGURE_SIZE[0] + 1, 0.3 * len(table) + 1.2))
    for color, (name, part) in zip(COLORS, table.groupby(group, sort=False) if group else [(None, table)]):
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


def grouped_intervals(
    table: pd.DataFrame,
    group: str,
    series: str,
    ylabel: str,
    reference: tuple[str, float] | None = None,
    title: str = "",
) -> plt.Figure:
    """Points with 95 % intervals from columns `value, low, high`: `group` along x, `series` as colour and marker."""
    figure, axis = plt.subplots(figsize=(7.0, 3.5))
    groups, names = list(dict.fromkeys(table[group])), list(dict.fromkeys(table[series]))
    for number, name in enumerate(names):
        part = table[table[series] == name]
        x = [groups.index(value) + 0.6 * ((number + 0.5) / len(names) - 0.5) for value in part[group]]
        errors = [part["value"] - part["low"], part["high"] - part["value"]]
        look = {"fmt": "osD^v<>"[number % 7], "color": COLORS[number % len(COLORS)], "capsize": 2}
        axis.errorbar(x, part["value"], yerr=errors, label=name, **look)
    if reference:
        axis.axhline(reference[1], color="0.4", linestyle="--", linewidth=1, label=reference[0])
    axis.set_xticks(range(len(groups)), groups)
    axis.set(ylabel=ylabel, title=title)
    axis.set_ylim(bottom=min(0, table["low"].min()))
    axis.grid(axis="x", visible=False)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


def pipeline(
    history: list[str], texts: list[str], items: list[str], target: str, writer: str, searcher: str
) -> plt.Figure:
    """Draw one user's way through GLoSS: history, `writer`, generated texts, `searcher`, items with the target."""
    figure, axis = plt.subplots(figsize=(10.5, 3.6))
    axis.set(xlim=(0, 100), ylim=(0, 100))
    axis.axis("off")
    columns = [("what the user bought", history, 0), ("texts that it writes", texts, 38), ("items found", items, 76)]
    for heading, lines, left in columns:
        axis.text(left + 12, 97, heading, ha="center", va="top", weight="bold", fontsize=10)
        for row, line in enumerate(lines):
            color = COLORS[2] if left == 76 and line == target else COLORS[0]
            words = textwrap.fill(textwrap.shorten(line, 78, placeholder=" …"), 30)
            box = {"boxstyle": "round,pad=0.35", "fc": (*color, 0.15), "ec": color}
            middle = 44 + 9.5 * (len(lines) - 1) - row * 19
            axis.text(left + 12, middle, words, ha="center", va="center", fontsize=7.5, bbox=box)
    for left, name in ((25, writer), (63, searcher)):
        arrow = {"arrowstyle": "-|>", "lw": 2, "color": "0.3"}
        axis.annotate("", (left + 11.5, 50), (left + 0.5, 50), arrowprops=arrow)
        axis.text(left + 6, 55, textwrap.fill(name, 12), ha="center", va="bottom", fontsize=9)
    axis.text(88, 0, "green: what the user bought next", ha="center", va="bottom", fontsize=8, color="0.3")
    return figure


def course_map(chapters: list[tuple[str, str]]) -> plt.Figure:
    """Draw the chapters, (name, artifact) pairs, as a chain with the artifact that each one adds below it."""
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


def loss_curves(log: pd.DataFrame, best_step: int | None = None) -> plt.Figure:
    """Training loss of `training_log.csv` solid (smoothed), validation loss dashed, the best step marked."""
    figure, axis = plt.subplots()
    train, validation = log[log["split"] == "train"], log[log["split"] == "validation"]
    axis.plot(train["step"], train["loss"], color=COLORS[0], alpha=0.25, linewidth=0.8)
    smooth = train["loss"].rolling(max(1, len(train) // 30), min_periods=1, center=True).mean()
    axis.plot(train["step"], smooth, color=COLORS[0], label="training")
    axis.plot(validation["step"], validation["loss"], "--o", color=COLORS[1], markersize=4, label="validation")
    if best_step is not None:
        axis.axvline(best_step, color="0.4", linestyle=":", linewidth=1, label=f"best step, {best_step}")
    axis.set_ylim(0.9 * min(smooth.min(), validation["loss"].min()), train["loss"].quantile(0.99))
    axis.set(xlabel="step", ylabel="loss (nats per token)", title="When does the validation loss stop falling?")
    axis.legend()
    return figure


def memory_and_time(log: pd.DataFrame, memory: dict[str, str]) -> plt.Figure:
    """Memory (columns in MiB, with their labels) and seconds of each training step, one panel each."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.0, 3.0))
    train = log[log["split"] == "train"]
    for number, (column, label) in enumerate(memory.items()):
        left.plot(train["step"], train[column] / 1024, color=COLORS[number], label=label)
    left.set(xlabel="step", ylabel="memory (GiB)", title="How much memory?")
    left.set_ylim(bottom=0)
    left.legend(loc="lower right")
    right.plot(train["step"], train["step_seconds"], ".", color=COLORS[2], markersize=2)
    right.axhline(train["step_seconds"].median(), color="0.3", linewidth=1, label="median")
    right.set(xlabel="step", ylabel="time (s per step)", title="How long is a step?")
    right.set_ylim(0, 1.5 * train["step_seconds"].quantile(0.98))
    right.legend()
    return figure


# leaving: drawn in their chapters' cells


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
