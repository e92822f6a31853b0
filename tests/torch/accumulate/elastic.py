"""A run that stops on two ranks and goes on with one, three or four, as after an elastic restart of torchrun.

What is right is a loop on one process over the samples in their order: the batches of the plan, or the nearest.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import gradaccum
from gradaccum.torch import Accumulator, ResumableBatches
from tests.torch.accumulate.cases import make_model

SAMPLES = 70
BEFORE, AFTER = 2, 3
"""Updates on two ranks, and then on others."""
RIGHT = {1: (20, 10, 20), 3: (21, 9, 21), 4: (20, 10, 20)}
"""Samples of the updates after: 20 is the target, and what an epoch has left makes a smaller one."""


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(*(torch.randn(SAMPLES, width, generator=generator).double() for width in (6, 4)))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


class Run:
    """What torchrun starts on each of so many ranks, from what lies on disk where there is something."""

    def __init__(self, group: dist.ProcessGroup, saved: bytes | None) -> None:
        world = dist.get_world_size(group)
        plan = gradaccum.plan(micro_batch=1, num_gpus=2, target_batch=20)
        self.model = make_model(torch.float64)
        wrapped = DistributedDataParallel(self.model, process_group=group)
        self.optimizer = optimizer_of(wrapped)
        self.wrapped = wrapped
        self.accumulator = Accumulator.from_plan(plan, wrapped, self.optimizer, elastic=True)
        self.batches = ResumableBatches(SAMPLES, 1, shuffle=False, rank=dist.get_rank(group), world=world)
        if saved is not None:
            parts = torch.load(io.BytesIO(saved), weights_only=True)
            self.model.load_state_dict(parts["model"])
            self.optimizer.load_state_dict(parts["optimizer"])
            self.accumulator.load_state_dict(parts["accumulator"])
            self.batches.resume(self.accumulator)

    def train(self, updates: int) -> list[int | None]:
        """The samples of each update."""
        sizes: list[int | None] = []
        while True:
            for group in self.accumulator.groups(DataLoader(data(), batch_sampler=self.batches)):
                for x, y in group:
                    group.backward((self.wrapped(x) - y).square().sum(), len(x))
                sizes.append(group.step().effective_batch)
                if len(sizes) == updates:
                    return sizes

    def saved(self) -> bytes:
        file = io.BytesIO()
        parts = {"model": self.model, "optimizer": self.optimizer, "accumulator": self.accumulator}
        torch.save({name: part.state_dict() for name, part in parts.items()}, file)
        return file.getvalue()


def truth(sizes: tuple[int, ...]) -> list[torch.Tensor]:
    model = make_model(torch.float64)
    optimizer = optimizer_of(model)
    xs, ys = data().tensors
    at = 0
    for size in sizes:
        x, y = xs[at : at + size], ys[at : at + size]
        ((model(x) - y).square().sum() / size).backward()
        optimizer.step()
        optimizer.zero_grad()
        at = (at + size) % SAMPLES
    return list(model.parameters())


def another_number_of_ranks_goes_on_with_the_same_batches() -> list[str]:
    groups = {world: dist.new_group(range(world)) for world in (1, 2, 3, 4)}
    handed: list[Any] = [None]
    if dist.get_rank() < 2:
        first = Run(groups[2], None)
        first.train(BEFORE)
        handed = [first.saved()]
    dist.broadcast_object_list(handed, src=0)
    found = []
    for world, right in RIGHT.items():
        if dist.get_rank() < world:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                run = Run(groups[world], handed[0])
            told = [str(each.message) for each in said if "an update sees" in str(each.message)]
            sizes = tuple(run.train(AFTER))
            if sizes != right or bool(told) != (world == 3):
                found.append(f"{world} ranks made updates of {sizes}, not {right}, and said {told}")
            for ours, each in zip(run.model.parameters(), truth((20,) * BEFORE + right), strict=True):
                off = float(((ours - each).norm() / each.norm()).detach())
                found += [] if off < 1e-9 else [f"on {world} ranks a parameter is off by {off:.1e}"]
        dist.barrier()
    return found


def cases():
    """The one."""
    return [another_number_of_ranks_goes_on_with_the_same_batches]
