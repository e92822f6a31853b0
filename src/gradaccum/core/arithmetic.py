"""The arithmetic that everything else stands on: a target divided into equal blocks, in four roundings.

Integers alone, of any size.
"""

from __future__ import annotations

from dataclasses import dataclass


def divide(goal: int, block: int, rounding: str) -> int:
    """How many blocks come to the goal: at least 1.

    round: the smallest gap, a tie goes up. ceil and exact: at least the goal. floor: at most the goal, but
    where the goal is below one block every rounding gives 1. goal and block are in one unit, both >= 1.
    """
    if rounding == "round":
        blocks = (2 * goal + block) // (2 * block)
    elif rounding == "floor":
        blocks = goal // block
    else:
        blocks = -(-goal // block)
    return max(1, blocks)


@dataclass(frozen=True, eq=False)
class Goal:
    """What one update should see.

    amount: sequences, or tokens where `in_tokens`.
    unit: what one sequence counts for: 1, or its tokens.
    """

    amount: int
    unit: int = 1
    in_tokens: bool = False

    def steps(self, device_batch: int, rounding: str) -> int:
        """accum_steps = round(target_batch / device_batch), in the rounding asked for."""
        return divide(self.amount, device_batch * self.unit, rounding)

    def drift(self, effective_batch: int) -> int:
        """effective_batch - target_batch, in the goal's own unit: sequences or tokens."""
        return effective_batch * self.unit - self.amount


def last_micro_step(target_batch: int, device_batch: int, data_parallel: int) -> tuple[int, int]:
    """Under `exact`: (samples of the last micro-step over all ranks, largest share of one rank).

    The samples are shared out over the ranks, the first ranks one more.
    """
    samples = (target_batch - 1) % device_batch + 1
    return samples, -(-samples // data_parallel)
