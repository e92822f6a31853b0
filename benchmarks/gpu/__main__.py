"""Everything that is measured on a GPU, part by part, within so many minutes; called again, it goes on."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from benchmarks.gpu import allocator_programs
from benchmarks.gpu.memory_truth import LEAST_SECONDS, Store, add_arguments, find_device, measure_all, measured
from gradaccum.memory.allocator import ties_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.gpu.processes import Processes

PROGRAMS = 40
"""How many random allocation programs are run."""


def memory(store: Store, processes: Processes, environment: Mapping[str, Any], until: float) -> None:
    """The cases and boundaries of memory_truth.py."""
    measure_all(store, lambda case, seconds: measured(processes, case, seconds), environment, until)


def programs(store: Store, processes: Processes, environment: Mapping[str, Any], until: float) -> None:
    """The programs of allocator_programs.py: `DIR/programs.jsonl` has a line for each, and the orders that give it."""
    card = {name: environment[name] for name in ("device", "torch", "total_memory")}
    done = {row["seed"] for row in store.rows("programs") if {name: row.get(name) for name in card} == card}
    for seed in sorted({*range(PROGRAMS)} - done):
        if until - time.monotonic() < LEAST_SECONDS:
            return
        record, fits = allocator_programs.beside_the_model(seed, card["torch"], card["total_memory"])
        equal = any(ties == ties_of(card["torch"]) for ties, _ in fits)
        store.add({"seed": seed, **card, "equal": equal, "orders": fits, **record}, "programs")
        print(f"program {seed}: {'equal' if equal else 'NOT EQUAL'}  {record['settings']}", flush=True)


PARTS: dict[str, Callable[[Store, Processes, Mapping[str, Any], float], None]] = {
    "memory": memory,
    "programs": programs,
}
"""What `all` goes through, in this order. Each part ends by itself: when all is measured, or when the time is up."""


def main(given: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="What only a GPU can say.")
    parser.add_argument("part", choices=["all", *PARTS], help="which part; `all` is one after the other")
    add_arguments(parser)
    asked = parser.parse_args(given)
    until = time.monotonic() + 60 * asked.minutes
    found = find_device()
    if found is None:
        return
    processes, environment = found
    for name, part in PARTS.items():
        if asked.part in {"all", name}:
            part(Store(asked.out), processes, environment, until)


if __name__ == "__main__":
    main()
