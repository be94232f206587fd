"""The page of two systems: what it answers, and what a real browser makes of it."""

import html
import re
import socket
import threading
import time

import pandas as pd
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient
from test_site import CHROMIUM, PHONE, browse

from gloss_utils import raw_data
from tools import shop

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> Soap"
# As in test_site: a frame has the width of a phone, and what it shows is written into the title.
FRAME = """<!doctype html><link rel="icon" href="data:,"><body>
<iframe src="/?left=star&right=fused" width="390" height="900" style="border:0"></iframe><script>
document.querySelector("iframe").addEventListener("load", (event) => {
  const page = event.target.contentDocument, seen = event.target.contentWindow.innerWidth;
  const rows = [...page.querySelectorAll("section")].map((list) => list.querySelectorAll("li").length);
  document.title = `width ${seen} wide ${page.documentElement.scrollWidth - seen} rows ${rows}`; });
</script></body>"""


@pytest.fixture(scope="module")
def app(prepared):
    return shop.make_app("sample", data_dir=prepared.paths.root.parent)


def ask(app, **query):
    return TestClient(app, base_url="http://127.0.0.1").get("/", params=query)


def lists(page):
    return [re.findall(r"<li[^>]*>", part) for part in page.split("<section>")[1:]]


def test_a_user_sees_two_lists_with_reasons(app):
    answer = ask(app, left="most-popular", right="lis")
    assert answer.status_code == 200 and list(map(len, lists(answer.text))) == [shop.K, shop.K]
    assert "<small>popular</small>" in answer.text and "its title is close to &#39;" in answer.text


def test_the_next_purchase_is_marked_where_a_list_has_it(app, prepared):
    users = prepared.splits["test"]["reviewer_id"][:20]
    marked = [ask(app, user=user, left="fused", right="most-popular").text.count("← bought next") for user in users]
    assert 0 in marked and max(marked) > 0


def test_typed_titles_are_a_history_without_a_next_purchase(app, prepared):
    title = prepared.catalog["title"][0]
    answer = ask(app, titles=f"{title}\n\n", left="lis", right="most-popular")
    assert html.unescape(re.search(r"<ol><li>([^<]*)</li></ol>", answer.text)[1]) == title
    assert "← bought next" not in answer.text and "<li class" not in answer.text


def test_what_a_system_lacks_is_said_in_its_list(app):
    answer = ask(app, left="texts", right="fusd")
    assert answer.status_code == 200
    assert "run notebook 03 with DATASET=sample" in answer.text and "did you mean &#39;fused&#39;" in answer.text


def test_markup_stays_text(tmp_path):
    """In titles of the store, and in what is typed."""
    raw = tmp_path / "shop" / "raw"
    raw.mkdir(parents=True)
    pd.DataFrame({"item": list("abcd"), "title": [EVIL, "Rose Soap", "Mint Soap", "Lemon Soap"]}).to_csv(
        raw / "items.csv", index=False
    )
    bought = [
        (user, item, f"2024-01-0{day}") for user in "xyz" for day, item in enumerate("bcda"[: 3 + (user > "x")], 1)
    ]
    pd.DataFrame(bought, columns=["user", "item", "timestamp"]).to_csv(raw / "interactions.csv", index=False)
    raw_data.prepare(f"{tmp_path}/shop", progress=False)
    page = ask(
        shop.make_app(f"{tmp_path}/shop"), titles=f"Rose Soap\n{EVIL}</textarea>", left="lis", right="lis"
    ).text
    assert page.count("alert(1)") > 2 and "<script" not in page and "<img" not in page
    assert page.count("</textarea>") == 1


def test_only_this_machine_is_answered(app):
    """A site that resolves its name to 127.0.0.1 could read the page from a visitor's browser."""
    answer = TestClient(app, base_url="http://evil.example").get("/")
    assert answer.status_code == 400
    assert "default-src 'none'" in ask(app, left="lis", right="lis").headers["content-security-policy"]
    assert ask(app, left="lis").status_code == 200 and shop.HOST == "127.0.0.1"


def test_a_taken_port_is_one_sentence(capsys):
    with socket.create_server((shop.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        assert shop.main(["--port", str(port)]) == 2
    assert capsys.readouterr().err.startswith(f"shop: port {port} is taken or cannot be had: choose another")
    assert shop.main(["--port", "99999"]) == 2


def test_a_store_that_is_not_prepared_is_one_sentence(capsys, tmp_path):
    assert shop.main(["--data-dir", str(tmp_path), "--port", "0"]) == 2
    assert re.fullmatch(r"shop: no interactions for 'sample' .*: run notebook 01 .*\n", capsys.readouterr().err)


def test_a_real_browser_shows_both_lists(app, tmp_path):
    if not CHROMIUM:
        pytest.skip("no Chromium here: apt-get install chromium")
    outer, failed = FastAPI(), []
    outer.get("/phone")(lambda: HTMLResponse(FRAME))

    @outer.middleware("http")
    async def remember(request, call_next):
        response = await call_next(request)
        failed.extend([str(request.url)] * (response.status_code >= 400))
        return response

    outer.mount("/", app)
    ask(app, left="star", right="fused")  # loads both, so that the browser does not wait
    server = uvicorn.Server(uvicorn.Config(outer, host=shop.HOST, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    document, said = browse(f"http://{shop.HOST}:{port}/phone", tmp_path)
    server.should_exit = True
    thread.join(timeout=10)
    found = re.search(r"<title>width (\d+) wide (-?\d+) rows ([\d,]+)</title>", document)
    assert found, said[-2000:]
    assert int(found[1]) == PHONE and int(found[2]) <= 0, f"{found[2]} pixels wider than a phone"
    assert found[3] == f"{shop.K},{shop.K}"
    assert failed == [] and [line for line in said.splitlines() if "CONSOLE" in line] == []
