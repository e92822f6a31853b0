"""What each way to reduce costs: the bytes of gradients that a rank holds, and those that it sends in one update.

A ring sends (N - 1) / N of the bytes for a reduce-scatter and twice that for an all-reduce (Thakur, Rabenseifner and
Gropp, "Optimization of collective communication operations in MPICH", 2005); N ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradaccum.torch.accumulate.parts import parts_of
from gradaccum.units import show_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from gradaccum.torch.accumulate.sync import Sync

HEADING = "reduce=  gradients that a rank holds, and what it sends in an update (* this accumulator)"


@dataclass(frozen=True)
class Way:
    """One way to reduce. held_bytes: gradients on one rank at the end of a group. sent_bytes: by one rank in an update.

    chosen: whether this accumulator does it.
    """

    mode: str
    held_bytes: int
    sent_bytes: int
    chosen: bool

    def __str__(self) -> str:
        mark = "*" if self.chosen else " "
        return (
            f"{mark} {self.mode:<7}  holds {show_bytes(self.held_bytes):>10}  sends {show_bytes(self.sent_bytes):>10}"
        )


class Explanation(tuple[Way, ...]):
    """All ways; as text one in a line below a heading, with a star at the chosen one."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join((HEADING, *map(str, self)))


def explain(sync: Sync, parameters: Sequence[torch.nn.Parameter], steps: int, width: int | None) -> Explanation:
    """Of groups of `steps` micro-batches. width: bytes of one number in own buffers, None without any."""
    shard_ranks, copies = sync.shape
    whole = 0  # of what a data-parallel rank has, its shards of other ranks included, its partners' layers not
    for each in parameters:
        layers = max(1, parts_of(each) // shard_ranks)  # a DTensor's numel is that of all its parts
        whole += each.numel() // layers * (width or each.element_size())
    shard = -(-whole // shard_ranks)
    scattered = whole * (shard_ranks - 1) // shard_ranks
    shared = 2 * shard * (copies - 1) // copies
    everything = 2 * whole * (sync.world - 1) // sync.world
    costs = {
        "every": (shard, steps * (scattered + shared)) if sync.sharded else (whole, steps * everything),
        "hybrid": (shard, steps * scattered + shared),
        "last": (whole, scattered + shared if sync.sharded else everything),
        "after": (whole, everything),
    }
    return Explanation(Way(mode, *costs[mode], mode == sync.mode) for mode in sync.allowed)
