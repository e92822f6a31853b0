"""One of two ranks that trains until rank 1 goes away inside a group: lost_rank.py RANK PORT HOW REDUCE.

HOW: killed, or stopped, which looks to the others as one that hangs. The process group's timeout is TIMEOUT seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from gradaccum.torch.accumulate import Accumulator

TIMEOUT = 5


def main(rank: int, port: int, how: str, reduce: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT)
    )
    model = DistributedDataParallel(nn.Linear(4, 1))
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters()), accum_steps=4, reduce=reduce)
    since = time.monotonic()
    try:
        for group in accumulator.groups([torch.ones(2, 4)] * 8):
            for number, batch in enumerate(group):
                if rank == 1 and accumulator.progress.updates == 1 and number == 2:
                    os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)
                since = time.monotonic()
                group.backward(model(batch).sum(), 2)
            group.step()
            print("step", flush=True)
    finally:
        print(f"waited {time.monotonic() - since:.1f} s", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
