"""One trial: a person's step, run as it will be trained with, and what it took.

Two micro-steps, because from the second on the gradients of the first are there too; two updates, because the first
one makes the optimizer's state.
"""

from __future__ import annotations

import gc
import time
import traceback
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from gradaccum.errors import InputError
from gradaccum.torch.build import NO_GRADIENT
from gradaccum.torch.probe.answer import Trial
from gradaccum.torch.probe.errors import first_line, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gradaccum.torch.probe.meter import Meter
    from gradaccum.torch.trace.record import Job

ACCUM_STEPS = UPDATES = 2

MICRO_STEP = "in a micro-step"

LEAST_SECONDS, ENOUGH_SECONDS, LEAST_UPDATES = 0.3, 3.0, 3
"""A step is timed for at least so long, and over so many updates unless they take longer than is enough."""


def run_trial(make: Callable[[], Job], meter: Meter, micro_batch: int, *, timed: bool = True) -> Trial:
    """Run the job and measure it. Where memory runs out the trial says so; all else that is raised is raised on.

    Raises InputError for a step that makes no gradient.
    """
    phase = ["while building"]
    try:
        trial = _measured(make, meter, micro_batch, timed, phase)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        why = f"out of memory {_where(error, phase[-1])}: {first_line(error)}"
        trial = Trial(micro_batch=micro_batch, ok=False, capacity_bytes=meter.capacity, out_of_memory=True, why=why)
        # The frames that the error came through hold the step's tensors.
        _let_go(error)
        gc.collect()
    meter.clean()
    return trial


def _measured(make: Callable[[], Job], meter: Meter, micro_batch: int, timed: bool, phase: list[str]) -> Trial:
    """phase: grows by where the trial is."""
    with meter:
        watched = _Watched(make(), meter)
        for update in range(UPDATES):
            for micro_step in range(ACCUM_STEPS):
                phase.append(MICRO_STEP)
                with nullcontext() if update or micro_step else _gradients_come(watched.job):
                    watched.micro_step()
            phase.append("in the optimizer's update")
            watched.update()
        reserved, flushes = meter.reserved(), meter.flushes()
        if meter.keeps_time and timed and not flushes:
            watched.time()
    if not meter.keeps_time and timed:
        watched.time()
    why = f"it fits only by giving back cached memory, {flushes} times in {UPDATES} updates, which is slow"
    return Trial(
        micro_batch=micro_batch,
        ok=not flushes,
        capacity_bytes=meter.capacity,
        kept_bytes=watched.kept,
        step_bytes=watched.step_bytes,
        update_bytes=watched.update_bytes,
        reserved_bytes=reserved,
        step_seconds=_median(watched.step_seconds) if timed and not flushes else None,
        update_seconds=_median(watched.update_seconds) if timed and not flushes else None,
        why=why if flushes else "",
    )


@contextmanager
def _gradients_come(job: Job) -> Iterator[None]:
    """Around a micro-step. InputError where none of the optimizer's parameters gets a gradient in it.

    Seen as it arrives, for an optimizer that steps within the backward pass leaves none.
    """
    trained = [each for group in job.optimizer.param_groups for each in group["params"] if each.requires_grad]
    arrived: list[torch.Tensor] = []
    handles = [each.register_post_accumulate_grad_hook(arrived.append) for each in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if not arrived and all(each.grad is None for each in trained):
        raise InputError(NO_GRADIENT)


class _Watched:
    """A job whose micro-steps and updates are measured."""

    def __init__(self, job: Job, meter: Meter) -> None:
        self.job, self.meter = job, meter
        self.step_bytes = self.update_bytes = self.kept = 0
        self.step_seconds: list[float] = []
        self.update_seconds: list[float] = []

    def micro_step(self) -> None:
        self.meter.begin_phase()
        self.step_seconds.append(self._seconds(self.job.step))
        self.step_bytes = max(self.step_bytes, self.meter.peak())
        self.kept = max(self.kept, kept_bytes(self.job))

    def update(self) -> None:
        self.meter.begin_phase()
        self.update_seconds.append(self._seconds(self._update))
        self.update_bytes = max(self.update_bytes, self.meter.peak())

    def time(self) -> None:
        """More updates, unwatched, until there is enough to time; those that were watched count where that is free."""
        if self.meter.keeps_time:  # the first update warms up
            del self.step_seconds[:ACCUM_STEPS], self.update_seconds[:1]
        else:
            self.step_seconds, self.update_seconds = [], []
        while self._too_short():
            self.step_seconds += [self._seconds(self.job.step) for _ in range(ACCUM_STEPS)]
            self.update_seconds.append(self._seconds(self._update))

    def _too_short(self) -> bool:
        seconds, updates = sum(self.step_seconds) + sum(self.update_seconds), len(self.update_seconds)
        return not updates or seconds < LEAST_SECONDS or (updates < LEAST_UPDATES and seconds < ENOUGH_SECONDS)

    def _update(self) -> None:
        if self.job.update is not None:
            self.job.update()
        else:
            self.job.optimizer.step()
            self.job.optimizer.zero_grad()

    def _seconds(self, do: Callable[[], object]) -> float:
        self.meter.wait()
        start = time.perf_counter()
        do()
        self.meter.wait()
        return time.perf_counter() - start


def kept_bytes(job: Job) -> int:
    """Of parameters, buffers, gradients and the optimizer's states: what is there whatever the micro-batch."""
    tensors: list[Any] = [*job.module.parameters(), *job.module.buffers()]
    tensors += [each.grad for each in job.module.parameters()]
    tensors += tree_leaves(list(job.optimizer.state.values()))
    storages = {
        each.untyped_storage()._cdata: each.untyped_storage().nbytes()
        for each in tensors
        if isinstance(each, torch.Tensor) and each.layout is torch.strided and each.device.type != "meta"
    }
    return sum(storages.values())


def _let_go(error: BaseException | None) -> None:
    """Empty the frames of an error and of those that it came from."""
    while error is not None and error.__traceback__ is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _where(error: BaseException, phase: str) -> str:
    """The phase; of a micro-step whether it was in the backward pass."""
    if phase != MICRO_STEP:
        return phase
    names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    return "in backward" if "_engine_run_backward" in names else "in forward"


def _median(values: list[float]) -> float | None:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else None
