"""Notebooks as web pages, by nbconvert with one template; nothing in a page needs a network."""

import base64
import html
import re
from pathlib import Path

import latex2mathml.converter
import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters.strings import _convert_header_id  # no public call makes the same anchor
from pygments.formatters import HtmlFormatter

from gloss_utils.paths import PROJECT_ROOT, write_atomically

TEMPLATES = Path(__file__).parent / "templates"
WIDGET = "application/vnd.jupyter.widget-view+json"
INTRODUCTION = (
    "A recommender that writes: a Llama model, fine-tuned on purchase histories, writes the text of the next item, "
    "and a search index turns that text into items of the catalog."
)

# What the index shows: one user of the fictional store, the strategies on it, and the published systems on real data.
KEY_FIGURES = [
    (
        "sample/00_pipeline.png",
        "One user of the sample store: last purchases, texts that the model writes, items found.",
    ),
    ("sample/05_policies.png", "The sample store: NDCG@5 by merging strategy and retriever."),
    ("beauty/08_comparable.png", "Amazon Beauty: our systems beside the published ones."),
]


def without_run_traces(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what belongs to one run: injected parameters, progress bars, stderr, times; number the cells anew."""
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
        cell.outputs = [clean_output(output, count) for output in cell.outputs if not is_noise(output)]
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags" and v})
    return notebook


def is_noise(output: nbformat.NotebookNode) -> bool:
    """Progress bars and stderr: of use while a cell runs, not after."""
    return WIDGET in output.get("data", {}) or output.get("name") == "stderr"


def clean_output(output: nbformat.NotebookNode, count: int) -> nbformat.NotebookNode:
    """Give an output its cell's number; of its metadata only a picture's description stays."""
    if "execution_count" in output:
        output.execution_count = count
    if "metadata" in output:
        kept = {kind: {"alt": about["alt"]} for kind, about in output.metadata.items() if "alt" in about}
        output.metadata = nbformat.from_dict(kept)
    return output


def fold_tables(body: str) -> str:
    """Say where a narrow screen may fold a table's cells: after a name's underscore, and not within an interval.

    >>> fold_tables("<th>list_length</th><td>0.5 [0.4, 0.6]</td>")
    '<th>list_<wbr>length</th><td>0.5 [0.4,&nbsp;0.6]</td>'
    """
    body = re.sub(r"<t[hd][^>]*>[^<]*", lambda m: re.sub(r"(?<=\w)_(?=\w)(?![^<>]*>)", "_<wbr>", m[0]), body)
    return re.sub(r"\[(-?[\d.]+), (-?[\d.]+)\](?=</td>)", r"[\1,&nbsp;\2]", body)


def title_of(notebook: nbformat.NotebookNode) -> str:
    """The first heading; empty where there is none."""
    headings = re.findall(r"^# (.+)$", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.M)
    return headings[0] if headings else ""


def to_mathml(text: str) -> str:
    """Turn $…$ and $$…$$ of a Markdown text into MathML, which browsers draw by themselves; code stays as it is.

    >>> to_mathml("`a$b` costs $5")
    '`a$b` costs $5'
    """
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.S)
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r"\$\$(.+?)\$\$", lambda m: _formula(m[1], "block"), parts[number], flags=re.S)
        parts[number] = re.sub(r"\$(?! )([^$\n]+?)(?<! )\$", lambda m: _formula(m[1], "inline"), parts[number])
    return "".join(parts)


def _formula(latex: str, display: str) -> str:
    return latex2mathml.converter.convert(latex.strip(), display=display)


def contents_of(notebook: nbformat.NotebookNode) -> str:
    """Links to the second-level headings, as nbconvert names their anchors."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = re.findall(r"^## (.+)$", text, re.M)
    plain = [re.sub(r"[`*]", "", heading) for heading in headings]
    links = [f'<li><a href="#{html.escape(_convert_header_id(h))}">{html.escape(h)}</a></li>' for h in plain]
    return f"<ul>{''.join(links)}</ul>" if links else ""


def navigation(pages: list[tuple[str, str]], stem: str) -> str:
    """Previous, index, next; `pages` are (stem, title) in order."""
    names = [name for name, _ in pages]
    if stem not in names:
        return ""
    place = names.index(stem)
    before = [f'<a href="{pages[place - 1][0]}.html">← {html.escape(pages[place - 1][1])}</a>'] if place else [""]
    after = [f'<a href="{n}.html">{html.escape(t)} →</a>' for n, t in pages[place + 1 : place + 2]] or [""]
    return (
        "<nav>"
        + "\n".join(f"<span>{x}</span>" for x in [*before, '<a href="index.html">Index</a>', *after])
        + "</nav>"
    )


def style() -> str:
    """The page's style sheet, with Pygments' colours for code."""
    return (TEMPLATES / "course" / "style.css").read_text() + HtmlFormatter().get_style_defs(".highlight")


def write_page(executed: Path, target: Path | None = None, pages: list[tuple[str, str]] = ()) -> Path:
    """Render an executed notebook; pictures that its text shows go into the page.

    Args:
        executed: the notebook; its text names pictures relative to `notebooks/`, where it comes from.
        target: the page, beside the notebook by default.
        pages: (stem, title) of all pages of a site, for the links between them.
    """
    notebook = without_run_traces(nbformat.read(executed, as_version=4))
    about = {"title": title_of(notebook), "css": style(), "contents": contents_of(notebook)}
    about["navigation"] = navigation(list(pages), executed.stem)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(
                r"(?<=\]\()\.\./figures/([^)]+\.png)", lambda m: _embedded(m[1]), to_mathml(cell.source)
            )
            cell.source = re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](\1.html", cell.source)
    # Not nbconvert's `embed_images`: it closes each piece of HTML by itself, and so unfolds the exercises' answers.
    exporter = HTMLExporter(template_name="course", extra_template_basedirs=[str(TEMPLATES)])
    origin = {"metadata": {"name": executed.stem}, "page": about}
    body, _ = exporter.from_notebook_node(notebook, resources=origin)
    page = fold_tables(body)
    return write_atomically(target or executed.with_suffix(".html"), lambda temporary: temporary.write_text(page))


def write_site(out_dir: Path, site: Path) -> Path:
    """Write all executed notebooks as pages with links between them, and an index."""
    notebooks = sorted(out_dir.glob("[0-9][0-9]_*.ipynb"))
    opened = {path.stem: nbformat.read(path, as_version=4) for path in notebooks}
    pages = [(stem, title_of(notebook)) for stem, notebook in opened.items()]
    for path in notebooks:
        write_page(path, site / f"{path.stem}.html", pages)
    figures = "".join(_picture(*figure) for figure in KEY_FIGURES)
    rows = [f'<tr><td><a href="{s}.html">{html.escape(t)}</a></td><td>{_goal(opened[s])}</td></tr>' for s, t in pages]
    index = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>GLoSS, step by step</title><style>{style()}</style></head><body><main><h1>GLoSS, step by step</h1>"
        f"<p>{INTRODUCTION}</p><table><tr><th>chapter</th><th>goal</th></tr>{''.join(rows)}</table>{figures}</main></body></html>"
    )
    write_atomically(site / "index.html", lambda temporary: temporary.write_text(index))
    print(f"site: {site.name}/index.html")
    return site / "index.html"


def _embedded(figure: str) -> str:
    """The address of a picture under `figures/` that is in the page itself."""
    return "data:image/png;base64," + base64.b64encode((PROJECT_ROOT / "figures" / figure).read_bytes()).decode()


def _picture(path: str, description: str) -> str:
    """A tracked figure, in the page itself; nothing where it is not there."""
    if not (PROJECT_ROOT / "figures" / path).exists():
        return ""
    words = html.escape(description)
    return f'<figure><img alt="{words}" src="{_embedded(path)}"><figcaption>{words}</figcaption></figure>'


def _goal(notebook: nbformat.NotebookNode) -> str:
    found = re.search(r"\*\*Goal\.?\*\*:?\s*(.+?)(?:\n\n|$)", notebook.cells[0].source, re.S)
    return html.escape(" ".join(found[1].split())) if found else ""
