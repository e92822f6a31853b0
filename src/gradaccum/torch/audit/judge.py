"""From what the ranks saw to a report: a verdict, findings, facts, and the weight of every micro-batch."""

from __future__ import annotations

from collections import defaultdict
from itertools import count
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
from gradaccum.torch.audit.across import over_updates
from gradaccum.torch.audit.facts import facts_of, names_of
from gradaccum.torch.audit.findings import Found, finding
from gradaccum.torch.audit.groups import groups_of, usual_of
from gradaccum.torch.audit.within import of_update

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gradaccum.torch.audit.groups import Group
    from gradaccum.torch.audit.normalisation import Item
    from gradaccum.torch.audit.records import RankSeen


COMPANY = "in-batch negatives, beyond what the loss itself shows of them: verify(model, loss_of, batch) does it"


def judge(ranks: Sequence[RankSeen], script_exit: int | None = None) -> AuditReport:
    """The report on what all ranks saw, in the order of their ranks."""
    groups = list(groups_of(ranks))
    usual = usual_of(groups)
    found = _merged(_with_empty(each, group) for group in groups for each in of_update(group, usual[group.optimizer]))
    found += over_updates(ranks, groups, found)
    framework, names = ranks[0].framework, names_of(ranks[0])
    for each in found:
        if isinstance(index := each.evidence.get("optimizer"), int):
            each.evidence["optimizer"] = names[index]
    findings = tuple(finding(each, ranks[0].optimizers, framework) for each in found)
    judged = bool(groups) and all(group.families and not group.untold for group in groups)
    in_batch = any(each.code == "GA119" for each in findings)
    faults = any(each.severity == ERROR for each in findings)
    return AuditReport(
        verdict=FAULT if faults else RIGHT if judged else NOT_SEEN,
        findings=findings,
        facts={**facts_of(ranks, groups), "not_checked": [] if in_batch else [COMPANY]},
        updates=tuple(_audited(group, names[group.optimizer]) for group in groups),
        not_seen=tuple(_not_seen(ranks, groups, names)),
        script_exit=script_exit,
        tolerance=max((group.tolerance for group in groups), default=0.0),
    )


def _with_empty(found: Found, group: Group) -> Found:
    """Micro-batches that hold nothing weigh nothing, and have no part in a pattern; a person counts them."""
    family = next((each for each in group.families if each.name == found.evidence.get("term")), None)
    counts, unit = found.evidence.get("counts"), str(found.evidence.get("unit"))
    if family is None or not isinstance(counts, list) or not isinstance(counts[0], list):
        return found
    whole: dict[int, list[int]] = defaultdict(list)
    for each in family.items:
        number = int(each.units(unit) or 0)
        if not each.empty or number == 0:
            whole[each.rank].append(number)
    return Found(found.code, {**found.evidence, "counts": list(whole.values())}, found.severity)


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


def _audited(group: Group, optimizer: str) -> AuditedUpdate:
    """The update as data: the weight of each micro-batch's units beside what it should be. optimizer: its name."""
    main = group.main
    made = []
    places: dict[int, Iterator[int]] = defaultdict(count)
    unit = None
    if main is not None:
        unit = main.unit_of(1.0) or next(iter(main.totals()), "counted")
    whole = sum(each.units(unit) or 0.0 for each in main.weighty) if main is not None and unit else 0.0
    by_pass: dict[tuple[int, int], list[Item]] = defaultdict(list)
    for item in main.items if main is not None else ():
        by_pass[item.rank, item.index].append(item)
    best = max((group.reach(key) for key in group.passes), default=0.0) or 1.0
    for rank, index in group.passes:
        items = by_pass.get((rank, index), [])
        reach = group.reach((rank, index)) / best if group.arrivals.seen else 1.0
        sums = main is not None and main.sums
        weight = abs(items[0].weight) * reach * (1.0 if sums else whole) if items else None
        units = sum(each.units(unit) or 0.0 for each in items) if items and unit else None
        samples = group.updates[rank].passes[index].samples
        made.append(AuditedMicroBatch(rank, next(places[rank]), weight, units, samples))
    return AuditedUpdate(
        number=group.number,
        optimizer=optimizer,
        micro_batches=tuple(made),
        effective_batch=group.effective_batch,
        units=whole or None,
        total=None if main is None or unit is None else main.total(unit),
        unit=unit,
    )


def _not_seen(ranks: Sequence[RankSeen], groups: Sequence[Group], names: Mapping[int, str]) -> list[str]:
    found = [each for rank in ranks for each in rank.not_seen]
    if not groups:
        found.append("no optimizer step was seen")
    for leaf in sorted({leaf for group in groups for leaf in group.unknown}):
        found.append(f"what {leaf} weighs: it is no reduction that is known")
    for name in sorted({names[group.optimizer] for group in groups if not group.passes}):
        found.append(f"what {name} was given: no backward pass reached its own parameters")
    for name in sorted({names[group.optimizer] for group in groups if group.untold}):
        found.append(f"what {name} was given: it is no sum of what the backward passes brought")
    if any(group.passes and not group.families for group in groups):
        found.append("the loss of some updates")
    if any(described.sharded for described in ranks[0].optimizers):
        found.append("each rank's own part of a sharded gradient: the framework's mean over ranks is taken as it says")
    return list(dict.fromkeys(found))
