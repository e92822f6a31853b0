"""`find_micro_batch`: the micro-batch and accumulation steps that make a target batch, fastest on this hardware."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from gradaccum.core.arithmetic import divide
from gradaccum.errors import InputError, Problem, nearest_words
from gradaccum.torch.build import described, name_of
from gradaccum.torch.probe.answer import Found, Pair, Trial
from gradaccum.torch.probe.apart import Apart, refuse_inside
from gradaccum.torch.probe.errors import ProbeError
from gradaccum.torch.probe.live import Live
from gradaccum.torch.probe.ranks import Ranks, ranks
from gradaccum.torch.probe.search import SMALL, Point, Search
from gradaccum.torch.trace.record import OPTIMIZERS
from gradaccum.units import at_least, read_bytes, read_count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PICKS = ("throughput", "largest")

TIMED = 3
"""The pairs with the largest micro-batches are timed, so many of them; the fastest is seldom a smaller one."""


def find_micro_batch(
    build: Callable[..., Any] | str | None = None,
    *,
    target_batch: int,
    num_gpus: int | None = None,
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | str = "adamw",
    step: Callable[[int], object] | None = None,
    update: Callable[[], object] | None = None,
    also: Sequence[object] = (),
    memory_limit: int | str | None = None,
    device: torch.device | str | None = None,
    max_micro_batch: int | None = None,
    prediction: Any = None,
    pick: str = "throughput",
    timeout: float = 600.0,
    on_trial: Callable[[Trial], object] | None = None,
) -> Found:
    """Try micro-batches on this machine, few and as a rule none too large, and choose a pair that keeps the batch.

    build: a function at the top of a module, or its name `module:function`; each trial runs `build(micro_batch)` in a
        process of its own (docs/probe.md says what it returns). Its batch has the longest sequences of the data.
    model, optimizer, step, update, also: in place of build, what is here already. `step(micro_batch)` is a
        forward, loss and backward. After each trial all is as it was, to the bit.
    target_batch: samples of one update, over all ranks. num_gpus: the ranks; those of the process group if not given.
    memory_limit: bytes, or text such as `2GiB`; what is free if not given. device: `cpu`, `cuda`, `cuda:1`.
    max_micro_batch: no larger ones are tried. prediction: the largest micro-batch as it is expected, an answer
        of `gradaccum.fit`, or a function of the micro-batch that gives the bytes at the peak.
    pick: `throughput`, the most samples per second, or `largest`. timeout: seconds for one trial apart.
    on_trial: called with each Trial as it ends.

    With a process group all ranks try the same, and the worst of them counts. Raises InputError for what makes no
    sense, and ProbeError where a trial apart fails otherwise than by memory or time; a live step's own error is raised.
    """
    if pick not in PICKS:
        raise InputError(Problem("pick", f"is {' or '.join(PICKS)}, not {pick!r}", PICKS))
    target_batch = _count(target_batch, "target_batch")
    limit = read_bytes(memory_limit, "memory_limit", 1) if isinstance(memory_limit, str) else memory_limit
    if limit is not None:
        limit = _count(limit, "memory_limit")
    if not isinstance(timeout, (int, float)) or not timeout > 0:
        raise InputError(Problem("timeout", f"is a number of seconds above 0, not {timeout!r}", ["600"]))
    where = str(device) if device is not None else _device(model)
    tries: Apart | Live
    if build is not None:
        refuse_inside()
        if model is not None or step is not None:
            raise InputError(Problem("build", "is given, and so is a live model; leave one out"))
        if not isinstance(optimizer, str):
            said = f"{type(optimizer).__name__} belongs to a live model; let build return (model, optimizer, step)"
            raise InputError(Problem("optimizer", f"is a name where a build is tried: {said}"))
        if optimizer not in OPTIMIZERS:
            nearest = nearest_words(optimizer, OPTIMIZERS) or OPTIMIZERS
            raise InputError(Problem("optimizer", f"is unknown: {optimizer!r}", nearest))
        tries = Apart(name_of(build), where, limit, optimizer, timeout)
    else:
        missing = [name for name, value in (("model", model), ("step", step)) if value is None]
        if missing or model is None or step is None:
            raise InputError(*[Problem(name, "is missing, and so is build; give one") for name in missing])
        if isinstance(optimizer, str):
            raise InputError(Problem("optimizer", "is the model's own, where a live model is tried"))
        if not isinstance(model, torch.nn.Module):
            raise InputError(Problem("model", f"is a torch.nn.Module, not {described(model)}"))
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InputError(Problem("optimizer", f"is a torch.optim.Optimizer, not {described(optimizer)}"))
        tries = Live(model, optimizer, step, update, also, where, limit)
    with ranks(timeout + 60) as all_ranks:
        num_gpus = _count(all_ranks.world if num_gpus is None else num_gpus, "num_gpus")
        top = -(-target_batch // num_gpus)
        if max_micro_batch is not None:
            top = min(top, _count(max_micro_batch, "max_micro_batch"))
        all_ranks.same(target_batch=target_batch, num_gpus=num_gpus, max_micro_batch=top, pick=PICKS.index(pick))
        probe = _Probe(tries, all_ranks, where, on_trial)
        return probe.answer(target_batch, num_gpus, top, prediction, pick)


class _Probe:
    """The trials so far, and what follows from them."""

    def __init__(
        self, tries: Apart | Live, all_ranks: Ranks, device: str, on_trial: Callable[[Trial], object] | None
    ) -> None:
        self.tries, self.ranks, self.device, self.on_trial = tries, all_ranks, device, on_trial
        self.trials: list[Trial] = []
        self.capacity: int | None = None
        self.limited_by = "not known"

    def answer(self, target_batch: int, num_gpus: int, top: int, prediction: Any, pick: str) -> Found:
        """Search, time, choose."""
        timed = pick == "throughput"
        search = self._search(top, prediction, timed)
        pairs = pairs_of(target_batch, num_gpus, search.largest)
        chosen = pairs[0] if pairs else None
        if timed:
            pairs, chosen = self._timed(pairs)
        return Found(
            target_batch=target_batch,
            num_gpus=num_gpus,
            capacity_bytes=self.capacity,
            capacity_from=self.limited_by,
            device=self.device,
            max_micro_batch=search.largest,
            chosen=chosen,
            pairs=tuple(pairs),
            trials=tuple(self.trials),
            prediction=search.prediction if prediction is None else self._first,
            predicted_by="the line through the first trials" if prediction is None else "what was given",
            pick=pick,
            notes=tuple(self._notes(target_batch, num_gpus, search.largest, pairs, chosen)),
        )

    def _search(self, top: int, prediction: Any, timed: bool) -> Search:
        limit = self.tries.memory_limit
        expected = getattr(prediction, "max_micro_batch", prediction)
        if callable(expected):
            bytes_at = expected
            expected = None if limit is None else _largest(bytes_at, limit, top)
        else:
            bytes_at = None
            if expected is not None and (not isinstance(expected, int) or isinstance(expected, bool)):
                said = f"is a micro-batch, an answer of fit or a function, not {type(expected).__name__}"
                raise InputError(Problem("prediction", said))
        (self._first,) = self.ranks.least([SMALL if expected is None else expected], 0)
        search = Search(top, self._first)
        while search.next is not None:
            trial = self._attempt(search.next, timed)
            search.tried(trial.micro_batch, _point(trial), self.capacity)
            if bytes_at is not None and expected is None and self.capacity is not None and search.next is not None:
                # What may be taken is known from the first trial on.
                self._first = expected = _largest(bytes_at, self.capacity, top)
                search.next = max(search.largest + 1, expected)
        return search

    def _attempt(self, micro_batch: int, timed: bool) -> Trial:
        try:
            trial, limited_by = self.ranks.attempt(lambda size: self.tries.attempt(size, timed), micro_batch)
        except ProbeError as error:
            error.trials = tuple(self.trials)
            raise
        self.trials.append(trial)
        if trial.capacity_bytes is not None:
            self.capacity, self.limited_by = trial.capacity_bytes, limited_by
        if self.on_trial is not None:
            self.on_trial(trial)
        return trial

    def _timed(self, pairs: Sequence[Pair]) -> tuple[list[Pair], Pair | None]:
        """The pairs that fit with their rates, and the fastest.

        The largest ones are timed, and smaller ones for as long as the smallest that was timed is the fastest; the
        rates of trials from further below are told, but chance alone makes one of them the fastest.
        """
        done: list[Pair] = []
        fastest, on = None, True
        for number, pair in enumerate(pairs):
            on = on and (number < TIMED or fastest is done[-1])
            trial = next((each for each in self.trials if each.micro_batch == pair.micro_batch), None)
            if trial is None and on and pair.micro_batch >= min(SMALL, pairs[0].micro_batch):
                trial = self._attempt(pair.micro_batch, timed=True)
            if trial is None:
                done.append(pair)
            elif trial.ok:
                done.append(replace(pair, samples_per_second=_samples_per_second(pair, trial)))
                if on and (fastest is None or _rate(done[-1]) > _rate(fastest)):
                    fastest = done[-1]
        return done, fastest

    def _notes(
        self, target_batch: int, num_gpus: int, largest: int, pairs: Sequence[Pair], chosen: Pair | None
    ) -> list[str]:
        if chosen is None:
            return [f"Not even a micro-batch of 1 fits: {self.trials[-1].why}."]
        if chosen.drift:
            return [
                f"No micro-batch that fits makes {target_batch:,} on {num_gpus:,} GPUs: "
                f"{chosen.effective_batch:,} is nearest."
            ]
        if 2 * pairs[0].micro_batch > largest:
            return []
        larger = [pair_of(target_batch, num_gpus, size) for size in range(largest, pairs[0].micro_batch, -1)]
        near = min(larger, key=lambda pair: abs(pair.drift))
        return [
            f"{largest:,} would fit, and none above {pairs[0].micro_batch:,} makes {target_batch:,}. Nearest is "
            f"{near.micro_batch:,} x {num_gpus:,} GPUs x {near.accum_steps:,} = {near.effective_batch:,}."
        ]


def pairs_of(target_batch: int, num_gpus: int, largest: int) -> list[Pair]:
    """The pairs up to the largest micro-batch whose effective batch is nearest to the target, largest first."""
    pairs = [pair_of(target_batch, num_gpus, micro_batch) for micro_batch in range(largest, 0, -1)]
    nearest = min((abs(pair.drift) for pair in pairs), default=0)
    return [pair for pair in pairs if abs(pair.drift) == nearest]


def pair_of(target_batch: int, num_gpus: int, micro_batch: int) -> Pair:
    """The micro-batch with as many accumulation steps as bring it nearest to the target."""
    device_batch = micro_batch * num_gpus
    steps = divide(target_batch, device_batch, "round")
    return Pair(micro_batch, steps, steps * device_batch, steps * device_batch - target_batch)


def _count(value: int | str, field: str) -> int:
    """A count of at least 1. Raises InputError for all else."""
    if isinstance(value, str):
        return read_count(value, field, 1)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(Problem(field, f"must be a whole number, not {value!r}"))
    return at_least(value, 1, field)


def _samples_per_second(pair: Pair, trial: Trial) -> float | None:
    if trial.step_seconds is None or trial.update_seconds is None:
        return None
    return pair.effective_batch / (pair.accum_steps * trial.step_seconds + trial.update_seconds)


def _rate(pair: Pair) -> float:
    return pair.samples_per_second or 0


def _point(trial: Trial) -> Point | None:
    """None where it does not fit."""
    if not trial.ok or trial.step_bytes is None or trial.update_bytes is None:
        return None
    slack = max(0, (trial.reserved_bytes or 0) - (trial.allocated_bytes or 0))
    return Point(trial.micro_batch, trial.kept_bytes or 0, (trial.step_bytes, trial.update_bytes), slack)


def _largest(bytes_at: Callable[[int], int], capacity: int, top: int) -> int:
    """The largest micro-batch that is expected within the capacity; 0 where none is."""
    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if bytes_at(middle) <= capacity else (low, middle - 1)
    return low


def _device(model: torch.nn.Module | None) -> str:
    if isinstance(model, torch.nn.Module):
        return next((str(each.device) for each in model.parameters()), "cpu")
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
