"""What every benchmark shares: turns taken one after the other, percentiles, ratios pair by pair, and the results file.

A clock on a shared machine swings by tens of percent within a minute. So contenders take turns (A B C A B C ...), each
turn of one is divided by the same turn of the baseline, and the median of those ratios is the result to read.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
"""Whatever a benchmark builds or downloads; git ignores it."""
RESULTS = ROOT / "benchmarks" / "results"

LOAD = round(os.getloadavg()[0], 2)
"""Processes that wanted a core during the minute before this benchmark began: near 0 on a quiet machine."""

T = TypeVar("T")
Spread = dict[str, float]


# Turns and statistics


def take_turns(contenders: Mapping[str, Callable[[], T]], turns: int) -> dict[str, list[T]]:
    """What each contender returned in each of its turns: all of them once, in their order, then all again."""
    found: dict[str, list[T]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, measure in contenders.items():
            found[name].append(measure())
    return found


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie, interpolated linearly. ValueError where there are none."""
    if not values or not 0 <= percent <= 100:
        raise ValueError(f"there is no {percent}th percentile of {len(values)} values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Sequence[float], scale: float = 1) -> Spread:
    """Median, 5th and 95th percentile, times `scale`, to four significant digits."""
    percents = {"median": 50, "p5": 5, "p95": 95}
    return {name: float(f"{percentile(values, percent) * scale:.4g}") for name, percent in percents.items()}


def ratios(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Each turn by the baseline's turn beside it. ValueError where the two did not take the same turns."""
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} turns cannot be paired with {len(baseline)}")
    return [value / base for value, base in zip(values, baseline, strict=True)]


# What is asked for, and what is handed on


def asked_runs(what: str, usual: int) -> int:
    """`--runs` from the command line. what: the benchmark in one line, for its help."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--runs", type=int, default=usual, help=f"turns of each (default {usual}); fewer are a trial")
    runs: int = parser.parse_args().runs
    if runs < 1:
        parser.error(f"--runs is at least 1, not {runs}")
    return runs


def write_result(name: str, what: str, runs: int, usual: int, versions: Mapping[str, str], **measured: object) -> None:
    """Write `results/<name>.json`; a trial with fewer runs than usual goes to the cache, and spoils nothing."""
    folder = RESULTS if runs >= usual else CACHE / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    head = {"benchmark": name, "what": what, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    setting = {"runs": runs, "machine": machine(), "versions": {"python": platform.python_version(), **versions}}
    path.write_text(json.dumps({**head, **setting, **measured}, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {path.relative_to(ROOT)}")


def machine() -> dict[str, object]:
    """The kind of machine, in words that fit many, and how busy it was."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "system": platform.system(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30),
        "load_before": LOAD,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what they hold: the first flush left, the others flush right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def verdict(what: str, measured: float, limit: float) -> dict[str, object]:
    """A limit, what was measured, and whether it holds; printed too."""
    holds = measured <= limit
    print(f"\n{what}: {measured:g}, limit {limit:g}: {'holds' if holds else 'DOES NOT HOLD'}")
    return {"what": what, "limit": limit, "measured": measured, "holds": holds}
