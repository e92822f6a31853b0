"""`gradaccum plan`: one update, and what to know about it."""

from __future__ import annotations

import sys

from gradaccum.cli.options import Parser, add_inputs, echo_preset, inputs_of, new_parser, parse
from gradaccum.cli.terminal import columns, style
from gradaccum.core.plan import make_plan
from gradaccum.core.request import read_inputs
from gradaccum.errors import InputError, Problem
from gradaccum.show.text import explain_text, plan_text
from gradaccum.units import show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradaccum.core.plan import Plan

EXAMPLES = """\
  gradaccum plan -m 4 -g 8 -t 500 -s 2048
  gradaccum plan -m 4 -g 64 -t '4M tokens' -s 4096 --tensor-parallel 8
  gradaccum plan --max-micro-batch 12 -g 8 -t 512 --json
  gradaccum plan -m 4 -g 8 -t 512 --loop ddp > train.py"""


def parser() -> Parser:
    """All options of the command."""
    found = new_parser("plan", "How many accumulation steps, and what batch you really get.", EXAMPLES)
    form = found.add_argument_group("output, one of").add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the plan as JSON")
    form.add_argument("-q", "--quiet", action="store_true", help="the one number that was solved for")
    form.add_argument("--explain", action="store_true", help="the algebra with your numbers, and every finding")
    form.add_argument(
        "--loop",
        nargs="?",
        const="auto",
        metavar="STRATEGY",
        help="the PyTorch loop for this plan: single, ddp, fsdp2 or fsdp2-deferred",
    )
    output = found.add_argument_group("and")
    output.add_argument(
        "--weighting", metavar="mean|tokens", help="how --loop scales the loss (default: by what the plan knows)"
    )
    output.add_argument("--strict", action="store_true", help="exit with 1 where the drift is not 0")
    output.add_argument("--no-color", action="store_true", help="no colour; NO_COLOR is honoured too")
    add_inputs(found)
    return found


def run(arguments: Sequence[str]) -> int:
    """Print the plan in the form asked for. Returns 1 under --strict where the drift is not 0."""
    options = parse(parser(), arguments)
    if options.weighting and options.loop is None:
        raise InputError(Problem("weighting", "is about the loop: give --loop too"))
    plan = make_plan(read_inputs(inputs_of(options)))
    if options.json:
        import json

        print(json.dumps(plan.to_dict(), indent=2))
    elif options.quiet:
        print(_solved(plan))
        if plan.request.micro_batch is None and plan.solved_for != "micro_batch":
            print(f"with micro_batch {plan.micro_batch}", file=sys.stderr)
    elif options.loop is not None:
        from gradaccum.show.loop import training_loop

        print(training_loop(plan, options.loop, options.weighting or "auto"), end="")
    else:
        write = explain_text if options.explain else plan_text
        echo_preset(options)
        _echo(plan)
        print(write(plan, columns(), style(options.no_color)))
    return 1 if options.strict and not plan.is_exact else 0


def _solved(plan: Plan) -> int:
    """What was solved for; the accumulation steps where everything was given."""
    if plan.solved_for in (None, "accum_steps"):
        return plan.accum_steps
    return {
        "micro_batch": plan.micro_batch,
        "num_gpus": plan.num_gpus,
        "target_batch": plan.effective_batch,
    }[plan.solved_for]


def _echo(plan: Plan) -> None:
    """How numbers were read that hold more than digits and their separators."""
    for name, text in plan.request.written:
        if not text.replace("_", "").replace(",", "").isdigit():
            print(f"{name}: {text} is {show_count(getattr(plan.request, name))}", file=sys.stderr)
