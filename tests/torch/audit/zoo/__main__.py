"""python -m tests.torch.audit.zoo [framework or name ...]: runs loops, one line each, so that one sees that all run.

A line is the seconds, "right" or "wrong" as one big batch judges it ("-" where it is not asked), and the name. Loops
on 2 ranks are run by one torchrun. Exit 1 if a loop is not what it says.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch.distributed as dist

from tests.torch.audit.zoo import Loop, loops
from tests.torch.audit.zoo.truth import compare, is_as_it_says
from tests.torchrun import torchrun


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torch.audit.zoo")
    parser.add_argument("names", nargs="*", help="frameworks or loops; all if none")
    parser.add_argument("--to", type=Path, help="a file for the lines")
    options = parser.parse_args()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    frameworks = dict.fromkeys(name.split("-")[0] for name in options.names)
    chosen = [
        loop for loop in loops(*frameworks) if not options.names or {loop.framework, loop.name} & {*options.names}
    ]
    if world > 1:
        dist.init_process_group("gloo")
    lines = [_line(loop) for loop in chosen if loop.world == world]
    if world == 1 and (on_ranks := [loop.name for loop in chosen if loop.world == 2]):
        lines += run_on_ranks(on_ranks)
    if world > 1:
        if dist.get_rank() == 0 and options.to:
            options.to.write_text("\n".join(lines))
        dist.destroy_process_group()
        return 0
    print(*lines, sep="\n")
    return int(any("NOT" in line for line in lines))


def run_on_ranks(names: list[str]) -> list[str]:
    """The lines of loops for 2 ranks, from one launch."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines"
        torchrun(2, "-m", "tests.torch.audit.zoo", *names, "--to", str(lines), patience=280)
        return lines.read_text().splitlines()


def _line(loop: Loop) -> str:
    start = time.perf_counter()
    verdict = "-"
    if loop.truth:
        holds = is_as_it_says(loop, compare(loop))
        verdict = ("" if holds else "NOT ") + ("wrong" if loop.faults else "right")
    else:
        loop.run()
    return f"{time.perf_counter() - start:6.2f} s  {verdict:9} {loop.name}  {' '.join(sorted(loop.faults))}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
