"""What stands behind our flags, as a command that can be started; a mistake is said before anything starts."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest

from gradaccum.cli import main
from gradaccum.errors import InputError, MissingExtraError
from gradaccum.torch.audit.command import command_of, shut_out


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A shell's folder with a script, a package and a shell script."""
    (tmp_path / "train.py").write_text("")
    (tmp_path / "start.sh").write_text("#!/bin/sh\n")
    (tmp_path / "tool").write_text("#!/usr/bin/env python3\n")
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "train.py").write_text("raise AssertionError('imported')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("train.py --updates 5 -m x -- y", [sys.executable, "train.py", "--updates", "5", "-m", "x", "--", "y"]),
        ("tool", [sys.executable, "tool"]),
        ("-m package.train --lr 1", [sys.executable, "-m", "package.train", "--lr", "1"]),
        ("-mpackage.train", [sys.executable, "-m", "package.train"]),
        ("-m torch.distributed.run train.py", [sys.executable, "-m", "torch.distributed.run", "train.py"]),
        ("-- sh start.sh -- a", ["sh", "start.sh", "--", "a"]),
        (f"-- {sys.executable} -u train.py -I", [sys.executable, "-u", "train.py", "-I"]),
        ("-- env -i python -I train.py", "env -i python -I train.py".split()),
    ],
)
def test_a_command_as_it_is_started(folder, words, command):
    assert command_of(words.split()) == command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "name what to audit: a script, -m and a module, or -- and a command; nearest: gradaccum audit train.py"),
        ("trian.py", "there is no file trian.py; nearest: train.py"),
        ("nowhere/train.py", "there is no file nowhere/train.py"),
        ("sh", "there is no file sh; a command stands behind --; nearest: -- sh"),
        ("start.sh", "start.sh is no Python script; a command stands behind --; nearest: -- start.sh"),
        ("package", "package is a folder without a __main__.py; name its script; nearest: package/__init__.py"),
        ("-m", "-m wants the name of a module; nearest: -m package.train"),
        ("-m train.py", "-m wants the name of a module, and train.py is a file; nearest: train.py"),
        ("-m pakage.train", "there is no module pakage; nearest: -m package"),
        ("-m package.trainn", "there is no module trainn in package; nearest: -m package.train"),
        ("-m package", "the module package is a package without a __main__; nearest: -m package.train"),
        ("--", "-- wants a command behind it; nearest: gradaccum audit -- torchrun train.py"),
        ("-- train.py", "train.py is no command; a script stands there without --; nearest: train.py"),
        (f"-- {sys.executable} -uI train.py", "leave -uI out; nearest: -- "),
        (f"-- {sys.executable} -E -m x", "-E is deaf to the environment, so that it cannot be audited; leave -E out"),
    ],
)
def test_a_mistake_is_said_with_what_is_nearest(folder, words, message):
    with pytest.raises(InputError) as caught:
        command_of(words.split())
    assert message in str(caught.value)


def test_a_command_beside_this_python_is_named_with_its_folder(monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(InputError, match=r"there is no command torchrun; nearest: -- /.*/torchrun"):
        command_of(["--", "torchrun"])
    with pytest.raises(InputError, match="there is no command torchrum; nearest: -- torchrun"):
        command_of(["--", "torchrum"])


def test_a_python_without_torch_is_said_before_the_run(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"-- before the command .* pip install 'gradaccum\[torch\]'"):
        command_of(["train.py"])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("python -I a.py", ("python", "-I")),
        ("env A=1 /usr/bin/python3.11 -u -bE -c pass", ("/usr/bin/python3.11", "-bE")),
        ("torchrun --no-python python3 -S a.py", ("python3", "-S")),
        ("python a.py -I", None),
        ("python -m module -E", None),
        ("python -X Importtime -W Error a.py", None),
        ("torchrun -I a.py", None),
    ],
)
def test_a_python_that_cannot_be_entered(words, found):
    assert shut_out(words.split()) == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit"], "name what to audit"),
        (["--"], "-- wants a command"),
        (["audit", "--update", "3", "train.py"], "there is no option --update; nearest: --updates"),
        (["audit", "--updates", "0", "train.py"], "--updates must be at least 1"),
        (["audit", "--updates", "train.py"], "--updates"),
        (["audit", "--global-batch-size", "many", "train.py"], "--target-batch"),
        (["audit", "--json", "--depth", "1", "train.py"], "there is no option --depth"),
        (["audit", "-o", "no/where.html", "train.py"], "--output there is no folder"),
        (["audit", "-o", ".", "train.py"], "--output . is a folder"),
        (["audit", "--updates", "2", "--updates", "3", "train.py"], "was given twice"),
        (["audit", "--repro", "train.py", "train.py"], "--repro train.py is a file; name a folder"),
        (["audit", "gone.py"], "there is no file gone.py"),
    ],
)
def test_the_command_line_says_it_and_ends_with_2(folder, capsys, arguments, message):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""


def test_help_names_each_way(capsys):
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    said = capsys.readouterr().out
    assert "train.py ... | -m module ... | -- command ..." in said
    assert "--epoch-end" in said
