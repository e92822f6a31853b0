"""The project speaks of itself: no path of a particular machine, nothing left for later."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from tests.structure.source import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The patterns are spelled so that they do not find themselves.
STRAY = {
    "a path of one machine": re.compile(r"(?<![\w.])/(?:work|root|home)[/]"),
    "a folder outside the project": re.compile(r"\.\.[/]shared"),
    "left for later": re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X])\b"),
}
SKIPPED = {"build", "dist", "node_modules", "__pycache__"}
SHOWN = {".ci", ".github"}


def files(root: Path) -> Iterator[Path]:
    """The files of the project; hidden folders are tools' own, except SHOWN."""
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name in SHOWN or (not name.startswith(".") and name not in SKIPPED)]
        yield from (root / folder / name for name in sorted(names) if name != ".git")  # a file, in a work tree


def stray(root: Path) -> list[str]:
    """`docs/plan.md:3: what it is: the line`, one for each line that says what it should not."""
    found = []
    for path in files(root):
        name = path.relative_to(root).as_posix()
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        for number, line in enumerate(text.splitlines(), 1):
            found += [
                f"{name}:{number}: {what}: {line.strip()[:80]}"
                for what, pattern in STRAY.items()
                if pattern.search(line)
            ]
    return found


def test_no_stray_words():
    found = stray(ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("see " + "/wo" + "rk/main/x.py", "a path of one machine"),
        ("'/ro" + "ot/.cache'", "a path of one machine"),
        ("../" + "shared/x", "a folder outside the project"),
        ("# TO" + "DO later", "left for later"),
    ],
)
def test_a_planted_line_is_found(tmp_path: Path, line: str, what: str):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(f"fine\n{line}\n")
    (found,) = stray(tmp_path)
    assert found.startswith(f"docs/a.md:2: {what}: ")


def test_what_only_looks_alike_is_left_alone(tmp_path: Path):
    (tmp_path / "a.md").write_text("https://example.org/work/index.html, work/a, ~/home, XXXL, methodology\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff/root/x")
    assert stray(tmp_path) == []
