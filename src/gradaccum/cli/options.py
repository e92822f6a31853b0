"""Flags from the table of inputs: dashes or underscores, trainers' names as aliases, each given at most once."""

from __future__ import annotations

import argparse
import sys

from gradaccum.cli.terminal import columns
from gradaccum.core.fields import BY_NAME, FIELDS, NAME_OF, Field
from gradaccum.errors import InputError, Problem, nearest_words
from gradaccum.units import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GROUPS = {
    "main": "the batch",
    "solve": "to solve for something else",
    "parallel": "where a model is split over GPUs",
    "data": "the run",
    "rate": "learning rate",
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are InputErrors, with the nearest flag."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise what argparse would print."""
        raise InputError(Problem("", f"{message} (see: {self.prog} --help)"))


class Once(argparse.Action):
    """Stores a value; a second one is an error instead of a silent winner."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        """argparse's way of handing over one value."""
        if getattr(namespace, self.dest, None) is not None:
            raise InputError(Problem(self.dest, "was given twice; leave one out"))
        setattr(namespace, self.dest, values)


def new_parser(command: str, description: str, examples: str) -> Parser:
    """A parser without options. The width is fixed here because argparse would import a module to find it."""
    width = max(40, min(columns(), 100))
    return Parser(
        prog=f"gradaccum {command}",
        usage=f"gradaccum {command} [options]",
        description=f"{description}\n\nexamples:\n{examples}",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=width),
    )


def add_inputs(
    parser: argparse.ArgumentParser, groups: Sequence[str] = tuple(GROUPS), leave_out: Sequence[str] = ()
) -> None:
    """One flag for each input of FIELDS that is in `groups` and not in `leave_out`, and --preset."""
    for group in groups:
        section = parser.add_argument_group(GROUPS[group])
        for spec in FIELDS:
            if spec.group == group and spec.name not in leave_out:
                names = ([f"-{spec.short}"] if spec.short else []) + [spec.flag]
                metavar = {"count": "N", "choice": "WORD"}.get(spec.kind, "X")
                section.add_argument(*names, dest=spec.name, action=Once, metavar=metavar, help=_help(spec))
        if group == "solve":
            section.add_argument(
                "--preset",
                action=Once,
                metavar="NAME",
                help="start from a published run, such as bloom-176b; other flags override it",
            )


def parse(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments. Raises InputError, with the nearest flags, for one that nobody knows."""
    if any(argument.partition("=")[0] == "--steps" for argument in arguments):
        print("--steps is read as --updates: optimizer updates, not accumulation steps", file=sys.stderr)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    words = [each if each.partition("=")[0] in flags else canonical(each) for each in arguments]
    options, unknown = parser.parse_known_args(words)
    if not unknown:
        return options
    first = unknown[0].partition("=")[0]
    aliases = {"--" + alias.replace("_", "-"): BY_NAME[name].flag for alias, name in NAME_OF.items()}
    close = nearest_words(first[:40], [*flags, *aliases])
    nearest = list(dict.fromkeys(aliases.get(flag, flag) for flag in close))
    if not first.startswith("-"):
        raise InputError(Problem("", f"{first[:40]!r} belongs to no option (see: {parser.prog} --help)"))
    raise InputError(Problem("", f"there is no option {first[:40]}", nearest))


def inputs_of(options: argparse.Namespace) -> Mapping[str, object]:
    """The inputs among the options, over those of the preset if one is named."""
    values = {spec.name: getattr(options, spec.name, None) for spec in FIELDS}
    inputs = {name: value for name, value in values.items() if value is not None}
    if options.preset is None:
        return inputs
    from gradaccum.catalog.runs import find_run
    from gradaccum.core.request import over_preset

    run = find_run(options.preset)
    missing = [BY_NAME[name].flag for name in run.missing if name not in inputs]
    if missing:
        print(f"{run.name} publishes no {' and no '.join(missing)}: add what you have", file=sys.stderr)
    return over_preset(run.inputs(), inputs)


def seconds_of(text: str, flag: str, near: str) -> float:
    """The seconds above 0 that a flag is given. near: a usual number. Raises InputError for what is none."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(Problem(flag, f"is a number of seconds above 0, not {quote(text)}", [near]))
    return seconds


def echo_preset(options: argparse.Namespace) -> None:
    """Which run a preset's name stood for, and where its numbers come from."""
    if options.preset is not None:
        from gradaccum.catalog.runs import find_run

        run = find_run(options.preset)
        print(f"preset: {run.name}, {run.source}", file=sys.stderr)


def canonical(argument: str) -> str:
    """`--per_device_train_batch_size=4` -> `--micro-batch=4`"""
    if not argument.startswith("--") or argument == "--":
        return argument
    flag, equals, value = argument.partition("=")
    word = flag[2:].replace("-", "_")
    name = NAME_OF.get(word)
    return (BY_NAME[name].flag if name else "--" + word.replace("_", "-")) + equals + value


def _help(spec: Field) -> str:
    """The hint, with the words that may be given unless it names them itself."""
    words = "" if all(word in spec.hint for word in spec.choices) else f" ({' or '.join(spec.choices)})"
    return (spec.hint + words).replace("%", "%%")
