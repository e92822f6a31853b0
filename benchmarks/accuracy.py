"""Predicted memory beside measured memory: every measured run whose recipe is complete enough, both engines, peers.

    make accuracy                                   # all of it: makes an environment for each pair of versions
    python -m benchmarks.accuracy --keep-traces     # the traces of the last time; seconds instead of minutes

Writes results/accuracy.json, and from it docs/accuracy.md, docs/accuracy.svg, the figures that docs/fit.md quotes, and
the package's memory/evidence.json.

transformers, peft and bitsandbytes are needed to trace a measured step, because it is theirs: no other code makes the
same tensors live and die in the same order. They are no dependency of this package, so they are installed into
environments of their own, in the versions of the measured session. Nothing is fitted: no prediction sees a measurement.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from benchmarks import accuracy_page
from benchmarks.common import RESULTS, ROOT, machine, verdict
from benchmarks.environments import library_environment, source_environ
from benchmarks.measured_cases import RECIPES, Case, cases, read
from benchmarks.memory_peers import answers, question
from gradaccum.errors import InputError
from gradaccum.memory.evidence import CLOSED_FORM, LEAST, TRACE, UNMEASURED, measured
from gradaccum.memory.fit import memory_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

RESULT = RESULTS / "accuracy.json"
EVIDENCE = ROOT / "src" / "gradaccum" / "memory" / "evidence.json"

BITSANDBYTES = "0.50.2"
"""Where a row names no version: the newest on the days of those sessions."""

Record = dict[str, Any]

NOT_TRACED = {"why": "no versions are named"}


# The two engines


def closed(case: Case) -> Record:
    """What the closed form says, or why it says nothing."""
    try:
        memory = memory_of(case.setup(), case.gpu)
    except InputError as error:
        return {"why": "; ".join(f"{problem.field} {problem.message}" for problem in error.problems)}
    return {
        "allocated_bytes": memory.peak_bytes,
        "reserved_bytes": memory.reserved_bytes,
        "process_bytes": memory.process_bytes,
        "low_bytes": memory.process_low_bytes,
        "high_bytes": memory.process_high_bytes,
        "at": memory.peak_at,
    }


def traced(numbers: Sequence[int]) -> dict[int, Record]:
    """What the trace says of these rows of RECIPES, each with the versions of the libraries of its session."""
    rows = read(RECIPES)
    stacks: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number in numbers:
        row = rows[number]
        stacks[row["transformers"], row["peft"]].append(number)
    found: dict[int, Record] = {}
    for (transformers, peft), wanted in stacks.items():
        libraries = (f"transformers=={transformers}", f"peft=={peft}", f"bitsandbytes=={BITSANDBYTES}", "accelerate")
        done = subprocess.run(
            [
                library_environment(f"transformers-{transformers}", *libraries).program("python"),
                "-m",
                "benchmarks.fitcheck_recipe",
            ],
            input="".join(f"{number}\n" for number in wanted),
            env=source_environ(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found.update(zip(wanted, map(json.loads, done.stdout.splitlines()), strict=True))
    return found


def of_process(case: Case, trace: Record) -> Record:
    """A trace with what the process takes, reserved and the measured context; without, where that is too much."""
    if trace.get("reserved_bytes") is None or case.context is None:
        return trace
    return {**trace, "process_bytes": trace["reserved_bytes"] + case.context}


# Against what was measured


def errors(case: Case, said: Mapping[str, Any]) -> dict[str, float]:
    """Percent by which each quantity is predicted too high (positive) or too low; of a run that ended alone."""
    found = {}
    for name, bytes_ in case.measured.items():
        predicted = said.get(f"{name}_bytes")
        if predicted is not None:
            found[name] = round(100 * (predicted / bytes_ - 1), 4)
    return found


def judged(case: Case, said: Mapping[str, Any], margin: float = 0) -> str:
    """The verdict against the outcome: right; open, where the interval holds both; wrong. "" without a verdict.

    margin: percent of the process, for a prediction that brings no interval of its own.
    """
    if "why" in said:
        return ""
    expected = said.get("process_bytes")
    if expected is None:
        return "wrong" if case.ran else "right"
    low = said.get("low_bytes", expected * (1 - margin / 100))
    high = said.get("high_bytes", expected * (1 + margin / 100))
    if low <= case.capacity < high:
        return "right" if (expected <= case.capacity) == case.ran else "open"
    return "right" if (high <= case.capacity) == case.ran else "wrong"


def regimes(records: Iterable[Record]) -> list[Record]:
    """Measured cases and worst error of each engine and regime, in tenths of a percent, rounded up.

    `cases` are those of which what was allocated is known, `process_cases` those of which the whole process alone is.
    """
    sums: dict[tuple[str, ...], dict[str, list[int]]] = defaultdict(
        lambda: {"allocated": [], "reserved": [], "process": []}
    )
    for record in records:
        for engine in (CLOSED_FORM, TRACE):
            found = record[engine].get("error_percent", {})
            for name, error in found.items():
                if name in ("allocated", "reserved") or (name == "process" and "allocated" not in found):
                    sums[engine, *record["regime"]][name].append(-(-round(abs(error) * 10_000) // 1000))
    return [
        {
            "engine": engine,
            "regime": list(regime),
            "cases": len(found["allocated"]),
            "worst_allocated": max(found["allocated"], default=None),
            "worst_reserved": max(found["reserved"], default=None),
            "process_cases": len(found["process"]),
            "worst_process": max(found["process"], default=None),
        }
        for (engine, *regime), found in sorted(sums.items())
    ]


# All of it


def measure(keep: Mapping[int, Record]) -> list[Record]:
    """A record for each case. keep: traces that are there already, by row number."""
    every = cases()
    wanted = [case.row for case in every if case.row is not None]
    traces = {**keep, **traced([number for number in wanted if number not in keep])}
    asked = [{**question(case.model, case.how), "gpu": _fitcheck_gpu(case)} for case in every]
    peers = answers(asked)
    records = []
    for place, case in enumerate(every):
        record: Record = {
            "source": case.source,
            "model": case.model.id,
            "how": dict(case.how),
            "regime": [case.regime.attention, case.regime.precision, case.regime.sharding],
            "code": case.code,
            "gpu": case.gpu.id,
            "capacity_bytes": case.capacity,
            "ran": case.ran,
            "measured": dict(case.measured),
            "context": case.context,
            "row": case.row,
            CLOSED_FORM: closed(case),
            TRACE: of_process(case, traces[case.row] if case.row is not None else dict(case.traced or NOT_TRACED)),
            "peers": {name: said[place] for name, said in peers.items()},
        }
        for engine in (CLOSED_FORM, TRACE):
            record[engine]["error_percent"] = errors(case, record[engine]) if case.ran else {}
        records.append(record)
    _with_evidence(every, records)
    _judge(every, records)
    return records


def _with_evidence(every: Sequence[Case], records: Sequence[Record]) -> None:
    """Write the evidence, and give each record of the closed form the interval that follows from it."""
    EVIDENCE.write_text(evidence_text(regimes(records)), encoding="utf-8")
    measured.cache_clear()
    for case, record in zip(every, records, strict=True):
        record[CLOSED_FORM].update(closed(case))


def _judge(every: Sequence[Case], records: Sequence[Record]) -> None:
    """Verdicts; a trace's interval is the worst error of what is reserved in its regime."""
    worst = {
        tuple(row["regime"]): max(LEAST, row["worst_reserved"] / 10)
        for row in regimes(records)
        if row["engine"] == TRACE
    }
    for case, record in zip(every, records, strict=True):
        record[CLOSED_FORM]["verdict"] = judged(case, record[CLOSED_FORM])
        record[TRACE]["verdict"] = judged(case, record[TRACE], worst.get(tuple(record["regime"]), UNMEASURED))


def _fitcheck_gpu(case: Case) -> str:
    """The name of the card in FitCheck's list; it enters the total as a part that was fitted to it."""
    known = {"t4-16gb": "t4", "a100-sxm-40gb": "a100-40", "a100-sxm-80gb": "a100-80", "h100-sxm-80gb": "h100-80"}
    return known.get(case.gpu.id, case.gpu.id)


LIMITS = (
    ("fp16 LoRA", False, "allocated", 0.5, 10),
    ("fp16 LoRA", False, "reserved", 1.0, 10),
    ("LoRA over NF4", True, "allocated", 1.5, 10),
    ("LoRA over NF4", True, "reserved", 5.0, 9),
)
"""What whole recipes are held to: whether they are in NF4, a quantity, percent, and so many runs of ten."""


def limits(records: Sequence[Record]) -> list[Record]:
    """The error of the worst run that a limit is for, and whether it holds."""
    found = []
    for name, in_nf4, quantity, limit, of_ten in LIMITS:
        off = sorted(
            abs(record[TRACE]["error_percent"][quantity])
            for record in records
            if quantity in record[TRACE]["error_percent"] and ("quantization" in record["how"]) == in_nf4
        )
        place = -(-of_ten * len(off) // 10) - 1
        share = "worst error" if of_ten == 10 else f"error of {of_ten} runs in ten"
        what = f"{name}, traced, {quantity}: {share}, percent"
        found.append(verdict(what, off[place], limit))
    return found


def main() -> None:
    """Predict, compare, write."""
    parser = argparse.ArgumentParser(description="predicted memory beside measured memory")
    parser.add_argument("--keep-traces", action="store_true", help="take the traces of results/accuracy.json")
    keep = {}
    if parser.parse_args().keep_traces:
        last = json.loads(RESULT.read_text(encoding="utf-8"))["cases"]
        keep = {each["row"]: bare(each[TRACE]) for each in last if each["row"] is not None}
    records = measure(keep)
    result = {
        "benchmark": "accuracy",
        "what": "memory predicted without a GPU beside memory that others measured",
        "machine": machine(),
        "libraries": f"the versions of each row, bitsandbytes {BITSANDBYTES}, and torch of constraints.txt",
        "limits": limits(records),
        "regimes": regimes(records),
        "cases": records,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    accuracy_page.write(result)


def bare(trace: Record) -> Record:
    """A trace as it was made, without what comparing added."""
    return {name: value for name, value in trace.items() if name not in ("error_percent", "verdict", "process_bytes")}


def evidence_text(found: object) -> str:
    """The package's evidence.json."""
    assert isinstance(found, list)
    lines = ",\n".join(" " + json.dumps(row) for row in found)
    return f'{{"regimes": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    main()
