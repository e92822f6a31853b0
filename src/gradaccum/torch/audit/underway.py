"""The group that is open, and the record of it: numbers may still be on the device, and are fetched at its end."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from gradaccum.torch.audit.records import Event, OptimizerSeen, Pass, UpdateSeen
from gradaccum.torch.audit.sketch import Witness

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer

    from gradaccum.torch.audit.weights import Instrument

SCALE_FREE = (
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "Adagrad",
    "Adadelta",
    "RMSprop",
    "Rprop",
    "Adafactor",
    "Lion",
)
"""Optimizers whose step does not change with the gradient's scale, epsilon apart."""


class Watched:
    """One optimizer, and the group that is open."""

    def __init__(self, optimizer: Optimizer, index: int) -> None:
        self.optimizer = weakref.ref(optimizer)
        self.index, self.number, self.count = index, 0, 0
        self.witness = Witness(optimizer)
        self.passes: list[OpenPass] = []
        self.events: list[Happened] = []
        self.before: torch.Tensor | None = None
        self.received: torch.Tensor | None = None
        self.grad_scale = 1.0
        self.last: UpdateSeen | None = None
        self.pending: Any = None

    def described(self) -> OptimizerSeen:
        """The optimizer as plain data."""
        optimizer = self.optimizer()
        assert optimizer is not None
        name = type(optimizer).__name__
        trained = [each for group in optimizer.param_groups for each in group["params"] if each.requires_grad]
        return OptimizerSeen(
            name=name,
            scale_free=name.removeprefix("Fused").startswith(SCALE_FREE),
            parameters=sum(each.numel() for each in trained),
            gradient_bytes=sum(each.numel() * each.element_size() for each in trained),
            sharded=self.witness.sharded,
        )

    def receive(self, optimizer: Optimizer) -> None:
        """What lies in the gradients now, which the optimizer is about to use."""
        self.received = self.witness.gradients()
        scale = getattr(optimizer, "grad_scale", None)
        self.grad_scale = 1.0 if scale is None else float(scale)

    def next(self, update: UpdateSeen) -> None:
        """Begin the group after this update."""
        self.last = update
        self.number += 1
        self.count = 0
        self.passes, self.events, self.received, self.pending = [], [], None, None


class Happened:
    """An event whose numbers may still be on the device."""

    def __init__(self, name: str, values: tuple[Any, ...]) -> None:
        self.name, self.values = name, values

    def settled(self) -> Event:
        """With its numbers; waits for the device."""
        return Event(self.name, [float(each) for each in self.values])


class OpenPass:
    """A backward pass whose numbers may still be on the device."""

    def __init__(
        self,
        site: str,
        instrument: Instrument,
        calls: tuple[list[int | None], list[int | None]],
        serial: int,
        sketches: tuple[torch.Tensor | None, ...],
        reduces: bool | None,
        dtype: str,
        events: list[Happened],
        by_name: bool,
    ) -> None:
        self.site, self.instrument, self.calls, self.serial = site, instrument, calls, serial
        self.reduces, self.dtype = reduces, dtype
        self.sketches, self.events, self.by_name = sketches, events, by_name

    def settled(self) -> Pass:
        """With its numbers; waits for the device."""
        terms = self.instrument.settle()
        before, heard, after = (None if each is None else each.tolist() for each in self.sketches)
        events = [each.settled() for each in self.events]
        calls, unlearnt = self.calls
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
        )
