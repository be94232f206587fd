"""One question to the hub instead of minutes of retries."""

import time

import httpx
import pytest

from gloss_utils import resources


def test_a_directory_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(resources.HfApi, "model_info", lambda *a, **k: pytest.fail("the hub was asked"))
    resources.check_reachable(str(tmp_path))


@pytest.mark.parametrize("error", [httpx.ConnectError("no route"), ValueError("not an id")])
def test_what_the_hub_does_not_give_is_an_os_error_at_once(monkeypatch, error):
    """Without a network, loading a Llama failed only after 2 minutes 47 seconds of retries."""
    asked = []

    def refuse(self, source, timeout):
        asked.append((source, timeout))
        raise error

    monkeypatch.setattr(resources.HfApi, "model_info", refuse)
    started = time.monotonic()
    with pytest.raises(OSError, match=str(error)):
        resources.check_reachable("nobody/no-such-model-of-this-course")
    assert asked == [("nobody/no-such-model-of-this-course", resources.TIMEOUT)] and time.monotonic() - started < 5


@pytest.mark.parametrize("source", ["./models/typo/dir", "../typo", "models/my model"])
def test_a_mistyped_directory_is_an_os_error_and_asks_nobody(source):
    """The cache look-up refused such a name with a ValueError of its own, before anything was caught."""
    with pytest.raises(OSError, match="Repo id"):
        resources.check_reachable(source)
