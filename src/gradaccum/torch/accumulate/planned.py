"""What a plan asks of an accumulator, and whether its loader brings it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from gradaccum.core.plan import Plan
from gradaccum.torch.accumulate.errors import AccumulationError

if TYPE_CHECKING:
    from gradaccum.torch.accumulate.sync import Sync


def check_arguments(plan: object, options: dict[str, object]) -> None:
    """Raises AccumulationError where there is no plan, or an option that the plan brings."""
    if not isinstance(plan, Plan):
        raise AccumulationError(
            f"a plan comes first, as gradaccum.plan(micro_batch=4, num_gpus=1, target_batch=32) makes it, then the "
            f"model and the optimizer; not {plan!r:.80}"
        )
    if "accum_steps" in options:
        raise AccumulationError(f"the plan brings its accumulation steps, {plan.accum_steps}: leave accum_steps out")


def check_ranks(plan: Plan, sync: Sync) -> None:
    """Raises AccumulationError where the plan is for another number of ranks, or cuts batches where nobody can."""
    there = sync.world // sync.context_parallel
    if there != plan.data_parallel:
        raise AccumulationError(
            f"the plan is for {plan.data_parallel} data-parallel ranks, and {there} are there; plan again with "
            f"num_gpus={there * plan.request.model_parallel}, or say elastic=True"
        )
    if not cuts(plan):
        return
    if sync.sharded:
        raise AccumulationError(
            "this plan is exact, with a smaller last micro-step, and a sharded model's passes are collectives "
            "that every rank has as many of: plan with rounding='round'"
        )
    if plan.context_parallel > 1:
        raise AccumulationError(
            "this plan is exact, with a smaller last micro-step, and splits its sequences over "
            f"{plan.context_parallel} ranks, which would have to cut the same one: plan with rounding='round'"
        )
    if plan.effective_batch < sync.world:
        raise AccumulationError(
            f"this plan has {plan.effective_batch} sequences for {sync.world} ranks, so that one would "
            f"have none; plan with num_gpus={plan.effective_batch * (plan.num_gpus // plan.data_parallel)}"
        )


def cuts(plan: Plan) -> bool:
    """Whether its groups end within a batch."""
    return plan.effective_batch != plan.device_batch * plan.accum_steps


class Promise:
    """The samples of an update that a plan of whole micro-batches promises, beside those that come.

    A loader's last batch may be short. So a group that has other samples is spoken of where its first batch, with
    others behind it, is not the plan's micro-batch; and else once another group follows in the same pass.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan, self._said = plan, False
        self._waiting: tuple[int, int | None] | None = None

    def compare(self, seen: int | None, first: int | None, whole: bool) -> None:
        """One group: samples of all ranks, those of this rank's first micro-batch, and whether no micro-batch lacks."""
        if self._said or not whole or seen is None or seen == self._plan.effective_batch:
            return
        self._waiting = seen, first
        if self._plan.accum_steps > 1 and first not in (None, self._plan.micro_batch):
            self.goes_on(stacklevel=5)

    def goes_on(self, stacklevel: int = 3) -> None:
        """The pass has another group."""
        if self._waiting is None:
            return
        (seen, first), self._waiting, self._said = self._waiting, None, True
        plan = self._plan
        cause = (
            f"the loader's batches have {first} and the plan's micro-batch is {plan.micro_batch}: load batches of "
            f"{plan.micro_batch}, or plan with micro_batch={first}"
            if first not in (None, plan.micro_batch)
            else f"the loader's batches are not all of the plan's micro-batch, {plan.micro_batch}"
        )
        warnings.warn(
            f"an update saw {seen} samples, and the plan's effective batch is {plan.effective_batch}: {cause}",
            stacklevel=stacklevel,
        )

    def ends(self) -> None:
        """The pass is over, so that its last group may have been short."""
        self._waiting = None
