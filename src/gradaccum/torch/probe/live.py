"""Trials with the model, optimizer and step that a program already has, each of which leaves no trace.

All that a trial changes is kept on the host before it and put back, to the bit, after it: the bytes of every parameter,
buffer, gradient and optimizer state where they lie, so that views and shared tensors stay what they are; the attributes
of all modules and of the optimizer, `training` among them; the random numbers to come.
"""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, defaultdict, deque
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gradaccum.errors import InputError, Problem
from gradaccum.torch.probe.meter import meter_of
from gradaccum.torch.probe.trial import run_trial
from gradaccum.torch.trace.record import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gradaccum.torch.probe.answer import Trial


WAITS_FOR_OTHERS = ("FullyShardedDataParallel", "DeepSpeedEngine", "SyncBatchNorm")
"""Modules whose forward or backward is not one rank's alone."""


@dataclass(frozen=True)
class Live:
    """How to try a micro-batch in this process. step: `step(micro_batch)` is one micro-step.

    update: what follows a group's micro-steps; None: `optimizer.step()` and `optimizer.zero_grad()`.
    also: other objects that a step or an update changes, such as a GradScaler, a scheduler or an average of weights.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[int], object]
    update: Callable[[], object] | None
    also: Sequence[object]
    device: str
    memory_limit: int | None

    def __post_init__(self) -> None:
        parameters = list(self.model.parameters())
        kinds = {type(each).__name__ for each in self.model.modules()}
        waits = [name for name in WAITS_FOR_OTHERS if name in kinds]
        if waits or any(hasattr(each, "device_mesh") for each in parameters):
            said = "is sharded" if not waits else f"has {waits[0]} in it"
            why = "a rank that runs out of memory would leave the others waiting; give a build instead"
            raise InputError(Problem("model", f"{said}: {why}"))
        if any(isinstance(each, torch.nn.parameter.UninitializedTensorMixin) for each in parameters):
            raise InputError(Problem("model", "has parameters that its first forward makes; run it once before"))

    def attempt(self, micro_batch: int, timed: bool = True) -> tuple[Trial, str]:
        """The trial, and what limits it. What the step raises is raised on, once all is as it was."""
        state = Snapshot([*self.model.modules(), self.optimizer, *self.also])
        meter = meter_of(self.device, self.memory_limit, state.tensors)
        gradients = any(each.grad is not None for each in self.model.parameters())

        def update() -> None:
            self.optimizer.step()
            # Gradients that are there stay where they are; beside new ones there would be two sets.
            self.optimizer.zero_grad(set_to_none=not gradients)

        job = Job(
            module=self.model,
            optimizer=self.optimizer,
            step=lambda: self.step(micro_batch),
            update=self.update or update,
        )
        with ExitStack() as stack:
            stack.callback(meter.clean)
            stack.callback(state.restore)
            stack.enter_context(torch.enable_grad())
            for each in self.model.modules():
                if isinstance(each, torch.nn.parallel.DistributedDataParallel):
                    # Then neither its backward nor its forward waits for another rank, which may be out of memory.
                    stack.enter_context(each.no_sync())
                    each.require_forward_param_sync = False
            if not self.model.training:
                self.model.train()
            trial = run_trial(lambda: job, meter, micro_batch, timed=timed)
        return trial, meter.limited_by


class Snapshot:
    """What objects hold: attributes, containers to any depth, the bytes of tensors; and the random numbers to come.

    `tensors`: all that were found.
    """

    def __init__(self, objects: Iterable[object]) -> None:
        self.tensors: list[torch.Tensor] = []
        self._containers: list[tuple[Any, Any]] = []
        seen: set[int] = set()
        for each in objects:
            self._walk(vars(each), seen)
        self._faces = [(each, each.data, each.requires_grad, _gradient(each)) for each in self.tensors if each.is_leaf]
        storages = {each.untyped_storage()._cdata: each.untyped_storage() for each in self.tensors}
        self._bytes = [
            (storage, storage.clone() if storage.device.type == "cpu" else storage.cpu())
            for storage in storages.values()
        ]
        self._random = _random_state()

    def _walk(self, value: Any, seen: set[int]) -> None:
        if id(value) in seen:
            return
        kind = type(value)
        if isinstance(value, torch.Tensor):
            seen.add(id(value))
            if value.layout is torch.strided and value.device.type != "meta":
                self.tensors.append(value)
            if value.is_leaf:
                self._walk(value.grad, seen)
        elif kind in _REFILL or kind is tuple:
            seen.add(id(value))
            if kind is not tuple:
                self._containers.append((value, kind(value) if kind is not defaultdict else dict(value)))
            for each in value.items() if isinstance(value, dict) else value:
                for part in each if isinstance(value, dict) else (each,):
                    self._walk(part, seen)

    def restore(self) -> None:
        """All as it was."""
        for container, contents in self._containers:
            container.clear()
            getattr(container, _REFILL[type(container)])(contents)
        for storage, copy in self._bytes:
            if storage.nbytes() != copy.nbytes():
                storage.resize_(copy.nbytes())
            storage.copy_(copy)
        for tensor, data, requires_grad, gradient in self._faces:
            tensor.data = data
            tensor.requires_grad_(requires_grad)
            tensor.grad = gradient
        torch.clear_autocast_cache()  # it may hold what was cast from the trial's weights
        _set_random_state(self._random)


_REFILL: dict[type, str] = {
    dict: "update",
    OrderedDict: "update",
    defaultdict: "update",
    list: "extend",
    set: "update",
    deque: "extend",
}
"""The containers whose contents are put back, and how."""


def _gradient(tensor: torch.Tensor) -> torch.Tensor | None:
    """The gradient itself, whose bytes are put back; a sparse one is copied."""
    found = tensor.grad
    return found if found is None or found.layout is torch.strided else found.clone()


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"host": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        state["numpy"] = sys.modules["numpy"].random.get_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["host"])
    random.setstate(state["python"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state:
        sys.modules["numpy"].random.set_state(state["numpy"])
