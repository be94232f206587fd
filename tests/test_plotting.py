"""Tables and figures as a reader gets them: whole, escaped, and described."""

import numpy as np
import pandas as pd
import pytest

from gloss_utils import plotting

SCRIPT = "<script>alert('a title')</script>"


def test_a_table_escapes_titles_headers_and_its_index():
    """`DataFrame.style` escapes nothing: a script in a title lived on in the page."""
    frame = pd.DataFrame({SCRIPT: [SCRIPT]}, index=pd.Index([SCRIPT], name=SCRIPT))
    page = plotting.table(frame)._repr_html_()
    assert "<script" not in page and page.count("&lt;script&gt;") == 4


def test_intervals_are_one_cell_and_what_is_missing_is_a_dash():
    frame = pd.DataFrame(
        {"metric": ["ndcg@5", None], "value": [0.06051, np.nan], "low": [0.05, 0.1], "high": [0.07, 1]}
    )
    shown = plotting.table(frame.assign(rank=pd.array([1200, None], dtype="Int64"), ok=[True, False]))
    assert shown.columns == ["metric", "value", "rank", "ok"]
    assert shown.rows == [
        ["ndcg@5", "0.0605 [0.0500, 0.0700]", "1,200", "yes"],
        ["–", "– [0.1000, 1.0000]", "–", "no"],
    ]
    page = shown._repr_html_()
    assert '<td style="text-align:right;white-space:nowrap">0.0605 [0.0500, 0.0700]</td>' in page
    assert '<td style="text-align:left;white-space:nowrap">ndcg@5</td>' in page


def test_long_texts_stay_whole_and_long_tables_say_how_long():
    frame = pd.DataFrame({"title": ["a title of many words, " * 20] * 20})
    shown = plotting.table(frame)
    assert frame["title"][0] in shown._repr_html_() and frame["title"][0].strip() in repr(shown)
    assert len(shown.rows) == 12 and "… and 8 more rows" in repr(shown) and "8 more" in shown._repr_html_()
    assert len(plotting.table(frame, rows=0).rows) == 20


def test_an_index_of_words_and_columns_of_two_levels_are_shown():
    wide = pd.DataFrame(
        {"system": ["LIS", "STAR"] * 2, "metric": ["ndcg", "ndcg", "recall", "recall"], "value": [1.5, 2, 3, 4]}
    )
    shown = plotting.table(wide.pivot_table(index="system", columns="metric", values=["value"]))
    assert shown.columns == ["system", "value · ndcg", "value · recall"]
    assert shown.rows[0] == ["LIS", "1.50", "3.00"]
    assert plotting.table(wide.loc[[3], ["value"]]).columns == ["value"]  # a row number is no content


@pytest.fixture
def bars():
    plotting.use_style()
    rows = pd.DataFrame({"system": ["LIS", "STAR"], "value": [0.1, 0.2], "low": [0.05, 0.1], "high": [0.15, np.nan]})
    return plotting.bars_with_intervals(rows, "system", "NDCG@5", title="Which?", group="system")


def test_a_figure_is_shown_once_with_its_description(bars, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(plotting, "display", lambda data, raw: shown.append(data))
    plotting.show(bars, tmp_path / "bars.png", 'NDCG@5 of "LIS" < STAR')
    (output,) = shown
    assert 'alt="NDCG@5 of &quot;LIS&quot; &lt; STAR"' in output["text/html"]
    assert output["text/plain"] == 'NDCG@5 of "LIS" < STAR'
    assert not plotting.plt.fignum_exists(bars.number)  # else the inline backend draws it again


def test_a_figure_is_sharp_and_small(bars, tmp_path):
    """Twice the resolution of the page, with few enough colours to stay below 200 KB."""
    path = plotting.save(bars, tmp_path / "bars.png")
    width, _ = plotting.Image.open(path).size
    assert width == bars.get_size_inches()[0] * 220 and path.stat().st_size < 200_000
    assert plotting.Image.open(path).mode == "P"
