"""What one update was: `Update`, the answer of `group.step()`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Update:
    """One update over all ranks; None is "not known".

    applied: whether the optimizers stepped; reason: why not, or "".
    micro_batches: those of this rank; micro_batch_split: in how many parts `run` took each of them, 1 as they came.
    skipped: micro-batches of all ranks that were left out.
    effective_batch: samples of all ranks; weight: what the loss was divided by (tokens, samples).
    loss: the mean over that weight. grad_norm: the 2-norm of the mean gradient before clipping, where it was computed.
    noise_scale: of the gradient, in the unit of the weight, where it was asked for and could be told.
    """

    applied: bool
    reason: str
    micro_batches: int
    skipped: int
    effective_batch: int | None
    weight: float
    loss: float | None
    grad_norm: float | None
    noise_scale: float | None = None
    micro_batch_split: int = 1
