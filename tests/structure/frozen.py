"""Surfaces that may only change on purpose are kept as text beside the tests.

The command HOW writes the files anew, and what README.md and docs/*.md show of commands; the commit then shows
what changed.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent
HOW = "GRADACCUM_WRITE_FROZEN=1 pytest tests/structure"


def is_written_anew() -> bool:
    """Whether the person asked for it."""
    return os.environ.get("GRADACCUM_WRITE_FROZEN") == "1"


def lines(name: str) -> list[str]:
    """The lines of a frozen file, without comments."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def check(name: str, now: list[str], title: str) -> None:
    """Assert that `now` is what the file holds, or write it there when that is asked for."""
    if is_written_anew():
        text = "\n".join([f"# {title}", f"# Written by: {HOW}", *now])
        (FOLDER / name).write_text(text + "\n", encoding="utf-8")
    before = lines(name)
    changes = [f"- {line}" for line in before if line not in now] + [f"+ {line}" for line in now if line not in before]
    assert now == before, "\n".join([f"{name} differs; if that is meant: {HOW}", *changes])
