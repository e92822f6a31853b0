"""What a process takes beside its tensors, and how sure all of it is: low, expected and high."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.memory.layout import PARALLEL
from gradaccum.memory.ledger import Line, total
from gradaccum.memory.ranks import communicators

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradaccum.memory.setup import Setup

MIB = 2**20

UNMEASURED = 15
"""Percent by which the tensors of a regime may be off that has fewer than FEW measured cases."""
FEW = 5


@dataclass(frozen=True)
class Evidence:
    """How many measured runs of this regime the prediction was compared with, and the worst error in percent."""

    regime: str
    cases: int
    worst_percent: int | None

    @property
    def margin(self) -> int:
        """Percent by which the tensors may be off."""
        return UNMEASURED if self.cases < FEW or self.worst_percent is None else self.worst_percent

    def __str__(self) -> str:
        if self.cases == 0:
            return f"{self.regime}: no measured case, \u00b1{self.margin}%"
        return f"{self.regime}: {self.cases} measured, \u00b1{self.margin}%"

    def to_dict(self) -> dict[str, object]:
        """As `fit --json` has it."""
        return {"regime": self.regime, "cases": self.cases, "worst_percent": self.worst_percent, "margin": self.margin}


def evidence(setup: Setup) -> Evidence:
    """What is known of this regime: kernel family, precision, sharding."""
    words = [setup.dtype, f"{setup.attention} attention"]
    if setup.lora_rank:
        words.insert(1, "LoRA" if setup.quantization == "none" else f"LoRA on {setup.quantization}")
    if setup.model.experts:
        words.append("experts")
    if setup.checkpointing != "none":
        words.append(f"{setup.checkpointing} checkpointing")
    if setup.loss != "full":
        words.append(f"{setup.loss} loss")
    split = [name.replace("_", " ") for name in PARALLEL if getattr(setup, name) > 1]
    words.append("one GPU" if setup.num_gpus == 1 else f"{', '.join([setup.strategy, *split])} on several GPUs")
    return Evidence(", ".join(words), 0, None)


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
