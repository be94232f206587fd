"""Download the raw files of an Amazon category where they are missing: `python -m tools.download beauty`."""

import argparse
import http.client
import multiprocessing
import os
import sys
import time
import urllib.request
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm.auto import tqdm

from gloss_utils.paths import dataset_paths, show
from gloss_utils.raw_data import CATEGORIES, category_files

# The hosts of McAuley's Amazon data of 2014, tried in this order.
ADDRESSES = (
    "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/",
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon/categoryFiles/",
)
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 20
PATIENCE_SECONDS, LEAST_PACE = 60, 1000  # after so long, a host that sent fewer bytes per second is given up
GZIP_START = b"\x1f\x8b"


def fetch_missing(dataset: str, raw_dir: str | Path) -> None:
    """Download what `raw_dir` lacks of a category; the sample store and one's own tables are on no host."""
    if dataset in CATEGORIES and dataset != "sample":
        for path in category_files(dataset, raw_dir):
            if not path.exists():
                print(f"{path.name} is missing from {show(path.parent)}: downloading", flush=True)
                fetch(path)


def fetch(path: Path, addresses: tuple[str, ...] = ()) -> Path:
    """Download one raw file, from the hosts of the dataset by default; resume where an earlier try stopped.

    Instead of pooch: after a break it starts again from nothing, and these files are tens of megabytes to gigabytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, addresses = path.with_name(path.name + ".part"), addresses or ADDRESSES
    for address in addresses:
        try:
            _fetch_into(part, address + path.name)
            os.replace(part, path)
            return path
        except (OSError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split())  # a host that speaks no HTTP is quoted
            if getattr(error, "code", 0) == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink(missing_ok=True)  # nothing beyond what is there: not the beginning of this file
    raise FileNotFoundError(
        f"{path.name} is missing and could not be downloaded ({reason}): get it from {addresses[0]}{path.name} "
        f"and put it in {show(path.parent)}, or set RAW_DIR to the folder that holds it"
    )


def _fetch_into(part: Path, address: str) -> None:
    """Append what is missing, and check that it is gzip and as long as the host said."""
    have = part.stat().st_size if part.exists() and _is_gzip(part) else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    with _ask(request) as response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        have = have if resumed else 0  # a host that ignores the range sends everything again
        if "Content-Length" not in response.headers:
            raise OSError("the host does not say how long the file is")
        total, started, first = have + int(response.headers["Content-Length"]), time.monotonic(), have
        with (
            part.open("ab" if resumed else "wb") as out,
            tqdm(total=total, initial=have, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := response.read1(CHUNK_BYTES):  # read() waits for a whole chunk, however slowly it drips
                out.write(chunk)
                bar.update(len(chunk))
                seconds = time.monotonic() - started
                if seconds > PATIENCE_SECONDS and out.tell() - first < LEAST_PACE * seconds:
                    raise OSError(f"only {out.tell() - first} bytes came in {seconds:.0f} s")
    if part.stat().st_size != total:
        raise OSError(f"{part.stat().st_size} of {total} bytes came; run it again to resume")
    if not _is_gzip(part):
        raise OSError("what came is no gzip file")


def _ask(request: urllib.request.Request):
    """Wait `PATIENCE_SECONDS` for a whole header: urllib's own limit is for each byte, and a host may drip them."""
    with ThreadPool(1) as pool:  # its thread ends with Python, and not after the last byte
        answer = pool.apply_async(urllib.request.urlopen, (request,), {"timeout": TIMEOUT_SECONDS})
        try:
            return answer.get(PATIENCE_SECONDS)
        except multiprocessing.TimeoutError:
            raise OSError(f"no whole header came in {PATIENCE_SECONDS} s") from None


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == GZIP_START


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.download", description=__doc__)
    parser.add_argument("dataset", choices=[name for name in CATEGORIES if name != "sample"])
    parser.add_argument("--raw-dir", metavar="FOLDER", help="where the files go (default: data/<dataset>/raw)")
    options = parser.parse_args(argv)
    try:
        fetch_missing(options.dataset, options.raw_dir or dataset_paths(options.dataset).raw)
        return 0
    except OSError as error:
        print(f"download: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("download: stopped; the same command goes on where it was", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
