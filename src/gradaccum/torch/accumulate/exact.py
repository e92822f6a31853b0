"""Groups of an exact number of samples, for plans whose last micro-step is smaller: a batch is cut where a group ends.

The rest of that batch begins the next group, as a micro-batch of its own, so that a group may have one more micro-step
than its plan, and no sample is copied, lost or seen twice. The ranks take turns at the samples that do not come out
even, so that loaders of equal length end together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradaccum.torch.accumulate.errors import AccumulationError
from gradaccum.torch.accumulate.source import Source
from gradaccum.torch.accumulate.split import cut, samples_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gradaccum.torch.accumulate.state import State


class ExactSource(Source):
    """A source whose groups have `state.exact` samples of all ranks together."""

    def __init__(
        self, loader: Iterable[Any], state: State, may_skip: bool, count: Callable[[Any], int | None], exact: int
    ) -> None:
        super().__init__(loader, state, None, may_skip, count)
        self._exact = exact
        self._left = 0  # samples that the group still takes from this rank
        # Each rank sees its last micro-batch coming, by the samples or one batch ahead; of a carried group none does.
        reduces_last = self._sync.mode == "last" and self._sync.world > 1
        self._overlaps = reduces_last and not may_skip and state.partial != "carry"

    def _known_lengths(self, loader: Iterable[Any]) -> None:
        """A length in batches says nothing here: the last one may be short."""

    def begin_group(self) -> bool:
        """Whether there is another group; every rank gets the same answer.

        Raises AccumulationError where a carried group waits for a rank whose loader has ended before the others'.
        """
        state, sync = self._state, self._sync
        self.steps = state.steps()
        self._left = self._share() - (state.carried.seen or 0 if state.carried else 0)
        self._first = self._first or self._fetch()
        sync.settle()
        gives = sync.gather(int(self._first is not None and self._left > 0), state.device)
        if self._overlaps:
            self.mode = "last" if all(gives) else self._after()
        if any(gives) or state.carried is None:
            return any(gives)
        if state.partial == "step" or not any(sync.gather(self._left, state.device)):
            return True  # only its step is left
        if any(sync.gather(int(self._first is not None), state.device)):
            raise AccumulationError(
                "a carried group waits for a rank whose loader has ended, and other ranks have batches left: "
                "partial='carry' needs as many samples on all ranks; use 'step' or 'drop'"
            )
        return False

    def _share(self) -> int:
        """This rank's samples of the group: equal ones, and some ranks one more, in turns that a restart keeps."""
        size, more = divmod(self._exact, self._sync.world)
        turn = (self._state.progress.samples or 0) // self._exact
        return size + ((self._sync.rank - turn * more) % self._sync.world < more)

    def is_last(self, index: int) -> bool:
        """Whether the micro-batch that was taken last is the group's last on this rank, and it is known."""
        return self._overlaps and (self._left == 0 or self._first is None)

    def next(self, index: int, weight: Any) -> tuple[Any] | None:
        """The group's next micro-batch, in a tuple; None at its end."""
        if not self._left:
            return None
        found, self._first = self._first or self._fetch(), None
        if found is None:
            return None
        samples = self._samples(found[0])
        if samples > self._left:
            part, rest = cut(found[0], [self._left, samples - self._left])
            found, self._first, samples = (part,), (rest,), self._left
        self._left -= samples
        if self._overlaps and self._left and self._first is None:
            self._first = self._fetch()
        return found

    def _samples(self, batch: Any) -> int:
        samples, rows = self.count(batch), samples_of(batch)
        if samples is None or (samples > self._left and samples != rows):
            counted = "an unknown number of" if samples is None else samples
            raise AccumulationError(
                f"an exact plan cuts batches where a group ends, and this one ({type(batch).__name__}) has {counted} "
                f"samples in {rows or 'no'} rows: give batches of tensors with one row for each sample, or plan with "
                "rounding='round'"
            )
        return samples
