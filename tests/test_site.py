"""Every page of the site in a real browser, at a phone's width: nothing missing, nothing loud, nothing too wide."""

import functools
import http.server
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tools import pages

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
STEMS = ["index", *sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE = 390  # pixels
READ_WHOLE = ("00", "05", "08")  # elsewhere a table of five intervals may scroll in its box
# A browser window has a minimal width, a frame has none. What the frame shows is written into the title.
FRAME = """<!doctype html><body><iframe src="/{page}" width="390" height="900" style="border:0"></iframe><script>
document.querySelector("iframe").addEventListener("load", (event) => {{
  const page = event.target.contentDocument, seen = event.target.contentWindow.innerWidth;
  const broken = [...page.images].filter((image) => !image.naturalWidth).length;
  const cut = [...page.querySelectorAll("table, .output pre")].filter((box) => box.scrollWidth > box.clientWidth + 1);
  const wide = page.documentElement.scrollWidth - seen;
  document.title = `width ${{seen}} wide ${{wide}} broken ${{broken}} cut ${{cut.length}}`; }});
</script></body>"""


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves the pages and a phone around each, and remembers what was asked for and not there."""

    missing: list[str] = []

    def do_GET(self):
        if not self.path.startswith("/phone/"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(FRAME.format(page=self.path.removeprefix("/phone/")).encode())

    def send_error(self, code, *rest):
        if not self.path.endswith("favicon.ico"):
            self.missing.append(self.path)
        super().send_error(code, *rest)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("site")
    pages.write_site(NOTEBOOKS, directory)
    return directory


@pytest.fixture(scope="module")
def address(site):
    if not CHROMIUM:
        pytest.skip("no Chromium here: apt-get install chromium")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def browse(url: str, profile: Path) -> tuple[str, str]:
    """Open a page in headless Chromium: its document after loading, and what the browser said."""
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    seen = [
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    seen += ["--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *quiet, *seen, url], capture_output=True, text=True, timeout=120)
    return done.stdout, done.stderr


@pytest.mark.parametrize("stem", STEMS)
def test_reads_on_a_phone_without_an_error(address, tmp_path, stem):
    """Pages loaded scripts from another host, showed broken images, and ran off a phone's screen."""
    Server.missing.clear()
    document, said = browse(f"{address}/phone/{stem}.html", tmp_path)
    found = re.search(r"<title>width (\d+) wide (-?\d+) broken (\d+) cut (\d+)</title>", document)
    assert found, said[-2000:]
    assert int(found[1]) == PHONE
    assert int(found[2]) <= 0, f"{found[2]} pixels wider than a phone"
    assert found[3] == "0", "broken images"
    if stem[:2] in READ_WHOLE:
        assert found[4] == "0", "a table or printed lines that a phone shows in part"
    assert Server.missing == []
    assert [line for line in said.splitlines() if "CONSOLE" in line] == []


@pytest.mark.parametrize("stem", STEMS)
def test_leads_nowhere_that_is_not_there(site, stem):
    page = (site / f"{stem}.html").read_text()
    anchors = set(re.findall(r'id="([^"]+)"', page))
    links = re.findall(r'<a[^>]* href="([^"]+)"', page)
    for link in [link for link in links if not re.match(r"https?://", link)]:
        target, _, anchor = link.partition("#")
        assert not target or (site / target).exists(), link
        assert target or not anchor or anchor in anchors, link
    assert not re.search(r'(src|rel="stylesheet" href)="https?://', page) and "<script" not in page


@pytest.mark.parametrize("stem", STEMS)
def test_answers_are_folded(site, stem):
    """Each answer stood open below its own fold: nbconvert had closed the fold before it."""
    page = (site / f"{stem}.html").read_text()
    folds = re.findall(r"<summary>Answer</summary>(.*?)</details>", page, re.S)
    assert all(re.search(r"\w", re.sub("<[^>]*>", "", fold)) for fold in folds)
    assert page.count("<summary>Answer</summary>") == len(folds) and (folds or stem == "index")


def test_markup_in_a_title_stays_text(tmp_path):
    """A <script> in an item's title lived on in the page of chapter 04."""
    import nbformat
    import pandas as pd

    from gloss_utils import plotting

    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    shown = plotting.table(pd.DataFrame({"title": [evil]}))
    output = nbformat.v4.new_output("display_data", {"text/html": shown._repr_html_(), "text/plain": repr(shown)})
    cell = nbformat.v4.new_code_cell("show(titles)", outputs=[output, nbformat.v4.new_output("stream", text=evil)])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "04.ipynb")
    page = pages.write_page(tmp_path / "04.ipynb").read_text()
    assert "alert(1)" in page and "<script" not in page and "<img" not in page
