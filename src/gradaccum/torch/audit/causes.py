"""Why micro-batches do not give the batch's gradient: which weights of theirs would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gradaccum.core.audit import ERROR, AuditFinding
from gradaccum.show.audit_words import held

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass
class Joined:
    """Both gradients, by parameter: as one batch (whole), and as micro-batches (several).

    witness, parts: some elements of the first, and of each micro-batch's, undivided. units: what the loss of each
    counts. divisor, by: what the whole and the parts were divided by. error: the largest of a parameter.
    """

    whole: dict[str, torch.Tensor]
    several: dict[str, torch.Tensor]
    witness: torch.Tensor
    parts: list[torch.Tensor]
    units: list[dict[str, float]]
    divisor: float
    by: float
    is_mean: bool
    error: float
    tolerance: float
    dtype: str

    @property
    def finite(self) -> bool:
        """Whether all gradients are numbers."""
        return all(bool(each.isfinite().all()) for made in (self.whole, self.several) for each in made.values())


def cause(joined: Joined, frozen: Joined | None, normalised: Sequence[str]) -> Iterator[AuditFinding]:
    """What is wrong. frozen: the same with BatchNorm's statistics frozen, where the modules `normalised` train."""
    if frozen is None:
        yield _weights(joined)
        return
    yield AuditFinding(
        "GA112",
        ERROR,  # measured here: a watched loop, whose weights are right, is only warned
        f"BatchNorm in training mode ({', '.join(normalised[:3])}) normalises each micro-batch by itself.",
        {"modules": list(normalised[:3]), "error": joined.error, "error_with_frozen_statistics": frozen.error},
        "no accumulation makes it equal to the big batch",
        "use GroupNorm or LayerNorm, or freeze the statistics with .eval()",
    )
    if frozen.error > frozen.tolerance:
        yield _weights(frozen)


def _weights(joined: Joined) -> AuditFinding:
    """The cause by the weights that the micro-batches need for the batch's gradient."""
    count = len(joined.parts)
    stacked = torch.stack(joined.parts, dim=1)
    for unit in joined.units[0]:
        counts = [each.get(unit) for each in joined.units]
        known = [each for each in counts if each is not None]
        if len(known) == count and min(known) != max(known):
            shares = torch.tensor(known, dtype=torch.float64) / sum(known)
            if _apart(stacked @ shares, joined.witness * joined.divisor) <= joined.tolerance:
                return _mean_of_means([int(each) for each in known], unit, joined)
    for times, code in ((count, "GA101"), (1 / count, "GA102")):
        if _apart(stacked.sum(1) / joined.by / times, joined.witness) <= joined.tolerance:
            return _scaled(times, code, joined)
    if len(joined.witness) < 3 * count:
        return _unknown(joined)
    needed = torch.linalg.lstsq(stacked, joined.witness[:, None], driver="gelsd").solution[:, 0]
    rest = _apart(stacked @ needed, joined.witness)
    if rest > joined.tolerance:
        return AuditFinding(
            "GA119",
            ERROR,
            "A loss over the whole batch: no weights of the micro-batches give the batch's gradient, of which "
            f"{rest:.2%} is in none of them. What a sample contributes changes with the samples beside it.",
            {"rest": rest, "error": joined.error},
            "micro-batches give another loss: a contrastive one sees fewer negatives, a balancing one fewer tokens",
            "cache the representations: group.cached of gradaccum.torch.Accumulator; or a larger micro-batch",
        )
    return _unknown(joined, (needed * joined.by).tolist())


def _apart(made: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, as a share of the largest element."""
    largest = float(wanted.abs().max())
    return float((made - wanted).abs().max()) / largest if largest else float(made.abs().max())


def _mean_of_means(counts: list[int], unit: str, joined: Joined) -> AuditFinding:
    return AuditFinding(
        "GA103",
        ERROR,
        f"A mean of means: each micro-batch weighs the same though they hold {held(counts, unit)}. Weighed by these, "
        "they give the batch's gradient.",
        {"unit": unit, "counts": counts, "error": joined.error},
        "what stands in short micro-batches is learnt more than the rest",
        "return (loss_sum, weight) with reduction='sum', and divide by the weight of the whole group in your loop",
    )


def _scaled(times: float, code: str, joined: Joined) -> AuditFinding:
    if code == "GA101":
        message = f"Not divided: the gradient is {times:g} times too large, the number of micro-batches."
        fix = "divide the loss by the number of micro-batches"
        if not joined.is_mean:
            message += " The loss beside the weight is a mean, not a sum."
            fix = "return (loss_sum, weight) with reduction='sum', or the mean alone"
    else:
        message = (
            f"Divided once too often: the gradient is {times:.4g} of the batch's. The loss is a sum, or it is divided "
            "by what the whole batch holds already, so that dividing by the number of micro-batches is too much."
        )
        fix = "return (loss_sum, weight), and divide by the weight of the whole group in your loop"
    return AuditFinding(
        code,
        ERROR,
        message,
        {"ratio": times, "micro_batches": len(joined.parts)},
        "SGD's learning rate in effect changes by this factor; Adam's step does not, its clipping and epsilon do",
        fix,
    )


def _unknown(joined: Joined, needed: list[float] | None = None) -> AuditFinding:
    evidence: dict[str, object] = {"error": joined.error}
    if needed is not None:
        evidence["weights_needed"] = needed
    return AuditFinding(
        "GA118",
        ERROR,
        "The micro-batches give another gradient, in no pattern that is known.",
        evidence,
        "the gradient is not that of the big batch",
        "return (loss_sum, weight), so that one divisor serves the whole group",
    )
