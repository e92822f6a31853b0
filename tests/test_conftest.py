"""The rules of conftest.py and the search for a browser, which decide what a green run means."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import browser
from tests.structure.source import ROOT

SKIPS = """\
import pytest

def test_passes(): pass
def test_skips(): pytest.skip("not today")
@pytest.mark.gpu
def test_needs_a_gpu(monkeypatch): assert True
@pytest.mark.xfail(strict=True)
def test_fails_as_it_should(): assert False
"""


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "test_skips.py").write_text(SKIPS)
    settings: list[str | Path] = ["-c", ROOT / "pyproject.toml", "--rootdir", folder, "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", *settings, folder]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_a_skipped_test_fails_the_run_when_none_may_be_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRADACCUM_NO_SKIP", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = run(tmp_path)
    assert result.returncode == 1, result.stdout
    listed = result.stdout.partition("GRADACCUM_NO_SKIP allows none")[2]
    assert [line for line in listed.splitlines() if "::" in line] == ["test_skips.py::test_skips"]
    assert "1 passed, 2 skipped, 1 xfailed" in result.stdout


@pytest.mark.slow
def test_a_skipped_test_is_fine_otherwise_and_its_reason_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GRADACCUM_NO_SKIP", raising=False)
    result = run(tmp_path)
    assert result.returncode == 0, result.stdout
    assert "not today" in result.stdout


def script(path: Path, code: int) -> Path:
    path.write_text(f"#!/bin/sh\nexit {code}\n")
    path.chmod(0o755)
    return path


def test_a_named_browser_is_the_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    named = script(tmp_path / "my-browser", 0)
    monkeypatch.setenv("GRADACCUM_BROWSER", str(named))
    assert browser.find() == str(named)


def test_a_named_browser_that_does_not_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRADACCUM_BROWSER", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="nowhere"):
        browser.find()


def test_a_stub_on_the_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GRADACCUM_BROWSER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    script(tmp_path / "chromium", 1)
    works = script(tmp_path / "google-chrome", 0)
    assert browser.find() == str(works)
