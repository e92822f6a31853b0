"""Predicted peaks beside measured ones: each row of measured/fitcheck_t4.csv traced without a GPU, and replayed.

    python -m benchmarks.accuracy            # makes an environment for each pair of versions; torch is large
    python -m benchmarks.accuracy --here     # with the transformers and peft of this interpreter, whatever they are

transformers and peft are needed because the measured step is theirs: no other code makes the same tensors live and die
in the same order. They are no dependency of this package, so they are installed into environments of their own, in the
versions of the measured session. Nothing is fitted: the prediction never sees a measured number.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from benchmarks.common import RESULTS, ROOT, machine, table, verdict
from benchmarks.environments import library_environment, source_environ

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MEASURED = ROOT / "benchmarks" / "measured" / "fitcheck_t4.csv"
CAPACITY = 14_912 * 2**20
"""Bytes of the card that was measured."""

LIMITS = {"allocated_bytes": 0.5, "reserved_bytes": 1.0}
"""Percent that no row may be off by."""

QUANTITIES = "allocated_bytes reserved_bytes reserved_bytes_by_version forward_bytes backward_bytes optimizer_bytes"


def read_rows() -> list[dict[str, str]]:
    """The measured rows, as text, in the order of the file."""
    with MEASURED.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def predict(rows: Sequence[Mapping[str, str]], here: bool) -> list[dict[str, Any]]:
    """One prediction for each row, each from the versions of the libraries that it was measured with."""
    stacks: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        stacks[("", "") if here else (row["transformers"], row["peft"])].append(number)
    found: list[dict[str, Any]] = [{} for _ in rows]
    for (transformers, peft), numbers in stacks.items():
        python = sys.executable
        if not here:
            wanted = (f"transformers=={transformers}", f"peft=={peft}")
            python = library_environment(f"transformers-{transformers}", *wanted).program("python")
        lines = "".join(f"{number}\n" for number in numbers)
        done = subprocess.run(
            [python, "-m", "benchmarks.fitcheck_recipe"],
            input=lines,
            env=source_environ(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        for number, line in zip(numbers, done.stdout.splitlines(), strict=True):
            found[number] = json.loads(line)
    return found


def errors(row: Mapping[str, str], prediction: Mapping[str, Any]) -> dict[str, float]:
    """Percent by which each quantity is predicted too high (positive) or too low."""
    measured = {name: int(row.get(name) or row[name.removesuffix("_by_version")]) for name in QUANTITIES.split()}
    return {name: round(100 * (prediction[name] / bytes_ - 1), 4) for name, bytes_ in measured.items()}


def lines(rows: Sequence[Mapping[str, str]], found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table: what was run, then measured, predicted and error of allocated and of reserved memory, in MiB."""
    made = []
    for row, prediction in zip(rows, found, strict=True):
        off = errors(row, prediction)
        cells = [row["model"].rpartition("/")[2], row["seq_len"], row["micro_batch"], row["attention"]]
        for name in LIMITS:
            cells += [f"{int(row[name]) / 2**20:.1f}", f"{prediction[name] / 2**20:.1f}", f"{off[name]:+.3f}"]
        made.append([*cells, f"{off['reserved_bytes_by_version']:+.3f}"])
    return made


HEADER = (
    "model, length, micro-batch, attention, allocated, predicted, %, reserved, predicted, %, % by torch version".split(
        ", "
    )
)


def main() -> None:
    """Predict, compare, write results/accuracy.json and results/accuracy.md."""
    parser = argparse.ArgumentParser(description="predicted peaks beside measured ones")
    parser.add_argument("--here", action="store_true", help="use the libraries of this interpreter")
    here = parser.parse_args().here
    rows = read_rows()
    found = predict(rows, here)
    cells = lines(rows, found)
    print(table(HEADER, cells))
    off = [errors(row, prediction) for row, prediction in zip(rows, found, strict=True)]
    verdicts = [
        verdict(f"largest error of {name}, percent", max(abs(each[name]) for each in off), limit)
        for name, limit in LIMITS.items()
    ]
    result = {
        "benchmark": "accuracy",
        "what": "peaks predicted without a GPU beside peaks measured on a Tesla T4",
        "machine": machine(),
        "libraries": "of the interpreter that ran"
        if here
        else "the versions of each row, with torch of constraints.txt",
        "limits": verdicts,
        "rows": [
            {**row, "predicted": prediction, "error_percent": each}
            for row, prediction, each in zip(rows, found, off, strict=True)
        ],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "accuracy.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "accuracy.md").write_text(markdown(cells), encoding="utf-8")


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """The table for readers, in MiB."""
    head = f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in cells)


if __name__ == "__main__":
    main()
