"""What DeepSpeed's ZeRO allocates, measured as in measure_sharding: `python -m benchmarks.measure_deepspeed FILE`.

It needs DeepSpeed beside PyTorch, and no GPU: DeepSpeed runs on a CPU as well, and the process group moves no data. The
buckets are small, so that they do not drown a small model. The tests read what this wrote.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.measure_sharding import Small, phases_of, write

BUCKET = 10**6
"""Elements."""


def measure(stage: int, world: int, dtype: str) -> dict[str, Any]:
    """The phases of one update of two micro-steps, and the bytes that DeepSpeed's optimizer holds all the time."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(world), DS_ACCELERATOR="cpu")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    deepspeed: Any = importlib.import_module("deepspeed")
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined] # compiles for minutes
    torch.backends.mkldnn.enabled = False
    zero = {"stage": stage, "reduce_bucket_size": BUCKET, "stage3_param_persistence_threshold": 0}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }
    if dtype != "fp32":
        config[dtype] = {"enabled": True}
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    tokens = torch.zeros(1, 1, dtype=torch.int64)

    def update() -> None:
        for step in (1, 2):
            with record_function(f"forward {step}"):
                loss = engine(tokens).float().sum()
            with record_function(f"backward {step}"):
                engine.backward(loss)
            del loss
            with record_function("optimizer step" if step == 2 else "no step"):
                engine.step()

    for _ in range(3):
        update()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        update()
    return {
        "strategy": f"zero{stage}", "world": world, "dtype": dtype, "bucket": BUCKET, "torch": torch.__version__,
        "deepspeed": deepspeed.__version__, "phases": phases_of(profiler),
    }  # fmt: skip


def main() -> None:
    """Measure every case, each in a process of its own, and write the file."""
    if len(sys.argv) > 2:
        stage, world, dtype = sys.argv[1:]
        print(json.dumps(measure(int(stage), int(world), dtype)))
        return
    rows = []
    for stage in ("1", "2", "3"):
        for world in ("2", "8"):
            command = [sys.executable, "-m", "benchmarks.measure_deepspeed", stage, world, "bf16"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    versions = {name: rows[0].pop(name) for name in ("torch", "deepspeed")}
    write(Path(sys.argv[1]), versions, [{key: row[key] for key in row if key not in versions} for row in rows])


if __name__ == "__main__":
    main()
