"""The largest micro-batch that fits, in few trials and as a rule without running out of memory.

What a step allocates grows with the micro-batch along a line, apart from its fixed part: parameters, gradients and
optimizer states, whose bytes are known after one trial. So the first trial gives a bound that is on the safe side, as
if all the rest grew with the micro-batch:

    peak(m) <= kept + (peak(m1) - kept) m / m1

The largest micro-batch under that bound is the second trial. Two trials give the line itself, and it the answer, which
is the third. Allocated bytes are what lies on a line. What an allocator holds beyond them is added as it was seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


SMALL = 2
"""Where nothing is known, the first micro-batch to try: with 1, batch norm has nothing to take a variance of."""


@dataclass(frozen=True, order=True)
class Point:
    """A trial that went well. peaks: allocated at the peak of each phase, which have a line each. All in bytes.

    slack: what the allocator held beyond what was allocated.
    """

    micro_batch: int
    kept: int
    peaks: tuple[int, ...]
    slack: int = 0


def predicted(points: Sequence[Point], micro_batch: int) -> int:
    """Bytes that the allocator holds at the peak: on the line through the two largest points, or at most, from one."""
    last = max(points)
    if len(points) == 1:
        peaks = [last.kept + -(-(peak - last.kept) * micro_batch // last.micro_batch) for peak in last.peaks]
        return max(peaks) + -(-last.slack * micro_batch // last.micro_batch)
    before = max(point for point in points if point is not last)
    steps, run = micro_batch - last.micro_batch, last.micro_batch - before.micro_batch

    def line(at_last: int, at_before: int) -> int:
        return at_last + -(-max(0, at_last - at_before) * steps // run)

    return max(map(line, last.peaks, before.peaks)) + line(last.slack, before.slack)


def largest_predicted(points: Sequence[Point], capacity: int, top: int) -> int:
    """The largest micro-batch up to `top` whose predicted bytes are within the capacity; 0 where none is."""
    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if predicted(points, middle) <= capacity else (low, middle - 1)
    return low


class Search:
    """Which micro-batch to try next; `next` is None once `largest`, the largest that fits so far, is the largest.

    prediction: the largest as the first two trials predict it.
    """

    def __init__(self, top: int, first: int = SMALL) -> None:
        """top: the largest allowed. first: the largest as it is predicted, or SMALL where nothing is known."""
        self.top = top
        self.points: list[Point] = []
        self.largest = 0
        self.too_large = top + 1
        self.prediction: int | None = None
        self.next: int | None = min(max(first, 1), top)

    def tried(self, micro_batch: int, point: Point | None, capacity: int | None) -> None:
        """How a trial went. point: None where it does not fit. capacity: bytes that may be taken; None: unknown."""
        if point is None:
            self.too_large = min(self.too_large, micro_batch)
        else:
            self.points.append(point)
            self.largest = max(self.largest, micro_batch)
        self.next = self._next(capacity)

    def _next(self, capacity: int | None) -> int | None:
        low, high = self.largest, self.too_large
        if high - low <= 1:
            return None
        if not self.points:
            return min(SMALL, high - 1)
        if capacity is None:  # trial and error alone
            return min(2 * low, self.top) if high > self.top else (low + high) // 2
        guess = largest_predicted(self.points, capacity, high - 1)
        if len(self.points) <= 2:
            self.prediction = guess
        if guess > low:
            # A micro-batch that failed and that the line would let through shows the line to be wrong.
            wrong = high <= self.top and predicted(self.points, high) <= capacity
            return (low + high) // 2 if wrong else guess
        return self._doubtful(capacity) if len(self.points) == 1 else None

    def _doubtful(self, capacity: int) -> int | None:
        """One trial alone gives a bound, not the line: where the room left is much of a sample's share, ask again."""
        (point,) = self.points
        if point.micro_batch <= SMALL:
            return point.micro_batch + 1
        share = (max(point.peaks) - point.kept) // point.micro_batch
        if 5 * (capacity - point.slack - max(point.peaks)) < 4 * share:
            return None
        return max(SMALL, point.micro_batch // 2)
