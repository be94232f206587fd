"""Faults of the runner and of downloads: two runs at once, Ctrl-C, a full disk, hosts that misbehave."""

import contextlib
import functools
import gzip
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse

import injected
import nbformat
import pandas as pd
import pytest
from injected import cut, empty, files, refused

from gloss_utils import metrics, paths, splits
from tools import course, download

ROOT = paths.PROJECT_ROOT
PARAMETERS = "DATASET: str = 'toy'\nDATA_DIR: str = 'data'\nSTEPS: int = 3\nSHARE: float = 0.5\nRESUME: bool = True"


def write_notebook(path, source):
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(source),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


@pytest.fixture
def toy_course(tmp_path, monkeypatch):
    """One notebook that does nothing, and a place for everything."""
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    (tmp_path / "notebooks" / "profiles" / "sample.yaml").write_text("STEPS: 3\n")
    write_notebook(tmp_path / "notebooks" / "01_first.ipynb", "pass")
    monkeypatch.setattr(course, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(course, "run_notebook", lambda notebook, executed, _: executed.write_text("{}"))
    monkeypatch.setattr(course.pages, "write_page", lambda path: path)
    monkeypatch.setattr(paths, "DATASETS", ("sample", "toy"))
    return tmp_path


def run(place, *arguments):
    where = ["--out", str(place / "runs"), "-p", "DATA_DIR", str(place / "data"), "-p", "DATASET", "toy"]
    (place / "runs" / "toy-sample").mkdir(parents=True, exist_ok=True)
    return course.main([*where, *arguments])


def profile(content):
    return lambda place: (place / "notebooks" / "profiles" / "sample.yaml").write_bytes(content)


def nothing(place):
    """Nothing is broken: the arguments are what is wrong."""


@pytest.mark.parametrize(
    ("inject", "arguments", "sentence"),
    [
        (nothing, ["-p", "STEP", "3"], "unknown parameter 'STEP': did you mean 'STEPS'"),
        (nothing, ["-p", "steps", "3"], "unknown parameter 'steps': .*Known: .*STEPS"),
        (nothing, ["-p", "STEPS", "3.5"], "parameter STEPS takes int, not 3.5"),
        (nothing, ["-p", "STEPS", "[1"], r"parameter STEPS takes int, not '\[1'"),
        (nothing, ["-p", "STEPS", ""], "parameter STEPS takes int, not None"),
        (nothing, ["-p", "STEPS", "yes"], "parameter STEPS takes int, not True"),
        (nothing, ["-p", "SHARE", "half"], "parameter SHARE takes float, not 'half'"),
        (nothing, ["-p", "RESUME", "maybe"], "parameter RESUME takes bool, not 'maybe'"),
        (nothing, ["-p", "DATASET", "sampel"], "unknown DATASET 'sampel': did you mean 'sample'"),
        (nothing, ["-p", "DATASET", "my shop"], r"a directory of your own has a slash: \./my shop"),
        (nothing, ["-p", "DATASET", ".."], r"unknown DATASET '\.\.': give a name"),
        (nothing, ["-p", "DATASET", ""], "unknown DATASET ''"),
        (
            nothing,
            ["-p", "DATASET", "../", "--clean"],
            r"unknown DATASET '\.\./': give a name, or a directory of its own",
        ),
        (nothing, ["-p", "DATASET", "./", "--clean"], r"unknown DATASET '\./'"),
        (nothing, ["-p", "DATASET", "/", "--clean"], "unknown DATASET '/'"),
        (nothing, ["--profile", "smple"], "unknown profile 'smple': did you mean 'sample'"),
        (nothing, ["--profile", "../sample"], r"unknown profile '\.\./sample'"),
        (nothing, ["--only", "9"], "unknown notebook '09': .*Known: 01"),
        (nothing, ["--from", "first"], "unknown notebook 'fi'"),
        (profile(b"STEPS: [3\n"), [], r"sample\.yaml is damaged .*line [12].*: write one NAME: value per line"),
        (
            profile(b"STEPS: 3\n\tSEED: 1\n"),
            [],
            r"sample\.yaml is damaged .*line [12].*: write one NAME: value per line",
        ),
        (profile(b"- STEPS\n"), [], r"sample\.yaml is damaged .*: write one NAME: value"),
        (profile(b"STEPS\n"), [], r"sample\.yaml is damaged .*: write one NAME: value"),
        (profile(b"\xff\xfeS\x00"), [], r"sample\.yaml is damaged .*: write one NAME: value"),
        (profile(b"STEP: 3\n"), [], "unknown parameter 'STEP': did you mean 'STEPS'"),
        (profile(b"STEPS: many\n"), [], "parameter STEPS takes int, not 'many'"),
        (
            lambda place: (place / "notebooks/01_first.ipynb").write_text('{"cells": ['),
            [],
            r"01_first\.ipynb is damaged",
        ),
    ],
)
def test_arguments_that_are_refused(inject, arguments, sentence, toy_course, capsys):
    inject(toy_course)
    (toy_course / "runs" / "toy-sample").mkdir(parents=True)
    before = files(toy_course)
    assert run(toy_course, *arguments) == 2
    said = capsys.readouterr().err
    assert re.search(f"^course: .*{sentence}", said) and said.count("\n") == 1, said
    assert files(toy_course) == before and not (toy_course / "data").exists(), "nothing is left behind"


STATES = [
    b"[1]",
    b'{"notebooks": {"01": {"fingerprint": "a"}}, "files": {}}',
    b'{"notebooks": [1], "files": 2}',
    b"\xff",
]


@pytest.mark.parametrize(
    "damage",
    [cut, empty, *(functools.partial(lambda new, path: path.write_bytes(new), new) for new in STATES)],
    ids=["cut", "empty", "a list", "half a record", "numbers", "bytes"],
)
def test_a_damaged_state_of_the_course_is_made_again(damage, toy_course, capsys):
    assert run(toy_course) == 0
    state = toy_course / "data" / "toy" / "course_state.json"
    right = state.read_bytes()
    damage(state)
    assert run(toy_course) == 0
    said = capsys.readouterr().out
    assert "course_state.json cannot be read: every notebook runs again" in said
    assert state.read_bytes() == right


def test_results_without_their_header_are_one_line(toy_course, capsys):
    """The table at the end of a run that had nothing to do ended in a KeyError."""
    assert run(toy_course) == 0
    table = toy_course / "data" / "toy" / "results.csv"
    table.write_text("0.5,0.4,0.6\n")
    assert run(toy_course) == 2
    assert re.match(
        r"course: .*results\.csv is damaged .*it has no 'dataset'\): delete it and run notebook 02",
        capsys.readouterr().err,
    )
    table.unlink()
    assert run(toy_course) == 0


def test_lost_rows_of_results_make_their_notebook_run_again(toy_course, monkeypatch, capsys):
    """Two runs at once lost 5 of 60 rows for good: "up to date" afterwards."""
    table = toy_course / "data" / "toy" / "results.csv"

    def work(notebook, executed, _):
        executed.write_text("{}")
        rows = pd.DataFrame(dict.fromkeys(metrics.RESULT_KEYS, "x") | {"model": list("abc"), "value": 1})
        metrics.upsert_rows(table, rows, ["model"])

    monkeypatch.setattr(course, "run_notebook", work)
    monkeypatch.setattr(course, "results_table", lambda results, dataset: "")
    assert run(toy_course) == run(toy_course) == 0
    assert "up to date" in capsys.readouterr().out
    right = table.read_bytes()
    table.write_bytes(right[:-3])
    assert run(toy_course) == 0 and table.read_bytes() == right
    assert "01_first: running" in capsys.readouterr().out


@pytest.mark.parametrize("number", [13, 28, 30], ids=["forbidden", "full", "read-only"])
def test_a_disk_that_takes_nothing(number, toy_course, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    assert run(toy_course) == 2
    said = capsys.readouterr().err
    assert re.match(
        rf"course: course_state\.json cannot be written \({os.strerror(number)}\): make room, or set", said
    )
    monkeypatch.undo()


def test_a_place_that_takes_no_directory(toy_course, capsys):
    (toy_course / "data").write_text("a file")
    assert run(toy_course) == 2
    said = capsys.readouterr().err
    assert re.match(
        r"course: .*data/toy: Not a directory; make room, or give DATA_DIR and --out folders that", said
    ), said


def test_two_runs_at_once(toy_course, capsys):
    with course.locked(paths.DatasetPaths("toy", toy_course / "data" / "toy")):
        assert run(toy_course) == 2
    assert "another run of the course works on 'toy': wait for it" in capsys.readouterr().err
    assert run(toy_course) == 0


def process(code, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, text=True, **options)


def test_two_writers_of_results(tmp_path):
    code = (
        "import sys, pathlib, pandas as pd; from gloss_utils.metrics import upsert_rows\n"
        "for row in range(20):\n"
        "    table = pd.DataFrame({'model': [f'{sys.argv[2]}{row}'], 'value': [row]})\n"
        "    upsert_rows(pathlib.Path(sys.argv[1]), table, ['model'])\n"
    )
    for writer in [process(code, str(tmp_path / "results.csv"), name) for name in "ab"]:
        assert writer.wait(timeout=120) == 0
    table = pd.read_csv(tmp_path / "results.csv")
    assert sorted(table["model"]) == sorted(f"{name}{row}" for name in "ab" for row in range(20))


def test_ctrl_c_is_one_line(toy_course, tmp_path):
    """It was twenty lines of traceback. Tests behind a shell's `&` ignore SIGINT, and so did the child, for ever."""
    begun = tmp_path / "begun"
    write_notebook(
        tmp_path / "notebooks" / "01_first.ipynb", f"open({str(begun)!r}, 'w').close()\nimport time\ntime.sleep(600)"
    )
    code = (
        "import pathlib, sys; from gloss_utils import paths; from tools import course; paths.DATASETS = ('toy',)\n"
        f"course.NOTEBOOKS = pathlib.Path({str(tmp_path / 'notebooks')!r}); sys.exit(course.main(sys.argv[1:]))"
    )
    where = ["--out", str(tmp_path / "runs"), "-p", "DATA_DIR", str(tmp_path / "data"), "-p", "DATASET", "toy"]

    def heed():  # in the child, before it becomes the course
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    child = process(
        code, *where, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=heed
    )
    deadline = time.monotonic() + 120
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)  # the file is there an instant before the cell sleeps
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to the runner and to the kernel
    said = child.communicate(timeout=120)[1]
    assert said.strip().splitlines()[-1] == "course: stopped; the same command goes on where it was"
    assert "Traceback" not in said and len(said.splitlines()) <= 3 and child.returncode == 130, said


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_kill_while_data_are_written(after, store_template, tmp_path):
    """Killed without a chance to tidy up: the old data or none, and the next run is right."""
    root = injected.copy(store_template, tmp_path / "store")
    tables = injected.own_tables(9)
    injected.write_tables(root, *tables)
    pid = os.fork()
    if pid == 0:
        count, replace = iter(range(5)), os.replace

        def stop(*args):
            if next(count) == after - 1:
                os._exit(9)  # no `finally`, no `except`, as with SIGKILL
            return replace(*args)

        os.replace = stop
        injected.prepare(root)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    if after > 1:
        refused(lambda: splits.load_prepared(f"{root}/"), "run notebook 01")
    injected.write_tables(root)
    injected.prepare(root)
    assert injected.contents(root).items() >= injected.contents(store_template).items()


# Downloads

CONTENT = gzip.compress(bytes(range(256)) * 400, mtime=0)


class Host(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the path says how it misbehaves."""

    def do_GET(self):
        way = urllib.parse.unquote(self.path).split("/")[1]
        if way == "404":
            return self.send_error(404)
        if way == "503":
            return self.send_error(503)
        if way == "dripping header":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
            for _ in range(200):
                self.wfile.write(b"x")
                time.sleep(0.05)
        if way == "garbage":
            return self.wfile.write(b"SSH-2.0-OpenSSH\r\n")
        start = int((self.headers.get("Range") or "bytes=0-").split("=")[1].rstrip("-"))
        body = b"<html>please log in</html>" if way == "page" else CONTENT[start:]
        self.send_response(206 if start else 200)
        if way != "nolength":
            self.send_header("Content-Length", str(len(body) + (way == "short")))
        self.end_headers()
        if way == "drip":
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
        elif way == "silent":
            time.sleep(3)
        else:
            self.wfile.write(body[: len(body) // 2] if way == "half" else body)

    def log_message(self, *args):
        pass

    def handle(self):
        with contextlib.suppress(OSError):  # the client hangs up, as it should
            super().handle()


@pytest.fixture(scope="module")
def host():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.daemon_threads = True
    threading.Thread(target=functools.partial(server.serve_forever, 0.02), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


NAME = "meta_Beauty.json.gz"
BY_HAND = rf"get it from http.*{NAME} and put it in raw, or set RAW_DIR to the folder that holds it"


@pytest.mark.parametrize(
    ("way", "stale", "reason"),
    [
        ("drip", None, r"only \d+ bytes came in \d+ s"),
        ("dripping%20header", None, r"no whole header came in 0\.3 s"),
        ("garbage", None, "SSH-2"),
        ("silent", None, "timed out"),
        ("nolength", None, "the host does not say how long the file is"),
        ("half", None, rf"\d+ of {len(CONTENT)} bytes came; run it again to resume"),
        ("short", None, rf"{len(CONTENT)} of {len(CONTENT) + 1} bytes came"),
        ("page", None, "what came is no gzip file"),
        ("404", None, "404: Not Found"),
        ("503", None, "503"),
        ("404", b"<html>", "404: Not Found"),
        ("half", b"<html>a page from a hotel's network", "bytes came"),
    ],
)
def test_hosts_that_misbehave(way, stale, reason, host, tmp_path, monkeypatch):
    """A host that dripped, or did not say how much there is, was waited for without an end."""
    monkeypatch.setattr(download, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.5)
    path = tmp_path / "raw" / NAME
    path.parent.mkdir()
    if stale:
        path.with_name(NAME + ".part").write_bytes(stale)
    started = time.monotonic()
    refused(lambda: download.fetch(path, (f"{host}{way}/",)), rf"{NAME} is missing .*{reason}.*: {BY_HAND}")
    assert time.monotonic() - started < 10 and not path.exists()
    assert download.fetch(path, (f"{host}good/",)).read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_a_stale_page_is_not_continued(host, tmp_path):
    """HTML of an earlier try was taken for the beginning of the file."""
    path = tmp_path / NAME
    path.with_name(NAME + ".part").write_bytes(b"<html>404</html>")
    assert download.fetch(path, (f"{host}good/",)).read_bytes() == CONTENT


def test_the_second_host_is_asked(host, tmp_path):
    addresses = tuple(f"{host}{way}/" for way in ("404", "page", "nolength", "good"))
    assert download.fetch(tmp_path / NAME, addresses).read_bytes() == CONTENT


def test_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "ADDRESSES", ("http://127.0.0.1:9/",))  # nobody listens there
    refused(
        lambda: download.fetch_missing("beauty", tmp_path / "raw"),
        r"reviews_Beauty_5\.json\.gz is missing",
    )
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_nothing_loads_a_pickle_or_foreign_code():
    """No code of a model's repository, no pickle, no archive of unknown kind."""
    for path in [
        *(ROOT / "gloss_utils").glob("*.py"),
        *(ROOT / "tools").glob("*.py"),
        *(ROOT / "notebooks").glob("*.ipynb"),
    ]:
        source = path.read_text(encoding="utf-8")
        assert not re.search(
            r"trust_remote_code|allow_pickle=True|import pickle|read_pickle|(?<![.\w])eval\(|torch\.load\(", source
        ), path.name
