"""Fetching raw files: under their own names, resumed after a break, from the next host, and by the runner alone."""

import http.server
import threading

import pytest

from gloss_utils import paths
from tools import course, download

CONTENT = download.GZIP_START + bytes(range(256)) * 40


class Host(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, with ranges; the path says how it misbehaves."""

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if "missing" in self.path:
            return self.send_error(404)
        start = int(wanted.split("=")[1].rstrip("-")) if wanted and "norange" not in self.path else 0
        if start >= len(CONTENT):
            return self.send_error(416)
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if "cut" in self.path else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def host():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.ranges = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(host, path, folder=""):
    return download.fetch(path, (f"http://127.0.0.1:{host.server_port}/{folder}",))


def test_a_file_is_fetched_under_its_own_name(host, tmp_path):
    path = fetch(host, tmp_path / "raw" / "meta_Beauty.json.gz")
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_a_broken_connection_is_resumed(host, tmp_path):
    path = tmp_path / "meta_Beauty.json.gz"
    with pytest.raises(FileNotFoundError, match="bytes came"):
        fetch(host, path, "cut/")
    assert not path.exists(), "half a file never lies under the final name"
    half = (tmp_path / "meta_Beauty.json.gz.part").stat().st_size
    assert 0 < half < len(CONTENT)
    assert fetch(host, path).read_bytes() == CONTENT
    assert host.ranges[-1] == f"bytes={half}-"


def test_a_host_without_ranges_starts_again(host, tmp_path):
    path = tmp_path / "meta_Beauty.json.gz"
    path.with_name(path.name + ".part").write_bytes(CONTENT[:2] + b"old half")
    assert fetch(host, path, "norange/").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"", CONTENT + b"!"], ids=["nothing there yet", "a part longer than the file"])
def test_the_next_host_is_tried(host, tmp_path, part):
    """A part that the host has nothing beyond of (416) would have been asked for again for ever."""
    base = f"http://127.0.0.1:{host.server_port}/"
    path = tmp_path / "meta_Beauty.json.gz"
    path.with_name(path.name + ".part").write_bytes(part)
    assert download.fetch(path, (base + ("" if part else "missing/"), base)).read_bytes() == CONTENT


@pytest.fixture
def near(host, monkeypatch):
    """The host of this test in place of the real ones."""
    monkeypatch.setattr(download, "ADDRESSES", (f"http://127.0.0.1:{host.server_port}/",))
    return host


def test_only_what_is_missing_is_fetched(near, tmp_path, capsys):
    (tmp_path / "meta_Beauty.json.gz").write_bytes(b"mine")
    assert download.main(["beauty", "--raw-dir", str(tmp_path)]) == 0
    assert (tmp_path / "reviews_Beauty_5.json.gz").read_bytes() == CONTENT
    assert (tmp_path / "meta_Beauty.json.gz").read_bytes() == b"mine" and len(near.ranges) == 1
    assert "reviews_Beauty_5.json.gz is missing from" in capsys.readouterr().out
    assert download.main(["beauty", "--raw-dir", str(tmp_path)]) == 0 and len(near.ranges) == 1


@pytest.mark.parametrize("dataset", ["sample", "./beauty", "my_store"])
def test_a_store_that_is_on_no_host_is_not_asked_for(near, tmp_path, dataset):
    """A folder of one's own may have a category's name."""
    download.fetch_missing(dataset, tmp_path)
    assert near.ranges == [] and list(tmp_path.iterdir()) == []


def test_offline_is_one_sentence_that_says_which_file_to_put_where(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(download, "ADDRESSES", ("http://127.0.0.1:9/",))  # nobody listens there
    assert download.main(["beauty", "--raw-dir", str(tmp_path / "raw")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("download: reviews_Beauty_5.json.gz is missing") and printed.count("\n") == 1
    assert "and put it in raw, or set RAW_DIR" in printed


@pytest.mark.parametrize(("only", "fetched"), [("01", 2), ("00", 2), ("02", 0)])
def test_the_runner_fetches_before_the_notebooks_that_read_raw_files(near, tmp_path, monkeypatch, only, fetched):
    """Fetched by the notebook, they came after the fingerprint that names them: the next run did all again."""
    monkeypatch.setattr(course, "package_digest", lambda: "package")  # someone may be editing it
    ran = []
    monkeypatch.setattr(course, "run_if_stale", lambda notebook, *rest: ran.append(rest[3]) or ("", "ran", 0.0))
    arguments = ["--only", only, "--out", str(tmp_path / "runs"), "-p", "DATASET", "beauty"]
    for _ in range(2):
        assert course.main([*arguments, "-p", "DATA_DIR", str(tmp_path / "data")]) == 0
    raw = paths.dataset_paths("beauty", tmp_path / "data").raw
    assert len(list(raw.glob("*.gz"))) == len(near.ranges) == fetched
    assert ran[0] == ran[1], "the fingerprint knows the files that were fetched"
