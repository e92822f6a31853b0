"""The audited updates: what every rank saw of one, matched, with what became of its gradients and its loss terms."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gradaccum.torch.audit.arrivals import LEAK, arrivals
from gradaccum.torch.audit.normalisation import TOLERANCE, Family, families, items_of, near
from gradaccum.torch.audit.sketch import plus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradaccum.torch.audit.arrivals import Arrivals
    from gradaccum.torch.audit.records import Event, Pass, RankSeen, Term, UpdateSeen


Uses = dict[tuple[int, int], list[tuple[int, int]]]
"""Of a (rank, serial of a pass): each optimizer that used it, and how many passes there were up to its step."""

MOST_FAMILIES = 3
"""Loss terms whose sums are looked at together."""


@dataclass
class Group:
    """One audited update of one optimizer, as all ranks saw it, and what became of its gradients.

    clipped: the factor of clipping at the boundary. uses: of a (rank, serial of a pass), the optimizers that used it,
    each with the number of passes up to its step. considered: the passes that were meant for this update. whole: each
    rank received the whole gradient; sharded: its own part of it; parted: of copies that the optimizer steps on.
    """

    optimizer: int
    number: int
    updates: list[UpdateSeen]
    arrivals: Arrivals
    families: list[Family]
    unknown: list[str]
    clipped: float
    tolerance: float
    uses: Uses
    considered: set[tuple[int, int]]
    target_batch: int | None = None
    nominal_steps: int | None = None
    framework: str = "torch"
    sharded: bool = False
    parted: bool = False

    @property
    def whole(self) -> bool:
        """Whether each rank received the whole gradient."""
        return not (self.sharded or self.parted)

    @property
    def steps(self) -> int:
        """Micro-batches of the rank that has most."""
        return max(sum(one == rank for one, _ in self.passes) for rank in range(len(self.updates)))

    @property
    def untold(self) -> bool:
        """Whether what the optimizer was given is no sum of what the passes brought."""
        return bool(self.arrivals.unlike) or (self.parted and bool(self.passes) and not all(self.arrivals.share))

    @property
    def passes(self) -> list[tuple[int, int]]:
        """Every (rank, pass) that was meant for it."""
        return sorted(self.considered)

    def seen(self, key: tuple[int, int]) -> Pass:
        """What was seen of a (rank, pass)."""
        return self.updates[key[0]].passes[key[1]]

    def inside(self, *names: str) -> int:
        """Events of those names between the first and the last pass."""
        return sum(update.inside(*names) for update in self.updates)

    def sums_to(self, value: float, family: Family | None = None) -> bool:
        """Whether the weights of a family sum to that value, or those of all together, by any of their units."""
        if family is not None and family.unit_of(value) is not None:
            return True
        totals = [each.likely_totals for each in self.families if each.weighty]
        if not 2 <= len(totals) <= MOST_FAMILIES:
            return False
        return any(near(sum(choice), value, self.tolerance) for choice in itertools.product(*totals))

    @property
    def skipped_calls(self) -> int:
        """Calls of the model, over all ranks, whose loss never went backward."""
        passes = [each for key in self.passes if (each := self.seen(key)).terms]
        return sum(max(0, len(each.calls) + len(each.unlearnt) - each.losses) for each in passes)

    def used_elsewhere(self, rank: int, seen: Pass) -> int | None:
        """The passes of the rank up to the last step of another optimizer that used this one; None where none did."""
        return max((at for one, at in self.uses[rank, seen.serial] if one != self.optimizer), default=None)

    def reach(self, key: tuple[int, int]) -> float:
        """The largest factor with which a (rank, pass) reached any rank's step."""
        return self.arrivals.reach(key)

    @property
    def main(self) -> Family | None:
        """The first loss term that weighs anything."""
        return next((each for each in self.families if each.weighty), None)

    @property
    def effective_batch(self) -> int | None:
        """Samples of the update over all ranks; None where they were not seen.

        A pass whose model call was not seen has as many as its loss has rows, by the rows of a sample in other passes.
        Several calls of the model in a pass may be micro-batches or views of one: what was wanted decides.
        """
        passes = [self.seen(key) for key in self.passes]
        if self.target_batch is not None and self.target_batch in _readings(passes):
            return self.target_batch
        known = [(each.samples, rows) for each in passes if each.samples and (rows := _rows(each))]
        if not known:
            return None
        rows_each = known[0][1] / known[0][0]
        total = 0.0
        for each in passes:
            samples, rows = each.samples, _rows(each)
            if samples is None and (rows is None or rows % rows_each):
                return None
            of_rows = (rows or 0.0) / rows_each
            total += of_rows if samples is None else samples
        # A loss for each pair of samples, as preferences have it, counts pairs.
        return int(total / 2) if rows_each == 0.5 else int(total)


def groups_of(ranks: Sequence[RankSeen]) -> Iterator[Group]:
    """The audited updates, matched over ranks by optimizer and number."""
    by_key: dict[tuple[int, int], list[UpdateSeen]] = defaultdict(list)
    for rank in ranks:
        for update in rank.updates:
            if update.audited and not update.skipped:
                by_key[update.optimizer, update.number].append(update)
    uses, consumed = _uses(ranks), _consumed(ranks)
    for (optimizer, number), updates in by_key.items():
        if len(updates) != len(ranks):
            continue  # a rank that was not reached has no part in it
        described = ranks[0].optimizers[optimizer]
        if described.parted:
            whole = plus(each.received for each in updates)
            updates = [replace(each, received=whole) for each in updates]
        low = any(dtype in ("bfloat16", "float16") for dtype in described.gradient_dtypes)
        before = [each.received for each in by_key.get((optimizer, number - 1), ())]
        arrived = arrivals(updates, described.sharded, low, before if len(before) == len(ranks) else ())
        clipped = _clipped(updates[0].events)
        dtype = next((each.loss_dtype for update in updates for each in update.passes), "float32")
        tolerance = max(TOLERANCE.get(dtype, 1e-2), 5e-3 if low else 0.0)
        common = _common(arrived, clipped) / (len(ranks) if arrived.apart else 1)
        foreign = _foreign(arrived, updates, consumed, optimizer)
        elsewhere = _elsewhere(arrived, updates)
        own = [key for key in _keys(updates) if key not in foreign and key not in elsewhere]
        made, unknown = _families(updates, own, common, tolerance)
        if dropped := _thrown_away(arrived, own):
            kept = [key for key in own if key not in dropped]
            fewer, less = _families(updates, kept, common, tolerance)
            several = max((each.micro_batches() for each in fewer), default=0) > 1
            together = any(each.divisions(each.micro_batches()) > 0 for each in made)  # divided by all: one group
            if several and not together and all(each.fine for each in fewer):
                made, unknown, own = fewer, less, kept
        yield Group(
            optimizer,
            number,
            updates,
            arrived,
            made,
            sorted({each.leaf for each in unknown}),
            clipped,
            tolerance,
            uses,
            set(own),
            ranks[0].target_batch,
            ranks[0].nominal_steps,
            ranks[0].framework,
            described.sharded,
            described.parted,
        )


def usual_of(groups: Sequence[Group]) -> dict[int, Group]:
    """For each optimizer the update that others are held against: with as many micro-batches as most of its have; where
    that is not right, and a fuller one is, that one.
    """
    found: dict[int, Group] = {}
    for optimizer in {each.optimizer for each in groups}:
        own = [each for each in groups if each.optimizer == optimizer]
        counts = Counter(each.steps for each in own)
        most = max(own, key=lambda each: (counts[each.steps], each.main is not None and each.main.fine, each.steps))
        fuller = [each for each in own if each.steps > most.steps and each.main is not None and each.main.right]
        wrong = most.main is not None and not most.main.right
        found[optimizer] = max(fuller, key=lambda each: each.steps) if wrong and fuller else most
    return found


def _uses(ranks: Sequence[RankSeen]) -> Uses:
    found: Uses = defaultdict(list)
    for rank, one in enumerate(ranks):
        for update in one.updates:
            for each in () if update.skipped else update.passes:
                found[rank, each.serial].append((update.optimizer, update.at))
    return found


def _consumed(ranks: Sequence[RankSeen]) -> dict[str, set[int]]:
    """Optimizers that used the passes of a line of the loop: a pass may be there for another one."""
    found: dict[str, set[int]] = defaultdict(set)
    for rank in ranks:
        for update in rank.updates:
            for each in update.passes:
                found[each.site].add(update.optimizer)
    return found


def _foreign(
    arrived: Arrivals, updates: Sequence[UpdateSeen], consumed: dict[str, set[int]], optimizer: int
) -> set[tuple[int, int]]:
    """Passes that were made for another optimizer: all at their line were cleared before this one's step."""
    lost = {key for key in arrived.share[0] if key[1] != LEAK and arrived.reach(key) == 0.0} if arrived.share else set()
    sites: dict[str, list[bool]] = defaultdict(list)
    for rank, update in enumerate(updates):
        for index, each in enumerate(update.passes):
            sites[each.site].append((rank, index) in lost)
    elsewhere = {site for site, gone in sites.items() if all(gone) and consumed[site] - {optimizer}}
    return {
        (rank, index)
        for rank, update in enumerate(updates)
        for index, each in enumerate(update.passes)
        if each.site in elsewhere
    }


def _keys(updates: Sequence[UpdateSeen]) -> list[tuple[int, int]]:
    return [(rank, index) for rank, update in enumerate(updates) for index in range(len(update.passes))]


def _elsewhere(arrived: Arrivals, updates: Sequence[UpdateSeen]) -> set[tuple[int, int]]:
    """Passes that were cleared, with the parameters elsewhere than in the last one: steps to another place, as SAM and
    line searches take them, which are no part of the update.
    """
    if not arrived.seen:
        return set()
    return {
        (rank, index)
        for rank, update in enumerate(updates)
        for index, each in enumerate(update.passes)
        if each.place != update.passes[-1].place and arrived.reach((rank, index)) == 0.0
    }


def _thrown_away(arrived: Arrivals, own: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """The first passes of each rank, where they were cleared and all after them arrived: a group that was dropped."""
    if not arrived.seen:
        return set()
    lost = {key for key in own if arrived.reach(key) == 0.0}
    first: dict[int, int] = {}
    for rank, index in own:
        if (rank, index) not in lost:
            first.setdefault(rank, index)
    return lost if all(index < first.get(rank, 0) for rank, index in lost) else set()


def _families(
    updates: Sequence[UpdateSeen], keys: Sequence[tuple[int, int]], common: float, tolerance: float
) -> tuple[list[Family], list[Term]]:
    """The loss terms of those passes, and the terms of which no weight is known."""
    passes = [(rank, index, updates[rank].passes[index]) for rank, index in keys]
    items, unknown = items_of(passes, common)
    return families(items, tolerance) if items else [], unknown


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


def _readings(passes: Sequence[Pass]) -> set[float]:
    """The samples of all passes, where the calls of each are so many micro-batches, or views of fewer; the rows of
    several losses decide, where some calls have none.
    """
    calls = [each.calls for each in passes]
    several = len(calls[0]) if calls else 0
    if several < 2 or any(len(each) != several or None in each for each in calls):
        return set()
    total = sum(sample or 0 for each in calls for sample in each)
    found = {total / views for views in range(1, several + 1) if several % views == 0}
    rows = sum(each.rows for each in passes)
    return {rows} if rows in found and all(each.calls_without for each in passes) else found


def _rows(each: Pass) -> float | None:
    """The rows of its first loss term; of all such, where calls of the model have none."""
    if each.calls_without:
        return each.rows or None
    return next((term.units["rows"] for term in each.terms if "rows" in term.units), None)
