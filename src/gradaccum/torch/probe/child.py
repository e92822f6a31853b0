"""The far side of a trial in a process of its own: read what to do, do it once, write how it went."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import torch

from gradaccum.errors import InputError, Problem
from gradaccum.torch.build import as_job, by_micro_batch, find_build, with_usual_length
from gradaccum.torch.probe.errors import first_line
from gradaccum.torch.probe.meter import meter_of
from gradaccum.torch.probe.trial import run_trial
from gradaccum.torch.trace.errors import line_of
from gradaccum.torch.trace.record import OPTIMIZERS

ERROR, PROBLEMS = "error", "problems"


def main(folder: str) -> None:
    """Read `task.json` in the folder and write `result.json` there, at once or not at all."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what is printed and what is raised go to one file, in their order
    task = json.loads(Path(folder, "task.json").read_text(encoding="utf-8"))
    try:
        result = do(task)
    except InputError as error:
        result = {PROBLEMS: [{**each.to_dict(), "verbatim": each.verbatim} for each in error.problems]}
    except Exception as error:
        traceback.print_exc()
        result = {ERROR: first_line(error) + line_of(error)}
    part = Path(folder, "part.json")
    part.write_text(json.dumps(result), encoding="utf-8")
    part.replace(Path(folder, "result.json"))
    sys.stdout.flush()
    sys.stderr.flush()
    # What a person's own program leaves running (workers, threads, a process group) is not waited for.
    os._exit(0)


def do(task: dict[str, Any]) -> dict[str, Any]:
    """The fields of the Trial that a task describes, and what limits it."""
    function = find_build(task["build"], "build")
    build, sized = by_micro_batch(function, with_usual_length(function, {}))
    if not sized:
        raise InputError(Problem("build", f"{task['build']} takes no micro-batch, so that no other one can be tried"))
    meter = meter_of(task["device"], task["memory_limit"])

    def make() -> Any:
        if meter.device.type == "cpu":
            job = as_job(build(task["micro_batch"]), OPTIMIZERS[task["optimizer"]], "build")
        else:
            with torch.device(meter.device):
                job = as_job(build(task["micro_batch"]), OPTIMIZERS[task["optimizer"]], "build")
        elsewhere = {each.device.type for each in job.module.parameters()} - {meter.device.type}
        if elsewhere:
            raise ValueError(
                f"build puts parameters on {', '.join(sorted(elsewhere))}, and the trial is on {meter.device.type}"
            )
        return job

    trial = run_trial(make, meter, task["micro_batch"], timed=task["timed"])
    return {"trial": vars(trial), "limited_by": meter.limited_by}


def _end_with_parent() -> None:
    """Standard input ends when the process that asked is gone; a step that hangs would keep the GPU."""
    os.read(0, 1)
    os._exit(1)
