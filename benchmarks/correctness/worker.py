"""Runs the cases of so many ranks through every loop: worker.py FOLDER [CASE ...], alone or under torchrun.

Rank 0 writes FOLDER/found.json: of each case and loop the gradients of its updates, and whether they are the right
ones; or why there are none.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.correctness.cases import CASES, Case, right
from benchmarks.correctness.loops import LOOPS, Loop, NotApplicable
from gradaccum.torch import AccumulationError


def outcome(case: Case, loop: Loop) -> dict[str, Any]:
    """What one loop makes of one case."""
    try:
        found = loop(case)
    except NotApplicable as why:
        return {"holds": None, "why": str(why)}
    except AccumulationError as refusal:
        return {"holds": case.static_graph, "refused": str(refusal)}
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return {"holds": False, "error": f"{type(error).__name__}: {error}".partition(" at ")[0]}
    wanted = right(case)
    holds = is_right(found, wanted, case.tolerance)
    if not holds and case.or_groups:
        holds = is_right(found, right(case, case.or_groups), case.tolerance)
    beside = wanted + [wanted[-1]] * len(found)
    return {"holds": holds, "found": [shown(each, beside[number]) for number, each in enumerate(found)]}


def is_right(found: list[torch.Tensor], wanted: list[torch.Tensor], tolerance: float) -> bool:
    """As many updates, and each within the tolerance; relative, in the 2-norm."""
    if len(found) != len(wanted):
        return False
    return all(float((ours - each).norm()) <= tolerance * float(each.norm()) for ours, each in zip(found, wanted))


def shown(gradient: torch.Tensor, beside: torch.Tensor) -> Any:
    """One number, or two; of a longer gradient how far it is off."""
    if len(gradient) > 2:
        return {"off": float(f"{float((gradient - beside).norm() / beside.norm()):.2g}")}
    values = [float(f"{each:.6g}") if each == each else None for each in gradient.tolist()]
    return values[0] if len(values) == 1 else values


def forget_shared_state() -> None:
    """What Accelerate keeps for the whole process; the loops are to know nothing of each other."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def main(folder: str, *names: str) -> None:
    """All cases of this number of ranks, or those named."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
    found: dict[str, Any] = {}
    for case in CASES:
        if case.ranks != ranks or (names and case.name not in names):
            continue
        loops = {}
        for name, loop in LOOPS.items():
            loops[name] = outcome(case, loop)
            forget_shared_state()
        found[case.name] = {"right": [shown(each, each) for each in right(case)], "loops": loops}
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    if ranks > 1:
        torch.distributed.barrier()
    sys.stderr.flush()
    os._exit(0)  # without the end of threads that PyTorch leaves: on a busy machine it may abort there


if __name__ == "__main__":
    main(*sys.argv[1:])
