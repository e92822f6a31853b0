"""`gradaccum fit --probe`: the micro-batch found by trying, on the machine that it is to run on."""

from __future__ import annotations

import sys

from gradaccum.cli.options import Once, seconds_of
from gradaccum.errors import InputError, MissingExtraError, Problem
from gradaccum.units import read_bytes, read_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

PICKS = ("throughput", "largest")

OPTIONS = {
    "memory_limit": ("BYTES", "what a trial may take, such as 20GiB (default: what is free)"),
    "pick": ("WORD", "throughput, the most samples per second, or largest (default: throughput)"),
    "device": ("WORD", "cpu, cuda or such as cuda:1 (default: the GPU where there is one)"),
    "max_micro_batch": ("N", "try no larger one"),
    "timeout": ("SECONDS", "of one trial (default: 600)"),
}

SHARED = ("model", "target_batch", "num_gpus", "json", "quiet", "probe")
"""Options of `fit` that a trial has a use for; what its step does, it does."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--probe` and what belongs to it."""
    group = parser.add_argument_group("found by trying, on this machine")
    group.add_argument("--probe", action="store_true", help="try the step of --model module:function")
    for name, (metavar, words) in OPTIONS.items():
        group.add_argument("--" + name.replace("_", "-"), dest=name, action=Once, metavar=metavar, help=words)


def refuse_without_probe(options: argparse.Namespace) -> None:
    """Raise InputError where an option of a probe was given and no probe was asked for."""
    given = [name for name in OPTIONS if getattr(options, name) is not None]
    if given:
        raise InputError(Problem(_flag(given[0]), "belongs to a trial; add --probe, or leave it out", ["--probe"]))


def run_probe(options: argparse.Namespace) -> int:
    """Print what was found; each trial on stderr as it ends. Raises InputError, MissingExtraError and ProbeError."""
    found = _find(_inputs(options))
    if found is None:  # another rank prints it
        return 0
    data = found.to_dict()
    if options.quiet:
        print(data["micro_batch"] or 0)
    elif options.json:
        import json

        print(json.dumps(data, indent=2))
    else:
        from gradaccum.cli.terminal import columns
        from gradaccum.show.probe import probe_text

        print(probe_text(data, columns()))
    if found.max_micro_batch == 0 and not found.ooms:  # the time was up, which says nothing of memory
        return 2
    return 0


def _inputs(options: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `find_micro_batch`. Raises InputError with all that is wrong."""
    given = {name for name, value in vars(options).items() if value not in (None, False)}
    said = "says nothing to a trial, which runs the step as it is; leave it out"
    problems = [Problem(_flag(name), said) for name in sorted(given - {*SHARED, *OPTIONS})]
    examples = {"model": "train:build", "target_batch": "64"}
    missing = [name for name in examples if name not in given]
    problems += [Problem(_flag(name), "is missing", [f"{_flag(name)} {examples[name]}"]) for name in missing]
    readers: dict[str, Callable[[str], Any]] = {
        "target_batch": lambda text: read_count(text, "target_batch", 1),
        "num_gpus": lambda text: read_count(text, "num_gpus", 1),
        "max_micro_batch": lambda text: read_count(text, "max_micro_batch", 1),
        "memory_limit": lambda text: read_bytes(text, "--memory-limit", 1),
        "timeout": lambda text: seconds_of(text, "--timeout", "600"),
        "pick": str,
        "device": str,
    }
    found: dict[str, Any] = {"build": options.model}
    for name in readers:
        if name in given:
            try:
                found[name] = readers[name](getattr(options, name))
            except InputError as error:
                problems += error.problems
    if problems:
        raise InputError(*problems)
    return found


def _find(inputs: dict[str, Any]) -> Any:
    """The answer; None on all ranks but the first."""
    try:
        from gradaccum.torch.probe import find_micro_batch
        from gradaccum.torch.probe.ranks import torchrun
    except ModuleNotFoundError:
        raise MissingExtraError("gradaccum fit --probe", "torch", "torch") from None
    with torchrun() as first:
        found = find_micro_batch(**inputs, on_trial=_print_trial if first else None)
        return found if first else None


def _print_trial(trial: Any) -> None:
    from gradaccum.show.probe import trial_text

    print(trial_text(trial.to_dict()), file=sys.stderr, flush=True)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
