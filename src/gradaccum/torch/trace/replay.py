"""A trace through an allocator: how much is allocated and reserved, when it is most, and what is alive then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gradaccum.torch.trace import events as ev

if TYPE_CHECKING:
    from gradaccum.torch.trace.events import Mark, Trace


class AllocatorLike(Protocol):
    """What a replay needs of an allocator; `gradaccum.memory.Allocator` is one. All sizes are in bytes."""

    allocated: int
    peak_allocated: int

    @property
    def reserved(self) -> int:
        """Bytes that the device has given."""

    @property
    def peak_reserved(self) -> int:
        """The most of that."""

    def malloc(self, size: int, stream: int = 0) -> int:
        """A handle of a new block."""

    def free(self, handle: int) -> None:
        """The block is given back."""

    def empty_cache(self) -> None:
        """Segments that nobody uses go back to the device."""


class Counter:
    """An allocator that never reuses and never fails: sizes rounded up, and added. reserved is allocated.

    granularity: bytes; the caching allocator's 512 (c10/cuda/CUDACachingAllocator.cpp:kMinBlockSize), or 1 for a CPU.
    """

    def __init__(self, granularity: int = 512) -> None:
        self.granularity = granularity
        self.allocated = self.peak_allocated = 0
        self._sizes: dict[int, int] = {}
        self._handle = 0

    @property
    def reserved(self) -> int:
        """The same as allocated."""
        return self.allocated

    @property
    def peak_reserved(self) -> int:
        """The same as peak_allocated."""
        return self.peak_allocated

    def malloc(self, size: int, stream: int = 0) -> int:
        """A handle of a new block."""
        self._handle += 1
        self._sizes[self._handle] = rounded = -(-size // self.granularity) * self.granularity
        self.allocated += rounded
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return self._handle

    def free(self, handle: int) -> None:
        """The block is given back. KeyError for a handle that is not live."""
        self.allocated -= self._sizes.pop(handle)

    def empty_cache(self) -> None:
        """Nothing is cached."""


@dataclass(frozen=True, kw_only=True)
class Instant:
    """An event of a trace, and where in the step it lies."""

    event: int
    phase: str
    update: int
    micro_step: int
    op: str
    module: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """One kind of block at the peak: bytes as they were asked for, and how many blocks."""

    kind: str
    bytes: int
    blocks: int


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What a replay found, in bytes.

    allocated, reserved: the most over the whole trace. at: the first instant at which `allocated` was reached.
    ledger: what was alive then, by kind; with the last line, which is what the allocator rounded up, it sums to
    `allocated`. by_phase: the most that was allocated in each phase of the last update.
    """

    allocated: int
    reserved: int
    at: Instant
    ledger: tuple[Line, ...]
    by_phase: dict[str, int]


ROUNDING = "rounding"


def replay(trace: Trace, allocator: AllocatorLike) -> Peaks:
    """Every birth and death of the trace, in order. Whatever the allocator raises where memory is out goes through."""
    handles: dict[int, int] = {}
    blocks = trace.blocks
    last = trace.updates - 1
    by_phase: dict[str, int] = {}
    emptied = set(trace.emptied)
    top, top_at, top_mark = -1, 0, trace.marks[0]
    for mark, places in trace.phases():
        most = allocator.allocated
        for place in places:
            event = trace.events[place]
            if place in emptied:
                allocator.empty_cache()
            if event >= 0:
                handles[event] = allocator.malloc(blocks[event].bytes)
                now = allocator.allocated
                if now > most:
                    most = now
                    if now > top:
                        top, top_at, top_mark = now, place, mark
            else:
                allocator.free(handles.pop(~event))
        if mark.update == last and mark.phase != ev.SETUP:
            by_phase[mark.phase] = max(by_phase.get(mark.phase, 0), most)
    return Peaks(
        allocated=allocator.peak_allocated,
        reserved=allocator.peak_reserved,
        at=_instant(trace, top_at, top_mark),
        ledger=ledger(trace, top_at, top),
        by_phase=by_phase,
    )


def ledger(trace: Trace, at: int, allocated: int) -> tuple[Line, ...]:
    """What is alive after event number `at`, by kind, and the rest of `allocated` bytes as rounding."""
    alive: set[int] = set()
    for event in trace.events[: at + 1]:
        if event >= 0:
            alive.add(event)
        else:
            alive.discard(~event)
    sums: dict[str, tuple[int, int]] = {}
    for block in alive:
        size, count = sums.get(trace.blocks[block].kind, (0, 0))
        sums[trace.blocks[block].kind] = size + trace.blocks[block].bytes, count + 1
    lines = [Line(kind=kind, bytes=sums[kind][0], blocks=sums[kind][1]) for kind in ev.KINDS if kind in sums]
    rounded = allocated - sum(line.bytes for line in lines)
    return (*lines, Line(kind=ROUNDING, bytes=rounded, blocks=0))


def _instant(trace: Trace, at: int, mark: Mark) -> Instant:
    event = trace.events[at]
    block = trace.blocks[event if event >= 0 else ~event]
    return Instant(
        event=at,
        phase=mark.phase,
        update=mark.update,
        micro_step=mark.micro_step,
        op=block.op,
        module=block.module,
    )
