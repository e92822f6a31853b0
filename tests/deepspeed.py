"""DeepSpeed for the tests that run it: in a folder of its own, so that no other library finds it and changes its ways.

`python -m tests.deepspeed` fetches it where it is not there. The tests themselves never use the network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "0.19.8"
FOLDER = Path(__file__).parents[1] / ".cache" / f"deepspeed-{VERSION}"
# Its requirements but those that the tests' own environment has.
PACKAGES = (f"deepspeed=={VERSION}", "einops", "hjson", "msgpack", "ninja", "py-cpuinfo")
MISSING = f"DeepSpeed {VERSION} is not here: `make deepspeed` fetches it"


def find() -> Path | None:
    """The folder to import it from, or None."""
    return FOLDER if (FOLDER / "deepspeed").is_dir() else None


def fetch() -> Path | None:
    """Let pip bring it; None, with pip's own words on stderr, where it cannot."""
    part = FOLDER.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(part), *PACKAGES]
    if subprocess.run(command, stdout=sys.stderr, env={**os.environ, "DS_BUILD_OPS": "0"}).returncode:
        return None
    part.rename(FOLDER)
    return find()


if __name__ == "__main__":
    found = find() or fetch()
    print(f"DeepSpeed for the tests: {found}" if found else f"tests of DeepSpeed will be skipped: {MISSING}")
