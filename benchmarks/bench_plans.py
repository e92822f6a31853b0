"""How many plans a second one process makes, and what it costs to write one as JSON and as the page.

The baseline is the bare arithmetic of a plan, written by hand: what nobody can do without.
"""

from __future__ import annotations

import gc
import json
import time
from functools import partial
from typing import TYPE_CHECKING

import gradaccum
from benchmarks.common import asked_runs, ratios, spread, table, take_turns, write_result
from gradaccum.web.page import render_live, render_page

if TYPE_CHECKING:
    from collections.abc import Callable

WHAT = "plans per second in one process, beside the bare arithmetic"
RUNS = 50
TURN = 0.02
"""Seconds of one turn: as many calls as take about that long."""

BARE = "bare arithmetic"

USUAL = partial(gradaccum.plan, micro_batch=4, num_gpus=8, target_batch=500, sequence_length=2048)
EVERYTHING = partial(
    gradaccum.plan,
    micro_batch=2,
    num_gpus=512,
    target_batch=1000,
    sequence_length=4096,
    tensor_parallel=4,
    pipeline_parallel=4,
    context_parallel=2,
    virtual_pipeline=2,
    dataset_size=10_000_000,
    epochs="1.5",
    last_group="carry",
    warmup_fraction="3%",
    supervised_fraction="0.4",
    params="7B",
    gradient_dtype="bf16",
    learning_rate=3e-4,
    base_batch=256,
)
# A prime target is met by no choice, so that the search looks at every micro-batch.
WIDEST = partial(gradaccum.plan, micro_batch=4096, num_gpus=8, target_batch=1_000_003)
PAGE_QUERY = "micro_batch=4&num_gpus=8&target_batch=500&sequence_length=2048"


def bare(micro_batch: int, num_gpus: int, target_batch: int, sequence_length: int) -> tuple[int, int, int, str, int]:
    """Accumulation steps, effective batch, drift, its percentage and tokens: the four formulas and nothing else."""
    device_batch = micro_batch * num_gpus
    accum_steps = max(1, (2 * target_batch + device_batch) // (2 * device_batch))
    effective_batch = device_batch * accum_steps
    drift = effective_batch - target_batch
    return accum_steps, effective_batch, drift, f"{100 * drift / target_batch:.2f}", effective_batch * sequence_length


def contenders() -> dict[str, Callable[[], object]]:
    """What takes turns, by the name that the results use."""
    usual, everything = USUAL(), EVERYTHING()
    return {
        BARE: partial(bare, 4, 8, 500, 2048),
        "plan": USUAL,
        "plan, target in tokens": partial(
            gradaccum.plan, micro_batch=4, num_gpus=64, target_tokens="4M", sequence_length=4096, tensor_parallel=8
        ),
        "plan, every input": EVERYTHING,
        "plan, exact": partial(USUAL, rounding="exact"),
        "plan, micro-batch 4096": WIDEST,
        "plan, micro-batch 4096, other GPU counts": partial(WIDEST, vary="num_gpus"),
        "to_dict and JSON": lambda: json.dumps(usual.to_dict()),
        "to_dict and JSON, every input": lambda: json.dumps(everything.to_dict()),
        "text for a terminal": lambda: str(usual),
        "page, what an edit changes": partial(render_live, PAGE_QUERY),
        "page, whole": partial(render_page, PAGE_QUERY),
    }


def main() -> None:
    """Take turns of about TURN seconds."""
    runs = asked_runs(WHAT, RUNS)
    found = take_turns({name: partial(per_call, work, calls(work)) for name, work in contenders().items()}, runs)
    measured = {
        name: {
            "us_per_call": spread(times, 1e6),
            "calls_per_second": spread([1 / each for each in times]),
            "to_bare": spread(ratios(times, found[BARE])),
        }
        for name, times in found.items()
    }
    rows = [
        [
            name,
            f"{each['us_per_call']['median']:,.1f}",
            f"{each['us_per_call']['p95']:,.1f}",
            f"{each['calls_per_second']['median']:,.0f}",
            f"{each['to_bare']['median']:,.0f}",
        ]
        for name, each in measured.items()
    ]
    print(table(["work", "us per call", "p95", "per second", "times bare"], rows))
    write_result("plans", WHAT, runs, RUNS, {"gradaccum": gradaccum.__version__}, measured=measured)


def calls(work: Callable[[], object]) -> int:
    """How many calls fill a turn. The first call, which imports and compiles, does not count."""
    work()
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < TURN:
        work()
        done += 1
    return max(1, done)


def per_call(work: Callable[[], object], number: int) -> float:
    """Seconds of one call, over `number` of them. What others left behind is collected before, not during."""
    gc.collect()
    begun = time.perf_counter()
    for _ in range(number):
        work()
    return (time.perf_counter() - begun) / number


if __name__ == "__main__":
    main()
