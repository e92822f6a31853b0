"""Is every token's weight in an update the same, and do they sum to one?

A loss term seen in several backward passes is one family. Its items have a weight for each unit, and a number of
units; their pattern names the cause: all k times too large, proportional to the inverse count of their own micro-batch
or rank.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gradaccum.torch.audit.records import Pass, Term

TOLERANCE = {"float64": 1e-6, "float32": 2e-4, "bfloat16": 4e-2, "float16": 1e-2}
"""Relative difference between two weights below which they are equal: many roundings of the loss's type."""

UNITS = ("counted", "elements", "weighed", "rows", "samples")
"""What a mean may be over, the likeliest first."""


@dataclass(frozen=True)
class Item:
    """One term in one backward pass. arrival: the factor with which the pass reached the step."""

    rank: int
    index: int
    position: int
    term: Term
    of: Pass
    arrival: float

    @property
    def weight(self) -> float:
        """Of one unit, in the update."""
        return (self.term.weight or 0.0) * self.arrival * self.of.hooked

    def units(self, unit: str) -> float | None:
        """How many of that unit it has; None where that is not known."""
        if unit == "samples":
            return None if self.of.samples is None else float(self.of.samples)
        return self.term.units.get(unit)

    @property
    def empty(self) -> bool:
        """Whether it has nothing to weigh: no target, or a weight of 0."""
        return self.weight == 0.0 or self.term.units.get("counted", 1.0) == 0.0


@dataclass(frozen=True)
class Family:
    """The items of one loss term in one update of all ranks."""

    name: str
    items: tuple[Item, ...]
    tolerance: float

    @cached_property
    def weighty(self) -> list[Item]:
        """The items that weigh something."""
        return [each for each in self.items if not each.empty]

    def total(self, unit: str) -> float | None:
        """The sum of all weights, if that is the unit; None where its number is not known."""
        numbers = [each.units(unit) for each in self.weighty]
        if None in numbers:
            return None
        return sum(abs(each.weight) * (number or 0.0) for each, number in zip(self.weighty, numbers, strict=True))

    def totals(self) -> dict[str, float]:
        """For each unit of which the number is known."""
        return {unit: total for unit in UNITS if (total := self.total(unit)) is not None}

    def counts(self, unit: str) -> list[float]:
        """The units of each item that weighs something."""
        return [each.units(unit) or 0.0 for each in self.weighty]

    @property
    def flat(self) -> bool:
        """Whether all weights are equal."""
        return equal([abs(each.weight) for each in self.weighty], self.tolerance)

    @property
    def sums(self) -> bool:
        """Whether its reduction is a sum that nobody divides."""
        return all(each.term.kind in ("sum", "root") for each in self.items) and all(
            near(abs(each.weight), 1.0, self.tolerance) for each in self.weighty
        )

    @property
    def right(self) -> bool:
        """Whether it is what one batch would give: equal weights that sum to one, or a plain sum."""
        if not self.weighty:
            return True
        return self.flat and (self.sums or self.unit_of(1.0) is not None)

    @property
    def first_total(self) -> float:
        """The sum of all weights, by the likeliest unit; 0 where no unit is known."""
        return next(iter(self.totals().values()), 0.0)

    @property
    def likely_totals(self) -> list[float]:
        """The sum of all weights, of a mean by its own unit; what a sum counts may be any."""
        totals = list(self.totals().values())
        return totals[:1] if all(each.term.kind == "mean" for each in self.items) else totals

    @property
    def fine(self) -> bool:
        """Right, up to a coefficient of the person's own: equal weights, divided once."""
        return self.right or (self.flat and self.times_divided == 1)

    @property
    def times_divided(self) -> int:
        """How often each item was divided: by the micro-batches, and by the units of the whole update."""
        steps = self.micro_batches()
        return (self.divisions(steps) if steps > 1 else 0) + self.by_whole

    @property
    def by_whole(self) -> bool:
        """Whether each item was divided by the units of the whole update: any further division is one too many."""
        sums = all(each.term.kind in ("sum", "root") for each in self.items)
        ranks = len(self.by_rank())
        whole = [number for unit in self.totals() if (number := sum(self.counts(unit)))]
        return sums and any(
            number > 1 and self.divisions(number) > 0 for count in whole for number in {count, count / ranks}
        )

    def unit_of(self, value: float) -> str | None:
        """The unit for which the weights sum to that value."""
        return next((unit for unit, total in self.totals().items() if near(total, value, self.tolerance)), None)

    def own_mean(self) -> str | None:
        """The unit for which each item's weights sum to the same, although its number differs between items."""
        for unit in UNITS:
            counts = self.counts(unit)
            if not counts or any(each.units(unit) is None for each in self.weighty):
                continue
            shares = [abs(each.weight) * count for each, count in zip(self.weighty, counts, strict=True)]
            if equal(shares, self.tolerance) and not equal(counts, self.tolerance):
                return unit
        return None

    def micro_batches(self) -> int:
        """Items of one rank, on the rank that has most."""
        return max((len(items) for items in self.by_rank().values()), default=0)

    def by_rank(self) -> dict[int, list[Item]]:
        """The items that weigh something, of each rank."""
        found: dict[int, list[Item]] = defaultdict(list)
        for each in self.weighty:
            found[each.rank].append(each)
        return found

    def on_the_way(self, number: float) -> bool:
        """Whether a factor of one over that number stands before each loss."""
        return number > 1 and all(
            any(near(abs(value) * number, 1.0, self.tolerance) for value in each.term.factors) for each in self.weighty
        )

    def divisions(self, number: float) -> int:
        """How often each item's way was divided by that number, and not multiplied by it; the arrival included."""
        found = []
        for each in self.weighty:
            ways = [abs(value) for value in (*each.term.factors, each.arrival, each.of.hooked)]
            divided = sum(near(value * number, 1.0, self.tolerance) for value in ways)
            found.append(divided - sum(near(value, number, self.tolerance) for value in ways))
        return min(found, default=0)


def near(value: float, wanted: float, tolerance: float) -> bool:
    """Whether they are equal within the tolerance."""
    return abs(value - wanted) <= tolerance * max(abs(value), abs(wanted))


def equal(values: Sequence[float], tolerance: float) -> bool:
    """Whether all are equal within the tolerance."""
    return not values or near(min(values), max(values), tolerance)


def items_of(passes: Iterable[tuple[int, int, Pass]], arrival: float) -> tuple[list[Item], list[Term]]:
    """The terms that were seen as weights, and those of which nothing is known. arrival: the factor to the step."""
    found: list[Item] = []
    unknown: list[Term] = []
    known: dict[tuple[int, int], int] = {}  # of a rank's term, its place among those found
    for rank, index, each in passes:
        positions: dict[str, int] = defaultdict(int)
        for term in each.terms:
            if not weighs(term):
                unknown.append(term)
                continue
            again = known.setdefault((rank, term.identity), len(found)) if term.identity else len(found)
            if again < len(found):  # a graph that was kept, and gone through another time
                both = (found[again].term.weight or 0.0) + (term.weight or 0.0)
                found[again] = replace(found[again], term=replace(found[again].term, weight=both))
                continue
            position = positions[term.reduction]
            positions[term.reduction] += 1
            found.append(Item(rank, index, position, term, each, arrival))
    return found, unknown


def weighs(term: Term) -> bool:
    """Whether what was read is a weight: not where a loop multiplies each element's loss by a number of its own, one by
    one, or hands a gradient of its own to the backward pass.
    """
    if term.weight is None or term.kind == "nonlinear" or not term.units:
        return False
    return term.kind != "each" and term.spread < 1.01


def families(items: Sequence[Item], tolerance: float) -> list[Family]:
    """The loss terms. A term may be seen at one line of the loop or at two (the last micro-batch outside no_sync), once
    in a pass or several times (losses that were added up): the coarsest grouping under which all is right is meant.
    """
    tried = [_grouped(items, key, tolerance) for key in _groupings(items)]
    whole = next((found for found in tried if all(each.right for each in found)), None)
    return whole or _summands(items, tried[0], tolerance) or _meant(tried)


def _summands(items: Sequence[Item], together: Sequence[Family], tolerance: float) -> list[Family]:
    """The terms of a loss that has several of one kind, each with a coefficient of its own, as a critic's; empty where
    they may as well be the losses of several micro-batches, added up.
    """
    apart = _grouped(items, lambda item: (item.term.reduction, item.position), tolerance)
    several = all(len(each.items) > 1 for each in apart) and len(apart) > len(together)
    meant = all(each.fine for each in apart) and any(each.right for each in apart)
    return apart if several and meant and not any(each.flat or each.own_mean() for each in together) else []


def _meant(tried: list[list[Family]]) -> list[Family]:
    """Where nothing is right: the finest grouping that still holds a family of several items."""
    return tried[-1] if all(len(each.items) > 1 for each in tried[-1]) else tried[0]


def _groupings(items: Sequence[Item]) -> list[Callable[[Item], tuple[object, ...]]]:
    """Keys of the groupings that make sense, the coarsest first."""
    most: dict[tuple[int, int], Item] = {}  # of each pass, the item at the last position
    for each in items:
        most[each.rank, each.index] = max(each, most.get((each.rank, each.index), each), key=lambda one: one.position)
    several = any(each.position and len(each.of.calls) != 1 + each.position for each in most.values())
    synced: dict[str, set[bool | None]] = defaultdict(set)
    for each in items:
        synced[each.of.site].add(each.of.reduces)
    apart = len(synced) > 1 and len({frozenset(each) for each in synced.values()}) == 1
    keys: list[Callable[[Item], tuple[object, ...]]] = [lambda item: (item.term.reduction,)]
    if several:
        keys.append(lambda item: (item.term.reduction, item.position))
    if apart:
        keys.append(lambda item: (item.term.reduction, item.of.site))
    if several and apart:
        keys.append(lambda item: (item.term.reduction, item.position, item.of.site))
    return keys


def _grouped(items: Sequence[Item], key: Callable[[Item], tuple[object, ...]], tolerance: float) -> list[Family]:
    groups: dict[tuple[object, ...], list[Item]] = defaultdict(list)
    for each in items:
        groups[key(each)].append(each)
    return [Family(group[0].term.leaf, tuple(_alike(group)), tolerance) for group in groups.values()]


def _alike(items: list[Item]) -> list[Item]:
    """All read above the weights of their elements' own, where one was: equal weights in a batch look like a mask."""
    if not any(each.term.own_weights for each in items):
        return items
    return [replace(each, term=each.term.lifted()) for each in items]
