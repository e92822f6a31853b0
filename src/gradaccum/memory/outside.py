"""What a process takes beside its tensors: low, expected and high."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.memory.ledger import Line, total
from gradaccum.memory.ranks import communicators

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradaccum.memory.setup import Setup

MIB = 2**20


@dataclass(frozen=True)
class Outside:
    """One thing beside the tensors, in bytes: how little, how much as a rule, how much at most."""

    name: str
    low: int
    expected: int
    high: int
    source: str


CONTEXT = Outside(
    "CUDA context",
    141 * MIB,
    400 * MIB,
    667 * MIB,
    "141 MiB on a T4 (FitCheck), 287 to 667 MB by how modules are loaded (pytorch#86509)",
)
LIBRARY = Outside("NCCL", 512 * MIB, 620 * MIB, 1024 * MIB, "512 to 688 MB for one communicator (nccl#964, nccl#2363)")


def outside(setup: Setup, ledger: Sequence[Line]) -> tuple[Outside, ...]:
    """The allocator's slack, the CUDA context and the communication library."""
    peak = total(ledger)
    most = 149 if setup.attention == "eager" else 112
    as_a_rule = 120 if setup.attention == "eager" else 106
    slack = Outside(
        "allocator slack",
        0,
        peak * (as_a_rule - 100) // 100,
        peak * (most - 100) // 100,
        f"reserved over allocated is 1.04 to 1.12 with fused attention, up to 1.49 with eager attention "
        f"(FitCheck's measurements on a T4); {as_a_rule - 100}% taken",
    )
    if setup.num_gpus == 1:
        return slack, CONTEXT
    groups = communicators(setup)
    library = Outside(
        LIBRARY.name,
        LIBRARY.low,
        LIBRARY.expected * groups,
        LIBRARY.high * groups,
        f"{LIBRARY.source}, and {groups} of them",
    )
    return slack, CONTEXT, library
