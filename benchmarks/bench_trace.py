"""How long both engines take without a GPU: a trace of an 8-billion-parameter model's step, and the closed form.

Beside it, in the same run, PyTorch's own estimator for the same step: MemTracker under FakeTensorMode. Each turn is a
process of its own (`llama_step.py`); imports do not count, and the memory is that of the whole process. MemTracker
knows no allocator, no kernel's buffers and no CUDA, so its peak is another quantity, and stands here for reference. The
closed form answers in this process, for every model of the catalog.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any

import gradaccum
from benchmarks.common import ROOT, asked_runs, ratios, spread, table, take_turns, verdict, write_result
from benchmarks.environments import source_environ
from gradaccum.catalog.models import models
from gradaccum.memory.fit import memory_of

WHAT = "a training step of Llama 3.1 8B followed without a GPU, beside MemTracker under FakeTensorMode"
RUNS = 3

TRACE, FIT, PEER = "one trace and its replay", "gradaccum.fit: traces, search, curve", "MemTracker"
ENGINES = {TRACE: "trace", FIT: "fit", PEER: "memtracker"}

MOST_SECONDS, MOST_GIB, MOST_TRACES, MOST_CLOSED_MS = 10, 2, 3, 1
CLOSED_CALLS = 50


def turn(engine: str) -> dict[str, Any]:
    """What the process of one engine says."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.llama_step", engine],
        env=source_environ(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def closed_form() -> list[float]:
    """Of every model of the catalog, the milliseconds of one answer of the closed form: the median of many."""
    found = []
    for model in models():
        fitting = gradaccum.fit(model=model.id, gpu="h100-sxm-80gb", sequence_length=512)
        times = []
        for _ in range(CLOSED_CALLS):
            begun = time.perf_counter()
            memory_of(fitting.setup, fitting.gpu)  # type: ignore[arg-type] # a named model's setup, by the closed form
            times.append(1000 * (time.perf_counter() - begun))
        found.append(statistics.median(times))
    return found


def main() -> None:
    """Take turns, and hold the trace against its limits."""
    runs = asked_runs(WHAT, RUNS)
    turns = take_turns({name: partial(turn, engine) for name, engine in ENGINES.items()}, runs)
    base = [each["seconds"] for each in turns[TRACE]]
    measured = {
        name: {
            "seconds": spread([each["seconds"] for each in found]),
            "cpu_seconds": spread([each["cpu_seconds"] for each in found]),
            "to_trace": spread(ratios([each["seconds"] for each in found], base)),
            "resident_mib": spread([each["resident_bytes"] for each in found], 1 / 2**20),
            "found": {key: found[0][key] for key in FOUND if key in found[0]},
        }
        for name, found in turns.items()
    }
    rows = [
        [
            name,
            f"{each['seconds']['median']:.1f}",
            f"{each['cpu_seconds']['median']:.1f}",
            f"{each['to_trace']['median']:.1f}",
            f"{each['resident_mib']['median']:,.0f}",
        ]
        for name, each in measured.items()
    ]
    print(table(["work", "seconds", "of CPU", "times one trace", "MiB"], rows))
    closed = closed_form()
    print(f"closed form, {len(closed)} models: {spread(closed)['median']:.2f} ms, at most {max(closed):.2f}")
    limits = [
        verdict("closed form, ms, median of the slowest model", round(max(closed), 3), MOST_CLOSED_MS),
        verdict("one trace, seconds, median", spread(base)["median"], MOST_SECONDS),
        verdict("largest process, GiB", largest(turns), MOST_GIB),
        verdict("traces to find the largest micro-batch", len(turns[FIT][0]["traces"]), MOST_TRACES),
    ]
    versions = {"gradaccum": gradaccum.__version__, "torch": turns[TRACE][0]["torch"]}
    write_result("trace", WHAT, runs, RUNS, versions, limits=limits, measured=measured, closed_form_ms=spread(closed))


FOUND = ("allocated_bytes", "reserved_bytes", "max_micro_batch", "traces")


def largest(turns: dict[str, list[dict[str, Any]]]) -> float:
    """The most memory that one of our own processes had, in GiB."""
    most: int = max(each["resident_bytes"] for name in (TRACE, FIT) for each in turns[name])
    return round(most / 2**30, 2)


if __name__ == "__main__":
    main()
