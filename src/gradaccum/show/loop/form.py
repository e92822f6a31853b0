"""Which loop a plan needs: the strategy that reduces gradients, and the weighting of the loss."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.errors import InputError, Problem
from gradaccum.units import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.plan import Plan

STRATEGIES = {
    "single": "one data-parallel rank: there is nothing to reduce",
    "ddp": "DistributedDataParallel: one reduction per update, in the last backward",
    "fsdp2": "fully_shard: every micro-batch is reduced, so that a GPU keeps its shard of the gradient alone",
    "fsdp2-deferred": "fully_shard: one reduction per update; a GPU keeps the unsharded gradient until then",
}

WEIGHTINGS = {
    "mean": "the loss is a mean over samples, and each micro-batch weighs its share of the update's samples",
    "tokens": "the loss is a sum over tokens, divided once by the update's tokens over all micro-batches and ranks",
}


@dataclass(frozen=True)
class Form:
    """What one text is made for: a plan, a strategy and a weighting that go together."""

    plan: Plan
    strategy: str
    weighting: str

    @property
    def is_uneven(self) -> bool:
        """Whether the last micro-step of an update is smaller than the others: rounding "exact", and a remainder."""
        return self.plan.effective_batch != self.plan.device_batch * self.plan.accum_steps

    @property
    def last_group(self) -> str:
        """What becomes of the short last group of an epoch: "step", "drop" or "carry"."""
        return self.plan.request.last_group

    @property
    def reduces(self) -> bool:
        """Whether several ranks average gradients."""
        return self.strategy != "single"

    @property
    def is_sharded(self) -> bool:
        """Whether parameters and gradients are FSDP2 shards."""
        return self.strategy in ("fsdp2", "fsdp2-deferred")

    @property
    def has_mesh(self) -> bool:
        """Whether the ranks form more than one line: some GPUs do not differ in their samples."""
        plan = self.plan
        return plan.tensor_parallel * plan.pipeline_parallel * plan.context_parallel > 1

    @property
    def unit(self) -> str:
        """What a batch is counted in."""
        return "samples" if self.plan.sequence_length is None else "sequences"


def choose_form(plan: Plan, strategy: str, weighting: str) -> Form:
    """The form for a plan, "auto" resolved. Raises InputError with every fault, not only the first."""
    problems = []
    if strategy == "auto":
        strategy = _fitting_strategies(plan)[0]
    else:
        problems.extend(_strategy_problems(plan, strategy))
    if weighting == "auto":
        weighting = "mean" if plan.sequence_length is None else "tokens"
    elif weighting not in WEIGHTINGS:
        problems.append(Problem("weighting", f"is one of mean, tokens, not {quote(weighting)}", ("mean", "tokens")))
    form = Form(plan, strategy, weighting)
    if plan.pipeline_parallel > 1 and form.is_uneven:
        problems.append(_uneven_pipeline(form))
    if form.is_uneven and form.last_group == "carry":
        problems.append(_uneven_carry())
    if problems:
        raise InputError(*problems)
    return form


def _fitting_strategies(plan: Plan) -> tuple[str, ...]:
    """The strategies that do what the plan asks, the default first."""
    if plan.data_parallel * plan.context_parallel == 1:
        return ("single",)
    if plan.pipeline_parallel > 1:
        return ("fsdp2-deferred",)
    if plan.tensor_parallel > 1:
        return ("fsdp2", "fsdp2-deferred")
    return ("ddp", "fsdp2", "fsdp2-deferred")


def _strategy_problems(plan: Plan, strategy: str) -> list[Problem]:
    fitting = _fitting_strategies(plan)
    if strategy not in STRATEGIES:
        return [Problem("loop", f"knows no strategy {quote(strategy)}", fitting)]
    if strategy in fitting:
        return []
    if fitting == ("single",):
        why = "has nothing to reduce: the plan has one data-parallel rank"
    elif strategy == "single":
        why = f"reduces no gradients, and {plan.data_parallel * plan.context_parallel} ranks of the plan must"
    elif plan.pipeline_parallel > 1:
        why = "does not do under a pipeline: PyTorch's schedules reduce once per update, and break DDP inside a stage"
    else:
        why = "hides the sharded parameters of tensor parallelism from the optimizer and from clipping"
    return [Problem("loop", f"cannot be {strategy}, which {why}", fitting)]


def _uneven_pipeline(form: Form) -> Problem:
    """Rounding "exact" with a remainder wants a smaller last micro-batch; the buffers of a pipeline have one size."""
    plan = form.plan
    below = plan.effective_batch // plan.device_batch * plan.device_batch
    return Problem(
        "loop",
        f"a pipeline runs micro-batches of one size, {plan.device_batch} {form.unit} over its data-parallel ranks, "
        f"so that no update has exactly {plan.effective_batch}",
        tuple(f"target_batch {batch}" for batch in (below, below + plan.device_batch) if batch),
    )


def _uneven_carry() -> Problem:
    """The text deals the samples of one epoch at a time, so that an update cannot begin in the epoch before."""
    return Problem(
        "loop",
        "deals the samples of an uneven update epoch by epoch, so that a group cannot span two epochs",
        ("last_group step", "last_group drop"),
    )
