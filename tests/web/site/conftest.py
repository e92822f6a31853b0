"""The engine, Node, and a folder built once for all tests here."""

from __future__ import annotations

import pytest

from gradaccum.web.site.build import build
from tests import engine


@pytest.fixture(scope="session")
def package():
    """The engine's npm package; a test that asks for it is skipped where it is not there."""
    found = engine.find()
    if found is None:
        pytest.skip(engine.MISSING)
    return found


@pytest.fixture(scope="session")
def node():
    return engine.node()


@pytest.fixture(scope="session")
def site(package, tmp_path_factory):
    """The built folder, below others: .../some/folder."""
    folder = tmp_path_factory.mktemp("host") / "some" / "folder"
    build(str(folder), package)
    return folder
