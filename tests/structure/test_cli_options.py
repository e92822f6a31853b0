"""The command line's options: what scripts rely on. A change here is a change of the interface."""

from __future__ import annotations

import argparse

from gradaccum.cli.completion import parsers
from gradaccum.core.fields import NAME_OF
from tests.structure import frozen


def described(parser: argparse.ArgumentParser) -> list[str]:
    """One line for each option or argument: its names, what may follow, and the choices."""
    return [
        " ".join(
            [
                *([", ".join(action.option_strings)] if action.option_strings else [f"<{action.dest}>"]),
                *([f"nargs={action.nargs}"] if action.nargs is not None else []),
                *(["choices=" + ",".join(map(str, action.choices))] if action.choices else []),
            ]
        )
        for action in parser._actions  # argparse has no public list of them
    ]


def test_the_options_of_every_command_are_the_frozen_ones():
    options = [f"{command}: {line}" for command, parser in sorted(parsers().items()) for line in described(parser)]
    spellings = [f"{spelling} = {name}" for spelling, name in sorted(NAME_OF.items()) if spelling != name]
    title = "Every option of every command; below, the other spellings that are understood"
    frozen.check("cli_options.txt", options + spellings, title)


def test_every_option_has_a_help_text():
    silent = [
        f"{command} {action.option_strings or action.dest}"
        for command, parser in parsers().items()
        for action in parser._actions
        if not action.help
    ]
    assert silent == []


def test_the_description_shows_names_counts_and_choices():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-r", "--rounding", choices=["round", "ceil"])
    parser.add_argument("--loop", nargs="?")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("shell")
    assert described(parser) == ["-r, --rounding choices=round,ceil", "--loop nargs=?", "--strict nargs=0", "<shell>"]
