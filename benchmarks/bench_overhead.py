"""What the accumulator costs beside the loop that an expert writes by hand for the same result, and its peers."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, asked_runs, ratios, spread, table, verdict, write_result
from benchmarks.environments import source_environ
from benchmarks.overhead_loops import EVERY, SELDOM

WHAT = "an accumulating loop on a model so small that only the loop shows, beside the same loop by hand"
RUNS = 200
LIMIT = 1.0
"""Times the loop by hand, median of pairs."""
MORE_SENT, MORE_HELD = 64, 128
"""Bytes beyond the loop by hand: sent in an update, and live at the peak."""
OURS, BASE = "gradaccum", "by hand"
LIBRARIES = ("torch", "accelerate", "lightning", "transformers")


def seconds(runs: int) -> dict[str, Any]:
    """Of all loops in one process, turn by turn, with each optimizer; and how far their parameters lie apart."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "loops.json"
        _run([sys.executable, "-W", "ignore", "-m", "benchmarks.overhead_loops", str(runs), str(file)])
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def costs() -> dict[str, Any]:
    """Bytes that two ranks send and hold, which have no noise."""
    launch = ["torch.distributed.run", "--nproc-per-node=2", "--standalone", "--local-addr=127.0.0.1", "-m"]
    with tempfile.TemporaryDirectory() as folder:
        _run([sys.executable, "-m", *launch, "benchmarks.overhead_costs", folder])
        found: dict[str, Any] = json.loads((Path(folder) / "costs.json").read_text(encoding="utf-8"))
    return found


def _run(command: list[str]) -> None:
    environment = {**source_environ(), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


def main() -> None:
    """The bytes, and then the clock."""
    runs = asked_runs(WHAT, RUNS)
    found_costs, measured = costs(), {}
    for optimizer, each in seconds(runs).items():
        beside = {
            name: spread(ratios(times, each["seconds"][BASE][:: EVERY if name in SELDOM else 1]))
            for name, times in each["seconds"].items()
        }
        measured[optimizer] = {
            name: {"ratio": beside[name], "ms": spread(times, 1000), "pairs": len(times), "apart": each["apart"][name]}
            for name, times in each["seconds"].items()
        }
        rows = [
            [name, f"{one['ratio']['median']:.3f}", f"{one['ms']['median']:.2f}", f"{one['apart']:.1e}"]
            for name, one in measured[optimizer].items()
        ]
        print(table([optimizer, "ratio", "ms", "parameters apart"], rows) + "\n")
    limits = [
        verdict(f"{optimizer}: times the loop by hand", measured[optimizer][OURS]["ratio"]["median"], LIMIT)
        for optimizer in measured
    ]
    own, base = found_costs["loops"][OURS], found_costs["loops"][BASE]
    more = (own["first_pass_bytes"] - base["first_pass_bytes"]) / found_costs["updates"]
    limits.append(verdict("bytes sent beyond the loop by hand, in an update", round(more, 1), MORE_SENT))
    held = own["peak_bytes"] - base["peak_bytes"]
    limits.append(verdict("bytes held at the peak beyond the loop by hand", held, MORE_HELD))
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    write_result("overhead", WHAT, runs, RUNS, versions, limits=limits, measured=measured, costs=found_costs)


if __name__ == "__main__":
    main()
