"""What a group has seen so far on this rank, kept without asking the device for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from gradaccum.torch.accumulate.state import State

Number: TypeAlias = int | float | torch.Tensor


@dataclass
class Sums:
    """Of one group: weight and loss sum, samples (None: not known), micro-batches answered, of them skipped.

    first: of the first backward pass the squared norm of the mean gradient, and 1 / its weight; where it is asked for.
    """

    weight: Number = 0
    loss: torch.Tensor | None = None
    samples: int | None = 0
    micro_batches: int = 0
    skipped: int = 0
    first: tuple[torch.Tensor, Number] | None = None

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
    """The same over all ranks, on the host. first: their means over the ranks that have one, None where none has."""

    weight: float
    loss: float
    samples: int | None
    micro_batches: int
    skipped: int
    first: tuple[float, float] | None


def totals(sums: Sums, state: State, beside: torch.Tensor | None = None) -> tuple[Totals, float]:
    """The sums of all ranks, by one all-reduce of 48 bytes (72 with the noise scale), and `beside`: a number that is
    the same on every rank. The host asks the device once.
    """
    device = state.device
    unknown = sums.samples is None
    summed: list[Number] = [sums.weight, 0.0 if sums.loss is None else sums.loss]
    summed += [float(sums.samples or 0), float(unknown), float(sums.micro_batches), float(sums.skipped)]
    if state.wants_noise:
        summed += [*sums.first, 1.0] if sums.first else [0.0, 0.0, 0.0]
    if state.sync.world == 1 and device.type == "cpu":
        values = [float(each) for each in (*summed, *([] if beside is None else [beside]))]
    else:
        packed = state.sync.sum(_packed(summed, device))
        values = (packed if beside is None else torch.cat([packed, beside.to(packed).reshape(1)])).tolist()
    weight, loss, samples, unknown_ranks, micro_batches, skipped = values[:6]
    first = None
    if state.wants_noise and values[8]:
        first = values[6] / values[8], values[7] / values[8]
    known = None if unknown_ranks else round(samples)
    found = Totals(weight, loss, known, round(micro_batches), round(skipped), first)
    return found, values[-1]


def _packed(values: list[Number], device: torch.device) -> torch.Tensor:
    """In one tensor; what is on the host goes there at once."""
    dtype = precise(device)
    packed = torch.tensor([0.0 if isinstance(each, torch.Tensor) else each for each in values], dtype=dtype).to(device)
    for place, each in enumerate(values):
        if isinstance(each, torch.Tensor):
            packed[place] = each
    return packed
