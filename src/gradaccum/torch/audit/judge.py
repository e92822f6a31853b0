"""From what the ranks saw to a verdict: findings with their evidence, facts, and the weight of every micro-batch."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradaccum.core.audit import (
    ERROR,
    FAULT,
    NOT_SEEN,
    RIGHT,
    AuditedMicroBatch,
    AuditedUpdate,
    AuditReport,
)
from gradaccum.torch.audit.arrivals import LEAK, arrivals
from gradaccum.torch.audit.facts import facts_of
from gradaccum.torch.audit.findings import Found, finding
from gradaccum.torch.audit.normalisation import TOLERANCE, Family, families, items_of, near
from gradaccum.torch.audit.sketch import norm, plus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradaccum.torch.audit.arrivals import Arrivals
    from gradaccum.torch.audit.normalisation import Item
    from gradaccum.torch.audit.records import Event, RankSeen, UpdateSeen


@dataclass
class Group:
    """One audited update of one optimizer, as all ranks saw it, and what became of its gradients."""

    optimizer: int
    number: int
    updates: list[UpdateSeen]
    arrivals: Arrivals
    families: list[Family]
    unknown: list[str]
    clipped: float
    tolerance: float

    @property
    def steps(self) -> int:
        """Micro-batches of the rank that has most."""
        return max(update.micro_batches for update in self.updates)

    @property
    def passes(self) -> Iterator[tuple[int, int]]:
        """Every (rank, pass)."""
        for rank, update in enumerate(self.updates):
            for index in range(len(update.passes)):
                yield rank, index


def judge(ranks: Sequence[RankSeen], script_exit: int | None = None) -> AuditReport:
    """The report on what all ranks saw, in the order of their ranks."""
    groups = list(groups_of(ranks))
    found = _merged(each for group in groups for each in _of_group(group, ranks, groups))
    found += _over_updates(ranks, groups)
    framework = ranks[0].framework
    findings = tuple(finding(each, ranks[0].optimizers, framework) for each in found)
    judged = bool(groups) and all(group.families for group in groups)
    faults = any(each.severity == ERROR for each in findings)
    return AuditReport(
        verdict=FAULT if faults else RIGHT if judged else NOT_SEEN,
        findings=findings,
        facts=facts_of(ranks, groups),
        updates=tuple(_audited(group, ranks) for group in groups),
        not_seen=tuple(_not_seen(ranks, groups)),
        script_exit=script_exit,
        tolerance=max((group.tolerance for group in groups), default=0.0),
    )


def groups_of(ranks: Sequence[RankSeen]) -> Iterator[Group]:
    """The audited updates, matched over ranks by optimizer and number."""
    by_key: dict[tuple[int, int], list[UpdateSeen]] = defaultdict(list)
    for rank in ranks:
        for update in rank.updates:
            if update.audited and not update.skipped:
                by_key[update.optimizer, update.number].append(update)
    consumed = _consumed(ranks)
    for (optimizer, number), updates in by_key.items():
        if len(updates) != len(ranks):
            continue  # a rank that was not reached has no part in it
        described = ranks[0].optimizers[optimizer]
        low = any(dtype in ("bfloat16", "float16") for dtype in described.gradient_dtypes)
        arrived = arrivals(updates, described.sharded, low)
        clipped = _clipped(updates[0].events)
        dtype = next((each.loss_dtype for update in updates for each in update.passes), "float32")
        tolerance = max(TOLERANCE.get(dtype, 1e-2), 5e-3 if low else 0.0)
        common = _common(arrived, clipped) / (len(ranks) if arrived.apart else 1)
        passes = [
            (rank, index, each)
            for rank, update in enumerate(updates)
            for index, each in enumerate(update.passes)
            if (rank, index) not in _foreign(arrived, updates, consumed, optimizer)
        ]
        items, unknown = items_of(passes, lambda rank, index, common=common: common)  # type: ignore[misc]
        yield Group(
            optimizer,
            number,
            updates,
            arrived,
            families(items, tolerance) if items else [],
            sorted({each.leaf for each in unknown}),
            clipped,
            tolerance,
        )


def _consumed(ranks: Sequence[RankSeen]) -> dict[tuple[str, int], set[int]]:
    """Optimizers that used the passes of a line of the loop: a pass may be there for another one."""
    found: dict[tuple[str, int], set[int]] = defaultdict(set)
    for rank in ranks:
        for update in rank.updates:
            for each in update.passes:
                found[each.site, 0].add(update.optimizer)
    return found


def _foreign(
    arrived: Arrivals, updates: Sequence[UpdateSeen], consumed: dict[tuple[str, int], set[int]], optimizer: int
) -> set[tuple[int, int]]:
    """Passes that were made for another optimizer: all at their line were cleared before this one's step."""
    lost = (
        {key for key in arrived.share[0] if key[1] != LEAK and _arrived(arrived, key) == 0.0}
        if arrived.share
        else set()
    )
    sites: dict[str, list[bool]] = defaultdict(list)
    for rank, update in enumerate(updates):
        for index, each in enumerate(update.passes):
            sites[each.site].append((rank, index) in lost)
    elsewhere = {site for site, gone in sites.items() if all(gone) and consumed[site, 0] - {optimizer}}
    return {
        (rank, index)
        for rank, update in enumerate(updates)
        for index, each in enumerate(update.passes)
        if each.site in elsewhere
    }


def _arrived(arrived: Arrivals, key: tuple[int, int]) -> float:
    """The largest factor with which it reached any rank."""
    return max((abs(share.get(key, 0.0)) for share in arrived.share), default=0.0)


def _common(arrived: Arrivals, clipped: float) -> float:
    """The factor with which passes reach the step, clipping apart: that of the pass that came through best."""
    values = [abs(value) for share in arrived.share for key, value in share.items() if key[1] != LEAK]
    return (max(values) if values and arrived.seen else 1.0) / (clipped or 1.0)


def _clipped(events: Sequence[Event]) -> float:
    """By what clipping multiplied the gradients, after the last pass."""
    total = 1.0
    for each in events:
        if each.name == "clip" and len(each.values) == 2:
            total *= min(1.0, each.values[1] / (each.values[0] + 1e-6))
    return total


# One update


def _of_group(group: Group, ranks: Sequence[RankSeen], groups: Sequence[Group]) -> Iterator[Found]:
    yield from _arriving(group)
    yield from _scaler(group)
    others = [one.steps for one in groups if one.optimizer == group.optimizer]
    main = next((each for each in group.families if each.weighty), None)
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
    best = max((_arrived(arrived, key) for key in passes), default=0.0)
    leaks = [
        key for share in arrived.share for key, value in share.items() if key[1] == LEAK and abs(value) > best * 1e-6
    ]
    if leaks:
        size = norm(group.updates[leaks[0][0]].passes[0].before) / (norm(group.updates[leaks[0][0]].received) or 1.0)
        yield Found("GA107", {**where, "share_of_gradient": size})
    used = {(item.rank, item.index) for family in group.families for item in family.items}
    lost = [key for key in passes if key in used and _arrived(arrived, key) <= best * 1e-6]
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
    uneven = [key for key in rest if not near(_arrived(arrived, key), best, 10 * group.tolerance)]
    if uneven and not inside:
        factors = sorted({round(_arrived(arrived, key) / best, 4) for key in rest})
        yield Found("GA118", {**where, "factors": factors})


def _ranks(group: Group, best: float) -> Iterator[Found]:
    """Whether each rank's passes reach all ranks."""
    world = len(group.updates)
    missing = [
        (rank, index)
        for rank, index in group.passes
        for share in group.arrivals.share
        if _arrived(group.arrivals, (rank, index)) > best * 1e-6 and abs(share.get((rank, index), 0.0)) <= best * 1e-6
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


# Over all updates


def _over_updates(ranks: Sequence[RankSeen], groups: Sequence[Group]) -> list[Found]:
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
    batches = {batch for group in groups if (batch := effective_batch(group)) is not None}
    target = first.target_batch
    if target is not None and batches and target not in batches:
        seen = max(batches)
        steps = max(group.steps for group in groups)
        found.append(Found("GA115", {"effective_batch": seen, "target_batch": target}))
        if steps == 1 and target > seen and target % seen == 0:
            found.append(Found("GA120", {"effective_batch": seen, "target_batch": target, "steps": target // seen}))
    return found


def _schedulers(own: Sequence[Group], updates: Sequence[UpdateSeen], world: int) -> list[Found]:
    """A scheduler counts updates: one step for each, after the last micro-batch."""
    inside = [
        sum(1 for each in update.passes[1:] for event in each.events if event.name == "scheduler") for update in updates
    ]
    after = [update.afterwards + sum(event.name == "scheduler" for event in update.events) for update in updates]
    steps = max(group.steps for group in own)
    most = max((a + b for a, b in zip(inside, after, strict=True)), default=0)
    if any(inside) and steps > 1:
        return [Found("GA111", {"times": most, "of": "micro-batches", "micro_batches": steps})]
    usual = sorted(after)[len(after) // 2] if after else 0
    if usual > 1 and usual in (steps, world, steps * world):
        return [Found("GA111", {"times": usual, "of": "ranks" if usual == world and world > 1 else "micro-batches"})]
    return []


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
                if exact and there and norm(exact):
                    gone = norm([a - b for a, b in zip(exact, there, strict=True)]) / norm(exact)
                    if gone > worst and not group.arrivals.unexplained:
                        worst, steps = gone, group.steps
    return [Found("GA113", {"error": worst, "micro_batches": steps, "dtype": dtypes[0]})] if worst > 5e-3 else []


def _merged(found: Iterator[Found]) -> list[Found]:
    """One finding for each code and term, with the updates in which it was seen."""
    merged: dict[tuple[str, object], Found] = {}
    for each in found:
        key = (each.code, each.evidence.get("term"))
        number = each.evidence.get("update")
        if key not in merged:
            merged[key] = Found(each.code, {**each.evidence, "updates": []})
            merged[key].evidence.pop("update", None)
        numbers = merged[key].evidence["updates"]
        assert isinstance(numbers, list)
        if number not in numbers:
            numbers.append(number)
    return list(merged.values())


def effective_batch(group: Group) -> int | None:
    """Samples of one update over all ranks; None where they were not seen."""
    total = 0
    for update in group.updates:
        for each in update.passes:
            rows = each.samples
            if rows is None:
                rows = next((int(term.units["rows"]) for term in each.terms if "rows" in term.units), None)
            if rows is None:
                return None
            total += rows
    return total


def _audited(group: Group, ranks: Sequence[RankSeen]) -> AuditedUpdate:
    """The update as data: the weight of each micro-batch's units beside what it should be."""
    main = next((each for each in group.families if each.weighty), None)
    made = []
    unit = None
    if main is not None:
        unit = main.unit_of(1.0) or next(iter(main.totals()), "counted")
    whole = sum(each.units(unit) or 0.0 for each in main.weighty) if main is not None and unit else 0.0
    by_pass: dict[tuple[int, int], list[Item]] = defaultdict(list)
    for item in main.items if main is not None else ():
        by_pass[item.rank, item.index].append(item)
    best = max((_arrived(group.arrivals, key) for key in group.passes), default=0.0) or 1.0
    for rank, index in group.passes:
        items = by_pass.get((rank, index), [])
        reach = _arrived(group.arrivals, (rank, index)) / best if group.arrivals.seen else 1.0
        sums = main is not None and main.sums
        weight = abs(items[0].weight) * reach * (1.0 if sums else whole) if items else None
        units = sum(each.units(unit) or 0.0 for each in items) if items and unit else None
        made.append(AuditedMicroBatch(rank, index, weight, units, group.updates[rank].passes[index].samples))
    return AuditedUpdate(
        number=group.number,
        optimizer=ranks[0].optimizers[group.optimizer].name,
        micro_batches=tuple(made),
        effective_batch=effective_batch(group),
        units=whole or None,
        total=None if main is None or unit is None else main.total(unit),
    )


def _not_seen(ranks: Sequence[RankSeen], groups: Sequence[Group]) -> list[str]:
    found = [each for rank in ranks for each in rank.not_seen]
    if not groups:
        found.append("no optimizer step was seen")
    for leaf in sorted({leaf for group in groups for leaf in group.unknown}):
        found.append(f"what {leaf} weighs: it is no reduction that is known")
    if any(not group.families for group in groups):
        found.append("the loss of some updates")
    if any(described.sharded for described in ranks[0].optimizers):
        found.append("each rank's own part of a sharded gradient: the framework's mean over ranks is taken as it says")
    return list(dict.fromkeys(found))
