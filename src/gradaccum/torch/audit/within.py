"""Verdicts on one update: what did not reach the step as it should, and weights that are not those of one batch."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from gradaccum.torch.audit.arrivals import LEAK, factor_rest
from gradaccum.torch.audit.findings import Found
from gradaccum.torch.audit.normalisation import Family, equal, near
from gradaccum.torch.audit.records import CLIPPING
from gradaccum.torch.audit.sketch import factor, norm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradaccum.torch.audit.groups import Group
    from gradaccum.torch.audit.normalisation import Item

LEAST = 1e-6
"""Share of the largest arrival below which a pass did not arrive."""


def of_update(group: Group, usual: Group) -> Iterator[Found]:
    """What is wrong with one update. usual: one as most of its optimizer are."""
    arriving = list(_arriving(group))
    yield from arriving
    if any(each.code == "GA109" for each in arriving):
        return  # each rank has an update of its own
    yield from _scaler(group)
    yield from _in_batch(group)
    if group.sums_to(1.0) and all(family.flat for family in group.families):
        return
    main = group.main
    if (skipped := group.skipped_calls) and main is not None and _without(main, group, skipped):
        yield Found("GA106", {"update": group.number, "lost": skipped, "micro_batches": group.steps + skipped})
        return
    if main is not None and not main.right:
        yield from _term(main, group, usual)
    for family in group.families:
        if family is not main and family.weighty and not family.right:
            yield from _further(family, main, group, usual)


def _without(main: Family, group: Group, skipped: int) -> bool:
    """Whether losses that never went backward are missing, in the sum of the weights or in the batch wanted."""
    share = main.micro_batches() / (main.micro_batches() + skipped / len(group.updates))
    batch = group.effective_batch
    meant = None if batch is None else batch * (group.steps + skipped) // group.steps
    return main.unit_of(share) is not None or (group.target_batch is not None and group.target_batch == meant != batch)


# What arrived


def _arriving(group: Group) -> Iterator[Found]:
    """Passes that did not reach the step as the others did."""
    arrived, where = group.arrivals, {"update": group.number}
    if not arrived.seen and all(update.received is None for update in group.updates) and group.passes:
        yield _never(group)
    if not arrived.share or not arrived.seen:
        return
    best = max((group.reach(key) for key in group.passes), default=0.0)
    yield from _leaks(group, best)
    used = {(item.rank, item.index) for family in group.families for item in family.items}
    lost = [key for key in group.passes if key in used and group.reach(key) <= best * LEAST]
    if lost:
        code = "GA108" if _only_last(group, used) else "GA106"
        yield Found(code, {**where, "lost": len(lost), "micro_batches": len(used)})
    inside = group.inside(*CLIPPING)
    rest = [key for key in group.passes if key in used and key not in lost]
    uneven = [key for key in rest if not near(group.reach(key), best, 10 * group.tolerance)]
    factors = [change for changes in arrived.changes for change in changes[:-1] if change not in (0.0, 1.0)]
    apart = list(_ranks(group, best)) if len(group.updates) > 1 else []
    yield from apart
    if uneven and not inside and len(factors) > 1 and near(min(factors), max(factors), group.tolerance):
        yield Found("GA118", {**where, "factor_between_micro_batches": factors[0]})
    elif inside or (not apart and (arrived.touched or uneven)):
        yield Found("GA110", {**where, "times": inside or len(set(arrived.touched)) or len(uneven)})


def _never(group: Group) -> Found:
    """There were backward passes, and no gradient at the step."""
    passes = len(group.passes)
    if len(group.updates) > 1:
        return Found("GA109", {"update": group.number, "ranks": len(group.updates), "passes": passes, "all": True})
    return Found("GA106", {"update": group.number, "lost": passes, "micro_batches": passes})


def _only_last(group: Group, used: set[tuple[int, int]]) -> bool:
    """Whether gradients were cleared after each micro-batch: between two clearings lie the losses of one."""
    for rank, (update, changes) in enumerate(zip(group.updates, group.arrivals.changes, strict=True)):
        clears = [index + 1 for index, change in enumerate(changes[: len(update.passes) - 1]) if change == 0.0]
        stretches = [
            [update.passes[index].site for index in range(a, b) if (rank, index) in used]
            for a, b in itertools.pairwise([0, *clears, len(update.passes)])
        ]
        several = any(len(sites) != len(set(sites)) for sites in stretches)  # micro-batches of one line of the loop
        if not clears or several or len({len(sites) for sites in stretches if sites}) > 1:
            return False
    return not group.arrivals.unexplained


def _leaks(group: Group, best: float) -> Iterator[Found]:
    """Gradients of an earlier update, or of a pass whose own optimizer has already used it."""
    shares = group.arrivals.share
    leaks = [key for share in shares for key, value in share.items() if key[1] == LEAK and abs(value) > best * LEAST]
    for rank, update in enumerate(group.updates):
        for index, each in enumerate(update.passes):
            used = group.used_elsewhere(rank, each)
            if used is not None and used <= update.passes[-1].serial and group.reach((rank, index)) > best * LEAST:
                leaks.append((rank, index))
    if leaks:
        rank, index = leaks[0]
        passes = group.updates[rank].passes
        size = norm(passes[0].before if index == LEAK else passes[index].heard)
        share = size / (norm(group.updates[rank].received) or 1.0)
        yield Found("GA107", {"update": group.number, "share_of_gradient": share})


def _ranks(group: Group, best: float) -> Iterator[Found]:
    """Whether each rank's passes reach all ranks, and with one factor."""
    received = [update.received for update in group.updates]
    if all(factor_rest(received[0], each) < group.tolerance for each in received):
        return  # the same on all ranks, by whatever way
    missing = {
        key
        for key in group.passes
        for share in group.arrivals.share
        if group.reach(key) > best * LEAST and abs(share.get(key, 0.0)) <= best * LEAST
    }
    if missing:
        whole = len(missing) == len(group.passes)
        yield Found(
            "GA109", {"update": group.number, "ranks": len(group.updates), "passes": len(missing), "all": whole}
        )
        return
    found = [factor(received[0], each) for each in received]
    if group.whole and all(ratio and rest < group.tolerance for ratio, rest in found):
        yield Found("GA109", {"update": group.number, "factors": [ratio for ratio, _ in found]})


def _scaler(group: Group) -> Iterator[Found]:
    """Clipping before the gradients were unscaled."""
    names = [each.name for each in group.updates[0].events]
    before = names[: names.index("unscale")] if "unscale" in names else []
    changes = group.arrivals.changes[0]
    changed = changes[-1] / (group.clipped or 1.0) if changes else 1.0
    if "clip" in before and changed < 0.9:
        yield Found("GA117", {"update": group.number, "scale": 1 / changed if changed else 0.0})
    elif "clip_value" in before and group.main is not None and (scale := _loss_scale(group.main)):
        yield Found("GA117", {"update": group.number, "scale": scale})


def _in_batch(group: Group) -> Iterator[Found]:
    """A contrastive loss, whose classes are the samples of its own micro-batch."""
    for family in group.families:
        passes = {(item.rank, item.index) for item in family.items}
        if len(passes) > len(group.updates) and all(item.term.in_batch for item in family.items):
            rows = int(family.items[0].term.units.get("rows", 0))
            yield Found("GA119", {"update": group.number, "term": family.items[0].term.leaf, "classes": rows})
            return


# The weights of a loss term


def _term(family: Family, group: Group, usual: Group) -> Iterator[Found]:
    """Why the weights of the first loss term are not those of one batch."""
    where = {"update": group.number, "term": family.name}
    if (more := _left_in(family, group, usual)) is not None:
        yield Found("GA107", {**where, **more})
    elif not family.flat:
        yield from _uneven(family, group, where)
    else:
        yield from _constant(family, group, usual, where)


def _further(family: Family, main: Family | None, group: Group, usual: Group) -> Iterator[Found]:
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
    elif not group.inside(*CLIPPING):
        yield Found("GA118", evidence)


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
    elif (scale := _loss_scale(family)) and not any(e.name == "unscale" for u in group.updates for e in u.events):
        yield Found("GA117", {**where, "scale": scale})
    elif sums and group.framework == "transformers" and not family.fine and family.first_total < 1 - family.tolerance:
        yield Found(
            "GA102",
            {**where, "times": 1 / family.first_total, "of": "targets, as counted", "total": family.first_total},
        )
    elif not family.fine and 1 + family.tolerance < (total := family.first_total) <= steps:
        yield Found("GA101", {**where, "times": steps, "of": "micro-batches", "total": total})


def _short(family: Family, group: Group, usual: Group) -> dict[str, object] | None:
    """Whether a group with fewer micro-batches than others, or than the trainer was told, was divided by theirs."""
    steps, most = family.micro_batches(), max(usual.steps, group.nominal_steps or 0)
    if group.steps >= most:
        return None
    alike = next((each for each in usual.families if each.name == family.name and each.flat), None)
    full = {} if alike is None or usual.steps < most else alike.totals()
    for unit, total in family.totals().items():
        told = usual.steps > 1 and most == group.nominal_steps and family.divisions(most) == 1
        if near(total, full.get(unit, 1.0 if told else 0.0) * steps / most, family.tolerance):
            return {"micro_batches": steps, "divided_by": most, "total": total}
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


def _loss_scale(family: Family) -> float:
    """A large factor on the way that is a power of two, as GradScaler's is; 0 where there is none."""
    for value in family.weighty[0].term.factors:
        if value >= 1024 and near(2.0 ** round(math.log2(value)), value, 1e-6):
            return value
    return 0.0
