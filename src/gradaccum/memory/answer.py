"""The answer of a fit: a GPU's memory at the peak, what would change it, and all of it as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.core.plan import mime_bundle
from gradaccum.memory.evidence import CLOSED_FORM, Evidence
from gradaccum.memory.ledger import Line, total
from gradaccum.memory.outside import Outside
from gradaccum.units import show_percent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from gradaccum.catalog.gpus import Gpu
    from gradaccum.core.findings import Finding
    from gradaccum.core.plan import Plan
    from gradaccum.memory.setup import Setup


@dataclass(frozen=True)
class Memory:
    """One GPU's memory at the peak of a step. peak_at: which instant that is. All in bytes.

    ledger: what is allocated; its sum is peak_bytes. outside: what comes on top of it in the process.
    stage: which pipeline stage this is, the heaviest; "" where there is one.
    other_peak_bytes: the same peak by the other engine, where both were asked; low and high reach as far as it.
    """

    peak_at: str
    ledger: tuple[Line, ...]
    outside: tuple[Outside, ...]
    evidence: Evidence
    capacity_bytes: int
    stage: str = ""
    other_peak_bytes: int | None = None

    @property
    def peak_bytes(self) -> int:
        """Allocated at the peak."""
        return total(self.ledger)

    @property
    def low_bytes(self) -> int:
        """The peak, if the margin is all in our favour."""
        low = self.peak_bytes * (100 - self.evidence.margin) // 100
        return low if self.other_peak_bytes is None else min(low, self.other_peak_bytes)

    @property
    def high_bytes(self) -> int:
        """The peak, if the margin is all against us."""
        high = self.peak_bytes * (100 + self.evidence.margin) // 100
        return high if self.other_peak_bytes is None else max(high, self.other_peak_bytes)

    @property
    def reserved_bytes(self) -> int:
        """What the allocator holds: the peak and its slack."""
        return self.peak_bytes + self.outside[0].expected

    @property
    def process_bytes(self) -> int:
        """What is held against the capacity."""
        return self.peak_bytes + sum(each.expected for each in self.outside)

    @property
    def process_low_bytes(self) -> int:
        """The same at best."""
        return self.low_bytes + sum(each.low for each in self.outside)

    @property
    def process_high_bytes(self) -> int:
        """The same at worst."""
        return self.high_bytes + sum(each.high for each in self.outside)

    @property
    def verdict(self) -> str:
        """fits: even at worst. marginal: as a rule. does not fit: the expected bytes are more than there are."""
        if self.process_bytes > self.capacity_bytes:
            return "does not fit"
        return "fits" if self.process_high_bytes <= self.capacity_bytes else "marginal"

    def to_dict(self) -> dict[str, object]:
        """As `fit --json` has it."""
        names = (
            "peak_bytes", "low_bytes", "high_bytes", "reserved_bytes", "process_bytes", "process_low_bytes",
            "process_high_bytes", "capacity_bytes", "peak_at", "verdict",
        )  # fmt: skip
        found: dict[str, object] = {name: getattr(self, name) for name in names}
        found["stage"] = self.stage or None
        found["ledger"] = [line.to_dict() for line in self.ledger]
        found["outside"] = [
            {"name": o.name, "bytes": o.expected, "low_bytes": o.low, "high_bytes": o.high, "source": o.source}
            for o in self.outside
        ]
        return found


@dataclass(frozen=True)
class Change:
    """One thing to change, or two, and the bytes that the peak falls by at the same micro-batch.

    values: the fields of a Setup that would be others; none where it is nothing that a Setup says. fits: whether the
    micro-batch fits with it.
    """

    words: str
    bytes: int
    values: tuple[tuple[str, object], ...] = ()
    fits: bool = True

    def to_dict(self) -> dict[str, object]:
        """As `fit --json` has it."""
        return {"change": self.words, "bytes": self.bytes, "set": dict(self.values), "fits": self.fits}


DISPLAY: dict[str, Callable[[Fit], str]] = {}
"""How a fit shows itself: "text" and "html". The package's top fills it, since this room knows no renderer."""


@dataclass(frozen=True)
class Step:
    """A training step of the person's own: what a trace is asked, as a Setup is what the closed form is asked.

    name: the model's, or `module:function`. accum_steps: micro-steps per update; None is "two or more".
    words: how it is trained, for people.
    """

    name: str
    micro_batch: int
    accum_steps: int | None
    num_gpus: int
    words: str

    @property
    def accumulates(self) -> bool:
        """Whether gradients of an earlier micro-step are there while the next one runs."""
        return self.accum_steps is None or self.accum_steps > 1


@dataclass(frozen=True)
class Engine:
    """What one engine says at the micro-batch of the answer. All in bytes.

    at: where its peak is. traces: the micro-batches that were traced, in order; none for the closed form.
    """

    name: str
    max_micro_batch: int
    peak_bytes: int
    process_bytes: int
    at: str
    traces: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """As `fit --json` has it."""
        return {
            "engine": self.name,
            "max_micro_batch": self.max_micro_batch,
            "peak_bytes": self.peak_bytes,
            "process_bytes": self.process_bytes,
            "at": self.at,
            "traces": list(self.traces),
        }


@dataclass(frozen=True, repr=False)
class Fit:
    """The answer. setup, memory: at the plan's micro-batch, or at the largest; at 1 where nothing fits.

    max_micro_batch: the largest whose expected bytes fit, 0 where none does; surely: the largest that fits at worst;
    at_best: the largest that fits at best. plan: None where nothing fits, or no target was given. findings: about the
    memory; those about the plan are the plan's. engines: what each engine says, the one that answers first; empty is
    the closed form alone. most: no micro-batch beyond this was looked at.
    """

    setup: Setup | Step
    gpu: Gpu
    max_micro_batch: int
    surely: int
    at_best: int
    plan: Plan | None
    memory: Memory
    curve: tuple[tuple[int, Memory], ...]
    changes: tuple[Change, ...]
    findings: tuple[Finding, ...]
    most: int
    engines: tuple[Engine, ...] = ()

    @property
    def engine(self) -> str:
        """Whose numbers these are."""
        return self.engines[0].name if self.engines else CLOSED_FORM

    @property
    def disagreement_bytes(self) -> int | None:
        """By how much the other engine's peak is higher, at the same micro-batch; None where only one was asked."""
        if len(self.engines) < 2:
            return None
        return self.engines[1].peak_bytes - self.engines[0].peak_bytes

    def __repr__(self) -> str:
        return f"<Fit {self.setup.name} on {self.gpu.name}: micro-batch {self.max_micro_batch}>"

    def __str__(self) -> str:
        return DISPLAY["text"](self) if "text" in DISPLAY else repr(self)

    def _repr_html_(self) -> str | None:
        """What a notebook shows."""
        return DISPLAY["html"](self) if "html" in DISPLAY else None

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, str]:
        """What a notebook may choose from, as a plan's: `text/plain` and `text/html`."""
        return mime_bundle(self, include, exclude)

    def to_dict(self) -> dict[str, object]:
        """The JSON of `gradaccum fit`."""
        return {
            "schema_version": 1,
            "model": self.setup.name,
            "gpu": self.gpu.id,
            "max_micro_batch": self.max_micro_batch,
            "max_micro_batch_surely": self.surely,
            "max_micro_batch_at_best": self.at_best,
            "most_looked_at": self.most,
            "micro_batch": self.setup.micro_batch if self.max_micro_batch else None,
            "plan": self.plan and self.plan.to_dict(),
            "memory": self.memory.to_dict(),
            "curve": [_point(micro_batch, memory) for micro_batch, memory in self.curve],
            "changes": [change.to_dict() for change in self.changes],
            "engine": self.engine,
            "engines": [engine.to_dict() for engine in self.engines],
            "disagreement": self._disagreement(),
            "evidence": self.memory.evidence.to_dict(),
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def _disagreement(self) -> dict[str, object] | None:
        apart = self.disagreement_bytes
        if apart is None:
            return None
        return {"bytes": apart, "percent": show_percent(apart, self.engines[0].peak_bytes)}


def _point(micro_batch: int, memory: Memory) -> dict[str, int]:
    return {
        "micro_batch": micro_batch,
        "peak_bytes": memory.peak_bytes,
        "reserved_bytes": memory.reserved_bytes,
        "process_bytes": memory.process_bytes,
        "process_low_bytes": memory.process_low_bytes,
        "process_high_bytes": memory.process_high_bytes,
    }
