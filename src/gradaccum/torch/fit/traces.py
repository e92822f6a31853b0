"""The traces of one step at a few micro-batches, and from them its trace at any other.

A step does the same for every micro-batch, but for its sizes: the same blocks are born in the same order, and the bytes
of each are affine in the micro-batch. So two traces of one shape give every trace between and beyond, block by block,
and the peak of each is found by replaying it. The shape changes at some sizes (a dimension of 1 needs no copy, a short
list of indices no sort); then the nearest trace tells the order, and what has no counterpart in the other grows with
the micro-batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gradaccum.torch.trace import Block, Trace


class Traces:
    """Traces by micro-batch. `make(micro_batch)` records one; `seen` holds those that were, in order."""

    def __init__(self, make: Callable[[int], Trace]) -> None:
        self._make = make
        self.seen: dict[int, Trace] = {}
        self._shapes: dict[int, int] = {}

    def record(self, micro_batch: int) -> Trace:
        """The trace of the step itself, which is run unless it was before."""
        if micro_batch not in self.seen:
            trace = self.seen[micro_batch] = self._make(micro_batch)
            self._shapes[micro_batch] = hash((trace.events, tuple(block[1:] for block in trace.blocks)))
        return self.seen[micro_batch]

    def at(self, micro_batch: int) -> Trace:
        """The recorded trace, or one made from the nearest two; of these two of one shape come first.

        ValueError before there are two.
        """
        if micro_batch in self.seen:
            return self.seen[micro_batch]
        one, other = self._pair(micro_batch)
        return between(self.seen[one], self.seen[other], one, other, micro_batch)

    def _pair(self, micro_batch: int) -> tuple[int, int]:
        nearest = sorted(self.seen, key=lambda each: abs(each - micro_batch))
        for place, one in enumerate(nearest):
            for other in nearest[place + 1 :]:
                if self._shapes[one] == self._shapes[other]:
                    return one, other
        one, other = nearest[:2]
        return one, other


def between(trace: Trace, other: Trace, at: int, at_other: int, micro_batch: int) -> Trace:
    """The trace at another micro-batch, from that `at` one and another. Sizes that come out broken are rounded up."""
    ahead, apart = micro_batch - at, at_other - at

    def on_line(here: int, there: int) -> int:
        return max(0, here - (here - there) * ahead // apart)

    def sizes() -> Iterator[int]:
        for here, there in zip((block.bytes for block in trace.blocks), counterparts(trace.blocks, other.blocks)):
            yield on_line(here, there) if there is not None else -(-here * micro_batch // at)

    most = {guess[:3]: guess.most for guess in other.unknown}
    return replace(
        trace,
        blocks=tuple(block._replace(bytes=size) for block, size in zip(trace.blocks, sizes())),
        unknown=tuple(
            guess._replace(most=on_line(guess.most, most.get(guess[:3], guess.most))) for guess in trace.unknown
        ),
    )


def counterparts(blocks: Sequence[Block], others: Sequence[Block]) -> Iterator[int | None]:
    """For each block the bytes of the same one in another trace: the first that an operator makes in a module is the
    first there. None where one of the two makes more.
    """
    if len(blocks) == len(others) and all(one[1:] == other[1:] for one, other in zip(blocks, others)):
        yield from (other.bytes for other in others)
        return
    here, there = _by_maker(blocks), _by_maker(others)
    places = dict.fromkeys(here, 0)
    for block in blocks:
        maker = block[1:]
        place = places[maker]
        places[maker] += 1
        same = there.get(maker, [])
        yield same[place] if len(same) == len(here[maker]) else None


def _by_maker(blocks: Sequence[Block]) -> dict[tuple[str, ...], list[int]]:
    found: dict[tuple[str, ...], list[int]] = {}
    for block in blocks:
        found.setdefault(block[1:], []).append(block.bytes)
    return found
