"""What an accumulator, its groups and its loaders share: the options, and what lives from one update to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from gradaccum.torch.accumulate.boundary import norm_of
from gradaccum.torch.accumulate.parts import placed, whole
from gradaccum.torch.accumulate.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gradaccum.torch.accumulate.buffers import Buffers
    from gradaccum.torch.accumulate.planned import Promise
    from gradaccum.torch.accumulate.sums import Sums
    from gradaccum.torch.accumulate.sync import Sync


@dataclass(kw_only=True)
class State:
    """The options as Accumulator has them, and:

    expected: the weight of one update over `sync.mean_over`, what losses are divided by, the same on every rank; None
    before the first backward pass.
    progress: up to the last boundary.
    carried: of a group that waits for the next loader. open: of the group that has begun and made no step.
    exact: samples of an update over all ranks, where a plan asks for them exactly. promise: what another plan says.
    watched: groups in which one gradient was looked at, see aliased.py.
    split: in how many parts `run` takes a micro-batch, on this rank.
    """

    sync: Sync
    optimizers: Sequence[torch.optim.Optimizer]
    parameters: Sequence[torch.nn.Parameter]
    accum_steps: int | Callable[[Progress], int] | None
    clip_norm: float | None
    scaler: torch.amp.GradScaler | None
    partial: str
    nonfinite: str
    wants_norm: bool
    wants_noise: bool
    leaves_out: bool
    buffers: Buffers | None
    progress: Progress = field(default_factory=Progress)
    expected: float | torch.Tensor | None = None
    carried: Sums | None = None
    open: Sums | None = None
    exact: int | None = None
    promise: Promise | None = None
    watched: int = 0
    split: int = 1

    @property
    def device(self) -> torch.device:
        """Where the sums are kept."""
        return self.parameters[0].device

    @property
    def carried_micro_batches(self) -> int:
        """How many micro-batches of the next group are there already."""
        return self.carried.micro_batches if self.carried else 0

    def steps(self) -> int | None:
        """Accumulation steps of the next group; None where a weight ends it."""
        return self.accum_steps(self.progress) if callable(self.accum_steps) else self.accum_steps

    def sum_of(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        """Its sum so far."""
        return parameter.grad if self.buffers is None else self.buffers.get(parameter)

    def all_gradients(self) -> list[torch.Tensor | None]:
        """The sum so far of each parameter."""
        return [each.grad if self.buffers is None else self.buffers.get(each) for each in self.parameters]

    def put_gradients(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Let these be the sums so far; those that are None stay as they are."""
        for parameter, found in zip(self.parameters, gradients, strict=True):
            if found is not None and self.buffers is not None:
                self.buffers.set(parameter, found)
            elif found is not None:
                parameter.grad = found

    def gradients(self) -> list[torch.Tensor]:
        """The sums that are there."""
        return [each for each in self.all_gradients() if each is not None]

    def norm(self) -> torch.Tensor:
        """The 2-norm of the sums, as far as they have come together. Shape ()."""
        found = zip(self.parameters, self.all_gradients(), strict=True)
        return norm_of([whole(parameter, each) for parameter, each in found if each is not None])

    def reduce(self) -> None:
        """Bring the sums of all ranks together, each in the type that it is kept in."""
        zeros = torch.zeros_like if self.buffers is None else self.buffers.zeros_for
        own = list(map(placed, self.parameters, self.all_gradients()))
        self.put_gradients(self.sync.reduce(own, lambda number: zeros(self.parameters[number]), self.device))

    def zero_grad(self) -> None:
        """No parameter has a gradient afterwards."""
        if self.buffers is not None:
            self.buffers.clear()
        for each in self.optimizers:
            each.zero_grad(set_to_none=True)
