"""What a group has seen so far on this rank, kept without asking the device for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from gradaccum.torch.accumulate.sync import Sync

Number: TypeAlias = int | float | torch.Tensor


@dataclass
class Sums:
    """Of one group: weight and loss sum, samples (None: not known), micro-batches answered, of them skipped."""

    weight: Number = 0
    loss: torch.Tensor | None = None
    samples: int | None = 0
    micro_batches: int = 0
    skipped: int = 0

    def add(self, loss_sum: torch.Tensor, weight: Number) -> None:
        """One micro-batch. One of weight 0 adds no loss: a mean over nothing is NaN."""
        if isinstance(weight, torch.Tensor):
            weight = weight.detach()
            loss_sum = torch.where(weight != 0, loss_sum, 0)
        elif weight == 0:
            return
        self.weight = self.weight + weight
        if self.loss is None:
            self.loss = torch.zeros((), dtype=precise(loss_sum.device), device=loss_sum.device)
        self.loss.add_(loss_sum)


def precise(device: torch.device) -> torch.dtype:
    """Counts tokens exactly up to 2^53; MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Totals:
    """The same over all ranks, on the host."""

    weight: float
    loss: float
    samples: int | None
    micro_batches: int
    skipped: int


def totals(sums: Sums, sync: Sync, device: torch.device, beside: torch.Tensor | None = None) -> tuple[Totals, float]:
    """The sums of all ranks, by one all-reduce of 48 bytes, and `beside`: a number that is the same on every rank.

    The host asks the device once.
    """
    unknown = sums.samples is None
    counts = [float(sums.samples or 0), float(unknown), float(sums.micro_batches), float(sums.skipped)]
    measured = [sums.weight, 0.0 if sums.loss is None else sums.loss]
    if sync.world == 1 and device.type == "cpu":
        values = [float(each) for each in (*measured, *counts, *([] if beside is None else [beside]))]
    else:
        dtype = precise(device)
        placed = [torch.as_tensor(each, dtype=dtype, device=device).reshape(()) for each in measured]
        packed = sync.sum(torch.cat([torch.stack(placed), torch.tensor(counts, dtype=dtype, device=device)]))
        if beside is not None:
            packed = torch.cat([packed, beside.to(device, dtype).reshape(1)])
        values = packed.tolist()
    weight, loss, samples, unknown_ranks, micro_batches, skipped, *rest = values
    found = Totals(weight, loss, None if unknown_ranks else round(samples), round(micro_batches), round(skipped))
    return found, rest[0] if rest else 0.0
