"""What else is close: the plan in the other roundings, and better choices on the same GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.core.solve import WINDOW, Sizes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    _Found = tuple[int, int, int, int]  # drift, ranks, micro-batch, accumulation steps

    from gradaccum.core.arithmetic import Goal

MOST = 8
"""Better choices that are shown at most."""

RANKS_AROUND = 128
"""With `vary` num_gpus: how many data-parallel ranks more or fewer are looked at."""

MICRO_BATCHES_VARIED = 64
"""With `vary` num_gpus: how many micro-batches are looked at for each count."""


@dataclass(frozen=True)
class Neighbour:
    """The same micro-batch and GPUs in another rounding. drift in sequences, or drift_tokens; the other is None."""

    rounding: str
    accum_steps: int
    effective_batch: int
    drift: int | None
    drift_tokens: int | None


@dataclass(frozen=True)
class Choice:
    """Another way to (nearly) the same batch. drift in sequences, or drift_tokens; the other is None."""

    micro_batch: int
    num_gpus: int
    accum_steps: int
    effective_batch: int
    drift: int | None
    drift_tokens: int | None


def neighbours(sizes: Sizes) -> tuple[Neighbour, ...]:
    """floor, ceil and the nearest, for the plan's own micro-batch and GPUs."""
    found = []
    for rounding in ("floor", "ceil", "round"):
        accum_steps = sizes.goal.steps(sizes.device_batch, rounding)
        effective_batch = sizes.device_batch * accum_steps
        drift = sizes.goal.drift(effective_batch)
        found.append(Neighbour(rounding, accum_steps, effective_batch, *split_drift(sizes.goal, drift)))
    return tuple(found)


def better_choices(sizes: Sizes, vary: str | None = None) -> tuple[Choice, ...]:
    """The choices whose |drift| is smaller than the plan's, at most MOST.

    On the plan's GPUs, with micro-batches from max(1, micro_batch - 4095) to micro_batch, since that is what fits;
    `vary` adds other GPU counts or larger micro-batches. Sorted by |drift|, then the plan's own GPUs, then the
    larger micro-batch, then positive drift.
    """
    replica = sizes.num_gpus // sizes.data_parallel
    own, largest = sizes.data_parallel, sizes.micro_batch
    smallest = max(1, largest - WINDOW + 1)
    ranks = [own]
    if vary == "num_gpus":
        around = range(max(1, own - RANKS_AROUND), own + RANKS_AROUND + 1)
        ranks = sorted(around, key=lambda count: (abs(count - own), count))
    elif vary == "micro_batch":
        largest += min(largest, WINDOW)
    found = _closest(sizes.goal, ranks, smallest, largest, abs(sizes.drift))
    return tuple(
        Choice(
            micro_batch,
            count * replica,
            accum_steps,
            micro_batch * count * accum_steps,
            *split_drift(sizes.goal, drift),
        )
        for drift, count, micro_batch, accum_steps in found
    )


def split_drift(goal: Goal, drift: int) -> tuple[int | None, int | None]:
    """(drift, drift_tokens): one of them, by the unit of the goal."""
    return (None, drift) if goal.in_tokens else (drift, None)


def _closest(goal: Goal, ranks: list[int], smallest: int, largest: int, below: int) -> list[_Found]:
    """The MOST best of all combinations with |drift| < below. ranks: the plan's own first; smallest, largest: of the
    micro-batches.

    `gap` falls to that of the last kept one while we look.
    """
    found: list[_Found] = []
    gap, own, amount = below - 1, ranks[0], goal.amount

    def order(one: _Found) -> tuple[int, int, int, int, bool]:
        drift, count, micro_batch, _ = one
        return abs(drift), abs(count - own), count, -micro_batch, drift < 0

    for count in ranks:
        row = count * goal.unit
        least = smallest if count == own else max(smallest, largest - MICRO_BATCHES_VARIED + 1)
        # One micro-step of more than the goal only drifts further as it grows: MOST of these are enough.
        most = min(largest, max(amount // row, least - 1) + MOST)
        for micro_batch in range(most, least - 1, -1):
            if gap < 0 or (gap == 0 and len(found) >= MOST):
                break
            block = micro_batch * row
            rest = amount % block
            if rest > gap and block - rest > gap:  # most of them, so they cost this one division
                continue
            for drift, accum_steps in _outward(amount, block, gap):
                found.append((drift, count, micro_batch, accum_steps))
            if len(found) >= 8 * MOST:
                found = _best(found, order)
                gap = abs(found[-1][0])
    return _best(found, order)


def _best(found: list[_Found], order: Callable[[_Found], tuple[int, int, int, int, bool]]) -> list[_Found]:
    """The first MOST in their order. Most are out by their drift alone, and cost no more than that."""
    if len(found) > MOST:
        gap = sorted([abs(each[0]) for each in found])[MOST - 1]
        found = [each for each in found if abs(each[0]) <= gap]
    return sorted(found, key=order)[:MOST]


def _outward(amount: int, block: int, gap: int) -> Iterator[tuple[int, int]]:
    """(drift, accum_steps) of the multiples of block within `gap` of the amount, at most MOST on each side."""
    nearest_below = amount // block
    for accum_steps in range(nearest_below, max(0, nearest_below - MOST), -1):
        if amount - accum_steps * block > gap:
            break
        yield accum_steps * block - amount, accum_steps
    for accum_steps in range(nearest_below + 1, nearest_below + 1 + MOST):
        if accum_steps * block - amount > gap:
            break
        yield accum_steps * block - amount, accum_steps
