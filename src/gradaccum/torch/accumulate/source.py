"""Where micro-batches come from, and what all ranks know of how many there will be.

A sized loader tells the number of its batches, so that one all-gather at its start says for every group how many
micro-batches each rank has in it. Of an unsized one nobody knows the end: the ranks agree on whether anyone goes on,
before each group, or before each micro-batch where a forward pass is a collective or a weight ends the group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from gradaccum.torch.accumulate.errors import AccumulationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gradaccum.torch.accumulate.state import State


class Source:
    """One pass over a loader. Of the group that has begun, mode: how it is reduced; steps: its micro-batches on each
    rank, None where a weight ends it; planned: those that this rank's loader has, None where that is not known.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        state: State,
        until_weight: float | None,
        may_skip: bool,
        count: Callable[[Any], int | None],
    ) -> None:
        self.until_weight, self.count = until_weight, count
        self._state, self._sync = state, state.sync
        self._batches = iter(loader)
        self._first: tuple[Any] | None = None
        self._waiting: tuple[Any] | None = None
        self.mode = self._sync.mode
        self.planned: int | None = None
        self.steps: int | None = None
        self._carried = 0  # micro-batches that the group had when it began
        self._lengths = self._known_lengths(loader) if until_weight is None else None
        self._ends_known = self._lengths is not None and not may_skip
        if self._sync.sharded and (may_skip or self.mode == "after"):
            raise AccumulationError("a sharded model's passes are collectives, so that no rank can leave one out")
        if not self._ends_known and self._sync.needs_the_end():
            self.mode = "every" if self._sync.sharded else self._after()

    def reduce_after(self) -> None:
        """Under DDP all passes of a group run without reduction, whatever the ranks know of its end."""
        if self._sync.kind == "ddp":
            self.mode = self._after()

    def _after(self) -> str:
        self._sync.check_deferral()
        return "after"

    def _known_lengths(self, loader: Iterable[Any]) -> list[int] | None:
        """Of each rank's loader, in batches that are left; None where one is not sized. torchdata's, once it has loaded
        a state, begins in the middle of its epoch, and its len() is the whole epoch's.
        """
        try:
            own = len(loader) - getattr(self._batches, "_num_yielded", 0)  # type: ignore[arg-type]
        except TypeError:
            own = -1
        lengths = self._sync.gather(own, self._state.device)
        if min(lengths) < 0:
            return None
        if self._sync.sharded:
            return [min(lengths)] * len(lengths)  # no rank can go on alone
        if len(set(lengths)) > 1 and self._state.partial == "carry":
            raise AccumulationError(
                f"partial='carry' needs loaders of equal length on all ranks, and theirs are {lengths}; use 'step' or "
                "'drop'"
            )
        return lengths

    # Groups

    def begin_group(self) -> bool:
        """Whether there is another group; every rank gets the same answer."""
        carried = self._carried = self._state.carried_micro_batches
        self.steps = None if self.until_weight is not None else self._state.steps()
        if self.steps is not None and (self.steps < 1 or self.steps < carried):
            raise AccumulationError(
                f"accum_steps says {self.steps}, and a group has at least 1 micro-batch and those carried, {carried}"
            )
        wanted = None if self.steps is None else self.steps - carried
        if self._lengths is None:
            self.planned = None
            self._first = self._first or self._fetch()
            self._sync.settle()
            there = any(self._sync.gather(int(self._first is not None), self._state.device))
            return there or (carried > 0 and self._ends_restarted(wanted))
        assert wanted is not None
        counts = [min(wanted, left) for left in self._lengths]
        short = self._state.partial == "drop" and min(counts) < wanted
        if short or (max(counts) == 0 and not (carried and self._ends_restarted(wanted))):
            if self._lengths[self._sync.rank] == 0:
                self._fetch()  # its end: a loader learns of it only when it is asked once more
            return False
        self._lengths = [left - count for left, count in zip(self._lengths, counts, strict=True)]
        self.planned = counts[self._sync.rank]
        if self._ends_known and self._sync.kind == "ddp" and self._sync.world > 1:
            alike = min(counts) == max(counts) if self._sync.mode == "every" else min(counts) > 0
            self.mode = self._sync.mode if alike else self._after()
        if self.mode == "after":
            self._sync.settle()
        return True

    def _ends_restarted(self, wanted: int | None) -> bool:
        """Whether a group that a restart brought has all that it will get, and only its step is left."""
        return wanted == 0 or self._state.partial == "step"

    def is_last(self, index: int) -> bool:
        """Whether the group's micro-batch of this number (from 0) is known to be its last, and a step follows."""
        if self.planned is None or index + 1 < self.planned:
            return False
        return self._state.partial != "carry" or self._carried + self.planned == self.steps

    def next(self, index: int, weight: Any) -> tuple[Any] | None:
        """The group's micro-batch of this number, in a tuple; None at its end. weight: of this rank so far."""
        if self.planned is not None:
            if index >= self.planned:
                return None
            found = self._fetch()
            if found is None:
                raise AccumulationError(
                    "the loader ended before its len(): other ranks wait for the micro-batches that it promised; mend "
                    "its __len__, or take it away so that the ranks agree on each group"
                )
            return found
        if self.steps is not None and index + self._carried >= self.steps:
            return None
        while True:
            found, self._first = (self._first, None) if self._first is not None else (self._fetch(), None)
            if self.until_weight is None and not self._sync.sharded:
                return found
            if not self._goes_on(found, weight, index):
                return None
            if found is not None:
                return found
            index += 1  # without a micro-batch of its own, this rank goes on agreeing until the group ends

    def _goes_on(self, found: tuple[Any] | None, weight: Any, index: int) -> bool:
        """Whether the group has another micro-batch; every rank gets the same answer."""
        have = torch.zeros(2, dtype=torch.float64, device=self._state.device)
        have[0], have[1] = float(found is not None), weight
        ranks, reached = self._sync.sum(have).tolist()
        if self.until_weight is not None and index > 0 and reached >= self.until_weight:
            self._waiting = found  # fetched one ahead: it begins the next group
            return False
        return bool(ranks == self._sync.world if self._sync.sharded else ranks)

    def _fetch(self) -> tuple[Any] | None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            return waiting
        for batch in self._batches:
            return (batch,)
        return None
