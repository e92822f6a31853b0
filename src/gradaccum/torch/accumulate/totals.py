"""The sums of a group over all ranks, on the host: one all-reduce of a few bytes, one wait for the device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gradaccum.torch.accumulate.errors import AccumulationError
from gradaccum.torch.accumulate.sums import precise

if TYPE_CHECKING:
    from gradaccum.torch.accumulate.state import State
    from gradaccum.torch.accumulate.sums import Number, Sums


@dataclass(frozen=True)
class Totals:
    """The same over all ranks, on the host. first: their means over the ranks that have one, None where none has."""

    weight: float
    loss: float
    samples: int | None
    seen: int | None
    micro_batches: int
    skipped: int
    first: tuple[float, float] | None


def totals(sums: Sums, state: State, beside: torch.Tensor | None = None) -> tuple[Totals, float]:
    """The sums of all ranks, by one all-reduce of 56 bytes (80 with the noise scale), and `beside`: a number that is
    the same on every rank. The host asks the device once.
    """
    device = state.device
    unknown = sums.samples is None or sums.seen is None
    summed: list[Number] = [sums.weight, 0.0 if sums.loss is None else sums.loss]
    summed += [float(unknown), float(sums.samples or 0), float(sums.seen or 0)]
    summed += [float(sums.micro_batches), float(sums.skipped)]
    if state.wants_noise:
        summed += [*sums.first, 1.0] if sums.first else [0.0, 0.0, 0.0]
    if state.sync.world == 1 and device.type == "cpu":
        values = [float(each) for each in (*summed, *([] if beside is None else [beside]))]
    else:
        packed = state.sync.sum(_packed(summed, device))
        values = (packed if beside is None else torch.cat([packed, beside.to(packed).reshape(1)])).tolist()
    weight, loss, unknown_ranks, samples, seen, micro_batches, skipped = values[:7]
    first = None
    if state.wants_noise and values[9]:
        first = values[7] / values[9], values[8] / values[9]
    known, all_seen = (None, None) if unknown_ranks else (_once(samples, state), _once(seen, state))
    found = Totals(weight, loss, known, all_seen, round(micro_batches), round(skipped), first)
    return found, values[-1]


def expect(state: State, weight: Number, micro_batches: int) -> None:
    """Of the first group, whose weight nobody knows yet: its first micro-batches' of all ranks, times their number.
    Later ones expect what the update before them had.
    """
    sync = state.sync
    if sync.world == 1 and not isinstance(weight, torch.Tensor):
        first = float(weight) * micro_batches
        state.expected = first if 0 < first < math.inf else 1.0
        return
    summed = torch.zeros(1, dtype=precise(state.device), device=state.device)
    summed += weight
    sync.sum(summed)
    summed *= micro_batches / sync.mean_over
    state.expected = torch.where((summed > 0) & summed.isfinite(), summed, 1.0).reshape(())


def _once(samples: float, state: State) -> int:
    """Each sequence counts once, though each of its context-parallel ranks has said it."""
    ranks = state.sync.context_parallel
    if samples % ranks:
        raise AccumulationError(
            f"context_parallel={ranks} says that so many ranks share each sequence, and the {samples:.0f} samples of "
            f"all ranks are no multiple of {ranks}: give these ranks the same sequences, or say how many a batch has "
            "by groups(loader, count=...)"
        )
    return round(samples) // ranks


def _packed(values: list[Number], device: torch.device) -> torch.Tensor:
    """In one tensor; what is on the host goes there at once."""
    dtype = precise(device)
    packed = torch.tensor([0.0 if isinstance(each, torch.Tensor) else each for each in values], dtype=dtype).to(device)
    for place, each in enumerate(values):
        if isinstance(each, torch.Tensor):
            packed[place] = each
    return packed
