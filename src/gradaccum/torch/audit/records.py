"""What one rank saw, as plain data: a record for each backward pass, update and rank. Read and judged without torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

Sketch = list[float]


@dataclass
class TermSeen:
    """One loss term of one backward pass: weights.Term, as numbers."""

    leaf: str
    kind: str
    weight: float | None
    spread: float
    units: dict[str, float]
    factors: list[float]


@dataclass
class Event:
    """Something between backward passes: clip (values: the norm, the threshold), clip_value, unscale, zero_grad,
    scheduler, skipped (the scaler made no step).
    """

    name: str
    values: list[float] = field(default_factory=list)


@dataclass
class Pass:
    """One backward pass as one optimizer sees it.

    before, heard, after: its witness's gradients before the pass, what the pass brought them, and what is there after
    it. calls: of the model since the pass before. events: since the pass before, or the last update.
    """

    site: str
    terms: list[TermSeen]
    calls: int
    samples: int | None
    before: Sketch | None
    heard: Sketch | None
    after: Sketch | None
    reduces: bool | None = None
    loss_dtype: str = "float32"
    events: list[Event] = field(default_factory=list)


@dataclass
class UpdateSeen:
    """One step of one optimizer.

    number: counted from 0 for each optimizer. passes: empty where it was not audited. received: the witness's gradients
    as the optimizer used them. events: after the last pass. afterwards: scheduler steps up to the next pass.
    """

    optimizer: int
    number: int
    micro_batches: int
    audited: bool
    passes: list[Pass] = field(default_factory=list)
    received: Sketch | None = None
    events: list[Event] = field(default_factory=list)
    afterwards: int = 0
    grad_scale: float = 1.0
    skipped: bool = False


@dataclass
class OptimizerSeen:
    """One optimizer. scale_free: its step does not change with the gradient's scale."""

    name: str
    scale_free: bool
    parameters: int
    gradient_dtypes: list[str] = field(default_factory=list)
    gradient_bytes: int = 0
    sharded: bool = False


@dataclass
class RankSeen:
    """All that one rank saw."""

    rank: int = 0
    world: int = 1
    target_batch: int | None = None
    framework: str = "torch"
    optimizers: list[OptimizerSeen] = field(default_factory=list)
    updates: list[UpdateSeen] = field(default_factory=list)
    batchnorm: list[str] = field(default_factory=list)
    wrapped: str = "plain"
    reduction_bytes: int = 0
    not_seen: list[str] = field(default_factory=list)
    leftover: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for another process."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RankSeen:
        """Back from `to_dict`."""

        def event(each: dict[str, Any]) -> Event:
            return Event(**each)

        def one_pass(each: dict[str, Any]) -> Pass:
            terms = [TermSeen(**term) for term in each["terms"]]
            return Pass(**{**each, "terms": terms, "events": [event(one) for one in each["events"]]})

        def update(each: dict[str, Any]) -> UpdateSeen:
            passes = [one_pass(one) for one in each["passes"]]
            return UpdateSeen(**{**each, "passes": passes, "events": [event(one) for one in each["events"]]})

        optimizers = [OptimizerSeen(**each) for each in data["optimizers"]]
        return cls(**{**data, "optimizers": optimizers, "updates": [update(each) for each in data["updates"]]})
