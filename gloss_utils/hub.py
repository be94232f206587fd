"""Ask the Hugging Face hub once, before a download that would retry for minutes without a network."""

from pathlib import Path

import httpx
from huggingface_hub import HfApi, try_to_load_from_cache

TIMEOUT = 10  # seconds for the one question


def check_reachable(source: str) -> None:
    """Return if a model is on this disk, in the hub's cache, or on the hub.

    Args:
        source: a directory or a hub id ("owner/name").

    Raises:
        OSError: none of these; the message is the hub's.
    """
    if Path(source).is_dir():
        return
    try:
        if isinstance(try_to_load_from_cache(source, "config.json"), str):
            return
        HfApi().model_info(source, timeout=TIMEOUT)
    except (httpx.HTTPError, ValueError) as error:  # no network; not an id, such as a mistyped directory
        raise OSError(str(error)) from error
