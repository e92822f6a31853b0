"""What fits, by tracing: `gradaccum fit` for a person's own training step, and the second engine for a named model.

step, hub       from a module, a function or a model's name to a step for any micro-batch
traces          its traces at a few micro-batches, and at all others from these
replays         through the card's allocator: one GPU's memory
largest         the search, and the answer
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gradaccum.errors import InputError, MissingExtraError, Problem

try:
    import torch
except ImportError:
    raise MissingExtraError("a trace", "torch", "torch") from None

from gradaccum.memory.answer import Step
from gradaccum.torch.build import calling, find_build, with_usual_length
from gradaccum.torch.fit.hub import from_setup
from gradaccum.torch.fit.largest import OutOfTime, Question, fit_step
from gradaccum.torch.fit.optimizers import make_optimizer
from gradaccum.torch.fit.step import from_function, from_module

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gradaccum.catalog.gpus import Gpu
    from gradaccum.memory.answer import Fit
    from gradaccum.memory.setup import Setup

__all__ = ["OutOfTime", "Question", "fit_own", "fit_setup", "fit_step"]

OF_THE_STEP = ("sequence_length", "dtype", "checkpointing", "attention")
"""What a person's own step decides; a function that has such a parameter is handed it."""


def fit_own(
    model: torch.nn.Module | Callable[..., Any] | str,
    gpu: Gpu,
    *,
    batch: object = None,
    loss: object = None,
    target_batch: int | None = None,
    allocator: str | None = None,
    time_limit: float | None = None,
    **how: Any,
) -> Fit:
    """The answer for a step of one's own. model: a module with its sample `batch` and `loss`, a function that returns
    (model, batch, loss), (model, optimizer, step) or a Job, or such a function's name, `package.module:function`.

    how: optimizer (`adamw`; a name, or a function of the parameters), accum_steps, num_gpus, strategy; and for a
    function that takes them sequence_length, dtype, checkpointing, attention. Raises InputError for what cannot be
    read, TraceError for a step that cannot be followed, OutOfTime.
    """
    said = how.pop("optimizer", None)
    optimizer = "adamw" if said is None else said
    used: list[object] = []

    def ours(parameters: Any) -> torch.optim.Optimizer:
        used.append(optimizer)
        return make_optimizer(optimizer, parameters)

    accum_steps, num_gpus = how.pop("accum_steps", None), how.pop("num_gpus", 1)
    _of_one_gpu(how.pop("strategy", None), num_gpus)
    unknown = [name for name in how if name not in OF_THE_STEP]
    if unknown:
        known = ", ".join(OF_THE_STEP)
        raise InputError(
            *[Problem(name, f"is nothing that a trace of your own step is told; {known} are") for name in unknown]
        )
    if isinstance(model, torch.nn.Module):
        if batch is None:
            raise InputError(Problem("batch", "is missing: a sample of what the model takes"))
        if how:
            raise InputError(*[Problem(name, "is decided by the module itself: leave it out") for name in how])
        name = type(model).__name__
        build, doubts = from_module(model, batch, loss, ours)
    else:
        if batch is not None or loss is not None:
            raise InputError(Problem("batch", "and loss are what the function returns: leave them out"))
        function = find_build(model) if isinstance(model, str) else model
        called = model.rpartition(":")[2] if isinstance(model, str) else getattr(model, "__name__", "the function")
        name = model if isinstance(model, str) else called
        how = dict(with_usual_length(function, how))
        build, doubts = from_function(calling(called, function), ours, how)
    words = optimizer if isinstance(optimizer, str) else "an optimizer of its own"
    found = fit_step(
        build,
        Question(
            gpu=gpu,
            name=name,
            words=words,
            target_batch=target_batch,
            sequence_length=how.get("sequence_length"),
            accum_steps=accum_steps,
            num_gpus=num_gpus,
            allocator=allocator,
            time_limit=time_limit,
            doubts=doubts,
        ),
    )
    if used:
        return found
    if said is not None:
        raise InputError(Problem("optimizer", f"is made by {name} itself: leave it out"))
    assert isinstance(found.setup, Step)
    return replace(found, setup=replace(found.setup, words="an optimizer of its own"))


def fit_setup(
    setup: Setup,
    gpu: Gpu,
    *,
    both: bool,
    config: Mapping[str, object] | str | None = None,
    target_batch: int | None = None,
    allocator: str | None = None,
    time_limit: float | None = None,
) -> Fit:
    """The answer for a model of the catalog, or of a config.json, as Transformers builds it.

    both: the closed form is asked too, and the interval reaches to its peak. Raises InputError where Transformers is
    missing, or for a setup that this step cannot be built with.
    """
    return fit_step(
        from_setup(setup, config),
        Question(
            gpu=gpu,
            name=setup.name,
            words=setup.words,
            target_batch=target_batch,
            sequence_length=setup.sequence_length,
            accum_steps=setup.accum_steps,
            num_gpus=setup.num_gpus,
            allocator=allocator,
            time_limit=time_limit,
            setup=setup if both else None,
        ),
    )


def _of_one_gpu(strategy: str | None, num_gpus: int) -> None:
    if strategy not in (None, "ddp" if num_gpus > 1 else "single", "ddp"):
        message = f"is followed by a trace as single or ddp, not as {strategy}: it sees the step of one GPU"
        raise InputError(Problem("strategy", message, ["ddp"]))
