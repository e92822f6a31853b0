"""The plugin `every_raise` finds what it is there for. `make test` runs the whole suite under it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.structure.every_raise import unreached
from tests.structure.source import PACKAGE, ROOT, Module, modules

SOURCE = """\
def check(n):
    if n < 0:
        raise ValueError(
            "negative"
        )
    if n == 0: raise ValueError("zero")
    try:
        return 1 / n
    except OverflowError:
        raise
"""


@pytest.fixture
def package(tmp_path: Path) -> dict[str, Module]:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__init__.py").write_text(SOURCE)
    return modules(tmp_path / "toy")


def test_a_raise_is_reached_when_one_of_its_lines_ran(package: dict[str, Module]):
    assert unreached(package, lambda path: {1, 2, 3, 6, 10}) == []
    assert unreached(package, lambda path: {1, 2, 4, 6, 10}) == []


def test_each_unreached_raise_is_named(package: dict[str, Module]):
    assert unreached(package, lambda path: {1, 2, 8}) == [
        "__init__.py:3: raise ValueError('negative')",
        "__init__.py:6: raise ValueError('zero')",
        "__init__.py:10: raise",
    ]


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
    first = next(line for line in unreached(modules(PACKAGE), lambda path: set()) if line.startswith("units.py"))
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
    every = unreached(modules(PACKAGE), lambda path: set())
    reached = [line for line in every if line.startswith("units.py") and line not in run.stdout]
    assert any("_not_bytes" in line for line in reached)
    assert any("_not_a_number" in line for line in reached)
