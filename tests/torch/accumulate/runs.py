"""Runs a case through the accumulator on this process, and says where it leaves the truth."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.parallel._data_parallel_utils import _unflatten_tensor
from torch.nn.parallel import DistributedDataParallel

from gradaccum.torch.accumulate import Accumulator, Update
from tests.torch.accumulate.cases import Case, loss_of, make_model, make_optimizer, micro_batch, truth
from tests.torch.accumulate.memory import Limited

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def wrapped(case: Case, model: nn.Module, mesh: DeviceMesh | None) -> nn.Module:
    """mesh: of the ranks by which the wrapper divides its work."""
    if case.wrap == "ddp":
        return DistributedDataParallel(model, device_mesh=mesh if case.beside == "tp" else None)
    if case.wrap in ("fsdp2", "hsdp"):
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for each in model.modules() if case.divides else ():
            if isinstance(each, FSDPModule):
                each.set_gradient_divide_factor(case.divides)
    return model


def mesh_of(case: Case) -> DeviceMesh | None:
    """All ranks as the case uses them; None of one process."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    if case.beside:
        return init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", case.beside))
    if case.wrap == "hsdp":
        return init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
    return init_device_mesh("cpu", (world,), mesh_dim_names=("dp",)) if world > 1 else None


def part_of(case: Case, mesh: DeviceMesh | None, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What this rank has of a batch: under context parallelism every second target counts."""
    if mesh is None or case.beside != "cp":
        return batch
    mask = batch["mask"].clone()
    mask[:, 1 - mesh["cp"].get_local_rank() :: 2] = 0
    return {**batch, "mask": mask}


class Unsized:
    def __init__(self, batches):
        self._batches = batches

    def __iter__(self):
        return iter(self._batches)


def differences(case: Case) -> list[str]:
    """What is not as the truth has it; nothing where all is."""
    mesh: Any = mesh_of(case)
    data = mesh["dp"] if mesh is not None and case.beside else mesh  # ranks with batches of their own
    world, rank = (1, 0) if data is None else (data.size(), data.get_rank() if data.ndim > 1 else data.get_local_rank())
    model = make_model(case.dtype)
    if case.beside == "tp":
        parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    reduced = mesh if case.beside == "cp" else data
    flat = reduced._flatten() if case.wrap == "fsdp2" and reduced.ndim > 1 else reduced
    used = wrapped(case, model, flat)
    optimizer = make_optimizer(case, model)
    trained = optimizer.param_groups[0]["params"]
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
        process_group=reduced if case.wrap == "plain" else None,
        context_parallel=2 if case.beside == "cp" else 1,
    )
    updates: list[Update] = []
    limited = Limited(case.runs_out if rank == world - 1 else None, 1)
    for epoch in range(case.epochs):
        length = case.lengths[rank % len(case.lengths)]
        batches = [(index, part_of(case, mesh, micro_batch(case, rank, epoch, index))) for index in range(length)]
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
    found = _compared(case, world, trained, [each for each in updates if each.applied])
    if case.runs_out and {each.micro_batch_split for each in updates} - {1, 2, 4}:
        found.append(f"micro-batches of 2 and 3 samples in {[each.micro_batch_split for each in updates]} parts")
    if case.runs_out and (updates[-1].micro_batch_split > 1) != (limited.where in ("forward", "backward")):
        found.append(f"{updates[-1].micro_batch_split} parts on rank {rank}")
    return found


def _whole(parameter):
    if hasattr(parameter, "_st_info"):  # as DDP keeps the part of a tensor-parallel layer
        parameter = _unflatten_tensor(parameter, parameter._st_info)
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def _compared(case, world, trained, updates):
    parameters, said = truth(case, world)
    tolerance = TOLERANCE[case.dtype]
    found = []
    for ours, right in zip(trained, parameters, strict=True):
        off = float((_whole(ours).detach().double() - right.detach()).norm() / right.detach().norm())
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
