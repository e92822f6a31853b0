"""Run a person's training step on the meta device, and write down what it allocates.

    >>> from gradaccum.torch.trace import cuda, record
    >>> trace = record(build, micro_batch=4, device=cuda((8, 0)))        # doctest: +SKIP

`build(micro_batch)` makes the model, its batch and its optimizer, and returns a `Job` or (model, optimizer, step). It
runs with the meta device as the default, so that nothing of any size is allocated. `step()` is one micro-step: forward,
loss and backward. Accumulation, `optimizer.step()` and `optimizer.zero_grad()` are added around it: two micro-steps
and two updates, unless told otherwise, since gradients of an earlier micro-step and the optimizer's state, which the
first update makes, are what raise the peak of a later one.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch.utils._pytree import tree_leaves, tree_map

from gradaccum.torch.trace import events as ev
from gradaccum.torch.trace.cuda import cuda
from gradaccum.torch.trace.errors import TraceError
from gradaccum.torch.trace.recorder import Recorder
from gradaccum.torch.trace.where import Where, optimizer_hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gradaccum.torch.trace.device import Device


@dataclass(frozen=True, kw_only=True)
class Job:
    """What `build` returns: a step, and what of it is alive before.

    step: one micro-step; forward, loss and backward. What it returns is dropped.
    update: what an update does once its micro-steps are done; without one, `optimizer.step()` and `.zero_grad()`.
    batch: the tensors that lie on the device throughout, beside the module's own.
    load_order: the parameters, buffers and batch in the order in which they reach the device; that of `module.to()`,
        which goes through submodules first, and then the batch, where none is given.
    """

    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[], object]
    update: Callable[[], object] | None = None
    batch: object = None
    load_order: Sequence[torch.Tensor] | None = None


def record(
    build: Callable[..., Job | tuple[torch.nn.Module, torch.optim.Optimizer, Callable[[], object]]],
    micro_batch: int,
    *,
    load: Callable[[], torch.nn.Module] | None = None,
    device: Device | None = None,
    accum_steps: int = 2,
    updates: int = 2,
    answers: Mapping[str, Any] | None = None,
) -> ev.Trace:
    """The trace of `updates` updates of `accum_steps` micro-steps each.

    load: makes the module that a program builds on the host and then moves to the device as a whole. With it
        `build(micro_batch, module)` is recorded too, with the host as the default device: what it puts on the meta
        device, such as adapters and their casts, leaves its gaps in the allocator's segments. Without it, only what
        is there when `build` returns counts, in load order.
    device: what to stand for; an A100 where none is given. answers: what a program reads from tensors, by the operator
    that made them (`{"aten.max": 512}`), where the usual constants of answers.py are not right.
    Raises TraceError for an operator that cannot be followed, with its name and its module.
    """
    device = device or cuda((8, 0))
    where = Where()
    recorder = Recorder(device, where, dict(answers or {}))
    with ExitStack() as stack:
        stack.enter_context(device.patches())
        stack.enter_context(where)
        stack.enter_context(mock.patch("torch.cuda.empty_cache", recorder.empty_cache))
        recorder.mark(ev.SETUP)
        if load is None:
            with torch.device("meta"):
                job = _job(build(micro_batch))
        else:
            with torch.device("meta"):
                module = load()
            _arrive(recorder, _load_order(module))
            with recorder:
                job = _job(build(micro_batch, module))
        where.follow(job.module)
        for name, module in job.module.named_modules():
            for kind, (op, why) in device.unknown_modules.items():
                if isinstance(module, kind):
                    recorder.unknown[ev.Guess(op, name, why)] = 0
        _arrive(recorder, [*(job.load_order or ()), *_load_order(job.module), *_tensors(job.batch), *_state(job)])
        _name(recorder, job)
        num_setup = len(recorder.events)
        parameters = {id(each): name for name, each in job.module.named_parameters()}
        handles = optimizer_hooks(
            lambda optimizer: _before_update(recorder, optimizer, parameters),
            lambda optimizer: _after_update(recorder, optimizer, parameters),
        )
        stack.callback(lambda: [handle.remove() for handle in handles])
        try:
            with recorder:
                _run(recorder, job, accum_steps, updates)
        except TraceError:
            raise
        except Exception as error:
            raise TraceError("", where.raised(error), error) from error
    return ev.Trace(
        device=device.name,
        accum_steps=accum_steps,
        updates=updates,
        num_setup=num_setup,
        blocks=tuple(ev.Block(*block) for block in recorder.blocks),
        events=tuple(recorder.events),
        marks=tuple(recorder.marks),
        unknown=tuple(guess._replace(most=most) for guess, most in recorder.unknown.items()),
        assumed=tuple(recorder.assumed),
        emptied=tuple(recorder.emptied),
    )


def _run(recorder: Recorder, job: Job, accum_steps: int, updates: int) -> None:
    for recorder.update in range(updates):
        for recorder.micro_step in range(accum_steps):
            recorder.where.outside = ev.FORWARD
            recorder.mark(ev.FORWARD)
            job.step()
        recorder.where.outside = ev.FORWARD
        if job.update is not None:
            job.update()
        else:
            job.optimizer.step()
            job.optimizer.zero_grad()


def trace_module(
    module: torch.nn.Module,
    batch: object,
    loss: Callable[..., torch.Tensor],
    optimizer: str | Callable[[Any], torch.optim.Optimizer] = "adamw",
    *,
    device: Device | None = None,
    accum_steps: int = 2,
    updates: int = 2,
    answers: Mapping[str, Any] | None = None,
) -> ev.Trace:
    """The trace of a module that is there already, with data or on the meta device; it is left as it is.

    batch: the arguments of the module (a tensor, a tuple, or a dict of keywords), with data or not.
    loss: from the module's result to a scalar; `loss(result)`. optimizer: a name of `OPTIMIZERS`, or a function of the
    parameters that are trained. Raises KeyError for an unknown name, TraceError as `record` does.
    """
    make = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer

    def build(micro_batch: int) -> Job:
        twin, inputs = on_meta(module), tree_map(_as_meta, batch)
        made = make([each for each in twin.parameters() if each.requires_grad])

        def step() -> None:
            if isinstance(inputs, dict):
                result = twin(**inputs)
            elif isinstance(inputs, (tuple, list)):
                result = twin(*inputs)
            else:
                result = twin(inputs)
            loss(result).backward()

        return Job(module=twin, optimizer=made, step=step, batch=inputs)

    return record(build, 1, device=device, accum_steps=accum_steps, updates=updates, answers=answers)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "sgd momentum": lambda parameters: torch.optim.SGD(parameters, momentum=0.9),
    "adafactor": torch.optim.Adafactor,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


def on_meta(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of the module without data. Parameters and buffers that it shares, its copy shares too."""
    memo: dict[int, Any] = {}
    for each in (*module.parameters(), *module.buffers()):
        bare = torch.empty_like(each, device="meta")
        memo[id(each)] = (
            torch.nn.Parameter(bare, requires_grad=each.requires_grad) if isinstance(each, torch.nn.Parameter) else bare
        )
    return copy.deepcopy(module, memo)


def _as_meta(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_like(value, device="meta", requires_grad=value.requires_grad)


def _job(built: Any) -> Job:
    if isinstance(built, Job):
        return built
    module, optimizer, step = built
    return Job(module=module, optimizer=optimizer, step=step)


def _tensors(batch: object) -> list[torch.Tensor]:
    return [each for each in tree_leaves(batch) if isinstance(each, torch.Tensor)]


def _state(job: Job) -> list[torch.Tensor]:
    """The state that some optimizers make when they are made."""
    return [value for each in job.optimizer.state.values() for value in each.values() if torch.is_tensor(value)]


def _arrive(recorder: Recorder, tensors: Sequence[torch.Tensor]) -> None:
    """The births of what is there before the first step, where they were not seen."""
    for tensor in tensors:
        recorder.see_tensor(tensor, "")


def _name(recorder: Recorder, job: Job) -> None:
    """Say what the blocks are that are alive before the first step."""
    for tensor in _tensors(job.batch):
        recorder.name(tensor, ev.BATCH, "")
    for tensor in _state(job):
        recorder.name(tensor, ev.STATE, "")
    for name, tensor in job.module.named_buffers():
        recorder.name(tensor, ev.BUFFER, name)
    for name, tensor in job.module.named_parameters():
        recorder.name(tensor, ev.WEIGHT, name)


def _load_order(module: torch.nn.Module) -> list[torch.Tensor]:
    """torch/nn/modules/module.py:Module._apply, which `.to()` and `.cuda()` call: submodules, parameters, buffers."""
    order: list[torch.Tensor] = []
    for child in module.children():
        order += _load_order(child)
    order += [each for each in module._parameters.values() if each is not None]
    order += [each for each in module._buffers.values() if each is not None]
    return order


def _before_update(recorder: Recorder, optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            recorder.name(parameter.grad, ev.GRADIENT, names.get(id(parameter), ""))
    recorder.where.outside = ev.OPTIMIZER


def _after_update(recorder: Recorder, optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> None:
    for parameter, state in optimizer.state.items():
        for value in state.values():
            recorder.name(value, ev.STATE, names.get(id(parameter), ""))
    recorder.where.outside = ev.FORWARD
