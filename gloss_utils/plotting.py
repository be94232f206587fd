"""One style for figures and tables, and the figures that several chapters share."""

import base64
import html
import io
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
    table: pd.DataFrame, label: str, xlabel: str, title: str = "", group: str | None = None
) -> plt.Figure:
    """Bars from column `value`, first row on top, 95 % intervals where `low` and `high` are, coloured by `group`."""
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, "low", "high"]))).reset_index(drop=True)
    figure, axis = plt.subplots(figsize=(FIGURE_SIZE[0] + 1, 0.3 * len(table) + 1.2))
    for color, (name, part) in zip(COLORS, table.groupby(group, sort=False) if group else [(None, table)]):
        errors = np.nan_to_num([part["value"] - part["low"], part["high"] - part["value"]])
        whiskers = {"xerr": errors, "error_kw": {"elinewidth": 1, "capsize": 2}}
        axis.barh(part.index, part["value"], color=color, label=name, **whiskers)
    axis.set_yticks(table.index, table[label])
    axis.margins(y=0.02)
    axis.invert_yaxis()
    axis.set(xlabel=xlabel, title=title)
    axis.grid(axis="y", visible=False)
    if group:
        figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


def grouped_intervals(
    table: pd.DataFrame, group: str, series: str, ylabel: str, reference: tuple | None = None, title: str = ""
) -> plt.Figure:
    """Points with 95 % intervals from columns `value, low, high`: `group` along x, `series` as colour and marker.

    `reference` (label, value) is a dashed line.
    """
    groups, names = list(dict.fromkeys(table[group])), list(dict.fromkeys(table[series]))
    figure, axis = plt.subplots(figsize=(max(7.0, 1.1 * len(groups)), 3.5))
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
