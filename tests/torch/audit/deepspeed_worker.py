"""Watches loops of DeepSpeed on every rank: torchrun ... deepspeed_worker.py FOLDER OUT. Rank r writes OUT/r.json."""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from gradaccum.torch.audit.watch import watch

STEPS, UPDATES, ROWS = 4, 3, 4
KINDS = ("right", "mean", "twice", "lost")
CASES = [*itertools.product((0, 1, 2, 3), ("fp32", "bf16"), KINDS), (2, "fp32", "long")]


def main(folder: str, out: str) -> None:
    sys.path.insert(0, folder)
    os.environ["DS_ACCELERATOR"] = "cpu"
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    deepspeed = importlib.import_module("deepspeed")
    setattr(sys.modules["deepspeed.comm.torch"], "build_shm_op", lambda: None)  # noqa: B010 - compiled for minutes
    found = {}
    for case in CASES:
        gc.collect()  # of the engines before: an optimizer that lives on is one more to be watched
        try:
            with watch(target_batch=steps_of(case[2]) * ROWS * dist.get_world_size()) as report:
                watched = train(deepspeed, *case)
            found[" ".join(map(str, case))] = {**report.to_dict(), "changed": watched != train(deepspeed, *case)}
        except Exception:
            found[" ".join(map(str, case))] = {"error": traceback.format_exc()}
    (Path(out) / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()


def steps_of(kind: str) -> int:
    """More micro-batches than a sketch can tell apart, where they are many."""
    return 12 if kind == "long" else STEPS


def train(deepspeed, stage: int, dtype: str, kind: str) -> list[float]:
    """The loop, with what is wrong in it; the losses that it saw."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5))
    steps = steps_of(kind)
    config = {
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": 0.1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 10, "reduce_bucket_size": 500},
    }
    if dtype == "bf16":
        config["bf16"] = {"enabled": True}
    base = torch.optim.AdamW([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 1e-2}])
    engine, optimizer, *_ = deepspeed.initialize(model=model, optimizer=base, config=config)
    torch.manual_seed(dist.get_rank())
    losses = []
    for step in range(steps * UPDATES):
        inputs, labels = torch.randn(ROWS, 8), torch.randint(5, (ROWS,))
        if kind == "mean":
            labels[: step % steps] = -100
        loss = cross_entropy(engine(inputs.to(torch.bfloat16 if dtype == "bf16" else torch.float32)).float(), labels)
        losses.append(float(loss))
        engine.backward(loss / steps if kind == "twice" else loss)
        if kind in ("lost", "long") and step % steps == steps - 2:
            lose(model, optimizer)
        engine.step()
    engine.destroy()
    return losses


def lose(model, optimizer) -> None:
    """What has been summed so far, wherever this stage keeps it."""
    for name in ("averaged_gradients", "all_grad_tensors"):
        for group in (getattr(optimizer, name, None) or {}).values():
            for each in group or ():
                if each is not None:
                    each.zero_()
    for each in model.parameters():
        if each.grad is not None:
            each.grad.zero_()


if __name__ == "__main__":
    main(*sys.argv[1:])
