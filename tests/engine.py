"""The engine of the static page for its tests: the npm package that is kept, as `gradaccum site build` keeps it.

`python -m tests.engine` fetches it where it is not there. The tests themselves never use the network.
"""

from __future__ import annotations

import os
import shutil

from gradaccum.errors import GradaccumError
from gradaccum.web.site.engine import engine_code, kept_package

MISSING = "the engine of the static page is not here and was not fetched: `gradaccum site build DIR` says why"


def find() -> str | None:
    """The path of the npm package that is kept, or None."""
    return kept_package() if os.path.exists(kept_package()) else None


def node() -> str:
    """Node, or the one that Playwright brings along for itself."""
    if found := shutil.which("node"):
        return found
    from playwright._impl._driver import compute_driver_executable

    return compute_driver_executable()[0]


def _fetched() -> str | None:
    try:
        engine_code()
    except GradaccumError:
        return None
    return find()


if __name__ == "__main__":
    found = find() or _fetched()
    print(f"engine for the tests: {found}" if found else f"tests of the static page will be skipped: {MISSING}")
