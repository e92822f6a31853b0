"""Is one update the same as one batch and as micro-batches? Run both on copies, compare every gradient, name the cause.

One backward pass over the whole batch, one for each micro-batch, joined as a loop joins them: a mean loss is divided by
the number of micro-batches, a sum by the weight of all. Where they differ, more passes tell why: with another seed,
with BatchNorm's statistics frozen; and the weight that each micro-batch would need.
"""

from __future__ import annotations

import copy
import math
import random
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from gradaccum.core.audit import FAULT, NOT_SEEN, RIGHT
from gradaccum.torch.audit.causes import Joined, cause
from gradaccum.torch.audit.handed_in import loss_and_weight, refused, samples_of
from gradaccum.torch.audit.weights import Instrument
from gradaccum.torch.batchnorm import is_batchnorm, names_in_training
from gradaccum.torch.parts import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gradaccum.core.audit import AuditFinding

ROUNDINGS = 256
"""Roundings of the coarsest type on the way of one term of a sum, which add up as the root of their number."""

MOST_TOLERANCE = 0.1
"""No more than this is taken for rounding."""

FLOOR = 1e-2
"""A parameter's error is a share of its largest gradient, or of this part of the model's: noise around 0 is none."""


@dataclass(frozen=True)
class ParameterCheck:
    """One parameter's gradient as micro-batches beside that as one batch. ratio: of the parts along it; cosine: between
    both; error: largest difference by largest gradient. None where the gradient is 0.
    """

    name: str
    ratio: float | None
    cosine: float | None
    error: float

    def to_dict(self) -> dict[str, object]:
        """A row of the table, as plain data."""
        return {"name": self.name, "ratio": self.ratio, "cosine": self.cosine, "error": self.error}


@dataclass(frozen=True)
class Verification:
    """The answer. verdict: right, fault, or not seen. table: every trained parameter, the largest error first.
    tolerance: the error up to which gradients are the same, from the coarsest type in the passes (dtype) and the length
    of the sums. remarks: what was done to make it comparable.
    """

    verdict: str
    findings: tuple[AuditFinding, ...]
    table: tuple[ParameterCheck, ...]
    samples: int
    micro_batch: int
    tolerance: float
    dtype: str
    remarks: tuple[str, ...] = ()

    @property
    def micro_batches(self) -> int:
        """Backward passes that make the update."""
        return self.samples // self.micro_batch

    def to_dict(self) -> dict[str, object]:
        """As plain data, for JSON."""
        return {
            "schema_version": 1,
            "verdict": self.verdict,
            "findings": [each.to_dict() for each in self.findings],
            "parameters": [each.to_dict() for each in self.table],
            "samples": self.samples,
            "micro_batch": self.micro_batch,
            "micro_batches": self.micro_batches,
            "tolerance": self.tolerance,
            "dtype": self.dtype,
            "remarks": list(self.remarks),
        }

    def __str__(self) -> str:
        from gradaccum.show.verify import verify_text

        return verify_text(self.to_dict())

    def _repr_html_(self) -> str:
        from gradaccum.show.verify import verify_html

        return verify_html(self.to_dict())


def verify(
    model: torch.nn.Module, loss_of: Callable[[Any, Any], Any], batch: Any, micro_batch: int = 2
) -> Verification:
    """Compare one update as one batch with the same update as micro-batches.

    loss_of(model, batch): a mean loss as a scalar, or (loss_sum, weight): the sum, and the tokens or samples in it, 0
    for a micro-batch without a target.
    batch: a tensor, or a tuple, list or dict of them; samples along the first dimension. micro_batch: samples of one
    part, a divisor of the batch. It runs on copies of the model, whose gradients, mode and buffers stay, as the
    random state does. Memory: a copy of the model, and three sets of gradients in float64.

    Raises InputError for what cannot be compared.
    """
    samples = samples_of(model, batch, micro_batch)
    parts = cut(batch, [micro_batch] * (samples // micro_batch))
    with _untouched(model):
        return _Comparison(model, loss_of, batch, parts, samples, micro_batch).answer()


@dataclass
class _Way:
    """How the copies are set. seed: of the random numbers; dropout, batchnorm: whether they act as in training."""

    seed: int = 0
    dropout: bool = True
    batchnorm: bool = True


@dataclass
class _Gradient:
    """Of one batch: the gradient of what loss_of returned, by parameter; what that counts; types on the way."""

    of: dict[str, torch.Tensor]
    weight: float | None
    units: dict[str, float]
    dtypes: set[torch.dtype] = field(default_factory=set)


class _Comparison:
    def __init__(
        self,
        model: torch.nn.Module,
        loss_of: Callable[[Any, Any], Any],
        batch: Any,
        parts: list[Any],
        samples: int,
        micro_batch: int,
    ) -> None:
        self.model, self.loss_of, self.batch, self.parts = model, loss_of, batch, parts
        self.samples, self.micro_batch = samples, micro_batch
        self.remarks: list[str] = []

    def answer(self) -> Verification:
        way = _Way()
        joined = self._joined(way)
        if joined.finite and joined.error > joined.tolerance and self._is_random(way, joined):
            way.dropout = False
            joined = self._joined(way)
            if self._is_random(way, joined):
                self.remarks.append(
                    "the loss is random even with dropout off: two passes over the same batch differ; hand its noise "
                    "in with the batch"
                )
                return self._verification(NOT_SEEN, (), joined)
            self.remarks.append("masks of dropout differ in every pass: compared with dropout off")
        if not joined.finite:
            self.remarks.append("a gradient is not finite: a micro-batch without a target has the mean 0/0")
            return self._verification(NOT_SEEN, (), joined)
        if joined.error <= joined.tolerance:
            return self._verification(RIGHT, (), joined)
        normalised = names_in_training([self.model])
        frozen = None
        if normalised:
            way.batchnorm = False
            frozen = self._joined(way)
        return self._verification(FAULT, tuple(cause(joined, frozen, normalised)), joined)

    def _is_random(self, way: _Way, joined: Joined) -> bool:
        """Whether another seed gives another gradient of the same batch."""
        again = self._gradient(self.batch, _Way(1, way.dropout, way.batchnorm))
        return _error(again.of, {name: each * joined.divisor for name, each in joined.whole.items()}) > joined.tolerance

    def _joined(self, way: _Way) -> Joined:
        """The batch's gradient, and the micro-batches' put together as a loop does."""
        whole = self._gradient(self.batch, way)
        if whole.weight == 0:
            raise refused("loss_of", "returned the weight 0 for the whole batch: an update of nothing has no gradient")
        divisor = 1.0 if whole.weight is None else whole.weight
        total = {name: torch.zeros_like(each) for name, each in whole.of.items()}
        witnesses, weights, units = [], [], []
        for part in self.parts:
            own = self._gradient(part, way)
            if (own.weight is None) != (whole.weight is None):
                raise refused("loss_of", "must return a weight always or never")
            for name, each in own.of.items():
                total[name] += each
            witnesses.append(_witness(own.of))
            weights.append(1.0 if own.weight is None else own.weight)
            units.append(own.units)
        by = float(len(self.parts)) if whole.weight is None else sum(weights)
        one = {name: each / divisor for name, each in whole.of.items()}
        several = {name: each / by for name, each in total.items()}
        coarsest = max(whole.dtypes, key=_epsilon)
        length = max(float(self.samples), whole.units.get("elements", 0.0))
        return Joined(
            whole=one,
            several=several,
            witness=_witness(one),
            parts=witnesses,
            units=units,
            divisor=divisor,
            by=by,
            is_mean=whole.weight is None,
            error=_error(several, one),
            tolerance=min(MOST_TOLERANCE, ROUNDINGS * _epsilon(coarsest) * math.sqrt(length)),
            dtype=str(coarsest).removeprefix("torch."),
        )

    def _gradient(self, batch: Any, way: _Way) -> _Gradient:
        """One backward pass on a copy."""
        model = _copy(self.model)
        if not way.dropout:
            for (_, own), (_, original) in zip(model.named_modules(), self.model.named_modules(), strict=True):
                own.training = original.training and is_batchnorm(own)
        if not way.batchnorm:
            for each in model.modules():
                if is_batchnorm(each):
                    each.eval()
        torch.manual_seed(way.seed)
        random.seed(way.seed)
        loss, weight = loss_and_weight(self.loss_of(model, batch))
        dtypes = _dtypes(loss) | {each.dtype for each in model.parameters() if each.requires_grad}
        instrument = Instrument()
        instrument.attach(loss)
        try:
            loss.backward()
        finally:
            instrument.detach()
        units = next((each.units for each in instrument.settle() if each.units), {})
        found = {name: each for name, each in model.named_parameters() if each.requires_grad}
        if all(each.grad is None for each in found.values()):
            raise refused(
                "loss_of", "gives no gradient to the model that it is handed: use its argument, not a name outside"
            )
        return _Gradient(
            {
                name: (torch.zeros_like(each) if each.grad is None else each.grad).detach().double()
                for name, each in found.items()
            },
            weight,
            units,
            dtypes,
        )

    def _verification(self, verdict: str, findings: tuple[AuditFinding, ...], joined: Joined) -> Verification:
        top = _largest(joined.whole)
        rows = [_row(name, joined.several[name], each, top) for name, each in joined.whole.items()]
        return Verification(
            verdict,
            findings,
            tuple(sorted(rows, key=lambda row: -row.error)),
            self.samples,
            self.micro_batch,
            joined.tolerance,
            joined.dtype,
            tuple(self.remarks),
        )


# Gradients


def _row(name: str, several: torch.Tensor, one: torch.Tensor, top: float) -> ParameterCheck:
    own, both = float(one.norm()), float((several * one).sum())
    other = float(several.norm())
    return ParameterCheck(
        name,
        both / own**2 if own else None,
        both / (own * other) if own and other else None,
        _error({name: several}, {name: one}, top),
    )


def _error(several: dict[str, torch.Tensor], one: dict[str, torch.Tensor], top: float = 0.0) -> float:
    """The largest difference of one parameter, as a share of its largest gradient. top: the model's largest."""
    floor = FLOOR * (top or _largest(one))
    worst = 0.0
    for name, each in one.items():
        scale = max(_largest({name: each}), floor)
        apart = _largest({name: several[name] - each})
        worst = max(worst, apart / scale if scale else float(apart > 0))
    return worst


def _largest(gradients: dict[str, torch.Tensor]) -> float:
    return max((float(each.abs().max()) for each in gradients.values() if each.numel()), default=0.0)


WITNESSES = 100_000
"""Elements of the gradient, spread over all parameters, that stand for it where micro-batches are told apart."""


def _witness(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    step = max(1, sum(each.numel() for each in gradients.values()) // WITNESSES)
    return torch.cat([each.reshape(-1)[::step].cpu() for each in gradients.values()])


def _epsilon(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps)


def _dtypes(loss: torch.Tensor) -> set[torch.dtype]:
    """The floating types that the pass goes through: under autocast coarser ones than the parameters'."""
    found, stack, seen = {loss.dtype}, [loss.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found |= {each.dtype for each in getattr(node, "_input_metadata", ()) if each.dtype.is_floating_point}
            stack += [each for each, _ in node.next_functions]
    return found


# Copies


def _copy(model: torch.nn.Module) -> torch.nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise refused("model", f"cannot be copied: {error}") from error


@contextmanager
def _untouched(model: torch.nn.Module) -> Iterator[None]:
    """The model's gradients are out of reach for a while, and random states are as before afterwards."""
    kept = [(each, each.grad) for each in model.parameters()]
    own = random.getstate()
    devices = sorted({each.device.index or 0 for each in model.parameters() if each.device.type == "cuda"})
    try:
        for each, _ in kept:
            each.grad = None
        with torch.random.fork_rng(devices=devices), torch.enable_grad(), _without_tf32():
            yield
    finally:
        random.setstate(own)
        for each, gradient in kept:
            each.grad = gradient


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Products in full fp32, so that the tolerance may be fp32's: convolutions on a GPU are in TF32 otherwise."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    try:
        before = [each.allow_tf32 for each in backends]
    except RuntimeError:  # set by the newer `fp32_precision`, beside which this one is not read: left as it is
        yield
        return
    try:
        for each in backends:
            each.allow_tf32 = False
        yield
    finally:
        for each, allowed in zip(backends, before, strict=True):
            each.allow_tf32 = allowed
