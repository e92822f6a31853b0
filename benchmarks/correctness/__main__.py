"""Every case through every loop, on one process and on two ranks: results/correctness.json and docs/correctness.md.

Cases that are named are run alone and shown, and nothing is written: `python -m benchmarks.correctness A1 A2`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, write_result
from benchmarks.correctness.cases import CASES
from benchmarks.correctness.page import page, table_of
from benchmarks.environments import source_environ

WHAT = "known failure cases of accumulating loops, in installed libraries, beside one concatenated batch"
PAGE = ROOT / "docs" / "correctness.md"
LIBRARIES = ("torch", "accelerate", "lightning", "transformers")


def measured(*names: str) -> dict[str, Any]:
    """What each loop makes of these cases, or of all; one process for one rank, one launch for two."""
    found: dict[str, Any] = {}
    for ranks in (1, 2):
        wanted = [case.name for case in CASES if case.ranks == ranks and (not names or case.name in names)]
        if wanted:
            found |= _run(ranks, wanted)
    return {case.name: found[case.name] for case in CASES if case.name in found}


def _run(ranks: int, names: list[str]) -> dict[str, Any]:
    launch = ["torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone", "--local-addr=127.0.0.1", "-m"]
    environment = {**source_environ(), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", *(launch if ranks > 1 else []), "benchmarks.correctness.worker", folder]
        done = subprocess.run([*command, *names], cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        found: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text(encoding="utf-8"))
    return found


def main() -> None:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=WHAT)
    parser.add_argument("case", nargs="*", choices=[[], *(case.name for case in CASES)], help="as A3; default all")
    names = parser.parse_args().case
    found = measured(*names)
    print(table_of(found))
    if not names:
        versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
        write_result("correctness", WHAT, 1, 1, versions, cases=found)
        result = json.loads((RESULTS / "correctness.json").read_text(encoding="utf-8"))
        PAGE.write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
