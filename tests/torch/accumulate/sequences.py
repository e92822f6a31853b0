"""Layers that tensor-parallel ranks share, with norms between them over parts of the sequence (Korthikanti et al.,
arXiv:2205.05198): autograd leaves the sum of the norms' gradients over those ranks undone.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from gradaccum.torch.accumulate import Accumulator

LENGTHS = {"plain": (3, 0), "fsdp2": (3, 3)}
"""Micro-batches of the two data-parallel ranks; of a plain model one may have none."""


class Block(nn.Module):
    """A norm and two layers; inputs of shape (samples, 4, 6)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(self.norm(x)).tanh())


def parallel(mesh: DeviceMesh) -> nn.Module:
    plan = {
        "": PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Replicate()),
    }
    return parallelize_module(Block(), mesh, plan)


def batch(rank: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(10 * rank + index)
    x, y = torch.randn(2, 1 + index, 4, 6, generator=generator, dtype=torch.float64)
    return x, y


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, int]:
    return (model(x) - y).abs().sum(), x.numel()


def norms_over_parts_of_the_sequence() -> list[str]:
    found = []
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    rank = mesh["dp"].get_local_rank()
    for wrap, lengths in LENGTHS.items():
        for clip in (None, 0.05):
            model = parallel(mesh["tp"])
            if wrap == "fsdp2":
                fully_shard(model, mesh=mesh["dp"])
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
            accumulator = Accumulator(
                model,
                optimizer,
                accum_steps=3,
                clip_norm=clip,
                grad_norm=True,
                process_group=mesh["dp"] if wrap == "plain" else None,
            )
            for _ in range(2):
                for group in accumulator.groups([batch(rank, index) for index in range(lengths[rank])]):
                    for x, y in group:
                        group.backward(*loss_of(model, x, y))
                    update = group.step()
            parameters, norm = truth(lengths, clip)
            found += (
                []
                if abs((update.grad_norm or 0.0) - norm) < 1e-9
                else [f"{wrap}: the norm is {update.grad_norm}, not {norm}"]
            )
            for ours, right in zip(model.parameters(), parameters, strict=True):
                off = float((ours.full_tensor() - right).detach().norm())
                found += [] if off < 1e-9 else [f"{wrap}, clip {clip}: {tuple(right.shape)} is off by {off:.1e}"]
    return found


def truth(lengths: tuple[int, ...], clip: float | None) -> tuple[list[torch.Tensor], float]:
    model = Block()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    every = [batch(rank, index) for rank, length in enumerate(lengths) for index in range(length)]
    for _ in range(2):
        loss, weight = loss_of(model, *(torch.cat(parts) for parts in zip(*every, strict=True)))
        (loss / weight).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
    return list(model.parameters()), float(norm)


def cases():
    """The one."""
    return [norms_over_parts_of_the_sequence]
