"""The group that is open, and the record of it: numbers may still be on the device, and are fetched at its end."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradaccum.torch.audit.holders import HeldWitness, has_parts, is_holder, loss_scale, trained_by
from gradaccum.torch.audit.records import Event, OptimizerSeen, Pass, UpdateSeen
from gradaccum.torch.audit.sketch import LOW, SAME, Witness, common_factor

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer

    from gradaccum.torch.audit.weights import Instrument

SCALE_FREE = ("Adam", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop", "Rprop", "Adafactor", "Lion")
"""How the names of optimizers begin whose step does not change with the gradient's scale, epsilon apart."""


class Watched:
    """One optimizer, or one that holds copies for it, and the group that is open.

    holds: it is such a holder. stepped: whether PyTorch's optimizer was called in a step of the holder's.
    """

    def __init__(self, optimizer: Any, index: int) -> None:
        self.index, self.number, self.count = index, 0, 0
        self.stepped = False
        self.holds = is_holder(optimizer)
        self._name = type(optimizer.optimizer if self.holds else optimizer).__name__
        parted = self.holds and has_parts(optimizer)
        trained = trained_by(optimizer)
        self.witness = HeldWitness(optimizer) if parted else Witness(trained)
        self._optimizer, self._trained = weakref.ref(optimizer), len(trained)
        self.passes: list[OpenPass] = []
        self.events: list[Happened] = []
        self.before: torch.Tensor | None = None
        self.received: torch.Tensor | None = None
        self.grad_scale = 1.0
        self.last: UpdateSeen | None = None

    def described(self) -> OptimizerSeen:
        """The optimizer as plain data."""
        scale_free = self._name.removeprefix("Fused").startswith(SCALE_FREE)
        return OptimizerSeen(self._name, scale_free, sharded=self.witness.sharded, parted=self.witness.held)

    def grow(self) -> None:
        """Take parameters that have joined the optimizer among the witnesses, between two groups."""
        optimizer = self._optimizer()
        if optimizer is None or self.holds or self.passes:
            return
        trained = trained_by(optimizer)
        if len(trained) > self._trained:
            self.witness.deafen()
            self.witness, self._trained = Witness(trained), len(trained)
            self.witness.listen()

    def receive(self, optimizer: Optimizer) -> None:
        """What lies in the gradients now, which the optimizer is about to use."""
        if isinstance(self.witness, HeldWitness):
            given = self.witness.given(optimizer)
            self.received = given if self.received is None or given is None else self.received + given
            return
        if self.holds:  # its own gradients were looked at before, and may be gone
            return
        self.received = self.witness.gradients()
        scale = getattr(optimizer, "grad_scale", None)
        self.grad_scale = 1.0 if scale is None else float(scale)

    def receive_whole(self, holder: Any) -> None:
        """What lies in the gradients of a holder's parameters, before its step casts, unscales and clips them."""
        self.received, self.grad_scale = self.witness.gradients(), loss_scale(holder)

    def clip(self, norm: float, threshold: float) -> None:
        """The step has clipped: whole gradients after they were looked at, parts before."""
        self.events.append(Happened("clip", (norm, threshold)))
        if self.received is not None and not self.witness.held:
            self.received = self.received * min(1.0, threshold / (norm + 1e-6))

    def next(self, update: UpdateSeen) -> None:
        """Begin the group after this update."""
        self.last = update
        self.number += 1
        self.count = 0
        self.passes, self.events, self.received, self.stepped = [], [], None, False


@dataclass
class Happened:
    """An event whose numbers may still be on the device."""

    name: str
    values: tuple[Any, ...]

    def settled(self) -> Event:
        """With its numbers; waits for the device."""
        return Event(self.name, [float(each) for each in self.values])


@dataclass
class OpenPass:
    """A backward pass whose numbers may still be on the device. sketches: before, heard, after; see records.Pass.

    hooks: sketches before and behind the loop's own hooks, of each parameter.
    """

    site: str
    instrument: Instrument
    calls: tuple[list[int | None], list[int | None]]
    serial: int
    sketches: tuple[torch.Tensor | None, ...]
    reduces: bool | None
    dtype: str
    events: list[Happened]
    by_name: bool
    place: torch.Tensor | None
    hooks: list[tuple[torch.Tensor, torch.Tensor]]

    def settled(self) -> Pass:
        """With its numbers; waits for the device."""
        terms = self.instrument.settle()
        before, heard, after = (None if each is None else each.tolist() for each in self.sketches)
        events = [each.settled() for each in self.events]
        calls, unlearnt = self.calls
        pairs = [(first.tolist(), last.tolist()) for first, last in self.hooks]
        hooked, straight = common_factor(pairs, SAME if self.dtype in ("float32", "float64") else LOW)
        return Pass(
            site=self.site,
            terms=terms,
            calls=calls,
            unlearnt=unlearnt,
            serial=self.serial,
            before=before,
            heard=heard,
            after=after,
            reduces=self.reduces,
            by_name=self.by_name,
            loss_dtype=self.dtype,
            events=events,
            place=None if self.place is None else self.place.tolist(),
            hooked=hooked,
            bent=not straight,
        )
