"""What the accumulator costs beside the loop that an expert writes by hand for the same result, and its peers."""

from __future__ import annotations

import json
import subprocess

from benchmarks.common import ROOT, asked_runs, ratios, spread, table, verdict, write_result
from benchmarks.environments import library_environment, source_environ

WHAT = "an accumulating loop on a model so small that only the loop shows, beside the same loop by hand"
RUNS = 200
LIMIT = 1.0
"""Times the loop by hand, median of pairs."""
OURS, BASE = "gradaccum", "by hand"


def main() -> None:
    """All loops in one process, turn by turn."""
    runs = asked_runs(WHAT, RUNS)
    environment = library_environment("overhead", "accelerate", "lightning")
    command = [environment.program("python"), "-W", "ignore", "-m", "benchmarks.overhead_loops", str(runs)]
    done = subprocess.run(command, cwd=ROOT, env=source_environ(), stdout=subprocess.PIPE, check=True, text=True)
    found = json.loads(done.stdout[done.stdout.index("{") :])
    measured = {}
    for optimizer, each in found.items():
        seconds = each["seconds"]
        beside = {name: spread(ratios(times, seconds[BASE])) for name, times in seconds.items()}
        measured[optimizer] = {
            name: {"ratio": beside[name], "ms": spread(times, 1000), "apart": each["apart"][name]}
            for name, times in seconds.items()
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
    versions = {name: environment.version(name) for name in ("torch", "accelerate", "lightning")}
    write_result("overhead", WHAT, runs, RUNS, versions, limits=limits, measured=measured)


if __name__ == "__main__":
    main()
