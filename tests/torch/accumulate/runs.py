"""Runs a case through the accumulator on this process, and says where it leaves the truth."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gradaccum.torch.accumulate import Accumulator, Update
from tests.torch.accumulate.cases import Case, loss_of, make_model, make_optimizer, micro_batch, truth
from tests.torch.accumulate.memory import Limited

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def wrapped(case: Case, model: nn.Module) -> nn.Module:
    if case.wrap == "ddp":
        return DistributedDataParallel(model)
    if case.wrap in ("fsdp2", "hsdp"):
        world = dist.get_world_size()
        shape, names = ((world,), ("shard",)) if case.wrap == "fsdp2" else ((2, world // 2), ("replicate", "shard"))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


class Unsized:
    def __init__(self, batches):
        self._batches = batches

    def __iter__(self):
        return iter(self._batches)


def differences(case: Case) -> list[str]:
    """What is not as the truth has it; nothing where all is."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    model = make_model(case.dtype)
    used = wrapped(case, model)
    optimizer = make_optimizer(case, model)
    forward = torch.compile(used, backend="aot_eager") if case.compiled else used
    accumulator = Accumulator(
        used,
        optimizer,
        accum_steps=case.accum_steps,
        clip_norm=case.clip_norm,
        reduce=case.reduce,
        accumulate_in=case.accumulate_in,
        partial=case.partial,
        grad_norm=True,
        process_group=dist.group.WORLD if case.wrap == "plain" and world > 1 else None,
    )
    updates: list[Update] = []
    limited = Limited(case.runs_out if rank == world - 1 else None, 1)
    for epoch in range(case.epochs):
        length = case.lengths[rank % len(case.lengths)]
        batches = [(index, micro_batch(case, rank, epoch, index)) for index in range(length)]
        loader = batches if case.sized else Unsized(batches)
        if case.runs_out:
            updates += accumulator.run(
                loader,
                lambda item: loss_of(lambda x: limited(forward(x)), item[1]),
                until_weight=case.until_weight,
                count=lambda item: len(item[1]["x"]),
            )
            continue
        groups = accumulator.groups(
            loader, until_weight=case.until_weight, may_skip=bool(case.skipped), count=lambda item: len(item[1]["x"])
        )
        for group in groups:
            for index, batch in group:
                if rank == 0 and index in case.skipped:
                    group.skip()
                    continue
                loss_sum, weight = loss_of(forward, batch)
                if case.mean:
                    group.backward_mean(loss_sum / weight, weight)
                else:
                    group.backward(loss_sum, weight)
            updates.append(group.step())
    found = _compared(case, world, model, [each for each in updates if each.applied])
    if case.runs_out and {each.micro_batch_split for each in updates} - {1, 2, 4}:
        found.append(f"micro-batches of 2 and 3 samples in {[each.micro_batch_split for each in updates]} parts")
    if case.runs_out and (updates[-1].micro_batch_split > 1) != (limited.where in ("forward", "backward")):
        found.append(f"{updates[-1].micro_batch_split} parts on rank {rank}")
    return found


def _compared(case, world, model, updates):
    parameters, said = truth(case, world)
    tolerance = TOLERANCE[case.dtype]
    found = []
    for ours, right in zip(model.parameters(), parameters, strict=True):
        whole = ours.full_tensor() if hasattr(ours, "full_tensor") else ours
        off = float((whole.detach().double() - right.detach()).norm() / right.detach().norm())
        if not off <= tolerance:
            found.append(f"a parameter of shape {tuple(right.shape)} is off by {off:.2e}")
    if len(updates) != len(said):
        return [*found, f"{len(updates)} updates were applied, not {len(said)}"]
    for number, (update, right) in enumerate(zip(updates, said, strict=True)):
        shown = {"weight": update.weight, "loss": update.loss, "norm": update.grad_norm}
        if not case.skipped:
            shown["samples"] = update.effective_batch
        for name, value in shown.items():
            if value is None or abs(value - right[name]) > 10 * tolerance * max(1, abs(right[name])):
                found.append(f"{name} of update {number} is {value}, not {right[name]}")
    return found
