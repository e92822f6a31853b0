"""What one rank saw, as plain data: a record for each backward pass, update and rank. Read and judged without torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

Sketch = list[float]


@dataclass
class Term:
    """One loss term of one backward pass.

    leaf: the loss or reduction that was found; reduction: its own name, whatever lies beneath. kind: mean, sum, each
    (reduced by hand), opaque (nothing is known of what it reduces), nonlinear (a function of the reduced loss, such
    as a root). weight: the gradient of one unit; None where nothing is known. spread: the largest weight by the
    smallest, 1 where all are equal. units: what may be counted: elements, those that are not masked or ignored
    (counted), the sum of their own weights (weighed), and rows. factors: by what each scalar node on the way
    multiplied the gradient; arrived: the gradient behind them. own_weights: elements are multiplied by numbers of
    their own, above which the weight was read; above: weight and units there, where they were multiplied by 0 and one
    other number, beneath which it was read. in_batch: the classes are the batch's own samples, as in a contrastive
    loss. product: rows, columns and inner size, where it was made from a product of two matrices of activations.
    """

    leaf: str
    kind: str
    reduction: str = ""
    weight: float | None = None
    spread: float = 1.0
    units: dict[str, float] = field(default_factory=dict)
    factors: list[float] = field(default_factory=list)
    arrived: float | None = None
    own_weights: bool = False
    above: tuple[float, dict[str, float]] | None = None
    in_batch: bool = False
    product: list[int] = field(default_factory=list)
    identity: int = 0

    def lifted(self) -> Term:
        """As it is read above the multiplication by weights of the elements' own."""
        if self.above is None:
            return self
        return replace(self, weight=self.above[0], units=self.above[1], above=None)


CLIPPING = ("clip", "clip_value")
"""Events that clip."""


@dataclass
class Event:
    """Something between backward passes: clip (values: the norm, the threshold), clip_value, unscale, zero_grad,
    scheduler.
    """

    name: str
    values: list[float] = field(default_factory=list)


@dataclass
class Pass:
    """One backward pass as one optimizer sees it.

    before, heard, after: its witness's gradients before the pass, what the pass brought them, and what is there
    after it. calls: the samples of each call of the model since the pass before; None where they were not seen;
    unlearnt: of calls without gradients. by_name: its gradients were asked for with torch.autograd.grad, and what
    becomes of them is the loop's. serial: this pass among all of the rank. events: since the pass before, or the
    last update. place: where the witness's parameters stood. hooked: by what the loop's own hooks on parameters
    multiplied what came; bent: whether they changed it otherwise.
    """

    site: str
    terms: list[Term]
    calls: list[int | None]
    unlearnt: list[int | None]
    serial: int
    before: Sketch | None
    heard: Sketch | None
    after: Sketch | None
    reduces: bool | None = None
    by_name: bool = False
    place: list[float] | None = None
    hooked: float = 1.0
    bent: bool = False
    loss_dtype: str = "float32"
    events: list[Event] = field(default_factory=list)

    @property
    def samples(self) -> int | None:
        """Those of the micro-batch: of all calls, where each had a loss of its own or one loss has the rows of all; of
        several losses their rows, where some of the calls have none.
        """
        if not self.calls or None in self.calls:
            return None
        total = sum(each or 0 for each in self.calls)
        if self.rows and self.calls_without and total % self.rows == 0:
            return int(self.rows)
        rows = self.terms[0].units.get("rows") if self.terms else None
        together = self.losses == len(self.calls) or rows == total
        return total if together else self.calls[-1]

    @property
    def calls_without(self) -> bool:
        """Whether there are several losses, and calls of the model besides."""
        return 1 < self.losses < len(self.calls)

    @property
    def rows(self) -> float:
        """The rows of all losses of the first kind."""
        return sum(term.units.get("rows", 0.0) for term in self.terms if term.reduction == self.terms[0].reduction)

    @property
    def losses(self) -> int:
        """How often the first loss term is there."""
        return sum(term.reduction == self.terms[0].reduction for term in self.terms)


@dataclass
class UpdateSeen:
    """One step of one optimizer.

    number: counted from 0 for each optimizer. passes: empty where it was not audited. received: the witness's
    gradients as the optimizer used them. events: after the last pass. afterwards: scheduler steps up to the next
    pass. divide_factor: by what FSDP2 was told to divide, None for the ranks. at: passes of the rank up to the
    step.
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
    divide_factor: float | None = None
    at: int = 0
    skipped: bool = False

    def inside(self, *names: str) -> int:
        """How many events of those names were between the first and the last pass."""
        return sum(event.name in names for each in self.passes[1:] for event in each.events)

    def behind(self, *names: str) -> int:
        """How many were between the last pass and the step."""
        return sum(event.name in names for event in self.events)

    @property
    def scheduler_steps(self) -> int:
        """All of this update."""
        return self.inside("scheduler") + self.behind("scheduler") + self.afterwards


@dataclass
class OptimizerSeen:
    """One optimizer. scale_free: its step does not change with the gradient's scale. parted: it steps on copies of the
    parameters, and what a rank received is its own part of the gradient.
    """

    name: str
    scale_free: bool
    gradient_dtypes: list[str] = field(default_factory=list)
    sharded: bool = False
    parted: bool = False


@dataclass
class RankSeen:
    """All that one rank saw. nominal_steps: the micro-batches for each update that the trainer was told."""

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
    nominal_steps: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for another process."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RankSeen:
        """Back from `to_dict`."""

        def event(each: dict[str, Any]) -> Event:
            return Event(**each)

        def one_pass(each: dict[str, Any]) -> Pass:
            terms = [Term(**term) for term in each["terms"]]
            return Pass(**{**each, "terms": terms, "events": [event(one) for one in each["events"]]})

        def update(each: dict[str, Any]) -> UpdateSeen:
            passes = [one_pass(one) for one in each["passes"]]
            return UpdateSeen(**{**each, "passes": passes, "events": [event(one) for one in each["events"]]})

        optimizers = [OptimizerSeen(**each) for each in data["optimizers"]]
        return cls(**{**data, "optimizers": optimizers, "updates": [update(each) for each in data["updates"]]})
