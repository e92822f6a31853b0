"""The plugin `every_raise` finds what it is there for. `make test` runs the whole suite under it."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.structure.every_raise import NOTE, NotingLoader, unreached
from tests.structure.source import PACKAGE, ROOT, modules

SOURCE = """\
def check(n):
    if n < 0:
        raise ValueError(
            "negative"
        )
    if n == 0: raise ValueError("zero")
    try:
        return 1 / n
    except TypeError:
        raise
"""


class Odd(int):
    """Passes both comparisons as 1 does, and cannot be divided by."""

    def __new__(cls) -> Odd:
        return super().__new__(cls, 1)

    def __rtruediv__(self, other: object) -> float:
        raise TypeError(other)


def _write(folder: Path) -> Path:
    (folder / "toy").mkdir()
    path = folder / "toy" / "__init__.py"
    path.write_text(SOURCE)
    return path


def test_each_unreached_raise_is_named(tmp_path: Path):
    path = _write(tmp_path)
    package = modules(path.parent)
    assert unreached(package, {(str(path), line) for line in (3, 6, 10)}) == []
    assert unreached(package, {(str(path), 4), ("elsewhere.py", 3)}) == [
        "__init__.py:3: raise ValueError('negative')",
        "__init__.py:6: raise ValueError('zero')",
        "__init__.py:10: raise",
    ]


def test_a_raise_is_noted_when_it_is_reached_and_does_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = _write(tmp_path)
    reached = set()
    monkeypatch.setattr(builtins, NOTE, lambda *place: reached.add(place), raising=False)
    toy: dict[str, Any] = {}
    exec(NotingLoader("toy", str(path)).get_code("toy"), toy)
    assert toy["check"](2) == 0.5
    assert reached == set()
    for n, error, line in ((-1, ValueError, 3), (0, ValueError, 6), (Odd(), TypeError, 10), ("1", TypeError, None)):
        reached.clear()
        with pytest.raises(error):
            toy["check"](n)
        assert reached == ({(str(path), line)} if line else set())
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow
def test_a_run_that_reaches_too_little_fails(tmp_path: Path):
    """One passing test that raises nothing: the run is red, and lists what it left out."""
    (tmp_path / "test_one.py").write_text(
        "import gradaccum.units\n\n\ndef test_nothing():\n    assert gradaccum.units.__name__\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.structure.every_raise", "-p", "no:cacheprovider"]
    run = subprocess.run([*command, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 passed" in run.stdout
    first = next(line for line in unreached(modules(PACKAGE), ()) if line.startswith("units.py"))
    assert first in run.stdout


@pytest.mark.slow
def test_what_each_worker_reached_counts(tmp_path: Path):
    """Two tests in two processes, each of which raises one error of the same file."""
    names = {"count": "units.read_count('?')", "bytes": "units.read_bytes('?')"}
    for name, call in names.items():
        (tmp_path / f"test_{name}.py").write_text(
            "import pytest\nfrom gradaccum import units\nfrom gradaccum.errors import GradaccumError\n\n\n"
            f"def test_it():\n    with pytest.raises(GradaccumError):\n        {call}\n"
        )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.structure.every_raise", "-p", "no:cacheprovider"]
    run = subprocess.run([*command, "-n2", "--dist=loadfile", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert "2 passed" in run.stdout, run.stdout + run.stderr
    every = unreached(modules(PACKAGE), ())
    reached = [line for line in every if line.startswith("units.py") and line not in run.stdout]
    assert any("_not_bytes" in line for line in reached)
    assert any("_not_a_number" in line for line in reached)
