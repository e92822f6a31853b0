"""Watches loops on every rank: torchrun ... worker.py FOLDER ranks|FRAMEWORK. Rank r writes FOLDER/r.json."""

from __future__ import annotations

import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from gradaccum.torch.audit.watch import watch
from tests.torch.audit import rank_loops


def main(folder: str, which: str) -> None:
    found = {}
    for name, run, target in loops(which):
        try:
            found[name] = run(target).to_dict()
        except Exception:
            found[name] = {"error": traceback.format_exc()}
    (Path(folder) / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def loops(which: str):
    """(name, function of the target that gives a report, target) of each."""
    if which == "ranks":
        dist.init_process_group("gloo", timeout=timedelta(seconds=30))
        for loop in rank_loops.LOOPS:
            yield loop.name, lambda target, loop=loop: own(loop, target), 2 * rank_loops.MICRO_BATCH * rank_loops.STEPS
        return
    from tests.torch.audit import zoo

    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    for each in zoo.loops():
        if each.framework == which and each.world == dist.get_world_size():
            yield each.name, lambda target, each=each: unknown(each, target), each.target_batch


def own(loop, target):
    model, optimizer = rank_loops.parts(loop)
    with watch(model, optimizer, target_batch=target) as report:
        rank_loops.train(loop, model, optimizer)
    return report


def unknown(each, target):
    with watch(target_batch=target, updates=None) as report:
        each.run()
    return report


if __name__ == "__main__":
    main(*sys.argv[1:])
