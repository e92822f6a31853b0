"""Measured memory beside what is predicted without a GPU: by the trace, by the closed form, by the allocator's model.

    python -m benchmarks.gpu.compare [DIR]          # what memory_truth wrote into DIR; writes DIR/compare.json
    python -m benchmarks.gpu.compare --dry          # nothing measured: each case is built, traced and replayed

Nothing is fitted: a prediction sees of a measured row only its case, the card and the versions. Where the two differ,
the cause is looked for in the allocator's own record: replayed through the model of the allocator it says whether that
is right, and the sizes that were alive at the peak say which tensors the trace has too many or too few.
Transformers should be of the measured version, since it decides which tensors live when; the result says which it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common
from benchmarks.gpu.cases import BOUNDARIES, CASES, Case, by_value
from benchmarks.gpu.memory_truth import Store, trial_of, trials_of
from gradaccum.catalog.gpus import find_gpu
from gradaccum.errors import GradaccumError
from gradaccum.memory.allocator import Allocator, OutOfMemory, ties_of
from gradaccum.memory.allocator_settings import Settings
from gradaccum.memory.closed_form import peak
from gradaccum.memory.ledger import total
from gradaccum.memory.setup import CHOICES, Setup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gradaccum.torch.trace import Trace

PHASES = {
    "forward_bytes": ("forward", "loss"),
    "backward_bytes": ("backward", "recompute"),
    "optimizer_bytes": ("step", "optimizer"),
}
"""A figure, and the phases that it is the most of: those of a measured row, and those of a trace."""

MEASURED = common.ROOT / "benchmarks" / "measured" / "gpu"
"""Where the rows of a sitting go that are worth keeping."""

QUANTITIES = ("allocated_bytes", "reserved_bytes", *PHASES)


# What was measured


def measured_cases(folder: Path = MEASURED) -> Iterator[dict[str, Any]]:
    """The measured rows of a folder, newest for each case and device, in the order in which they were written.

    Nothing where there is no such folder.

    case: a Case. status: ok or oom. allocated_bytes, reserved_bytes: the peaks of two updates. forward_bytes,
    backward_bytes, optimizer_bytes: the peaks of allocated memory in the second update. context_bytes: what the process
    holds beside its segments, at the end. limit_bytes: of the allocator, or None. environment: device, capability,
    total_memory, fraction, and versions. Rows that failed, crashed or were skipped measure nothing and are left out.
    """
    newest = {(row["environment"]["device"], row["environment"]["torch"], row["case"]): row for row in _rows(folder)}
    for row in newest.values():
        if row["status"] not in {"ok", "oom"}:
            continue
        case = Case(**row["fields"])
        yield {
            "case": case,
            "status": row["status"],
            "allocated_bytes": row["allocated_bytes"],
            "reserved_bytes": row["reserved_bytes"],
            **phase_peaks(row["phases"]),
            "context_bytes": row.get("context_bytes", {}).get("at_last"),
            "limit_bytes": case.limit_bytes,
            "environment": row["environment"],
        }


def boundaries(folder: Path) -> Iterator[dict[str, Any]]:
    """The boundaries that are known: the case with the largest micro-batch that completed, 0 where none did."""
    known = {row["case"]: row for row in _rows(folder)}
    for boundary in BOUNDARIES:
        trials = trials_of(boundary, known)
        broken = {row["status"] for row in trials.values()} - {"ok", "oom"}
        if trials and not broken and trial_of(boundary, known) is None:
            fits = [micro_batch for micro_batch, row in trials.items() if row["status"] == "ok"]
            largest = max(fits, default=0)
            yield {"case": boundary.trial(largest), "max_micro_batch": largest, "trials": len(trials)}


def phase_peaks(phases: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The peaks of allocated memory in the second update, of the phases that it came to."""
    found: dict[str, int] = {}
    for row in phases:
        for name, kinds in PHASES.items():
            if row["update"] == 1 and row["phase"] in kinds:
                found[name] = max(found.get(name, 0), row["allocated"])
    return found


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in Store(folder).rows() if row["status"] != "skipped"]


# What is predicted


def traced(case: Case, capability: Sequence[int]) -> Trace:
    """Two updates of the case, from the building of the model on. Raises TraceError where it can't be followed."""
    import torch

    from benchmarks.gpu import recipe
    from gradaccum.torch.trace import cuda, record

    return record(
        lambda micro_batch, empty: recipe.job(dataclasses.replace(case, micro_batch=micro_batch), "meta"),
        case.micro_batch,
        load=torch.nn.Module,
        device=cuda((capability[0], capability[1])),
        accum_steps=case.accum_steps,
        updates=2,
    )


def allocator_of(case: Case, environment: Mapping[str, Any], addresses: str = "descending") -> Allocator:
    """The model of the allocator under the case's limit, on this card, in this release of PyTorch."""
    settings = Settings.parse(case.settings)
    whole = environment["total_memory"]
    if case.limit_bytes is not None:
        settings = dataclasses.replace(settings, per_process_memory_fraction=case.limit_bytes / whole)
    return Allocator(None, settings, addresses, ties_of(environment["torch"]), whole)


def predicted(case: Case, environment: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of `measured_cases`, from the trace; with the sizes that are alive at the peak.

    status: ok, oom, or failed with `why`. Without a limit the card is endless, so that an error shows whole.
    """
    from gradaccum.torch.trace import TraceError, replay

    begun = time.perf_counter()
    try:
        trace = traced(case, environment["capability"])
    except (TraceError, ValueError) as error:
        return {"status": "failed", "why": str(error), "seconds": round(time.perf_counter() - begun, 2)}
    notes = {
        "seconds": round(time.perf_counter() - begun, 2),
        "events": len(trace.events),
        "unknown": trace.unknown_ops(),
        "eager_instead_of_compiled": case.compiled,
    }
    allocator = allocator_of(case, environment)
    try:
        peaks = replay(trace, allocator)
    except OutOfMemory as error:
        notes["why"] = str(error)
        reached = {"allocated_bytes": allocator.peak_allocated, "reserved_bytes": allocator.peak_reserved}
        return {"status": "oom", **reached, **notes}
    found = {"allocated_bytes": peaks.allocated, "reserved_bytes": peaks.reserved}
    for name, kinds in PHASES.items():
        found[name] = max((peaks.by_phase.get(kind, 0) for kind in kinds), default=0)
    alive = alive_at(trace.events[: peaks.at.event + 1], [block.bytes for block in trace.blocks])
    ledger = {line.kind: line.bytes for line in peaks.ledger}
    return {"status": "ok", **found, **notes, "peak_at": peaks.at.phase, "ledger": ledger, "alive": alive}


def closed_form(case: Case, capability: Sequence[int]) -> int | None:
    """The closed form's peak of allocated memory in bytes; None where it does not know such a case."""
    if case.plain or case.lora_rank or case.compiled:
        return None
    attention = {"eager": "eager", "sdpa": "flash", "flash": "flash"}.get(case.attention)
    words = {"dtype": case.dtype, "optimizer": case.optimizer, "checkpointing": case.checkpointing}
    if attention is None or any(word not in CHOICES[name] for name, word in words.items()):
        return None
    try:
        setup = Setup(
            model=case.shape,
            sequence_length=case.sequence_length or case.shape.positions,
            micro_batch=case.micro_batch,
            accum_steps=case.accum_steps,
            attention=attention,
            **words,  # type: ignore[arg-type]
        )
        return total(peak(setup, float(f"{capability[0]}.{capability[1]}"))[1])
    except GradaccumError:
        return None


# Where the two differ


def alive_at(events: Iterable[int], sizes: Sequence[int]) -> dict[int, int]:
    """How many blocks of each size are alive after these events, in the allocator's steps of 512 bytes."""
    alive: set[int] = set()
    for event in events:
        if event >= 0:
            alive.add(event)
        else:
            alive.discard(~event)
    return dict(Counter(-(-sizes[block] // 512) * 512 for block in alive))


def record_peak(record: Mapping[str, Any]) -> dict[int, int]:
    """The same at the peak of an allocator's record."""
    now = top = 0
    at = -1
    for place, event in enumerate(record["events"]):
        size = -(-record["sizes"][event if event >= 0 else ~event] // 512) * 512
        now += size if event >= 0 else -size
        if now > top:
            top, at = now, place
    return alive_at(record["events"][: at + 1], record["sizes"])


def difference(measured: Mapping[int, int], foreseen: Mapping[int, int], most: int = 6) -> list[dict[str, int]]:
    """The sizes of which not as many were alive as foreseen, most bytes first."""
    sizes = [size for size in {*measured, *foreseen} if measured.get(size, 0) != foreseen.get(size, 0)]
    sizes.sort(key=lambda size: -size * abs(measured.get(size, 0) - foreseen.get(size, 0)))
    return [
        {"bytes": size, "measured": measured.get(size, 0), "foreseen": foreseen.get(size, 0)} for size in sizes[:most]
    ]


def replayed(record: Mapping[str, Any], allocator: Allocator) -> dict[str, int]:
    """The peaks that the model of the allocator finds for the requests that the real one got."""
    handles: dict[int, int] = {}
    try:
        for event in record["events"]:
            if event >= 0:
                handles[event] = allocator.malloc(record["sizes"][event])
            else:
                allocator.free(handles.pop(~event))
    except OutOfMemory:
        pass  # as the real one did, at the end of its record
    return {"allocated_bytes": allocator.peak_allocated, "reserved_bytes": allocator.peak_reserved}


def compared(row: Mapping[str, Any], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """A measured row with its predictions, the errors in percent, and what may explain them."""
    case, environment = row["case"], row["environment"]
    found = predicted(case, environment)
    result = {**row, "case": case.name, "fields": case.to_dict()}
    alive = found.pop("alive", None)
    result["predicted"] = found
    result["same_verdict"] = found["status"] == row["status"]
    if row["status"] == found["status"] == "ok":
        result["error_percent"] = {name: _percent(found[name], row[name]) for name in QUANTITIES if row.get(name)}
    if row["status"] == "ok" and (closed := closed_form(case, environment["capability"])) is not None:
        result["closed_form"] = {"allocated_bytes": closed, "error_percent": _percent(closed, row["allocated_bytes"])}
    if record is not None:
        result["allocator"] = {
            addresses: replayed(record, allocator_of(case, environment, addresses))
            for addresses in ("descending", "ascending")
        }
        if alive is not None:
            result["difference"] = difference(record_peak(record), alive)
    return result


def _percent(predicted_: int, measured: int) -> float:
    return round(100 * (predicted_ / measured - 1), 4)


# The results


HEADER = ["case", "allocated", "trace", "%", "reserved", "trace", "%", "allocator", "closed form %"]


def line(result: Mapping[str, Any]) -> list[str]:
    """A row of the table, in MiB. allocator: whether its model gives the measured peaks for the measured requests."""
    found, errors = result["predicted"], result.get("error_percent", {})
    cells = [result["case"]]
    for name in ("allocated_bytes", "reserved_bytes"):
        cells.append(result["status"] if result["status"] != "ok" else f"{result[name] / 2**20:.1f}")
        cells.append(found["status"] if found["status"] != "ok" else f"{found[name] / 2**20:.1f}")
        cells.append(f"{errors[name]:+.3f}" if name in errors else "")
    peaks = {name: result[name] for name in ("allocated_bytes", "reserved_bytes")}
    cells.append(
        "equal" if peaks in result.get("allocator", {}).values() else "differs" if "allocator" in result else ""
    )
    closed = result.get("closed_form")
    return [*cells, f"{closed['error_percent']:+.2f}" if closed else ""]


def summed(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many there are, on how many both said that it fits or does not, and the largest errors in percent."""
    errors = [result["error_percent"] for result in results if "error_percent" in result]
    worst = {
        f"largest error of {name}, percent": max(abs(each[name]) for each in errors if name in each)
        for name in QUANTITIES
        if any(name in each for each in errors)
    }
    same = sum(result["same_verdict"] for result in results)
    return {"cases": len(results), "of these with the same verdict": same, **worst}


def dry(cases: Sequence[Case], gpu: str) -> list[dict[str, Any]]:
    """Each case built and traced for this GPU, beside the closed form; nothing is measured."""
    from benchmarks.gpu import recipe

    card = find_gpu(gpu)
    if card.capability is None:
        raise SystemExit(f"{card.name} has no CUDA")
    import torch

    capability = [int(part) for part in card.capability.split(".")]
    environment = {
        "capability": capability,
        "total_memory": card.usable_bytes or card.memory_bytes,
        "torch": torch.__version__,
    }
    results = []
    for case in cases:
        lacking = [name for name in recipe.missing(case) if name != "triton"]  # what is traced is not compiled
        if lacking:
            found: dict[str, Any] = {"status": "skipped", "why": f"not installed: {', '.join(lacking)}"}
        else:
            found = predicted(case, environment)
            found.pop("alive", None)
        results.append({"case": case.name, "predicted": found, "closed_form": closed_form(case, capability)})
        print(_dry_line(results[-1]), flush=True)
    return results


def _dry_line(result: Mapping[str, Any]) -> str:
    found = result["predicted"]
    peaks = " ".join(f"{found.get(name, 0) / 2**30:6.2f}" for name in ("allocated_bytes", "reserved_bytes"))
    closed = result["closed_form"]
    beside = (
        f"{100 * (closed / found['allocated_bytes'] - 1):+6.2f}%" if closed and "allocated_bytes" in found else 7 * " "
    )
    why = "  ".join([*found.get("unknown", {}), *([found["why"][:120]] if "why" in found else [])])
    return f"{found['status']:8}{peaks} GiB {found.get('seconds', 0):5.1f} s {beside}  {result['case']}  {why}".rstrip()


def main(given: Sequence[str] | None = None) -> None:
    """Compare, print the table, write the results."""
    parser = argparse.ArgumentParser(description="Measured memory beside predicted memory.")
    parser.add_argument("folder", type=Path, nargs="?", default=MEASURED, help="what memory_truth wrote")
    parser.add_argument("--dry", action="store_true", help="trace every case; nothing measured is needed")
    parser.add_argument("--gpu", default="h100-sxm-80gb", help="with --dry: for which GPU (default h100-sxm-80gb)")
    parser.add_argument("--only", default="", help="only cases with this text in their names")
    parser.add_argument(
        "--out", type=Path, help="where to write the results as JSON (default compare.json in the folder)"
    )
    asked = parser.parse_args(given)
    if asked.dry:
        results = dry([case for case in by_value(CASES) if asked.only in case.name], asked.gpu)
        statuses = Counter(result["predicted"]["status"] for result in results)
        summary: dict[str, Any] = dict(statuses)
        print(", ".join(f"{count} {status}" for status, count in statuses.items()))
    else:
        records = {(row["device"], row["case"]): row["events"] for row in Store(asked.folder).rows("events")}
        results = []
        for row in measured_cases(asked.folder):
            if asked.only in row["case"].name:
                events = records.get((row["environment"]["device"], row["case"].name))
                results.append(compared(row, _unpacked(events)))
                print(f"{len(results)}: {results[-1]['case']}", file=sys.stderr)
        print(common.table(HEADER, [line(result) for result in results]))
        for found in boundaries(asked.folder):
            print(f"largest micro-batch {found['max_micro_batch']} in {found['trials']} trials: {found['case'].name}")
        summary = summed(results)
        print("\n".join(f"{name}: {value}" for name, value in summary.items()))
    path = asked.out or (None if asked.dry or not results else asked.folder / "compare.json")
    if path is not None:
        content = {"libraries": _libraries(), "summary": summary, "rows": results}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _unpacked(events: str | None) -> Mapping[str, Any] | None:
    from benchmarks.gpu.measure import unpacked

    return None if events is None else unpacked(events)


def _libraries() -> dict[str, object]:
    from benchmarks.gpu.measure import versions

    return versions()


if __name__ == "__main__":
    main()
