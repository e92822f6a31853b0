"""Learning rate against batch: the two textbook rules, each with whom it holds for.

Neither holds everywhere; both are starting points for a sweep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradaccum.units import Ratio

WARMUP_EPOCHS = 5
"""Epochs of gradual warm-up that go with the linear rule (Goyal et al. 2017, section 2.2)."""


@dataclass(frozen=True)
class ScaledRate:
    """One rule's learning rate at the plan's effective batch. `advice` is the line to print beside it."""

    rule: str
    learning_rate: float
    holds_for: str
    advice: str
    source: str


def scaled_rates(learning_rate: float, base_batch: int, effective_batch: int) -> tuple[ScaledRate, ...]:
    """The learning rate that worked at base_batch, scaled to effective_batch; batches in sequences.

    linear: lr x k; square root: lr x sqrt(k); k = effective_batch / base_batch. Empty where one is no finite float.
    """
    try:
        factor = float(Ratio(effective_batch, base_batch))
    except OverflowError:
        return ()
    if learning_rate * factor == math.inf:
        return ()
    warmup = f"with {WARMUP_EPOCHS} epochs of gradual warm-up from the base rate, " if factor > 1 else ""
    return (
        ScaledRate(
            "linear",
            learning_rate * factor,
            "SGD with momentum",
            warmup + "up to 8k images on ImageNet",
            "Goyal et al. 2017, arXiv:1706.02677",
        ),
        ScaledRate(
            "square root",
            learning_rate * math.sqrt(factor),
            "Adam and AdamW",
            "while gradient noise dominates; err low near the critical batch, where the best rate stops growing",
            "Malladi et al. 2022, arXiv:2205.10287",
        ),
    )


def warmup_updates_linear(updates_per_epoch: int | None) -> int | None:
    """The linear rule's warm-up in updates; None where the length of an epoch is not known."""
    return None if updates_per_epoch is None else WARMUP_EPOCHS * updates_per_epoch
