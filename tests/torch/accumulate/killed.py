"""A run that saves after every micro-batch: torchrun --max-restarts=N killed.py FOLDER STOP. Its rank 1 is killed after
STOP micro-batches, once, and leaves FOLDER/killed; a run that is let live has STOP 0. Rank r ends with FOLDER/end r.pt.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from gradaccum.torch import Accumulator, ResumableBatches

SAMPLES, UPDATES = 22, 4


def main(folder: str, stop: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, killed = dist.get_rank(), Path(folder) / "killed"
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(SAMPLES, 5))
    model = DistributedDataParallel(nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    accumulator = Accumulator(model, optimizer, accum_steps=3, clip_norm=1.0)
    parts = {"model": model, "optimizer": optimizer, "accumulator": accumulator}
    batches = ResumableBatches(SAMPLES, 2, seed=3)
    torch.manual_seed(rank)  # each rank drops its own
    saved, seen = Path(folder) / f"{rank}.pt", 0
    if saved.exists():
        for name, state in torch.load(saved, weights_only=True).items():
            parts[name].load_state_dict(state)
        batches.resume(accumulator)
    while accumulator.progress.updates < UPDATES:
        for group in accumulator.groups(DataLoader(data, batch_sampler=batches, generator=torch.Generator())):
            for (x,) in group:
                group.backward(model(x).square().sum(), len(x))
                dist.barrier()  # so that all ranks save the same micro-batch, or none of them
                torch.save({name: part.state_dict() for name, part in parts.items()}, saved.with_suffix(".new"))
                saved.with_suffix(".new").replace(saved)
                dist.barrier()
                seen += 1
                if rank == 1 and seen == int(stop) and not killed.exists():
                    killed.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            group.step()
            if accumulator.progress.updates == UPDATES:
                break
    torch.save([*model.parameters()], Path(folder) / f"end {rank}.pt")
    dist.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
