"""Fetch the raw files of Amazon 2014 where they are missing."""

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from tqdm.auto import tqdm

from .paths import show

# The hosts of McAuley's Amazon data of 2014, tried in this order.
ADDRESSES = (
    "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/",
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon/categoryFiles/",
)
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 20


def fetch(path: Path, progress: bool = True, addresses: tuple[str, ...] = ()) -> Path:
    """Download one raw file; resume where an earlier try stopped.

    Args:
        path: where it goes; its name is its name on the host too.
        progress: show a bar.
        addresses: folders that hold it; those of the data set's hosts by default.

    Raises:
        FileNotFoundError: no host has sent it; the sentence says which file to put where.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    addresses = addresses or ADDRESSES
    for address in addresses:
        try:
            return _fetch_from(address + path.name, path, progress)
        except (urllib.error.URLError, OSError) as error:
            reasons.append(str(error))
    raise FileNotFoundError(
        f"{path.name} is missing and could not be downloaded ({reasons[-1]}): get it from {addresses[0]}{path.name} "
        f"and put it in {show(path.parent)}, or set RAW_DIR to the folder that holds it"
    )


def _fetch_from(address: str, path: Path, progress: bool) -> Path:
    """Append what is missing to `<name>.part`, check the size, rename."""
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    with _open(address, have) as response:
        resumed = response.status == 206
        have = have if resumed else 0  # a host that ignores the range sends everything again
        total = have + int(response.headers.get("Content-Length", 0))
        with (
            part.open("ab" if resumed else "wb") as out,
            tqdm(total=total, initial=have, desc=path.name, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            while chunk := response.read(CHUNK_BYTES):
                out.write(chunk)
                bar.update(len(chunk))
    if part.stat().st_size != total:
        raise OSError(f"{part.stat().st_size} of {total} bytes came; run it again to resume")
    os.replace(part, path)
    return path


def _open(address: str, have: int) -> http.client.HTTPResponse:
    """Ask for what is missing; for everything where the host has nothing beyond what is there."""
    try:
        headers = {"Range": f"bytes={have}-"} if have else {}
        return urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if have and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _open(address, 0)
        raise
