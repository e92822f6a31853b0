"""Verdicts on one update: what did not reach the step as it should, and weights that are not those of one batch."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from gradaccum.torch.audit.arrivals import LEAK, factor_rest
from gradaccum.torch.audit.findings import Found
from gradaccum.torch.audit.normalisation import UNITS, Family, equal, near
from gradaccum.torch.audit.records import CLIPPING
from gradaccum.torch.audit.sketch import factor, norm
from gradaccum.torch.audit.terms import loss_scale, of_further, of_term

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from gradaccum.torch.audit.groups import Group
    from gradaccum.torch.audit.normalisation import Item

LEAST = 1e-6
"""Share of the largest arrival below which a pass did not arrive."""


def of_update(group: Group, usual: Group) -> Iterator[Found]:
    """What is wrong with one update. usual: one as most of its optimizer are."""
    arriving = list(_arriving(group))
    yield from arriving
    if any(each.code in ("GA109", "GA118") for each in arriving):
        return  # each rank has an update of its own, or each micro-batch a factor of its own
    yield from _scaler(group)
    in_batch = list(_in_batch(group))
    yield from in_batch
    if any("pairs_of" in each.evidence for each in in_batch):
        return  # what its elements weigh says nothing of the samples
    if group.sums_to(1.0) and all(family.flat for family in group.families):
        return
    main = group.main
    if (skipped := group.skipped_calls) and main is not None and _without(main, group, skipped):
        yield Found("GA106", {"update": group.number, "lost": skipped, "micro_batches": group.steps + skipped})
        return
    if main is not None and not main.right:
        yield from of_term(main, group, usual)
    for family in group.families:
        if family is not main and family.weighty and not family.right:
            yield from of_further(family, main, group, usual)


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
    apart = list(_ranks(group, best)) if len(group.updates) > 1 else []
    yield from apart
    if uneven and not inside and not apart and (rule := _multiplied(group, rest)) is not None:
        yield Found("GA118", {**where, **rule})
    elif inside or (not apart and (arrived.touched or uneven)):
        yield Found("GA110", {**where, "times": inside or len(set(arrived.touched)) or len(uneven)})


def _multiplied(group: Group, keys: Sequence[tuple[int, int]]) -> dict[str, object] | None:
    """The rule by which gradients were multiplied between micro-batches: one factor, or what each of them holds."""
    items = {(item.rank, item.index): item for item in group.main.items} if group.main is not None else {}
    pairs = [(a, b) for a, b in itertools.pairwise(keys) if a[0] == b[0]]
    ratios = [group.reach(a) / group.reach(b) for a, b in pairs]
    changed = [each for each in ratios if not near(each, 1.0, group.tolerance)]
    if len(changed) > 1 and equal(changed, group.tolerance):
        return {"factor_between_micro_batches": changed[0]}
    for unit in UNITS if len(pairs) > 1 and all(a in items for a, _ in pairs) else ():
        counts = [items[a].units(unit) for a, _ in pairs]
        if all(each and near(ratio * each, 1.0, 10 * group.tolerance) for each, ratio in zip(counts, ratios)):
            return {"counts": [int(each or 0) for each in counts], "unit": unit}
    return None


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
        used = [group.used_elsewhere(rank, each) for each in update.passes]
        own = {each.site for each, at in zip(update.passes, used, strict=True) if at is None}
        for index, (each, at) in enumerate(zip(update.passes, used, strict=True)):
            early = at is not None and at <= update.passes[-1].serial
            # What another optimizer uses as well, at a pace of its own, comes from a line that is this one's too.
            if early and own and each.site not in own and group.reach((rank, index)) > best * LEAST:
                leaks.append((rank, index))
    if leaks:
        rank, index = leaks[0]
        passes = group.updates[rank].passes
        size = norm(group.arrivals.leaked.get(rank) if index == LEAK else passes[index].heard)
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
    if group.sharded:  # each rank has its own part, and what became of it since the last reduction
        parts = [factor(update.passes[-1].after, update.received) for update in group.updates if update.passes]
        there = [(ratio, rest) for ratio, rest in parts if ratio]
        ratios = [ratio for ratio, _ in there]
        if all(rest < group.tolerance for _, rest in there) and not equal(ratios, 10 * group.tolerance):
            yield Found("GA109", {"update": group.number, "factors": [ratio / ratios[0] for ratio in ratios]})


def _scaler(group: Group) -> Iterator[Found]:
    """Clipping before the gradients were unscaled."""
    names = [each.name for each in group.updates[0].events]
    before = names[: names.index("unscale")] if "unscale" in names else []
    changes = group.arrivals.changes[0]
    changed = changes[-1] / (group.clipped or 1.0) if changes else 1.0
    if "clip" in before and changed < 0.9:
        yield Found("GA117", {"update": group.number, "scale": 1 / changed if changed else 0.0})
    elif "clip_value" in before and group.main is not None and (scale := loss_scale(group.main)):
        yield Found("GA117", {"update": group.number, "scale": scale})


def _in_batch(group: Group) -> Iterator[Found]:
    """A contrastive loss, whose classes are the samples of its own micro-batch, or which is one of their pairs."""
    for family in group.families:
        where = {"update": group.number, "term": family.items[0].term.leaf}
        if len({(item.rank, item.index) for item in family.items}) <= len(group.updates):
            continue
        if all(item.term.in_batch for item in family.items):
            yield Found("GA119", {**where, "classes": int(family.items[0].term.units.get("rows", 0))})
            return
        batches = {size for item in family.items for size in (item.of.samples, *item.of.calls)} - {None, 0, 1}
        if all(_of_pairs(item, batches) for item in family.items):
            samples = [size for item in family.items for size in item.term.product if size in batches]
            yield Found("GA119", {**where, "pairs_of": samples[0]})
            return


def _of_pairs(item: Item, batches: Collection[int | None]) -> bool:
    """Whether the loss was made from a square product over the samples: of each with each, or one that sums over them,
    as correlations of features do. batches: the samples of all calls of the model, or of each, as of two views.
    """
    rows, columns, inner = item.term.product or (0, 0, 0)
    return rows == columns and (rows in batches or inner in batches)
