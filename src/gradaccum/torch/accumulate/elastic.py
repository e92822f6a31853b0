"""A plan for the ranks that are there, as after a restart with fewer or more: the same micro-batch, the same target."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

from gradaccum.core.plan import make_plan

if TYPE_CHECKING:
    from gradaccum.core.plan import Plan


def for_ranks(plan: Plan, ranks: int) -> Plan:
    """The plan again for so many data-parallel ranks. Where they cannot make its batch, the nearest, with a warning."""
    if ranks == plan.data_parallel:
        return plan
    request = replace(
        plan.request,
        micro_batch=plan.micro_batch,
        num_gpus=ranks * plan.request.model_parallel,
        target_batch=plan.target_batch,
        accum_steps=None,
        max_micro_batch=None,
        vary=None,
    )
    found = make_plan(request)
    if found.effective_batch != plan.effective_batch:
        closer = [
            f"; {each.accum_steps} steps of micro-batch {each.micro_batch} make {each.effective_batch}"
            for each in found.better_choices[:1]
        ]
        warnings.warn(
            f"an update sees {found.effective_batch} sequences from here on, and not {plan.effective_batch}: "
            f"{found.accum_steps} steps of micro-batch {plan.micro_batch} on {ranks} data-parallel ranks are the "
            f"nearest{''.join(closer)}",
            stacklevel=3,
        )
    return found
