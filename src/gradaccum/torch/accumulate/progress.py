"""How far training has come: what ramps are functions of, so that they survive a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Up to the last boundary, over all ranks. updates: applied. samples: consumed, None once a batch did not say.
    weight: consumed, such as tokens.
    """

    updates: int = 0
    samples: int | None = 0
    weight: float = 0.0

    def after(self, samples: int | None, weight: float, applied: bool) -> Progress:
        """With one more group."""
        known = None if samples is None or self.samples is None else self.samples + samples
        return Progress(updates=self.updates + applied, samples=known, weight=self.weight + weight)


class Ramp:
    """Accumulation steps that grow with what was consumed, for `Accumulator(accum_steps=...)`.

    stages: (from, steps): from this many samples on, so many accumulation steps; the first from 0. in_weight: count the
    weight (tokens) instead of samples. Raises ValueError for stages that do not begin at 0 and grow.
    """

    def __init__(self, stages: Sequence[tuple[float, int]], *, in_weight: bool = False) -> None:
        starts = [start for start, _ in stages]
        if not stages or starts[0] != 0 or sorted(set(starts)) != starts or min(steps for _, steps in stages) < 1:
            raise ValueError(f"stages begin at 0, each later than the one before, with 1 step or more; not {stages!r}")
        self._stages, self._in_weight = tuple(stages), in_weight

    def __call__(self, progress: Progress) -> int:
        """The steps of the next group. Raises ValueError where samples are meant and not known."""
        consumed = progress.weight if self._in_weight else progress.samples
        if consumed is None:
            raise ValueError(
                "a ramp in samples needs their number, and a batch did not say it: groups(loader, count=...)"
            )
        return [steps for start, steps in self._stages if start <= consumed][-1]
