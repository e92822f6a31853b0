"""What a group has seen so far on this rank, kept without asking the device for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, TypeAlias

import torch

from gradaccum.torch.accumulate.errors import AccumulationError

Number: TypeAlias = int | float | torch.Tensor

LossOf: TypeAlias = Callable[[Any], tuple[torch.Tensor, Number]]
"""From a batch its loss, and the weight of it."""

HALF = (torch.float16, torch.bfloat16)


def checked(loss: torch.Tensor) -> torch.Tensor:
    """A loss that a backward pass can start from, in fp32 at least, where 1 / weight does not vanish.

    Raises AccumulationError where it is no tensor of one number with a graph.
    """
    if not isinstance(loss, torch.Tensor):
        raise AccumulationError(f"a loss is a tensor that a backward pass can start from, not {loss!r}")
    if loss.dim():
        raise AccumulationError(f"a loss has one number, not the shape {tuple(loss.shape)}: sum it first")
    if not loss.requires_grad:
        raise AccumulationError(
            "this loss has no graph to go back through, as after detach() or within torch.no_grad(): hand over the "
            "loss as the model's forward pass made it"
        )
    return loss.float() if loss.dtype in HALF else loss


def checked_weight(weight: Number) -> Number:
    """A weight as one number; what it is, the device is not asked for. Raises AccumulationError where it is none."""
    if isinstance(weight, (int, float)):
        return weight
    if isinstance(weight, torch.Tensor) and weight.numel() == 1:
        return weight.reshape(()) if weight.dim() else weight
    if isinstance(weight, Real):  # NumPy's
        return float(weight)
    shape = f"a tensor of shape {tuple(weight.shape)}" if isinstance(weight, torch.Tensor) else f"{weight!r:.40}"
    raise AccumulationError(
        f"the weight of a micro-batch is what its loss sums over, one number such as len(x); not {shape}"
    )


def loss_and_weight(answer: object) -> tuple[torch.Tensor, Number]:
    """What a loss function returned. Raises AccumulationError where it is not two things."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise AccumulationError(
            "loss_of returns two things, the summed loss and what it sums over, as `return loss_sum, (targets != "
            f"-100).sum()`; not {answer!r:.60}"
        )
    return answer[0], answer[1]


@dataclass
class Sums:
    """Of one group: weight and loss sum, samples (None: not known), micro-batches answered, of them skipped.

    seen: samples, those of skipped micro-batches too. waiting: whether a micro-batch has no answer yet.
    first: of the first backward pass the squared norm of the mean gradient, and 1 / its weight; where it is asked for.
    """

    weight: Number = 0
    loss: Number | None = None
    samples: int | None = 0
    seen: int | None = 0
    micro_batches: int = 0
    skipped: int = 0
    waiting: bool = False
    first: tuple[torch.Tensor, Number] | None = None

    def answered(self, samples: int | None, counted: bool, more: bool = False) -> None:
        """A micro-batch of so many samples has its answer; or a part of one, of which there is more."""
        self.waiting = more
        self.micro_batches += not more
        self.skipped += not counted
        self.seen = None if samples is None or self.seen is None else self.seen + samples
        if counted:
            self.samples = None if samples is None or self.samples is None else self.samples + samples

    def copy(self) -> Sums:
        """The same, which does not change with this."""
        return replace(self, loss=self.loss.clone() if isinstance(self.loss, torch.Tensor) else self.loss)

    def add(self, loss: torch.Tensor, weight: Number, mean: bool = False) -> None:
        """One micro-batch. loss: its sum, or its mean. One of weight 0 adds none: a mean over nothing is NaN."""
        if loss.is_cpu:  # the host's own numbers, which it need not ask for
            weight = weight.item() if isinstance(weight, torch.Tensor) else weight
            if weight:
                self.weight = self.weight + weight
                self.loss = (self.loss or 0.0) + loss.item() * (weight if mean else 1)
            return
        loss = loss.detach() * weight if mean else loss.detach()
        if isinstance(weight, torch.Tensor):
            weight = weight.detach()
            loss = torch.where(weight != 0, loss, 0)
        elif weight == 0:
            return
        self.weight = self.weight + weight
        if self.loss is None:
            self.loss = torch.zeros((), dtype=precise(loss.device), device=loss.device)
        self.loss += loss


def precise(device: torch.device) -> torch.dtype:
    """Counts tokens exactly up to 2^53; MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
