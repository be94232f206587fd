"""A prepared store of a dozen users, made once and copied for every fault."""

import injected
import pytest


@pytest.fixture(scope="session")
def store_template(tmp_path_factory):
    root = injected.write_tables(tmp_path_factory.mktemp("stores") / "store")
    injected.prepare(root)
    return root


@pytest.fixture
def store(store_template, tmp_path):
    """A directory of one's own: two raw tables, and what notebook 01 made of them."""
    return injected.copy(store_template, tmp_path / "store")
