"""The cases of several ranks, by their number."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from tests.torch.accumulate import elastic, exact_ranks, halves, sequences, traps
from tests.torch.accumulate.cases import WEIGHTS, Case, pairwise
from tests.torch.accumulate.exact_ranks import Exact

if TYPE_CHECKING:
    from collections.abc import Callable

AXES: dict[str, tuple[Any, ...]] = {
    "wrap": ("plain", "ddp", "fsdp2"),
    "reduce": ("auto", "last", "every", "after"),
    "weights": WEIGHTS,
    "lengths": ((8,), (6,), (8, 3), (9, 4), (4, 0)),
    "sized": (True, False),
    "clip_norm": (None, 0.05),
    "partial": ("step", "carry", "drop"),
    "optimizer": ("sgd", "adamw fused"),
    "dtype": (torch.float64, torch.float32),
    "epochs": (1, 2),
    "mean": (False, True),
}


def allowed(row) -> bool:
    uneven = len(row["lengths"]) > 1
    if row["mean"] and row["weights"] in ("zero", "zero rank"):
        return False
    if row["partial"] != "step" and uneven:
        return False
    if row["wrap"] == "plain":
        return row["reduce"] in ("auto", "after")
    if row["wrap"] == "fsdp2":
        return row["reduce"] != "after" and row["partial"] == "step"
    return True


def name_of(case: Case | Callable[[], list[str]]) -> str:
    """As it is told apart."""
    return getattr(case, "__name__", None) or str(case)


def cases(ranks: int) -> list[Any]:
    """Each is a Case, or a check that says what is wrong. Two ranks: pairwise over AXES, what stands beside them, exact
    plans, half types and traps. Four: HSDP, ranks that share layers or sequences, exact plans, other ranks after a
    restart, one of each wrapper.
    """
    if ranks == 4:
        hybrid = [
            Case(wrap="hsdp", reduce=reduce, sized=sized, clip_norm=clip)
            for reduce in ("auto", "every", "last", "hybrid")
            for sized in (True, False)
            for clip in (None, 0.05)
        ]
        shared = [
            Case(wrap=wrap, beside=beside, clip_norm=clip, lengths=lengths, sized=sized)
            for wrap in ("plain", "ddp", "fsdp2")
            for beside in ("tp", "cp")
            for clip, lengths, sized in ((None, (8,), True), (0.05, (6, 4), True), (0.05, (7, 7), False))
        ]
        apart = [Case(wrap=wrap, lengths=(6, 3, 5, 0)) for wrap in ("plain", "ddp")]
        apart += [Case(wrap="fsdp2"), Case(wrap="hsdp", divides=1.0)]
        exact = [Exact(27), Exact(30, samples=(60, 41, 7, 52))]
        return [*hybrid, *shared, *apart, *exact, *sequences.cases(), *elastic.cases()]
    found = [Case(**row) for row in pairwise(AXES, allowed)]
    for wrap in ("plain", "ddp", "fsdp2"):
        for sized in (True, False):
            open_ended = Case(wrap=wrap, accum_steps=None, until_weight=40, lengths=(9, 5), sized=sized)
            found += [open_ended, Case(wrap=wrap, compiled=True, sized=sized)]
    found.append(Case(wrap="fsdp2", divides=1.0, clip_norm=0.05))
    found += [Case(wrap="ddp", partial="carry", lengths=(7,), epochs=4, sized=sized) for sized in (True, False)]
    found += [Case(wrap="ddp", skipped=(3, 5)), Case(wrap="ddp", skipped=(0, 1, 2, 3))]
    for wrap in ("plain", "ddp"):
        for runs_out in ("nowhere", "forward", "backward"):
            found.append(Case(wrap=wrap, runs_out=runs_out, lengths=(8, 5), epochs=2, clip_norm=0.05))
        found.append(Case(wrap=wrap, runs_out="forward", sized=False, lengths=(7,), partial="carry", epochs=2))
        found.append(Case(wrap=wrap, runs_out="backward", accum_steps=None, until_weight=40, lengths=(9, 5)))
    found.append(Case(wrap="ddp", reduce="every", runs_out="backward"))
    found.append(Case(wrap="fsdp2", runs_out="nowhere", sized=False))
    for wrap in ("plain", "ddp"):
        for kept in (torch.float64, "kahan"):
            found.append(Case(wrap=wrap, dtype=torch.float32, accumulate_in=kept, lengths=(9, 4), clip_norm=0.05))
    return [*found, *exact_ranks.CASES, *halves.cases(), *traps.cases()]


def all_cases(ranks: int) -> list[Case]:
    """Every combination of what decides over the collectives, for `make test-all`."""
    names = ("wrap", "reduce", "weights", "lengths", "sized", "clip_norm")
    wraps = (*AXES["wrap"], "hsdp") if ranks == 4 else AXES["wrap"]
    found = []
    for values in product(wraps, *[AXES[name] for name in names[1:]]):
        row = {"partial": "step", "mean": False, **dict(zip(names, values, strict=True))}
        if row["wrap"] == "hsdp" and row["reduce"] == "after":
            continue
        if row["wrap"] == "hsdp" or allowed(row):
            found.append(Case(**row))
    return found
