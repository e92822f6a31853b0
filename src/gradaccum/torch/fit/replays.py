"""One GPU's memory at any micro-batch: the step's trace through the card's allocator, and what stands beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gradaccum.memory.allocator import Allocator, OutOfMemory
from gradaccum.memory.allocator_settings import Settings
from gradaccum.memory.answer import Memory
from gradaccum.memory.ledger import Line
from gradaccum.memory.outside import CONTEXT, LIBRARY, Outside
from gradaccum.torch.fit import ledger
from gradaccum.torch.trace import events as ev
from gradaccum.torch.trace import replay

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradaccum.memory.evidence import Evidence
    from gradaccum.torch.fit.traces import Traces
    from gradaccum.torch.trace import Peaks, Trace

DDP = "torch/nn/parallel/distributed.py; gradient_as_bucket_view=True saves them"
REPLAY = "what the allocator's model reserved beyond what was allocated"


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU as a process sees it. capacity: bytes for programs. ties: see gradaccum.memory.allocator."""

    capacity: int
    settings: Settings
    ties: str
    num_gpus: int = 1

    @property
    def beside(self) -> tuple[Outside, ...]:
        """What is no tensor and passes no allocator."""
        return (CONTEXT,) if self.num_gpus == 1 else (CONTEXT, LIBRARY)

    @property
    def allowed(self) -> int:
        """Bytes for this process: less where its allocator may have but a share of the card."""
        share = int(self.settings.per_process_memory_fraction * self.capacity)
        return min(self.capacity, share + sum(each.expected for each in self.beside))

    def replay(self, trace: Trace, taken: int = 0) -> Peaks:
        """The peaks on this card, less `taken` bytes; where memory runs out, those on an endless one."""
        room = self.allowed - sum(each.expected for each in self.beside) - taken
        try:
            if room > 0:
                return replay(trace, Allocator(room, self.settings, ties=self.ties, total_memory=self.capacity))
        except OutOfMemory:
            pass
        endless = replace(self.settings, per_process_memory_fraction=1.0)
        return replay(trace, Allocator(None, endless, ties=self.ties))


class Replays:
    """The memory of a step on a card. other_peak: the closed form's peak at a micro-batch, where it was asked too."""

    def __init__(
        self, traces: Traces, card: Card, evidence: Evidence, other_peak: Callable[[int], int] | None = None
    ) -> None:
        self.traces, self.card, self.evidence, self.other_peak = traces, card, evidence, other_peak
        self._known: dict[tuple[int, int], Memory] = {}

    def memory(self, micro_batch: int) -> Memory:
        """At this very micro-batch."""
        key = micro_batch, len(self.traces.seen)
        if key not in self._known:
            self._known[key] = self._memory(self.traces.at(micro_batch), micro_batch)
        return self._known[key]

    def peaks(self, trace: Trace) -> Peaks:
        """Of a trace on this card."""
        return self.card.replay(trace, self._buckets(trace))

    def fits(self, trace: Trace, peaks: Peaks) -> bool:
        """Whether a trace with these peaks is expected to fit on this card."""
        beside = sum(each.expected for each in self.card.beside)
        return peaks.reserved + self._buckets(trace) + beside <= self.card.allowed

    def _buckets(self, trace: Trace) -> int:
        """DDP's buckets are as large as the gradients, and there throughout."""
        if self.card.num_gpus == 1:
            return 0
        return sum({block.name: block.bytes for block in trace.blocks if block.kind == ev.GRADIENT}.values())

    def _memory(self, trace: Trace, micro_batch: int) -> Memory:
        peaks, buckets = self.peaks(trace), self._buckets(trace)
        lines = ledger.lines(trace, peaks)
        if buckets:
            lines = (*lines, Line("DDP's buckets", buckets, "as large as the gradients", DDP))
        slack = peaks.reserved - peaks.allocated
        at_worst = slack * (100 + self.evidence.margin) // 100
        outside = (Outside("allocator slack", 0, slack, at_worst, REPLAY), *self.card.beside, *unseen(trace, peaks))
        other = self.other_peak and self.other_peak(micro_batch)
        at = ledger.instant(trace, peaks)
        return Memory(at, lines, outside, self.evidence, self.card.allowed, other_peak_bytes=other)


def unseen(trace: Trace, peaks: Peaks) -> tuple[Outside, ...]:
    """What may be there and is not counted: the largest workspace, as one is gone before the next comes; and for
    modules that become one operator on a GPU, as much again as their parts keep.
    """
    found = []
    calls = [guess for guess in trace.unknown if guess.most]
    if calls:
        largest = max(calls, key=lambda guess: guess.most)
        words = f"{largest.what}; at most {largest.most:,} bytes are known for {largest.op} (torch/trace/unseen.py)"
        found.append(Outside("workspaces that are not followed", 0, 0, largest.most, words))
    whole = {guess.module: guess for guess in trace.unknown if guess.op in MODULE_OPS}
    if whole:
        kept = sum(
            block.bytes
            for block in ledger.alive(trace, peaks.at.event)
            if block.kind == ev.ACTIVATION and block.module in whole
        )
        words = f"{next(iter(whole.values())).what}; taken to be at most as much again"
        found.append(Outside("reserve of modules that are not followed", 0, 0, kept, words))
    return tuple(found)


MODULE_OPS = frozenset({"aten._cudnn_rnn"})
"""Operators that the meta device splits up (kernels.UNKNOWN_MODULES)."""
