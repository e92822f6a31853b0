"""Verdicts on one update: what did not reach the step as it should, and weights that are not those of one batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradaccum.torch.audit.arrivals import LEAK
from gradaccum.torch.audit.findings import Found
from gradaccum.torch.audit.normalisation import Family, near
from gradaccum.torch.audit.sketch import norm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradaccum.torch.audit.groups import Group
    from gradaccum.torch.audit.records import RankSeen


def of_update(group: Group, ranks: Sequence[RankSeen], groups: Sequence[Group]) -> Iterator[Found]:
    """What is wrong with one update. groups: all that were audited."""
    yield from _arriving(group)
    yield from _scaler(group)
    others = [one.steps for one in groups if one.optimizer == group.optimizer]
    main = group.main
    for family in group.families:
        if family.right:
            continue
        if family is main or main is None:
            yield from _normalised(family, group, others, len(ranks))
        elif group.steps > 1 and main.right:
            yield from _auxiliary(family, main, group)


def _arriving(group: Group) -> Iterator[Found]:
    """Passes that did not reach the step as the others did."""
    arrived, steps = group.arrivals, group.steps
    where = {"update": group.number}
    if not arrived.share or not arrived.seen:
        return
    passes = list(group.passes)
    best = max((group.reach(key) for key in passes), default=0.0)
    leaks = [
        key for share in arrived.share for key, value in share.items() if key[1] == LEAK and abs(value) > best * 1e-6
    ]
    if leaks:
        size = norm(group.updates[leaks[0][0]].passes[0].before) / (norm(group.updates[leaks[0][0]].received) or 1.0)
        yield Found("GA107", {**where, "share_of_gradient": size})
    used = {(item.rank, item.index) for family in group.families for item in family.items}
    lost = [key for key in passes if key in used and group.reach(key) <= best * 1e-6]
    if lost:
        cleared = sum(1 for rank, index in lost if _names(group, rank, index + 1) & {"zero_grad"})
        every = steps > 1 and all(index + 1 < len(group.updates[rank].passes) for rank, index in lost)
        only_last = len(lost) == len(used) - len(group.updates)
        code = "GA108" if every and only_last and cleared == len(lost) else "GA106"
        yield Found(code, {**where, "lost": len(lost), "micro_batches": len(used)})
    inside = [
        event.name
        for update in group.updates
        for each in update.passes[1:]
        for event in each.events
        if event.name in ("clip", "clip_value")
    ]
    if inside:
        yield Found("GA110", {**where, "times": len(inside)})
    if len(group.updates) > 1:
        yield from _ranks(group, best)
    rest = [key for key in passes if key in used and key not in lost]
    uneven = [key for key in rest if not near(group.reach(key), best, 10 * group.tolerance)]
    if uneven and not inside:
        factors = sorted({round(group.reach(key) / best, 4) for key in rest})
        yield Found("GA118", {**where, "factors": factors})


def _ranks(group: Group, best: float) -> Iterator[Found]:
    """Whether each rank's passes reach all ranks."""
    world = len(group.updates)
    missing = [
        (rank, index)
        for rank, index in group.passes
        for share in group.arrivals.share
        if group.reach((rank, index)) > best * 1e-6 and abs(share.get((rank, index), 0.0)) <= best * 1e-6
    ]
    if missing:
        whole = len(set(missing)) == len(list(group.passes))
        yield Found("GA109", {"update": group.number, "ranks": world, "passes": len(set(missing)), "all": whole})


def _names(group: Group, rank: int, index: int) -> set[str]:
    passes = group.updates[rank].passes
    events = passes[index].events if index < len(passes) else group.updates[rank].events
    return {each.name for each in events}


def _scaler(group: Group) -> Iterator[Found]:
    """Clipping before the gradients were unscaled, or a scale that nobody took away."""
    for update in group.updates[:1]:
        names = [each.name for each in update.events]
        changed = group.arrivals.changes[0][-1] / (group.clipped or 1.0) if group.arrivals.changes[0] else 1.0
        if "clip" in names and "unscale" in names and names.index("clip") < names.index("unscale") and changed < 0.9:
            yield Found("GA117", {"update": group.number, "scale": 1 / changed if changed else 0.0})


def _normalised(family: Family, group: Group, others: Sequence[int], world: int) -> Iterator[Found]:
    """Why the weights of the main loss term are not those of one batch."""
    where = {"update": group.number, "term": family.name}
    steps = family.micro_batches()
    if not family.flat:
        unit = family.own_mean()
        if unit is not None:
            yield from _own_means(family, unit, where)
            return
        if (unit := _own_ranks(family)) is not None:
            yield Found("GA104", {**where, "unit": unit, "counts": [sum(c) for c in _counts_by_rank(family, unit)]})
            return
        sizes = [abs(each.weight) for each in family.weighty]
        if not _explained(group):
            yield Found("GA118", {**where, "largest_by_smallest": max(sizes) / min(sizes)})
        return
    if family.micro_batches() == 1 and world == 1:
        return  # one batch: its coefficient is the person's
    yield from _constant(family, group, others, world, steps, where)


def _own_means(family: Family, unit: str, where: dict[str, object]) -> Iterator[Found]:
    """Each micro-batch weighs the same, whatever it holds."""
    by_rank = _counts_by_rank(family, unit)
    sizes = [abs(each.weight) for each in family.weighty]
    evidence = {**where, "unit": unit, "counts": by_rank, "largest_by_smallest": max(sizes) / min(sizes)}
    if any(max(counts) != min(counts) for counts in by_rank if counts):
        yield Found("GA103", evidence)
        totals = [sum(counts) for counts in by_rank]
        if len(totals) > 1 and max(totals) != min(totals):
            yield Found("GA104", evidence)
    else:
        yield Found("GA104", evidence)


def _own_ranks(family: Family) -> str | None:
    """The unit for which each rank's weights sum to the same, although its number differs."""
    ranks = family.by_rank()
    if len(ranks) < 2:
        return None
    for unit in family.totals():
        sums = [sum(abs(each.weight) * (each.units(unit) or 0) for each in items) for items in ranks.values()]
        counts = [sum(each.units(unit) or 0 for each in items) for items in ranks.values()]
        if max(sums) - min(sums) <= family.tolerance * max(sums) and max(counts) > min(counts) * (1 + family.tolerance):
            return unit
    return None


def _counts_by_rank(family: Family, unit: str) -> list[list[int]]:
    return [[int(each.units(unit) or 0) for each in items] for items in family.by_rank().values()]


def _explained(group: Group) -> bool:
    """Whether something else already says why weights differ."""
    return any(
        each.name in ("clip", "clip_value")
        for update in group.updates
        for one in update.passes[1:]
        for each in one.events
    )


def _constant(
    family: Family, group: Group, others: Sequence[int], world: int, steps: int, where: dict[str, object]
) -> Iterator[Found]:
    """All weights are equal, and their sum is not one."""
    totals = family.totals()
    most = max(others)
    short = steps < most and group.steps < most
    if short and any(near(total, steps / most, family.tolerance) for total in totals.values()):
        yield Found("GA105", {**where, "micro_batches": steps, "divided_by": most, "total": steps / most})
        return
    for name, value in (("micro-batches", steps), ("ranks", world), ("micro-batches and ranks", steps * world)):
        if value > 1 and family.unit_of(value) is not None:
            yield Found("GA101", {**where, "times": value, "of": name, "total": value})
            return
    for name, value in (("micro-batches", steps), ("ranks", world), ("micro-batches and ranks", steps * world)):
        if value > 1 and family.unit_of(1 / value) is not None:
            yield Found("GA102", {**where, "times": value, "of": name, "total": 1 / value})
            return
    weight = abs(family.weighty[0].weight)
    if (
        steps > 1
        and all(each.term.kind == "sum" for each in family.items)
        and near(weight * steps, 1.0, family.tolerance)
    ):
        yield Found(
            "GA102", {**where, "times": steps, "of": "micro-batches, though the loss is a sum", "total": weight}
        )
        return
    total = next(iter(totals.values()), None)
    if total is None:
        return
    for nominal in range(steps + 1, 4097):  # divided by a count that no update had
        if family.divided_by(nominal) and near(total, steps / nominal, family.tolerance):
            evidence = {**where, "micro_batches": steps, "divided_by": nominal, "total": total}
            yield Found(
                "GA105" if short else "GA102", {**evidence, "times": nominal / steps, "of": "a count of its own"}
            )
            return
    scale = _power_of_two(family)
    if scale and not any(each.name == "unscale" for update in group.updates for each in update.events):
        yield Found("GA117", {**where, "scale": scale, "total": total})


def _power_of_two(family: Family) -> float:
    """A loss scale on the way: a large factor that is a power of two."""
    for value in family.weighty[0].term.factors:
        if value >= 1024 and near(2.0 ** round(math.log2(value)), value, 1e-6):
            return value
    return 0.0


def _auxiliary(family: Family, main: Family, group: Group) -> Iterator[Found]:
    """A further term is divided by what the first one is divided by, or it grows with the number of micro-batches."""
    steps, world = family.micro_batches(), len(group.updates)
    if steps < 2 or not family.weighty:
        return
    counts = [sum(each.units(unit) or 0 for each in one.weighty) for one in (family, main) for unit in one.totals()]
    divisors = [steps, group.steps, *counts, *(count / world for count in counts)]
    if family.flat and any(number > 1 and family.divided_by(number) for number in divisors):
        return
    shares = [abs(each.weight) * (each.units("elements") or 1.0) for each in family.weighty]
    yield Found("GA114", {"update": group.number, "term": family.name, "times": steps, "total": sum(shares)})
