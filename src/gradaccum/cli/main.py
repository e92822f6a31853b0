"""Which command, and what happens to errors: exit 0 fine, 1 a fault found, 2 wrong input, 130 Ctrl-C.

Data goes to stdout, remarks to stderr. Only the chosen command's module is imported, since start-up is felt.
"""

from __future__ import annotations

import os
import sys

from gradaccum.cli.commands import COMMANDS
from gradaccum.errors import GradaccumError, InputError, Problem, nearest_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

THREE_LINES = """\
gradaccum plan -m 4 -g 8 -t 500 -s 2048    # micro-batch 4 on 8 GPUs, 500 sequences wanted
gradaccum table -m 1..16 -g 8,16 -t 512    # every micro-batch up to 16, on 8 and on 16 GPUs
gradaccum serve --open                     # the same, live in a browser
"""

CLOSED_PIPE = 141
"""What a shell reports for a program that a closed pipe ended (128 + SIGPIPE)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. arguments: those after the program's name."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except InputError as error:
        _flush_quietly()
        for problem in error.problems:
            _print_error(_with_flag(problem, argv))
        return 2
    except GradaccumError as error:
        _print_error(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _let_stdout_go()
        return CLOSED_PIPE


def _run(argv: list[str]) -> int:
    if not argv:
        print(THREE_LINES, end="")
        return 0
    first = argv[0]
    if first in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    if first in ("-V", "--version"):
        from gradaccum import __version__

        print(f"gradaccum {__version__}")
        return 0
    if first in COMMANDS:
        code: int = _module(first).run(argv[1:])
        return code
    if first == "--":
        return int(_module("audit").run(argv))
    if first.startswith("-"):
        return int(_module("plan").run(argv))
    nearest = nearest_words(first[:40], COMMANDS) or list(COMMANDS)
    raise InputError(Problem("", f"there is no command {first[:40]!r}", nearest))


def _module(name: str):  # type: ignore[no-untyped-def]
    """The command's module: it has `parser()` and `run(arguments)`."""
    if name == "plan":
        from gradaccum.cli import plan as module
    elif name == "table":
        from gradaccum.cli import table as module  # type: ignore[no-redef]
    elif name == "fit":
        from gradaccum.cli import fit as module  # type: ignore[no-redef]
    elif name == "audit":
        from gradaccum.cli import audit as module  # type: ignore[no-redef]
    elif name == "serve":
        from gradaccum.cli import serve as module  # type: ignore[no-redef]
    elif name == "site":
        from gradaccum.cli import site as module  # type: ignore[no-redef]
    else:
        from gradaccum.cli import completion as module  # type: ignore[no-redef]
    return module


def _help() -> str:
    commands = "\n".join(f"  {name:<12}{what}" for name, what in COMMANDS.items())
    return (
        "gradaccum: from a target batch to a verified training step, on the GPUs that you have\n\n"
        f"Try:\n{''.join('  ' + line + chr(10) for line in THREE_LINES.splitlines())}\n"
        f"Commands:\n{commands}\n\n"
        "Without a command, options make a plan: gradaccum -m 4 -g 8 -t 500\n"
        "Options of a command: gradaccum COMMAND --help\n"
    )


def _with_flag(problem: Problem, argv: list[str]) -> str:
    """The problem in the words of the command line: `--micro-batch must be ...`, long suggestions below it."""
    import re

    from gradaccum.core.fields import BY_NAME

    options = _module(argv[0] if argv and argv[0] in COMMANDS else "plan").parser()._actions
    own = {each.dest: max(each.option_strings, key=len) for each in options if each.option_strings}
    flags = {**own, **{name: spec.flag for name, spec in BY_NAME.items()}}
    # A command's own names are rewritten in a sentence where they can be no English word.
    names = {*BY_NAME, *[name for name in own if "_" in name]}
    named = re.compile(r"(?<! x )(?<!-)\b(" + "|".join(sorted(names, key=len, reverse=True)) + r")\b(?! x )")
    message = problem.message
    if not problem.verbatim:
        message = named.sub(lambda match: flags[match.group()], message)
    nearest = [named.sub(lambda match: flags[match.group()], each) for each in problem.nearest]
    head = problem.field if problem.verbatim else flags.get(problem.field, problem.field)
    text = f"{head} {message}" if head else message
    if sum(map(len, nearest)) > 60:
        return "\n".join([f"{text}; nearest:", *[f"  {each}" for each in nearest]])
    return f"{text}; nearest: {' or '.join(nearest)}" if nearest else text


def _print_error(message: str) -> None:
    """On stderr, in lines of a terminal's width; whole where no terminal is, for whoever reads it by lines."""
    lines = f"gradaccum: {message}".split("\n")
    if sys.stderr.isatty():
        from gradaccum.cli.terminal import columns
        from gradaccum.show.text import wrapped

        width = columns(sys.stderr)
        for index, line in enumerate(lines):
            lead = " " * (len(line) - len(line.lstrip()))
            first, *rest = wrapped(line.lstrip(), width - len(lead) - 2) if len(line) > width else [line.lstrip()]
            lines[index] = "\n".join([lead + first, *[f"{lead}  {each}" for each in rest]])
    print("\n".join(lines), file=sys.stderr)


def _flush_quietly() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _let_stdout_go()


def _let_stdout_go() -> None:
    """Nobody reads any more: end in silence, and keep the interpreter from flushing into the closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
