"""Exact plans on several ranks: what each rank saw, gathered, against one batch of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradaccum
from gradaccum.torch.accumulate import Accumulator
from tests.torch.accumulate.memory import Limited


@dataclass(frozen=True)
class Exact:
    """One run of micro-batches of 4. samples: of each rank. runs_out: as in Case, for the last rank."""

    target: int
    wrap: str = "ddp"
    samples: tuple[int, ...] = (60,)
    sized: bool = True
    partial: str = "step"
    reduce: str = "auto"
    runs_out: str | None = None


CASES = [
    Exact(target, wrap, sized=sized)
    for target in (9, 13, 15, 16, 22)
    for wrap, sized in (("ddp", True), ("plain", False))
]
CASES += [Exact(13, samples=(60, 31)), Exact(13, samples=(31, 60)), Exact(5, samples=(20, 0))]
CASES += [Exact(13, partial="carry", samples=(30,)), Exact(13, partial="drop"), Exact(13, reduce="every")]
CASES += [Exact(13, runs_out="backward"), Exact(9, runs_out="nowhere")]


def make_model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def differences(case: Exact) -> list[str]:
    """What is not as one process has it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    data = torch.randn(
        case.samples[rank % len(case.samples)], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(rank)
    )
    plan = gradaccum.plan(micro_batch=4, num_gpus=world, target_batch=case.target, rounding="exact")
    model = make_model()
    used = DistributedDataParallel(model) if case.wrap == "ddp" else model
    accumulator = Accumulator.from_plan(
        plan,
        used,
        torch.optim.SGD(model.parameters(), lr=0.1),
        partial=case.partial,
        reduce=case.reduce,
        process_group=dist.group.WORLD if case.wrap == "plain" else None,
    )
    limited = Limited(case.runs_out if rank == world - 1 else None, 2)
    seen, updates, taken = [], [], [data[:0]]

    def loss_of(x):
        taken.append(x)
        return (limited(used(x)) ** 2).sum(), len(x)

    for part in data.tensor_split(2) if case.partial == "carry" else (data,):
        loader = part.split(4)[: -(-len(part) // 4)]
        if case.runs_out:
            for update in accumulator.run(loader, loss_of):
                seen.append(torch.tensor(list(dict.fromkeys(map(tuple, torch.cat(taken).tolist()))), dtype=data.dtype))
                updates.append(update)
                taken[1:] = []
            continue
        for group in accumulator.groups(loader if case.sized else iter(loader)):
            own = [data[:0]]
            for batch in group:
                own.append(batch)
                group.backward((used(batch) ** 2).sum(), len(batch))
            seen.append(torch.cat(own))
            updates.append(group.step())
    found = []
    sizes = [each.effective_batch for each in updates if each.applied]
    if len(case.samples) == 1:
        total = world * case.samples[0]
        full = [case.target] * (total // case.target)
        rest = [total % case.target] if total % case.target and case.partial == "step" else []
        if sizes != full + rest:
            found.append(f"updates of {sizes} samples")
    elif max(each or 0 for each in sizes) > case.target:
        found.append(f"updates of {sizes} samples")
    if case.partial == "step" and not torch.equal(torch.cat(seen), data):
        found.append("samples were lost, doubled or mixed")
    return found + against_one_batch(case, model, seen, updates)


def against_one_batch(case, model, seen, updates):
    ranks: list[list[torch.Tensor]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks, seen)
    found = []
    consumed = [sum(len(each) for each in seen) for seen in ranks]
    if len(case.samples) == 1 and max(consumed) - min(consumed) > 1:
        found.append(f"the ranks have consumed {consumed}")
    right = make_model()
    optimizer = torch.optim.SGD(right.parameters(), lr=0.1)
    waiting = []
    for parts, update in zip(zip(*ranks, strict=True), updates, strict=True):
        waiting += parts
        if update.applied:
            optimizer.zero_grad()
            (right(torch.cat(waiting)) ** 2).mean().backward()
            optimizer.step()
        if update.reason != "carried":
            waiting = []
    ours, theirs = (nn.utils.parameters_to_vector(each.parameters()).detach() for each in (model, right))
    off = float((ours - theirs).norm() / theirs.norm())
    return found + ([f"parameters are off by {off:.2e}"] if off > 1e-9 else [])
