"""Fetching raw files from a host on this machine: resume, size check, and the sentence when offline."""

import http.server
import threading

import pytest

from gloss_utils import raw_data, raw_files

CONTENT = bytes(range(256)) * 40


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
    return raw_files.fetch(path, progress=False, addresses=(f"http://127.0.0.1:{host.server_port}/{folder}",))


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
    path.with_name(path.name + ".part").write_bytes(b"old half")
    assert fetch(host, path, "norange/").read_bytes() == CONTENT


def test_a_part_that_is_already_whole_is_taken(host, tmp_path):
    path = tmp_path / "meta_Beauty.json.gz"
    path.with_name(path.name + ".part").write_bytes(CONTENT)
    assert fetch(host, path).read_bytes() == CONTENT


def test_the_next_host_is_tried(host, tmp_path):
    base = f"http://127.0.0.1:{host.server_port}/"
    path = raw_files.fetch(tmp_path / "meta_Beauty.json.gz", False, (base + "missing/", base))
    assert path.read_bytes() == CONTENT


def test_offline_says_which_file_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setattr(raw_files, "ADDRESSES", ("http://127.0.0.1:9/",))  # nobody listens there
    with pytest.raises(
        FileNotFoundError, match=r"reviews_Beauty_5.json.gz is missing .* put it in raw, or set RAW_DIR"
    ):
        raw_data.prepare("beauty", data_dir=tmp_path, progress=False)
