"""`gradaccum audit`: run a training script or any command for a few updates, and say what they really were."""

from __future__ import annotations

import os
import sys

from gradaccum.cli.options import Once, Parser, canonical, new_parser, parse
from gradaccum.errors import InputError, Problem
from gradaccum.units import read_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from gradaccum.core.audit import AuditReport

EXAMPLES = """\
  gradaccum audit train.py --epochs 3
  gradaccum audit --target-batch 64 -m package.train --config small.yaml
  gradaccum audit --epoch-end -- torchrun --nproc-per-node 2 train.py
  gradaccum audit --json -- accelerate launch train.py > audit.json

What follows the script, -m or -- belongs to it."""


_STDERR = 2
"""Its number, as a process that is started knows it."""


def parser() -> Parser:
    """All options of the command."""
    found = new_parser("audit", "Does your loop do what the big batch would? Runs it unchanged to find out.", EXAMPLES)
    found.usage = "gradaccum audit [options] train.py ... | -m module ... | -- command ..."
    found.add_argument("--updates", action=Once, metavar="N", help="stop after so many updates (default: 3)")
    text = "the samples that an update is meant to see"
    found.add_argument("-t", "--target-batch", dest="target_batch", action=Once, metavar="N", help=text)
    text = "look at the last group of an epoch too; it runs twice, the second time with short epochs"
    found.add_argument("--epoch-end", dest="epoch_end", action="store_true", help=text)
    found.add_argument("-m", dest="module", metavar="MODULE", help="run a module, as python -m does")
    found.add_argument("--json", action="store_true", help="the report as JSON on stdout; the script's goes to stderr")
    text = "write the report to a file too: .json, .html, or else text"
    found.add_argument("-o", "--output", action=Once, metavar="FILE", help=text)
    text = "write each fault as a short script of its own, without this package"
    found.add_argument("--repro", action=Once, metavar="DIR", help=text)
    return found


def run(arguments: Sequence[str]) -> int:
    """Run the command that stands behind our options, and print the report on stderr. Raises InputError."""
    own, words = _apart(arguments)
    options = parse(parser(), own)
    updates = 3 if options.updates is None else read_count(options.updates, "--updates", 1)
    target = None if options.target_batch is None else read_count(options.target_batch, "target_batch", 1)
    _check_output(options.output)
    if options.repro is not None and os.path.exists(options.repro) and not os.path.isdir(options.repro):
        raise InputError(Problem("--repro", f"{options.repro} is a file; name a folder", ["repro"]))
    from gradaccum.torch.audit import run as runner
    from gradaccum.torch.audit.command import command_of

    command = command_of(words)
    sys.stdout.flush()
    stdout = _STDERR if options.json else None
    report = runner.audit(command, updates=updates, target_batch=target, epoch_end=options.epoch_end, stdout=stdout)
    if options.output is not None:
        _write(report, options.output)
        print(f"wrote {options.output}", file=sys.stderr)
    if options.repro is not None:
        from gradaccum.torch.audit.repro import write_repros

        for path in write_repros(report, options.repro):
            print(f"wrote {path}", file=sys.stderr)
    if options.json:
        print(_json(report))
    else:
        print("\n" + _text(report, sys.stderr), file=sys.stderr)
    return runner.exit_code(report)


def _apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our options, and the command behind them."""
    with_value = {flag for action in parser()._actions if action.nargs != 0 for flag in action.option_strings}
    index = 0
    while index < len(arguments) and (word := arguments[index]).startswith("-"):
        if word == "--" or (word.startswith("-m") and word != "-"):
            break
        index += 2 if canonical(word) in with_value else 1
    return list(arguments[:index]), list(arguments[index:])


def _check_output(name: str | None) -> None:
    """Before the run: a report that cannot be written would be lost after it."""
    if name is not None:
        folder = os.path.dirname(os.path.abspath(name))
        if not os.path.isdir(folder):
            raise InputError(Problem("--output", f"there is no folder {folder}", [os.path.basename(name)]))
        if os.path.isdir(name):
            raise InputError(Problem("--output", f"{name} is a folder", [os.path.join(name, "audit.html")]))


def _write(report: AuditReport, name: str) -> None:
    if name.endswith(".json"):
        text = _json(report)
    elif name.endswith((".html", ".htm")):
        from gradaccum.show.audit_page import as_html

        text = as_html(report)
    else:
        text = _text(report, None)
    with open(name, "w", encoding="utf-8") as file:
        file.write(text + "\n")


def _json(report: AuditReport) -> str:
    import json

    return json.dumps(report.to_dict(), indent=2)


def _text(report: AuditReport, stream: TextIO | None) -> str:
    from gradaccum.cli.terminal import columns, style
    from gradaccum.show.audit import as_text

    return as_text(report) if stream is None else as_text(report, columns(stream), style(False, stream))
