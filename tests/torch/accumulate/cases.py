"""What is run, and the truth beside it: one process that sees every group as one concatenated batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import nn

WIDTH, OUT = 6, 4


@dataclass(frozen=True)
class Case:
    """One run. lengths: micro-batches of each rank's loader, repeated to the world's size; weights: a word of WEIGHTS.

    epochs: passes over the loader, with one accumulator. skipped: indices of micro-batches that rank 0 leaves out.
    beside: what pairs of ranks share: "tp" layers, "cp" the targets of each sample. divides: by what FSDP2 is told to
    divide gradients.
    runs_out: through accumulator.run, where the last rank has memory for one sample alone: nowhere, forward, backward.
    """

    wrap: str = "plain"
    reduce: str = "auto"
    accum_steps: int | None = 4
    until_weight: float | None = None
    lengths: tuple[int, ...] = (8,)
    sized: bool = True
    weights: str = "ragged"
    clip_norm: float | None = None
    partial: str = "step"
    optimizer: str = "sgd"
    dtype: torch.dtype = torch.float64
    epochs: int = 1
    mean: bool = False
    skipped: tuple[int, ...] = ()
    compiled: bool = False
    accumulate_in: torch.dtype | str | None = None
    beside: str = ""
    divides: float | None = None
    runs_out: str | None = None

    def __str__(self) -> str:
        default = Case()
        said = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return (
            ", ".join(f"{name}={value}" for name, value in said.items() if value != getattr(default, name)) or "plain"
        )


WEIGHTS = ("even", "ragged", "zero", "zero rank")


def make_model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, OUT)).to(
        dtype
    )


def make_optimizer(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    if case.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    if case.optimizer == "adamw fused":
        return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    return torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, fused=case.optimizer == "sgd fused")


def micro_batch(case: Case, rank: int, epoch: int, index: int) -> dict[str, torch.Tensor]:
    """Samples, targets, and which of the outputs count."""
    generator = torch.Generator().manual_seed(1000 * rank + 100 * epoch + index)
    x = torch.randn(2 + index % 2, WIDTH, generator=generator, dtype=torch.float64)
    y = 3 * torch.randn(len(x), OUT, generator=generator, dtype=torch.float64)
    mask = torch.ones(len(x), OUT, dtype=torch.float64)
    if case.weights != "even":
        mask = (torch.rand(len(x), OUT, generator=generator) < 0.1 + 0.8 * ((index + rank) % 3) / 2).double()
        mask[0, 0] = 1.0
    if case.weights == "zero" and index % 4 == 1:
        mask.zero_()
    if case.weights == "zero rank" and rank == 0:
        mask.zero_()
    return {"x": x.to(case.dtype), "y": y.to(case.dtype), "mask": mask.to(case.dtype)}


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss and what it sums over, as a tensor."""
    errors = (model(batch["x"]) - batch["y"]).abs() ** 1.5
    return (errors * batch["mask"]).sum(), batch["mask"].sum()


# The truth


def groups_of(case: Case, world: int) -> list[list[tuple[int, int, int]]]:
    """Which micro-batches (rank, epoch, index) each applied update has, by the words of the documentation."""
    lengths = [case.lengths[rank % len(case.lengths)] for rank in range(world)]
    if case.wrap in ("fsdp2", "hsdp"):
        lengths = [min(lengths)] * world
    found: list[list[tuple[int, int, int]]] = []
    waiting: list[tuple[int, int, int]] = []  # carried
    for epoch in range(case.epochs):
        steps = [
            [(rank, epoch, index) for rank in range(world) if index < lengths[rank]] for index in range(max(lengths))
        ]
        for step in steps:
            waiting += step
            whole = (
                len(waiting) == world * case.accum_steps
                if case.accum_steps
                else weight_of(case, waiting) >= (case.until_weight or 0)
            )
            full = whole if case.accum_steps is None else step[0][2] % case.accum_steps == case.accum_steps - 1
            if whole or (full and case.partial == "step"):
                found.append(waiting)
                waiting = []
        if waiting and case.partial == "step":
            found.append(waiting)
        if case.partial != "carry":
            waiting = []
    left_out = [[each for each in group if each[0] != 0 or each[2] not in case.skipped] for group in found]
    return [group for group in left_out if weight_of(case, group) > 0]


def weight_of(case: Case, group: list[tuple[int, int, int]]) -> float:
    return sum(float(micro_batch(case, *each)["mask"].sum()) for each in group)


def truth(case: Case, world: int) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
    """The parameters after all updates, and (weight, loss, samples, norm of the gradient) of each."""
    exact = replace(case, dtype=torch.float64)
    model = make_model(torch.float64)
    optimizer = make_optimizer(replace(exact, optimizer=case.optimizer.removesuffix(" fused")), model)
    said = []
    for group in groups_of(exact, world):
        batches = [micro_batch(exact, *each) for each in group]
        batch = {name: torch.cat([each[name] for each in batches]) for name in ("x", "y", "mask")}
        loss_sum, weight = loss_of(model, batch)
        (loss_sum / weight).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), case.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        samples = sum(len(each["x"]) for each in batches)
        said.append(
            {
                "weight": float(weight),
                "loss": float(loss_sum.detach() / weight),
                "samples": samples,
                "norm": float(norm),
            }
        )
    return list(model.parameters()), said


def pairwise(axes, allowed):
    """Few combinations in which every pair of values of two axes is met that is allowed at all."""
    names = list(axes)
    all_rows = [dict(zip(names, values, strict=True)) for values in product(*axes.values())]
    bits: dict[tuple[object, ...], int] = {}

    def pairs(row):
        """As the bits of one number, which is what makes this quick."""
        found = 0
        for number, first in enumerate(names):
            for second in names[number + 1 :]:
                found |= 1 << bits.setdefault((first, row[first], second, row[second]), len(bits))
        return found

    rows = [(row, pairs(row)) for row in all_rows if allowed(row)]
    missing = (1 << len(bits)) - 1
    chosen = []
    while missing:
        best, has = max(rows, key=lambda each: (each[1] & missing).bit_count())
        chosen.append(best)
        missing &= ~has
    return chosen
