"""`Accumulator.run`: the loop in one call. Where memory runs out, micro-batches are halved and their group begins anew.

Nobody waits for a rank that repeats: under DDP all passes of a group run unsynchronised, as with reduce='after', and
the first collective is that of `step()`, which a rank reaches when its group is whole. So ranks need not agree on what
fits, each splits as it has to, and the price is that the reduction does not overlap with the last backward pass.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from gradaccum.torch.accumulate.errors import AccumulationError
from gradaccum.torch.accumulate.rng import random_state, set_random_state
from gradaccum.torch.probe.errors import is_out_of_memory

if TYPE_CHECKING:
    from gradaccum.torch.accumulate.group import Group
    from gradaccum.torch.accumulate.state import State
    from gradaccum.torch.accumulate.sums import LossOf
    from gradaccum.torch.accumulate.update import Update

Split: TypeAlias = Callable[[Any, int], Sequence[Any]]


class Updates(Iterator["Update"]):
    """The updates of a run, each made when it is asked for. One that nobody asks for the first is warned of."""

    def __init__(self, updates: Generator[Update, None, None]) -> None:
        self._updates, self._asked = updates, False

    def __next__(self) -> Update:
        self._asked = True
        return next(self._updates)

    def close(self) -> None:
        """No further update."""
        self._asked = True
        self._updates.close()

    def __del__(self) -> None:
        if not self._asked:
            warnings.warn(
                "accumulator.run(...) trained nothing, since nobody went through its updates: write `for update in "
                "accumulator.run(...)`",
                stacklevel=2,
            )


def run_groups(
    groups: Iterable[Group], state: State, loss_of: LossOf, split: Split, count: Callable[[Any], int | None], mean: bool
) -> Generator[Update, None, None]:
    """The update of each group. See Accumulator.run."""
    for group in groups:
        if state.sync.sharded:
            _run_once(group, loss_of, mean)
        else:
            _Attempts(group, state, loss_of, split, count, mean).run()
        yield group.step()


def _run_once(group: Group, loss_of: LossOf, mean: bool) -> None:
    """Of a sharded model, whose passes are collectives: no rank can repeat one."""
    try:
        for batch in group:
            group.answer_in_parts([batch], loss_of, mean)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise AccumulationError(
            "memory ran out, and a sharded model's passes are collectives, which no rank can repeat alone: find what "
            "fits before training with gradaccum.torch.find_micro_batch, and start anew from the last checkpoint"
        ) from error


class _Attempts:
    """One group, begun anew with smaller parts until its passes fit."""

    def __init__(
        self,
        group: Group,
        state: State,
        loss_of: LossOf,
        split: Split,
        count: Callable[[Any], int | None],
        mean: bool,
    ) -> None:
        self._group, self._state = group, state
        self._loss_of, self._split, self._count, self._mean = loss_of, split, count, mean
        self._start = _Start(group, state)
        self._seen: list[Any] = []  # the group's micro-batches so far, for as long as it may begin anew

    def run(self) -> None:
        """All its passes. Where anything but memory ends them, all is as it was before the group."""
        try:
            for batch in self._group:
                self._seen.append(batch)
                waiting = [batch]
                while not all(self._answer(each) for each in waiting):
                    self._start.restore()
                    self._free()
                    waiting = self._seen
        except BaseException:
            self._start.restore()
            self._state.open = None
            raise

    def _answer(self, batch: Any) -> bool:
        """Its passes, in parts; whether there was memory for them."""
        try:
            parts = self._parts(batch, self._state.split)
            self._group.split = self._state.split
            self._group.answer_in_parts(parts, self._loss_of, self._mean)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._halve(batch, error)
            return False
        return True

    def _halve(self, batch: Any, error: Exception) -> None:
        """From here on in twice as many parts. Raises AccumulationError where the batch has no more."""
        parts = len(self._parts(batch, self._state.split))
        if len(self._parts(batch, 2 * self._state.split)) <= parts:
            raise AccumulationError(
                f"memory ran out, and a batch in {parts} part{'s' * (parts > 1)} cannot be split further: free memory "
                "(activation checkpointing, shorter sequences, fewer bytes of optimizer state); `gradaccum fit` says "
                "what takes it. All is as it was before this group"
            ) from error
        self._state.split *= 2
        warnings.warn(
            f"memory ran out: each micro-batch is split in {self._state.split} from here on, and this group begins "
            "anew; gradaccum.torch.find_micro_batch finds before training what fits",
            stacklevel=2,
        )

    def _parts(self, batch: Any, number: int) -> Sequence[Any]:
        if number == 1:
            return [batch]
        parts = self._split(batch, number)
        if not isinstance(parts, (list, tuple)) or not parts:
            raise AccumulationError(f"split returns a list of batches, not {parts!r:.80}")
        whole, counts = self._count(batch), [self._count(each) for each in parts]
        if whole is not None and None not in counts and sum(counts) != whole:  # type: ignore[arg-type]
            raise AccumulationError(
                f"split made parts of {counts} samples of a batch that has {whole}: together they are the batch"
            )
        return parts

    def _free(self) -> None:
        """What the failed pass held, which went with its error: garbage in cycles, and what the allocator keeps."""
        gc.collect()
        if self._state.device.type != "cpu":
            torch.get_device_module(self._state.device).empty_cache()


class _Start:
    """What the passes of a group change, as it was before them: gradients, sums, random numbers, the models' buffers,
    such as BatchNorm's statistics.
    """

    def __init__(self, group: Group, state: State) -> None:
        self._group, self._state = group, state
        self._random = random_state(state.device)
        self._sums = state.carried and state.carried.copy()
        self._gradients = _copies(state.all_gradients()) if state.carried else []
        self._lost = _copies(state.buffers.lost(state.parameters)) if state.carried and state.buffers else []
        modules = dict.fromkeys(each for model in state.sync.models for each in model.modules())
        self._buffers = [
            (module, name, each, None if each is None else each.clone())
            for module in modules
            for name, each in module._buffers.items()
        ]

    def restore(self) -> None:
        """As often as it takes."""
        state = self._state
        state.zero_grad()
        self._group.begin_anew(self._sums and self._sums.copy())
        if self._sums:
            state.put_gradients(_copies(self._gradients))
        if self._lost and state.buffers:
            state.buffers.put_lost(state.parameters, _copies(self._lost))
        with torch.no_grad():
            for module, name, buffer, value in self._buffers:
                module._buffers[name] = buffer
                if buffer is not None and value is not None:
                    buffer.copy_(value)
        set_random_state(state.device, self._random)


def _copies(tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    return [None if each is None else each.clone() for each in tensors]
