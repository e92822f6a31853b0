"""Which command runs, and what happens to errors, pipes and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import gradaccum
from gradaccum.cli import main
from gradaccum.cli.commands import COMMANDS
from gradaccum.errors import MissingExtraError

PROGRAM = [sys.executable, "-m", "gradaccum"]


def test_alone_it_prints_three_lines_that_work(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line in lines[:2]:
        command = line.split("#")[0].split()
        assert command[0] == "gradaccum"
        assert main(command[1:]) == 0
    assert lines[2].startswith("gradaccum serve --open")


@pytest.mark.parametrize("flag", ["-h", "--help", "help"])
def test_help_names_every_command(capsys, flag):
    assert main([flag]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"  gradaccum {command}" in capsys.readouterr().out or command == "completion"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gradaccum {gradaccum.__version__}\n"


@pytest.mark.parametrize(("word", "nearest"), [("plam", "plan"), ("tabel", "table"), ("train.py", "plan")])
def test_an_unknown_command_brings_the_nearest(capsys, word, nearest):
    assert main([word]) == 2
    assert nearest in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [["plan", "-m", "4..8", "-g", "a few of them", "-t", "500", "-s", "0"], ["audit"]],
    ids=["three", "nearest"],
)
def test_errors_are_wrapped_on_a_terminal_and_whole_in_a_pipe(capsys, monkeypatch, wrong):
    assert main(wrong) == 2
    whole = capsys.readouterr().err
    assert max(map(len, whole.splitlines())) > 60
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(wrong) == 2
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(lines).split() == whole.split()
    starts = [line for line in lines if line.startswith("gradaccum: ")]
    assert starts
    assert len(starts) == len([line for line in whole.splitlines() if line.startswith("gradaccum: ")])
    assert all(line.startswith("  ") for line in lines if line not in starts)


def test_a_missing_extra_is_said_plainly(capsys, monkeypatch):
    from gradaccum.cli import serve

    def missing(arguments):
        raise MissingExtraError("The live page", "web", "starlette")

    monkeypatch.setattr(serve, "run", missing)
    assert main(["serve"]) == 2
    assert "pip install 'gradaccum[web]'" in capsys.readouterr().err


def test_ctrl_c_is_130(monkeypatch):
    from gradaccum.cli import table

    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "run", interrupted)
    assert main(["table"]) == 130


def test_a_closed_pipe_ends_in_silence():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [*PROGRAM, "table", "-m", "1..2000", "-g", "8", "-t", "500", "--limit", "0"],
            stdout=closed, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    assert done.stderr == b""
    assert done.returncode == 128 + signal.SIGPIPE


def test_a_pipe_that_closes_before_an_error_message():
    """Wrong input after buffered output: the message comes, and nothing else."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run([*PROGRAM, "-m", "x"], stdout=closed, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"gradaccum: --micro-batch")


def test_port_numbers(capsys):
    assert main(["serve", "--port", "70000"]) == 2
    assert "65535" in capsys.readouterr().err
    assert main(["serve", "--port", "http"]) == 2
