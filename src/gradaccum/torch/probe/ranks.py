"""Several ranks, one answer: after each trial all ranks take the worst of what each has found.

What a rank fails with, it tells the others in the same exchange, so that none waits for it.
"""

from __future__ import annotations

import datetime
import os
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from gradaccum.errors import InputError, Problem
from gradaccum.torch.probe.answer import Trial
from gradaccum.torch.probe.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

UNKNOWN = 2**62
"""Stands for None where the least counts."""

_FAILED, _TIME, _MEMORY, _OK = range(4)
_RANKS = 2**32


class Ranks:
    """This rank and the others. `world`: how many there are."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.world = distributed.get_world_size(group) if group is not None else 1
        self.rank = distributed.get_rank(group) if group is not None else 0

    def least(self, values: Sequence[int], micro_batch: int) -> list[int]:
        """Of each value the least over all ranks. Raises ProbeError where a rank does not answer in time."""
        if self.group is None:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.int64, device="cpu")
        try:
            distributed.all_reduce(tensor, op=distributed.ReduceOp.MIN, group=self.group)
        except RuntimeError as error:
            said = str(error).strip().split("\n")[0]
            raise ProbeError(f"micro-batch {micro_batch}: another rank went away: {said}", micro_batch) from error
        return [int(each) for each in tensor.tolist()]

    def same(self, **values: int) -> None:
        """Raise InputError, on every rank, where the ranks were asked for different things."""
        given = list(values.values())
        agreed = self.least([*given, *(-each for each in given)], 0)
        for i, (name, value) in enumerate(values.items()):
            least, most = agreed[i], -agreed[len(given) + i]
            if least != most:
                raise InputError(Problem(name, f"is not the same on all ranks: {value} here, from {least} to {most}"))

    def attempt(self, attempt: Callable[[int], tuple[Trial, str]], micro_batch: int) -> tuple[Trial, str]:
        """The trial of every rank, as the worst of them; what limits this one.

        Raises what this rank's trial raised; ProbeError where another's did.
        """
        if self.group is None:
            return attempt(micro_batch)
        try:
            trial, limited_by = attempt(micro_batch)
        except BaseException:
            self.least([self._state(_FAILED), *_numbers(Trial(micro_batch=micro_batch, ok=False))], micro_batch)
            raise
        status = _OK if trial.ok else _MEMORY if trial.out_of_memory else _TIME
        state, *numbers = self.least([self._state(status), *_numbers(trial)], micro_batch)
        worst, rank = divmod(state, _RANKS)
        if worst == _FAILED:
            raise ProbeError(f"micro-batch {micro_batch}: rank {rank} failed; its own message says why", micro_batch)
        if worst == _OK:
            return replace(trial, **_fields(numbers)), limited_by
        why = trial.why or f"it does not fit on rank {rank}"
        return Trial(
            micro_batch=micro_batch,
            ok=False,
            capacity_bytes=_fields(numbers)["capacity_bytes"],
            out_of_memory=worst == _MEMORY,
            why=why,
        ), limited_by

    def _state(self, status: int) -> int:
        """How a trial went and where, so that the least of all ranks says which rank is the worst."""
        return status * _RANKS + self.rank


@contextmanager
def ranks(timeout: float) -> Iterator[Ranks]:
    """All ranks of the default process group, or this process alone. timeout: seconds that one waits for another.

    Raises InputError under torchrun without a process group: then nobody knows the others.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        world = os.environ.get("WORLD_SIZE", "1")
        if world not in {"", "1"} and os.environ.get("RANK"):
            said = f"WORLD_SIZE is {world}; for the ranks to agree, call torch.distributed.init_process_group() first"
            raise InputError(Problem("", said))
        yield Ranks()
        return
    # On the host, whatever the default group is: a GPU that ran out of memory may not have the room to agree.
    group = distributed.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout))
    try:
        yield Ranks(group)
    finally:
        distributed.destroy_process_group(group)


@contextmanager
def torchrun() -> Iterator[bool]:
    """Join the ranks that torchrun has started, for as long as this is entered. Whether this is the first, or alone."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield True
        return
    distributed.init_process_group("gloo")
    try:
        yield distributed.get_rank() == 0
    finally:
        distributed.destroy_process_group()


_MOST = ("kept_bytes", "step_bytes", "update_bytes", "reserved_bytes")
_TIMES = ("step_seconds", "update_seconds")


def _numbers(trial: Trial) -> list[int]:
    """A trial's figures as integers of which the least is the worst. Bytes; nanoseconds."""
    most = [-(getattr(trial, name) or 0) for name in _MOST]
    times = [-round((getattr(trial, name) or 0) * 1e9) for name in _TIMES]
    return [UNKNOWN if trial.capacity_bytes is None else trial.capacity_bytes, *most, *times]


def _fields(numbers: Sequence[int]) -> dict[str, Any]:
    """What `_numbers` was made from; 0 is None."""
    capacity, *rest = numbers
    found: dict[str, Any] = {"capacity_bytes": None if capacity == UNKNOWN else capacity}
    found |= {name: -number or None for name, number in zip(_MOST, rest)}
    found |= {name: -number / 1e9 or None for name, number in zip(_TIMES, rest[len(_MOST) :])}
    return found
