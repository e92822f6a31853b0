"""What an update really was: counted, not judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradaccum.torch.audit.records import CLIPPING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradaccum.torch.audit.groups import Group
    from gradaccum.torch.audit.records import RankSeen, UpdateSeen


def names_of(first: RankSeen) -> dict[int, str]:
    """Of each optimizer that made updates: its class, and a number where several are of one class: `Adam 2`."""
    used = sorted({each.optimizer for each in first.updates})
    classes = [first.optimizers[index].name for index in used]
    return {
        index: name if classes.count(name) == 1 else f"{name} {classes[: place + 1].count(name)}"
        for place, (index, name) in enumerate(zip(used, classes, strict=True))
    }


def facts_of(ranks: Sequence[RankSeen], groups: Sequence[Group]) -> dict[str, object]:
    """The JSON contract's facts. Unknown is None."""
    first = ranks[0]
    counts = _micro_batches([update for update in first.updates if not update.skipped], groups)
    batches = [batch for group in groups if (batch := group.effective_batch) is not None]
    tokens = [_tokens(group) for group in groups]
    reductions = [sum(group.arrivals.reduced) + group.arrivals.reduced_after for group in groups]
    parted = any(each.parted for each in first.optimizers)  # ZeRO's own reductions are not followed
    clips = [_clipping(group) for group in groups]
    return {
        "framework": first.framework,
        "ranks": len(ranks),
        "wrapped": first.wrapped,
        "optimizers": list(names_of(first).values()),
        "updates": len(counts),
        "audited_updates": len(groups),
        "micro_batches_per_update": _spread(counts) or None,
        "effective_batch": _spread(batches),
        "target_batch": first.target_batch,
        "weights_sum_to": _sums(groups),
        "loss_tokens": _spread([int(each) for each in tokens if each is not None]),
        "reductions_per_update": 0 if len(ranks) == 1 else None if parted else _spread(reductions),
        "reduction_bytes": 0 if len(ranks) == 1 else None if parted else first.reduction_bytes,
        "scheduler_steps_per_update": _spread([update.scheduler_steps for update in first.updates]),
        "clipping": next((each for each in clips if each != "none"), "none"),
        "gradient_dtypes": sorted({dtype for each in first.optimizers for dtype in each.gradient_dtypes}),
        "last_group": (counts[-1] or None) if counts else None,
        "skipped_updates": sum(update.skipped for update in first.updates),
        "micro_batches_without_update": first.leftover,
    }


def _micro_batches(updates: Sequence[UpdateSeen], groups: Sequence[Group]) -> list[int]:
    """Of each update, less the passes that were another optimizer's, as the audited ones show."""
    own = {(each.optimizer, each.number): sum(rank == 0 for rank, _ in each.passes) for each in groups}
    others: dict[int, list[int]] = {}
    for update in updates:
        if (update.optimizer, update.number) in own:
            rest = update.micro_batches - own[update.optimizer, update.number]
            others.setdefault(update.optimizer, []).append(rest)
    usual = {optimizer: sorted(rest)[len(rest) // 2] for optimizer, rest in others.items()}
    return [
        own.get((each.optimizer, each.number), each.micro_batches - usual.get(each.optimizer, 0)) for each in updates
    ]


def _spread(values: Sequence[int]) -> int | list[int] | None:
    """One number where all are equal, else all that occurred."""
    found = sorted(set(values))
    return None if not found else found[0] if len(found) == 1 else found


def _sums(groups: Sequence[Group]) -> list[float] | None:
    """The smallest and the largest sum of equal weights, where it is not 1: by a coefficient, clipping, or a divisor of
    the person's, right or wrong. None where all are 1, and where the weights differ or a sum is nowhere divided.
    """
    mains = [each.main for each in groups if each.main is not None and not each.sums_to(1.0, each.main)]
    found = [each.first_total for each in mains if each.flat and not each.sums]
    return [min(found), max(found)] if found else None


def _tokens(group: Group) -> float | None:
    """What the first loss term counts, over all ranks."""
    main = group.main
    return None if main is None else sum(each.units("counted") or 0.0 for each in main.weighty)


def _clipping(group: Group) -> str:
    if group.inside(*CLIPPING):
        return "inside the group"
    return "at the boundary" if any(update.behind(*CLIPPING) for update in group.updates) else "none"
