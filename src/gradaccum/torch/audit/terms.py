"""Verdicts on one loss term of an update: why its weights are not those of one batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradaccum.torch.audit.findings import Found
from gradaccum.torch.audit.normalisation import Family, equal, near
from gradaccum.torch.audit.records import CLIPPING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradaccum.torch.audit.groups import Group
    from gradaccum.torch.audit.normalisation import Item


def of_term(family: Family, group: Group, usual: Group) -> Iterator[Found]:
    """Why the weights of the first loss term are not those of one batch."""
    where = {"update": group.number, "term": family.name}
    if (more := _left_in(family, group, usual)) is not None:
        yield Found("GA107", {**where, **more})
    elif not family.flat:
        yield from _uneven(family, group, where)
        steps, most = family.micro_batches(), _full(group, usual)
        if group.steps < most and _own_share(family, 1 / most / len(group.updates)):
            yield Found("GA105", {**where, "micro_batches": steps, "divided_by": most, "total": steps / most})
    else:
        yield from _constant(family, group, usual, where)


def of_further(family: Family, main: Family | None, group: Group, usual: Group) -> Iterator[Found]:
    """Another term: one that is divided by its own count, or that grows with the number of micro-batches."""
    where = {"update": group.number, "term": family.name}
    steps, world = family.micro_batches(), len(group.updates)
    if steps < 2 or main is None or not main.fine:
        return
    if not family.flat and (family.divisions(steps) > 0 or _own_share(family, 1 / group.steps)):
        yield from _uneven(family, group, where)
        return
    sums = all(each.term.kind == "sum" for each in family.items)
    if sums and family.flat and not equal(family.counts("counted"), family.tolerance):
        return  # divided by a number that all have in common
    counts = [sum(each.units(unit) or 0 for each in one.weighty) for one in (family, main) for unit in one.totals()]
    divisors = [steps, group.steps, *counts, *(count / world for count in counts)]
    if family.flat and any(number > 1 and family.divisions(number) > 0 for number in divisors):
        return
    if group.steps < usual.steps and family.flat and family.divisions(usual.steps) > 0:
        return  # divided as in a full group, which the first term has been told of
    yield Found(
        "GA114", {**where, "times": steps, "total": sum(abs(each.term.arrived or 0.0) for each in family.weighty)}
    )


def _uneven(family: Family, group: Group, where: dict[str, object]) -> Iterator[Found]:
    """Weights that differ: each micro-batch or each rank weighs the same, whatever it holds."""
    sizes = [abs(each.weight) for each in family.weighty]
    evidence = {**where, "largest_by_smallest": max(sizes) / min(sizes)}
    if (unit := family.own_mean()) is not None:
        by_rank = _counts_by_rank(family, unit)
        totals = [sum(counts) for counts in by_rank]
        evidence |= {"unit": unit, "counts": by_rank}
        within_ranks = any(max(counts) != min(counts) for counts in by_rank)
        if within_ranks:
            yield Found("GA103", evidence)
        if not within_ranks or max(totals) != min(totals):
            yield Found("GA104", evidence)
        steps = family.micro_batches()
        if steps > 1 and _own_share(family, 1.0 / len(group.updates)):
            yield Found("GA101", {**where, "times": steps, "of": "micro-batches", "total": steps})
    elif (unit := _own_micro_steps(family)) is not None:
        yield Found("GA103", {**evidence, "unit": unit, "counts": _counts_by_rank(family, unit)})
    elif (unit := _own_ranks(family)) is not None:
        totals = [sum(counts) for counts in _counts_by_rank(family, unit)]
        yield Found("GA104", {**evidence, "unit": unit, "counts": totals})
    elif (divisors := _own_divisors(family)) is not None:
        yield Found("GA103", {**evidence, "divisors": divisors})
    elif not group.inside(*CLIPPING):
        yield Found("GA118", evidence)


def _own_divisors(family: Family) -> list[int] | None:
    """The whole numbers, one for each micro-batch, by which sums were divided, and but for which all would weigh the
    same; of a count that no unit shows, as of a detector's hits.
    """
    passes = {(each.rank, each.index) for each in family.weighty}
    if len(passes) < len(family.weighty) or any(each.term.kind != "sum" for each in family.weighty):
        return None
    candidates = [_whole_divisors(each) for each in family.weighty]
    for first in candidates[0]:
        common = abs(family.weighty[0].weight) * first
        found = [
            next((one for one in mine if near(abs(each.weight) * one, common, family.tolerance)), 0)
            for each, mine in zip(family.weighty, candidates, strict=True)
        ]
        if all(found) and len(set(found)) > 1:
            return found
    return None


def _whole_divisors(item: Item) -> list[int]:
    """Of the factors on its way, those that are one over a whole number; that number, and 1 for no division."""
    inverse = [1 / abs(each) for each in item.term.factors if each]
    return [1, *(round(each) for each in inverse if each > 1.5 and near(round(each), each, 1e-5))]


def _own_share(family: Family, value: float) -> bool:
    """Whether each micro-batch's weights sum to that value, whatever it holds."""
    unit = family.own_mean()
    if unit is None:
        return False
    shares = [abs(each.weight) * (each.units(unit) or 0.0) for each in family.weighty]
    return all(near(share, value, family.tolerance) for share in shares)


def _own_micro_steps(family: Family) -> str | None:
    """The unit for which each micro-step's weights over all ranks sum to the same, although its number differs."""
    steps: dict[int, list[Item]] = {}
    for each in family.weighty:
        steps.setdefault(each.index, []).append(each)
    return _own_share_of(list(steps.values()), family)


def _own_ranks(family: Family) -> str | None:
    """The unit for which each rank's weights sum to the same, although its number differs."""
    return _own_share_of(list(family.by_rank().values()), family)


def _own_share_of(parts: Sequence[Sequence[Item]], family: Family) -> str | None:
    if len(parts) < 2:
        return None
    for unit in family.totals():
        sums = [sum(abs(each.weight) * (each.units(unit) or 0) for each in items) for items in parts]
        counts = [sum(each.units(unit) or 0 for each in items) for items in parts]
        if equal(sums, family.tolerance) and not equal(counts, family.tolerance):
            return unit
    return None


def _counts_by_rank(family: Family, unit: str) -> list[list[int]]:
    return [[int(each.units(unit) or 0) for each in items] for items in family.by_rank().values()]


def _constant(family: Family, group: Group, usual: Group, where: dict[str, object]) -> Iterator[Found]:
    """All weights are equal, and their sum is neither one nor a coefficient of the person's own."""
    steps, world = family.micro_batches(), len(group.updates)
    if (short := _short(family, group, usual)) is not None:
        yield Found("GA105", {**where, **short})
        return
    if steps == 1 and world == 1:
        return  # one batch: its coefficient is the person's
    known = [("micro-batches", steps), ("ranks", world), ("micro-batches and ranks", steps * world)]
    for name, number in known:
        if number > 1 and group.sums_to(number, family) and family.divisions(number) < 1:
            yield Found("GA101", {**where, "times": number, "of": name, "total": number})
            return
    if (
        world > 1
        and group.sums_to(1 / world, family)
        and (family.on_the_way(world) or family.on_the_way(steps * world))
    ):
        yield Found("GA102", {**where, "times": world, "of": "ranks", "total": family.first_total})
        return
    for name, number in known:
        twice = family.divisions(number) + family.by_whole > 1 or group.sums_to(1 / number, family)
        if number > 1 and twice and family.divisions(number) + family.by_whole != 1:
            yield Found("GA102", {**where, "times": number, "of": name, "total": family.first_total})
            return
    weight = abs(family.weighty[0].weight)
    sums = all(each.term.kind == "sum" for each in family.items)
    if steps > 1 and sums and near(weight * steps, 1.0, family.tolerance):
        yield Found(
            "GA102", {**where, "times": steps, "of": "micro-batches, though the loss is a sum", "total": weight}
        )
    elif (scale := loss_scale(family)) and not any(e.name == "unscale" for u in group.updates for e in u.events):
        yield Found("GA117", {**where, "scale": scale})
    elif sums and group.framework == "transformers" and not family.fine and family.first_total < 1 - family.tolerance:
        yield Found(
            "GA102",
            {**where, "times": 1 / family.first_total, "of": "targets, as counted", "total": family.first_total},
        )
    elif not family.fine and 1 + family.tolerance < (total := family.first_total) <= steps:
        if sums and weight < 1:
            unit = next(iter(family.totals()))
            more = {"times": total, "sum_over": int(sum(family.counts(unit))), "unit": unit, "divided_by": 1 / weight}
            yield Found("GA101", {**where, **more})
        else:
            yield Found("GA101", {**where, "times": steps, "of": "micro-batches", "total": total})


def _full(group: Group, usual: Group) -> int:
    """The micro-batches of a full group: of most others, or as many as the trainer was told."""
    return max(usual.steps, group.nominal_steps or 0)


def _short(family: Family, group: Group, usual: Group) -> dict[str, object] | None:
    """Whether a group with fewer micro-batches than others, or than the trainer was told, was divided by theirs."""
    steps, most = family.micro_batches(), _full(group, usual)
    if group.steps >= most:
        return None
    alike = next((each for each in usual.families if each.name == family.name and each.flat), None)
    full = {} if alike is None or usual.steps < most else alike.totals()
    if alike is not None and not alike.fine and all(each.term.kind == "sum" for each in family.items):
        full = {}  # sums divided by one number in all groups, which is no number of micro-batches
    for unit, total in family.totals().items():
        told = usual.steps > 1 and most == group.nominal_steps and family.divisions(most) == 1
        if near(total, full.get(unit, 1.0 if told else 0.0) * steps / most, family.tolerance):
            first = {"first_group": True} if group.number == 0 and usual.number > 0 else {}
            return {"micro_batches": steps, "divided_by": most, "total": total, **first}
    return None


def _left_in(family: Family, group: Group, usual: Group) -> dict[str, object] | None:
    """Whether the last micro-batches alone are a whole update: those before them were left in the gradients."""
    ends = {rank: len(update.passes) for rank, update in enumerate(group.updates)}
    for common in {usual.steps, group.nominal_steps or usual.steps}:
        last = tuple(each for each in family.items if each.index >= ends[each.rank] - common)
        if 1 < common < group.steps and Family(family.name, last, family.tolerance).right:
            share = (group.steps - common) / group.steps
            return {"share_of_gradient": share, "micro_batches": group.steps, "divided_by": common}
    return None


def loss_scale(family: Family) -> float:
    """A large factor on the way that is a power of two, as GradScaler's is; 0 where there is none."""
    for value in family.weighty[0].term.factors:
        if value >= 1024 and near(2.0 ** round(math.log2(value)), value, 1e-6):
            return value
    return 0.0
