"""`python -m gradaccum`."""

from __future__ import annotations

import runpy
import subprocess
import sys

import pytest


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "gradaccum", "plan", "-m", "4", "-g", "8", "-t", "512", "--quiet"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "16\n"


def test_the_exit_code_is_that_of_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["gradaccum", "plan", "-m", "0", "-g", "8", "-t", "512"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("gradaccum", run_name="__main__")
    assert left.value.code == 2
    assert capsys.readouterr().out == ""
