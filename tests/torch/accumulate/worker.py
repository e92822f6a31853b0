"""Runs cases on every rank: torchrun ... worker.py FOLDER cases|all_cases. Rank r writes FOLDER/r.json."""

from __future__ import annotations

import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.torch.accumulate import exact_ranks, ranks, runs
from tests.torch.accumulate.cases import Case


def _wrong(case):
    if isinstance(case, exact_ranks.Exact):
        return exact_ranks.differences(case)
    return runs.differences(case) if isinstance(case, Case) else case()


def main(folder: str, which: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    found = {}
    for case in getattr(ranks, which)(dist.get_world_size()):
        try:
            found[ranks.name_of(case)] = _wrong(case)
        except Exception:
            found[ranks.name_of(case)] = [traceback.format_exc()]
    (Path(folder) / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
