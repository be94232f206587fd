"""Memory that is read and given back, and one question to the hub."""

import gc
import mmap
import weakref

import httpx
import pytest
import torch

from gloss_utils import resources


def test_memory_rises_with_what_is_allocated():
    """A tensor of 100 MiB did not always raise it: the allocator gave out room that earlier tests had left resident.

    A mapping of its own is new memory, whatever ran before; it is resident once every page was written.
    """
    before = resources.memory()["resident_mib"]
    with mmap.mmap(-1, 100 * resources.MIB) as kept:
        kept.write(b"\1" * len(kept))
        assert resources.memory()["resident_mib"] - before > 80


def test_free_memory_collects_models_that_refer_to_themselves():
    gc.collect()  # so that no collection of Python's own comes before ours
    model = torch.nn.Linear(2, 2)
    model.hooks = [model]  # a cycle, as between a trainer and its model
    gone = weakref.ref(model)
    del model
    assert gone() is not None
    resources.free_memory()
    assert gone() is None


def test_a_directory_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(resources.HfApi, "model_info", lambda *a, **k: pytest.fail("the hub was asked"))
    resources.check_reachable(str(tmp_path))


@pytest.mark.parametrize("error", [httpx.ConnectError("no route"), ValueError("not an id")])
def test_what_the_hub_does_not_give_is_an_os_error_at_once(monkeypatch, error):
    """Without a network, loading a Llama failed only after 2 minutes 47 seconds of retries: the hub is asked once."""
    asked = []

    def refuse(self, source, timeout):
        asked.append((source, timeout))
        raise error

    monkeypatch.setattr(resources.HfApi, "model_info", refuse)
    with pytest.raises(OSError, match=str(error)):
        resources.check_reachable("nobody/no-such-model-of-this-course")
    assert asked == [("nobody/no-such-model-of-this-course", resources.TIMEOUT)]


@pytest.mark.parametrize("source", ["./models/typo/dir", "../typo", "models/my model"])
def test_a_mistyped_directory_is_an_os_error_and_asks_nobody(source):
    """The cache look-up refused such a name with a ValueError of its own, before anything was caught."""
    with pytest.raises(OSError, match="Repo id"):
        resources.check_reachable(source)
