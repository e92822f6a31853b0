"""Verdicts on all updates together: schedulers, precision, normalisation layers, the batch that was wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradaccum.core.audit import WARNING
from gradaccum.torch.audit.findings import Found
from gradaccum.torch.audit.sketch import norm, plus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradaccum.torch.audit.groups import Group
    from gradaccum.torch.audit.records import RankSeen, UpdateSeen


def over_updates(ranks: Sequence[RankSeen], groups: Sequence[Group], before: Sequence[Found]) -> list[Found]:
    """What shows over the updates of each optimizer, and in the batch that they saw. before: what is known already."""
    found = []
    first = ranks[0]
    for index, described in enumerate(first.optimizers):
        own = [group for group in groups if group.optimizer == index]
        updates = [update for update in first.updates if update.optimizer == index]
        if not own:
            continue
        found += _schedulers(own, updates, len(ranks))
        found += _low_precision(own, described.gradient_dtypes)
        several = max((group.steps for group in own), default=1)
        if several > 1 and first.batchnorm:
            found.append(Found("GA112", {"modules": first.batchnorm[:3], "optimizer": index}))
        eager = [
            group for group in own if first.wrapped == "ddp" and sum(group.arrivals.reduced) > 1 and group.steps > 1
        ]
        if eager:
            times = max(sum(group.arrivals.reduced) for group in eager)
            found.append(Found("GA116", {"times": times, "bytes": first.reduction_bytes, "optimizer": index}))
    batches = {batch for group in groups if (batch := group.effective_batch) is not None}
    target = first.target_batch
    if target is not None and batches and target not in batches:
        seen = max(batches)
        steps = max(group.steps for group in groups)
        found.append(Found("GA115", {"effective_batch": seen, "target_batch": target}))
        lost = any(each.code == "GA106" for each in before) or any(
            group.seen(key).calls_without for group in groups for key in group.passes
        )
        if steps == 1 and not lost and target > seen and target % seen == 0:
            found.append(Found("GA120", {"effective_batch": seen, "target_batch": target, "steps": target // seen}))
    return found


def _schedulers(own: Sequence[Group], updates: Sequence[UpdateSeen], world: int) -> list[Found]:
    """A scheduler counts updates: one step for each, after the last micro-batch."""
    steps = max(group.steps for group in own)
    if steps > 1 and any(update.inside("scheduler") for update in updates):
        most = max(update.scheduler_steps for update in updates)
        return [Found("GA111", {"times": most, "of": "micro-batches", "micro_batches": steps})]
    after = sorted(update.behind("scheduler") + update.afterwards for update in updates)
    usual = after[len(after) // 2] if after else 0
    if usual <= 1 or usual not in (steps, world, steps * world):
        return []
    if usual == world:  # as Accelerate does by design, for schedules that were made for one process
        return [Found("GA111", {"times": usual, "of": "ranks"}, WARNING)]
    return [Found("GA111", {"times": usual, "of": "micro-batches"})]


def _low_precision(own: Sequence[Group], dtypes: Sequence[str]) -> list[Found]:
    """What summing in a half type lost, measured on the witness: sums in float64 beside what lies in the gradients."""
    if not any(dtype in ("bfloat16", "float16") for dtype in dtypes):
        return []
    worst, steps = 0.0, 0
    for group in own:
        for update in group.updates:
            if len(update.passes) > 1 and len(group.updates) == 1:
                exact = plus([update.passes[0].before, *(each.heard for each in update.passes)])
                there = update.passes[-1].after
                kept = all(change == 1.0 for change in group.arrivals.changes[0][:-1])
                if exact and there and kept and norm(exact):
                    gone = norm([a - b for a, b in zip(exact, there, strict=True)]) / norm(exact)
                    if gone > worst and not group.arrivals.unexplained:
                        worst, steps = gone, group.steps
    return [Found("GA113", {"error": worst, "micro_batches": steps, "dtype": dtypes[0]})] if worst > 5e-3 else []
