"""What measured runs say about predictions of the same kind: how many there are, and the worst error among them.

A regime is what errors have in common: the kernel of attention, the precision, how many GPUs share what. evidence.json
beside this file has a row for each regime with measured runs, and is written by `make accuracy` from those runs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from gradaccum.units import Ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gradaccum.memory.setup import Setup

CLOSED_FORM = "closed form"
TRACE = "trace"

FEW = 5
"""A regime with fewer measured runs than this is not held to be known."""
UNMEASURED = 15
"""Percent by which the tensors of a regime may be off that has fewer than FEW measured runs."""
LEAST = 2
"""Percent that no regime is trusted beyond: the measured runs are few models, on few cards."""


@dataclass(frozen=True)
class Regime:
    """What errors have in common. precision: the dtype, what is quantised, and whether adapters alone are trained."""

    attention: str
    precision: str
    sharding: str

    def __str__(self) -> str:
        return f"{self.precision}, {self.attention} attention, {self.sharding}"


@dataclass(frozen=True)
class Evidence:
    """How many measured runs of this regime the prediction was compared with, and the worst error.

    worst: tenths of a percent of what was allocated; None without a run. nearest: the evidence of the regime that has
    most in common with this one, where this one is not known itself. process_cases, worst_process: the same of runs of
    which the whole process alone was measured; no margin of the tensors follows from these.
    """

    regime: str
    cases: int
    worst: int | None
    nearest: Evidence | None = None
    process_cases: int = 0
    worst_process: int | None = None

    @property
    def margin(self) -> int:
        """Percent by which the tensors may be off."""
        return UNMEASURED if self.worst is None or self.cases < FEW else max(LEAST, -(-self.worst // 10))

    def __str__(self) -> str:
        measured = _measured_words(self.cases, self.worst)
        if self.process_cases:
            of_process = _measured_words(self.process_cases, self.worst_process)
            measured = (
                f"{measured}{' of what is allocated' if not self.cases else ''}, {of_process} of the process alone"
            )
        if self.nearest is None:
            return f"{self.regime}: {measured}, \u00b1{self.margin}%"
        return f"yours ({self.regime}): {measured}, \u00b1{self.margin}%; nearest {self.nearest.summary}"

    @property
    def summary(self) -> str:
        """The regime with its runs and their worst error alone."""
        return str(self).rpartition(",")[0]

    def to_dict(self) -> dict[str, object]:
        """As `fit --json` has it. worst_percent is a number with one decimal."""
        return {
            "regime": self.regime,
            "cases": self.cases,
            "worst_percent": None if self.worst is None else float(Ratio(self.worst, 10)),
            "margin": self.margin,
            "words": str(self),
        }


def _measured_words(cases: int, worst: int | None) -> str:
    count = "no measured case" if not cases else "1 measured case" if cases == 1 else f"{cases} measured cases"
    return count if worst is None else f"{count}, worst {worst // 10}.{worst % 10}%"


SPLITS = {"tensor_parallel": "TP", "pipeline_parallel": "PP", "context_parallel": "CP", "expert_parallel": "EP"}
FIELDS = ("dtype", "quantization", "lora_rank", "loss", "attention", "num_gpus", "strategy", *SPLITS)
"""The fields of a Setup that a regime follows from."""


def regime(how: dict[str, Any], experts: bool = False) -> Regime:
    """The regime of the fields of a Setup; what is left out has its usual value. experts: a mixture of experts."""
    precision = how.get("dtype", "bf16")
    if how.get("quantization", "none") != "none":
        precision = f"{precision} over {how['quantization']}"
    if how.get("lora_rank"):
        precision += " LoRA"
    if how.get("loss", "full") != "full":
        precision += f", {how['loss']} loss"
    if experts:
        precision += ", experts"
    parts = [] if how.get("num_gpus", 1) == 1 else [how.get("strategy", "ddp")]
    parts += [short for name, short in SPLITS.items() if how.get(name, 1) > 1]
    sharding = " + ".join(parts) + " on several GPUs" if parts else "one GPU"
    return Regime(how.get("attention", "flash"), precision, sharding)


def evidence(setup: Setup, engine: str = CLOSED_FORM) -> Evidence:
    """What is known of this setup's regime under an engine: "closed form" or "trace"."""
    fields = {name: getattr(setup, name) for name in FIELDS if hasattr(setup, name)}
    mine = regime(fields, setup.model.experts > 0)
    known = {Regime(*row["regime"]): row for row in measured() if row["engine"] == engine}
    row = known.get(mine)
    cases, worst = (row["cases"], row["worst_allocated"]) if row else (0, None)
    nearest = None
    near = [other for other in known if other != mine and known[other]["cases"] >= FEW]
    if cases < FEW and near:
        closest = max(near, key=lambda other: _common(mine, other))
        nearest = Evidence(str(closest), known[closest]["cases"], known[closest]["worst_allocated"])
    of_process = (row["process_cases"], row["worst_process"]) if row else (0, None)
    return Evidence(str(mine), cases, worst, nearest, *of_process)


def evidence_of_own(words: str) -> Evidence:
    """What is known of traces of a step that a person wrote, whose regime nobody has measured. words: what it is."""
    rows = [row for row in measured() if row["engine"] == TRACE and row["cases"] >= FEW]
    most = max(rows, key=lambda row: row["cases"], default=None)
    if most is None:
        return Evidence(words, 0, None)
    nearest = Evidence(str(Regime(*most["regime"])), most["cases"], most["worst_allocated"])
    return Evidence(words, 0, None, nearest)


def _common(one: Regime, other: Regime) -> tuple[bool, ...]:
    """How much two regimes share, what errors depend on most first: sharding, precision, kernel of attention."""
    return (
        one.sharding == other.sharding,
        one.precision == other.precision,
        (" over " in one.precision) == (" over " in other.precision),
        one.attention == other.attention,
        (one.attention == "eager") == (other.attention == "eager"),
    )


@functools.cache
def measured() -> tuple[dict[str, Any], ...]:
    """The rows of evidence.json: engine, regime, cases, process_cases, and the worst of each in tenths of a percent."""
    import json

    beside = __file__.rpartition("/")[0] + "/"
    with open(beside + "evidence.json", encoding="utf-8") as file:
        return tuple(json.load(file)["regimes"])
