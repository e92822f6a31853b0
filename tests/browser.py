"""The Chromium that the page's tests drive: one that is there, or one that Playwright fetched.

`python -m tests.browser` fetches one where none is there. The tests themselves never use the network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "no Chromium was found: install one, name it in GRADACCUM_BROWSER, or run `playwright install chromium`"


def find() -> str | None:
    """The path of a Chromium that starts, or None.

    A browser named in GRADACCUM_BROWSER is the only one asked; ValueError when it does not start.
    """
    if named := os.environ.get("GRADACCUM_BROWSER"):
        if not _starts(named):
            raise ValueError(f"GRADACCUM_BROWSER is {named!r}, which does not start as a browser.")
        return named
    on_path = (path for name in NAMES if (path := shutil.which(name)))
    return next(filter(_starts, on_path), None) or _fetched()


def fetch() -> bool:
    """Let Playwright download its Chromium; False, with Playwright's own words on stderr, when it cannot."""
    command = [sys.executable, "-m", "playwright", "install", "chromium"]
    try:
        return subprocess.run(command, stdout=sys.stderr, timeout=300).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _starts(path: str) -> bool:
    """Whether it runs at all: a stub for a missing package or a library that is not there would not."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _fetched() -> str | None:
    # In a process of its own: Playwright's driver must not be running when a test starts it.
    ask = "from playwright.sync_api import sync_playwright as s\nwith s() as p: print(p.chromium.executable_path)"
    path = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout.strip()
    return path if path and _starts(path) else None


if __name__ == "__main__":
    found = find() or (fetch() and find())
    print(f"browser for the tests: {found}" if found else f"browser tests will be skipped: {MISSING}")
