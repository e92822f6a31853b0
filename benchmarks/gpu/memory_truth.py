"""The memory that training steps really take, measured on a CUDA device.

    python -m benchmarks.gpu.memory_truth --out DIR --minutes 8

Needs PyTorch 2.11 or later and a CUDA device; Transformers and peft for most cases, and what is missing is skipped and
said. It goes on where an earlier call with the same DIR stopped, and ends within its minutes. `DIR/cases.jsonl` has a
line for each case: the peaks of each phase, the context, the versions; an out-of-memory error or a crash is a result
too. `DIR/events.jsonl` has the allocator's own record of each. `benchmarks.gpu.compare` reads both.

The first minutes show the most (cases.by_value): the leading cases, then some boundaries, then the others.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.cases import BOUNDARIES, CASES, Boundary, Case, by_value, next_trial
from benchmarks.gpu.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

LEADING, EARLY = 32, 4
"""How many cases, and then how many boundaries, come before all others."""

USUAL_SECONDS, COMPILED_SECONDS = 120, 240
"""What a case may take at most. On one GPU of 2023 most take five."""

LEAST_SECONDS = 20
"""With less than this left, no case is begun."""

MEASURED = {"ok", "oom", "failed", "crashed", "timeout"}
"""What is not tried again. A case that was skipped is, for the package may be there now."""


def plan() -> list[Case | Boundary]:
    """Everything that there is to measure, in order."""
    cases = by_value(CASES)
    return [*cases[:LEADING], *BOUNDARIES[:EARLY], *cases[LEADING:], *BOUNDARIES[EARLY:]]


def todo(wanted: Sequence[Case | Boundary], known: Mapping[str, Mapping[str, Any]]) -> Iterator[Case]:
    """What is still to be measured. known: rows by the name of their case; the caller adds to it between two cases."""
    for each in wanted:
        if isinstance(each, Case):
            if each.name not in known:
                yield each
            continue
        while (trial := trial_of(each, known)) is not None:
            yield trial
            if trial.name not in known:
                break  # it was not measured, so the next one can't be chosen


def trial_of(boundary: Boundary, known: Mapping[str, Mapping[str, Any]]) -> Case | None:
    """The next trial of a boundary; None where it is found, or where a trial neither fits nor runs out of memory."""
    statuses = {micro_batch: row["status"] for micro_batch, row in trials_of(boundary, known).items()}
    if not set(statuses.values()) <= {"ok", "oom"}:
        return None
    following = next_trial({each: status == "ok" for each, status in statuses.items()}, boundary.first)
    return None if following is None else boundary.trial(following)


def trials_of(boundary: Boundary, known: Mapping[str, Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The rows of a boundary's trials, by micro-batch."""
    found = {}
    for row in known.values():
        micro_batch = row["fields"]["micro_batch"]
        if row["case"] == boundary.trial(micro_batch).name:
            found[micro_batch] = row
    return found


class Store:
    """The files of one folder. Each row is written at once, and to the disk; a row that a crash cut off is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, name: str = "cases") -> list[dict[str, Any]]:
        """The rows of a file, in the order in which they were written."""
        path = self.folder / f"{name}.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line]

    def add(self, row: Mapping[str, object], name: str = "cases") -> None:
        """Append a row."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.jsonl").open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            if whole < end:
                file.truncate(whole)
            file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def measure_all(
    store: Store,
    call: Callable[[Case, float], dict[str, Any]],
    environment: Mapping[str, object],
    until: float,
    wanted: Sequence[Case | Boundary] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, int]:
    """Measure until that time, and write each row. Returns how many rows of each status were made.

    call: a case and the seconds that it may take, to its row. environment: this device's; rows of others do not count.
    """
    mine = (environment["device"], environment["torch"])
    known = {
        row["case"]: row
        for row in store.rows()
        if row["status"] in MEASURED and (row["environment"]["device"], row["environment"]["torch"]) == mine
    }
    counts: dict[str, int] = {}
    for case in todo(plan() if wanted is None else wanted, known):
        left = until - clock()
        if left < LEAST_SECONDS:
            break
        allowed = COMPILED_SECONDS if case.compiled else USUAL_SECONDS
        row = {"case": case.name, "fields": case.to_dict(), **call(case, min(left, allowed))}
        if row["status"] == "timeout" and left < allowed:
            continue  # our own time was up, not the case's
        row["environment"] = {**environment, **row.get("environment", {})}
        events = row.pop("events", None)
        store.add(row)
        if events is not None:
            store.add({"case": case.name, "device": environment["device"], "events": events}, "events")
        if row["status"] in MEASURED:
            known[case.name] = row
        counts[row["status"]] = counts.get(row["status"], 0) + 1
        print(_line(row), flush=True)
    return counts


def _line(row: Mapping[str, Any]) -> str:
    peaks = [f"{row.get(name, 0) / 2**30:7.2f}" for name in ("allocated_bytes", "reserved_bytes")]
    why = f"  {row['why'][:100]}" if "why" in row else ""
    return f"{row['status']:8}{' '.join(peaks)} GiB {row.get('seconds', 0):6.1f} s  {row['case']}{why}"


# In the processes of the cases


def probe() -> dict[str, Any]:
    """What this machine measures on; the status is failed where there is no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        return {"status": "failed", "why": "no CUDA device"}
    torch.cuda.init()
    return {
        "status": "ok",
        "device": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "total_memory": torch.cuda.get_device_properties(0).total_memory,
    }


def run_case(case: Case) -> dict[str, object]:
    """The row of a case, on CUDA."""
    from benchmarks.gpu import measure

    return measure.run(case, measure.Cuda())


def measured(processes: Processes, case: Case, seconds: float) -> dict[str, Any]:
    """The row of a case, from a process of its own."""
    environ = {"PYTORCH_ALLOC_CONF": case.settings} if case.settings else None
    return processes.call(run_case, case, seconds=seconds, environ=environ)


def find_device() -> tuple[Processes, dict[str, Any]] | None:
    """How to start processes on this machine, and the device; None, and why is printed, where there is none."""
    for fork in (True, False):
        processes = Processes(fork)
        found = processes.call(probe, seconds=180)
        if found.pop("status") == "ok":
            return processes, found
    print(f"Nothing is measured: {found['why']}.")
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the results are kept, and how long to go on."""
    parser.add_argument(
        "--out", type=Path, required=True, help="the folder of the results; an earlier one is gone on with"
    )
    parser.add_argument("--minutes", type=float, default=8, help="when to stop (default 8)")


def main(given: Sequence[str] | None = None) -> None:
    """Measure for some minutes."""
    parser = argparse.ArgumentParser(description="The memory that training steps take on a CUDA device.")
    add_arguments(parser)
    parser.add_argument("--only", default="", help="only cases and boundaries with this text in their names")
    asked = parser.parse_args(given)
    until = time.monotonic() + 60 * asked.minutes
    found = find_device()
    if found is None:
        return
    processes, environment = found
    wanted = [each for each in plan() if asked.only in (each if isinstance(each, Case) else each.case).name]
    counts = measure_all(
        Store(asked.out), lambda case, seconds: measured(processes, case, seconds), environment, until, wanted
    )
    print(", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing left to measure")


if __name__ == "__main__":
    main()
