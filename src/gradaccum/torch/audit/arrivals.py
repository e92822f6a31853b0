"""What became of each backward pass's gradient on its way to the optimizer.

The sketches before and after each pass, and what the optimizer received, are followed like a bookkeeper's account:
each pass adds what was heard, ranks come together, and between passes nothing should change. Where something does, the
factor says what: 0 is cleared, 1 / scale unscaled, less than 1 clipped.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gradaccum.torch.audit.sketch import LENGTH, LOW, SAME, combination, factor, norm, plus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradaccum.torch.audit.records import Pass, Sketch, UpdateSeen

Key = tuple[int, int]
UNLIKE = 0.5
"""Share of what was received that lies beside what the passes left, from which on it is something else."""

LEAK = -1
"""In place of a pass: what lay in the gradients before the first one."""


@dataclass
class Arrivals:
    """What reached each rank's optimizer of one update.

    share: for a rank, the factor with which each (rank, pass) came. changes: of a rank, the factors before each pass
    from the second on, and before the step. reduced: of each pass, whether ranks came together in it. unexplained:
    passes whose gradient is no sum of what was heard. touched: passes before which gradients were changed by more
    than a factor. leaked: for a rank, what lay there from before. unlike: ranks that received what is no sum of the
    passes, nearly or not.
    """

    share: list[dict[Key, float]] = field(default_factory=list)
    changes: list[list[float]] = field(default_factory=list)
    reduced: list[bool] = field(default_factory=list)
    reduced_after: bool = False
    unexplained: list[Key] = field(default_factory=list)
    touched: list[Key] = field(default_factory=list)
    leaked: dict[int, Sketch | None] = field(default_factory=dict)
    unlike: set[int] = field(default_factory=set)
    seen: bool = True

    def reach(self, key: Key) -> float:
        """The largest factor with which a (rank, pass) reached any rank's step."""
        return max((abs(share.get(key, 0.0)) for share in self.share), default=0.0)

    @property
    def apart(self) -> bool:
        """Whether each rank received its own passes alone."""
        return len(self.share) > 1 and all(
            rank == own for own, share in enumerate(self.share) for (rank, _), value in share.items() if value
        )


def arrivals(updates: Sequence[UpdateSeen], sharded: bool, low: bool, before: Sequence[Sketch | None] = ()) -> Arrivals:
    """Of one update, as every rank saw it. low: gradients are of half type. before: what each rank's optimizer received
    in the update before.
    """
    world = len(updates)
    within = LOW if low else SAME
    found = Arrivals(changes=[[] for _ in updates])
    state: list[dict[Key, float]] = [{} for _ in updates]
    if all(update.received is None for update in updates):
        found.seen = False
    for rank, update in enumerate(updates):
        if update.passes and norm(update.passes[0].before):
            state[rank][rank, LEAK] = 1.0
            found.leaked[rank] = update.passes[0].before
    if any(each.by_name for update in updates for each in update.passes):  # the loop adds up by itself
        found.share = [_all_heard(updates, rank, within) for rank in range(world)]
        found.changes = [[1.0] for _ in updates]
        found.seen = found.seen and all(found.share)
        return found
    deferred: list[Key] = []
    for keys in rounds(updates):
        there = [(rank, updates[rank].passes[index]) for rank, index in keys]
        at = dict(keys)
        by_hand = None if sharded else _joined_between(updates, at, within)
        if by_hand is not None:
            state = [_times(_sum(state), by_hand) for _ in state]
            for changes in found.changes:
                changes.append(1.0)
        for rank, each in there if by_hand is None else ():
            if index := at[rank]:
                change, rest = factor(updates[rank].passes[index - 1].after, each.before)
                change = 1.0 if updates[rank].passes[index - 1].after is None else _whole(change, within)
                if rest > within and change:
                    found.touched.append((rank, index))
                found.changes[rank].append(change)
                state[rank] = _times(state[rank], change)
        together = _together(there, updates, sharded, within) if len(there) == world else None
        found.reduced.append(together is not None)
        found.touched += [(rank, at[rank]) for rank, each in there if each.bent]
        for rank, each in there:
            if not sharded and together is None and (overwritten := _overwritten(each, within)) is not None:
                found.unexplained.append((rank, at[rank]))
                if overwritten:
                    state[rank] = {}
        if sharded and world > 1:  # what was reduced before stays as it is, and what was deferred comes along
            deferred += keys
            if together is not None:
                state = [{**own, **dict.fromkeys(deferred, together)} for own in state]
                deferred = []
            continue
        for rank, _ in there:
            state[rank] = {**state[rank], (rank, at[rank]): 1.0}
        if together is not None:
            state = [_times(_sum(state), together) for _ in state]
    found.share = _received(updates, state, found, sharded, within) if found.seen else state
    for rank in sorted(found.unlike) if before else ():
        if kept := _with_earlier(updates, rank, before[rank], within):
            found.share[rank], found.leaked[rank] = kept, before[rank]
            found.unlike.remove(rank)
    found.seen = found.seen and not found.unlike
    return found


def rounds(updates: Sequence[UpdateSeen]) -> list[list[Key]]:
    """Passes of the ranks that belong together: those of the same number; where ranks have unequal numbers of them,
    those in which the wrapper reduces, and each of the others by itself.
    """
    counts = [len(update.passes) for update in updates]
    if len(set(counts)) == 1:
        return [[(rank, index) for rank in range(len(updates))] for index in range(counts[0])]
    found: list[list[Key]] = []
    reducing: list[list[Key]] = []
    for rank, update in enumerate(updates):
        mine = [(rank, index) for index, each in enumerate(update.passes) if each.reduces]
        reducing.append(mine)
        found += [[(rank, index)] for index, each in enumerate(update.passes) if not each.reduces]
    return [*found, *map(list, zip(*reducing, strict=False))]


def _received(
    updates: Sequence[UpdateSeen], state: list[dict[Key, float]], found: Arrivals, sharded: bool, within: float
) -> list[dict[Key, float]]:
    """The last stretch, from the last pass to the step."""
    last = [update.passes[-1].after if update.passes else None for update in updates]
    share = []
    for rank, update in enumerate(updates):
        change, rest = factor(last[rank], update.received)
        if last[rank] is None:
            change, rest = 1.0, 0.0
        if rest > within and not sharded and len(updates) > 1:
            both, left = factor(plus(last), update.received)
            if left < within or left < rest / 10:
                found.reduced_after = True
                found.changes[rank].append(both)
                share.append(_times(_sum(state), both))
                continue
        if rest > within and not sharded and (all_heard := _all_heard(updates, rank, within)):
            share.append(all_heard)  # summed in buffers of the loop's own, and handed over at the end
            continue
        if rest > UNLIKE and not sharded and not update.behind("clip_value"):
            found.unlike.add(rank)
            share.append({})
            continue
        found.changes[rank].append(change)
        share.append(_times(state[rank], change))
    for rank, update in enumerate(updates):
        share[rank] = _times(share[rank], 1 / update.grad_scale)
    return share


def _all_heard(updates: Sequence[UpdateSeen], rank: int, within: float) -> dict[Key, float]:
    """What was received as a multiple of all that was heard, or as a combination; empty where it is neither."""
    received = updates[rank].received
    for ranks in ([rank], list(range(len(updates)))):
        passes = [(one, index, each) for one in ranks for index, each in enumerate(updates[one].passes)]
        there = {(one, index): each.heard for one, index, each in passes if each.heard is not None}
        keys, heard = list(there), list(there.values())
        ratio, rest = factor(plus(heard), received)
        if heard and rest < within:
            return dict.fromkeys(keys, ratio)
        for last in range(1, max(len(updates[one].passes) for one in ranks)):  # what came before was lost
            kept = [key for key in keys if key[1] >= len(updates[key[0]].passes) - last]
            ratio, rest = factor(plus(there[key] for key in kept), received)
            if kept and rest < within:
                return {key: ratio if key in kept else 0.0 for key in keys}
        if received is not None and 1 < len(heard) <= LENGTH // 2:
            factors, rest = combination(heard, received)
            if factors and rest < within:
                largest = max(abs(each) for each in factors)
                return {
                    key: 0.0 if abs(each) < within * largest else each for key, each in zip(keys, factors, strict=True)
                }
    return {}


def _with_earlier(updates: Sequence[UpdateSeen], rank: int, earlier: Sketch | None, within: float) -> dict[Key, float]:
    """What was received, as a multiple of all that was heard and the whole of what the update before received: sums in
    buffers of the loop's own that were not cleared. Empty where it is not that.
    """
    received = updates[rank].received
    for ranks in ([rank], list(range(len(updates)))):
        heard = {(one, index): each.heard for one in ranks for index, each in enumerate(updates[one].passes)}
        total = plus(heard.values())
        if received is None or earlier is None or total is None:
            continue
        factors, rest = combination([total, earlier], received)
        if factors and rest < within and abs(factors[1] - 1) < within:
            return {**dict.fromkeys(heard, factors[0]), (rank, LEAK): factors[1]}
    return {}


def _together(
    there: Sequence[tuple[int, Pass]], updates: Sequence[UpdateSeen], sharded: bool, within: float
) -> float | None:
    """By what the ranks' sum was multiplied, where they came together in this pass; None where each kept its own."""
    if len(updates) == 1:
        return None
    if sharded:
        return (
            1 / (updates[0].divide_factor or len(updates))
            if any(each.reduces is not False for _, each in there)
            else None
        )
    sums = [plus((each.before, each.heard)) for _, each in there]
    alone = max(factor_rest(own, each.after) for own, (_, each) in zip(sums, there, strict=True))
    ratio, rest = factor(plus(sums), there[0][1].after)
    if _all_equal(sums, within):  # of the same data: only the wrapper knows
        return ratio if all(each.reduces for _, each in there) else None
    if rest < within and rest <= alone:
        return ratio
    return ratio if alone > within and rest < alone / 3 else None


def factor_rest(own: Sketch | None, after: Sketch | None) -> float:
    """How far the gradient after a pass is from what one rank has, multiplied by nothing."""
    size = max(norm(own), norm(after))
    if not size or own is None or after is None:
        return 1.0 if size else 0.0
    return norm([b - a for a, b in zip(own, after, strict=True)]) / size


def _joined_between(updates: Sequence[UpdateSeen], at: dict[int, int], within: float) -> float | None:
    """By what the sum over the ranks was multiplied, where the loop brought it together before these passes."""
    if not 1 < len(updates) == len(at) or not all(at.values()):
        return None
    left = [update.passes[at[rank] - 1].after for rank, update in enumerate(updates)]
    found = [update.passes[at[rank]].before for rank, update in enumerate(updates)]
    if None in left or not any(factor(*pair)[1] > within for pair in zip(left, found, strict=True)):
        return None
    ratios = [factor(plus(left), each) for each in found]
    return ratios[0][0] if all(rest < within and abs(ratio - ratios[0][0]) < within for ratio, rest in ratios) else None


def _all_equal(sums: Sequence[Sketch | None], within: float) -> bool:
    return all(factor_rest(sums[0], each) < within / 10 for each in sums[1:])


def _overwritten(each: Pass, within: float) -> bool | None:
    """None where the pass added what was heard; True where that replaced what was there; False where neither holds."""
    if each.heard is None:
        return None
    if factor_rest(plus((each.before, each.heard)), each.after) < within:
        return None
    return factor_rest(each.heard, each.after) < within


def _whole(change: float, within: float) -> float:
    """1 and 0 are meant where they are all but met."""
    return 1.0 if abs(change - 1) < within else 0.0 if abs(change) < within * 1e-3 else change


def _times(state: dict[Key, float], change: float) -> dict[Key, float]:
    return {key: value * change for key, value in state.items()}


def _sum(states: Sequence[dict[Key, float]]) -> dict[Key, float]:
    total: dict[Key, float] = defaultdict(float)
    for state in states:
        for key, value in state.items():
            total[key] += value
    return dict(total)
