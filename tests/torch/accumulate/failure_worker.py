"""Failure cases that need two ranks: failure_worker.py FOLDER, under torchrun. Rank r writes FOLDER/r.json.

Each gives what rank r's optimizer would have been handed: the gradient of its update, after `step()` with lr=1.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.nn.functional import all_gather
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from gradaccum.torch import Accumulator


def linear(width=1):
    model = nn.Linear(width, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


def column(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)


def trained(model, wrapped, optimizer, loader, steps, mean=True):
    """After one update: what the optimizer moved by."""
    for group in Accumulator(wrapped, optimizer, accum_steps=steps).groups(loader):
        for x in group:
            loss = wrapped(x)
            if mean:
                group.backward_mean(loss.mean(), len(x))
            else:
                group.backward(loss.sum(), len(x))
        update = group.step()
    moved = next(model.parameters())
    return {"moved": (-getattr(moved, "full_tensor", lambda: moved)()).flatten().tolist(), "weight": update.weight}


def a2(rank):
    model, optimizer = linear()
    batch = [column(2), column(10, 10, 10)][rank]
    return trained(model, DistributedDataParallel(model), optimizer, [batch], 1)


def a12(rank):
    """Tensor parallel: both ranks see the same 5 tokens, which are counted once."""
    model = nn.Linear(1, 4, bias=False).double()
    nn.init.zeros_(model.weight)
    parallelize_module(model, init_device_mesh("cpu", (2,)), ColwiseParallel(output_layouts=None))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return trained(model, model, optimizer, [column(1, 2, 3, 4, 5)], 1, mean=False)


def a13(rank):
    """Context parallel: each rank has half of the tokens of the same sequence; both halves count."""
    model, optimizer = linear()
    halves = [column(1, 2, 3), column(4, 5, 6)]
    return trained(model, DistributedDataParallel(model), optimizer, [halves[rank]], 1)


def a18(rank):
    model, optimizer = linear()
    own = [[column(1), column(10)], [column(3), column(30)]][rank]
    return trained(model, DistributedDataParallel(model), optimizer, own, 2)


def a28(rank):
    """A contrastive loss over the representations of both ranks, in pieces."""
    torch.manual_seed(4)
    model = nn.Linear(6, 4, bias=False).double()
    start = model.weight.detach().clone()
    data = torch.randn(8, 2, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    wrapped = DistributedDataParallel(model)
    accumulator = Accumulator(wrapped, torch.optim.SGD(model.parameters(), lr=1.0), accum_steps=2)

    def loss_of(pairs):
        queries, keys = pairs
        scores = queries @ torch.cat(all_gather(keys)).T
        own = torch.arange(len(queries)) + rank * len(queries)
        return cross_entropy(scores, own, reduction="sum"), len(queries)

    def encode(batch):
        found = wrapped(batch.flatten(0, 1)).unflatten(0, (-1, 2))
        return found[:, 0], found[:, 1]

    for group in accumulator.groups(list(data[4 * rank : 4 * rank + 4].split(2))):
        group.cached(encode, loss_of)
        group.step()
    right = start.clone().requires_grad_()
    scores = (data[:, 0] @ right.T) @ (data[:, 1] @ right.T).T
    cross_entropy(scores, torch.arange(8)).backward()
    moved = start - model.weight.detach()
    return {"apart": float((moved - right.grad).norm() / right.grad.norm())}


def main(folder):
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    rank = dist.get_rank()
    found = {each.__name__: each(rank) for each in (a2, a12, a13, a18, a28)}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
