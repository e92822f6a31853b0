"""What an accumulator, its groups and its loaders share: the options, and what lives from one update to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gradaccum.torch.accumulate.buffers import Buffers
    from gradaccum.torch.accumulate.sums import Sums
    from gradaccum.torch.accumulate.sync import Sync


@dataclass(kw_only=True)
class State:
    """The options as Accumulator has them, and:

    expected: the weight of one update over `sync.mean_over`, what losses are divided by, the same on every rank; None
    before the first backward pass. carried: of a group that waits for the next loader. open: the group that has begun
    and made no step, by its sums.
    """

    sync: Sync
    optimizers: Sequence[torch.optim.Optimizer]
    parameters: Sequence[torch.nn.Parameter]
    accum_steps: int | None
    clip_norm: float | None
    scaler: torch.amp.GradScaler | None
    partial: str
    nonfinite: str
    wants_norm: bool
    wants_noise: bool
    leaves_out: bool
    buffers: Buffers | None
    expected: float | torch.Tensor | None = None
    carried: Sums | None = None
    open: Sums | None = None

    @property
    def device(self) -> torch.device:
        """Where the sums are kept."""
        return self.parameters[0].device

    @property
    def carried_micro_batches(self) -> int:
        """How many micro-batches of the next group are there already."""
        return self.carried.micro_batches if self.carried else 0

    def gradients(self) -> list[torch.Tensor]:
        """The sums that are there."""
        if self.buffers is not None:
            return [found for each in self.parameters if (found := self.buffers.get(each)) is not None]
        return [each.grad for each in self.parameters if each.grad is not None]

    def reduce(self) -> None:
        """Bring the sums of all ranks together, each in the type that it is kept in."""
        buffers, parameters = self.buffers, self.parameters
        if buffers is None:
            own = [each.grad for each in parameters]
            for each, found in zip(parameters, self._reduced(own, torch.zeros_like), strict=True):
                each.grad = found
            return
        own = [buffers.get(each) for each in parameters]
        for each, found in zip(parameters, self._reduced(own, buffers.zeros_for), strict=True):
            if found is not None:
                buffers.set(each, found)

    def _reduced(
        self, own: list[torch.Tensor | None], zeros: Callable[[torch.nn.Parameter], torch.Tensor]
    ) -> list[torch.Tensor | None]:
        return self.sync.reduce(own, lambda number: zeros(self.parameters[number]), self.device)

    def zero_grad(self) -> None:
        """No parameter has a gradient afterwards."""
        if self.buffers is not None:
            self.buffers.clear()
        for each in self.optimizers:
            each.zero_grad(set_to_none=True)
