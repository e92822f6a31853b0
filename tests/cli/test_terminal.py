"""Colour, width and narrow terminals."""

from __future__ import annotations

import os
import re

import pytest

from gradaccum.cli import main
from gradaccum.cli.terminal import columns, style

ANSWER = ["plan", "-m", "4", "-g", "8", "-t", "500", "-s", "2048"]


@pytest.mark.parametrize(
    ("environment", "flag", "colour"),
    [
        ({}, False, False),  # captured output is no terminal
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1"}, True, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, False, False),
    ],
)
def test_colour(monkeypatch, environment, flag, colour):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert style(flag).colour is colour


def test_colour_on_a_terminal_unless_it_is_dumb(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert style(False).colour
    monkeypatch.setenv("TERM", "dumb")
    assert not style(False).colour


@pytest.mark.parametrize(("text", "width"), [("100", 100), ("0", 80), ("wide", 80), ("9999999", 80)])
def test_width(monkeypatch, text, width):
    monkeypatch.setenv("COLUMNS", text)
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((0, 0)))
    assert columns() == width


def test_width_where_there_is_no_terminal(monkeypatch):
    def none(fd):
        raise OSError

    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", none)
    assert columns() == 80


@pytest.mark.parametrize("width", [30, 40, 56, 80, 120])
@pytest.mark.parametrize(
    "more", [[], ["--explain"], ["--dataset-size", "10k", "--epochs", "3", "--lr", "3e-4", "--base-batch", "64"]]
)
def test_no_line_is_wider_than_the_terminal(capsys, monkeypatch, width, more):
    monkeypatch.setenv("COLUMNS", str(width))
    main([*ANSWER, *more])
    plain = capsys.readouterr().out
    for line in plain.splitlines():
        longest_word = max((len(word) for word in line.split()), default=0)
        assert len(line) <= width or longest_word + 2 >= width, line
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    main([*ANSWER, *more])
    coloured = capsys.readouterr().out
    assert "\x1b[1m" in coloured
    assert re.sub(r"\x1b\[\d*m", "", coloured) == plain
