"""What an accumulator, its groups and its loaders share: the options, and what lives from one update to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

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
        """Those that are there."""
        return [each.grad for each in self.parameters if each.grad is not None]

    def zero_grad(self) -> None:
        """No parameter has a gradient afterwards."""
        for each in self.optimizers:
            each.zero_grad(set_to_none=True)
