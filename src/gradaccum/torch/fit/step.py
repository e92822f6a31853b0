"""From what a person has (a module with a sample batch, or a function) to a training step for any micro-batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from gradaccum.errors import InputError, Problem
from gradaccum.torch.fit.optimizers import make_optimizer
from gradaccum.torch.trace import Job
from gradaccum.torch.trace.record import on_meta

if TYPE_CHECKING:
    from collections.abc import Callable

    Build = Callable[[int], Job]
    Optimizer = str | Callable[[Any], torch.optim.Optimizer]

RETURNS = "(model, batch, loss), (model, optimizer, step) or a gradaccum.torch.trace.Job"


def from_module(
    module: torch.nn.Module, batch: object, loss: Any, optimizer: Optimizer
) -> tuple[Build, tuple[str, ...]]:
    """The step of a module that is there, with data or without, and doubts about its batch. Nothing of it is changed.

    batch: a sample for the module: a tensor, a tuple of arguments, or a dict of keywords, of any size; other
    micro-batches are this one resized. loss: see `loss_of`.
    """
    sample = Sample(batch)

    def build(micro_batch: int) -> Job:
        return _job(on_meta(module), sample.resized(micro_batch), loss, optimizer)

    return build, sample.doubts


def from_function(
    function: Callable[..., Any], optimizer: Optimizer, options: Mapping[str, object]
) -> tuple[Build, tuple[str, ...]]:
    """The step that a person's function makes, which returns one of RETURNS, and doubts about its batch.

    A function with a parameter `micro_batch`, or one that may be given by position, is called for each micro-batch;
    without one, the batch that it returns is a sample. options: further arguments, by name. InputError for an option
    that the function does not take, or for another result.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    unknown = [name for name in options if name not in parameters and not takes_any]
    if unknown:
        raise InputError(*[Problem(name, _own_decision(name, function), ["leave it out"]) for name in unknown])
    place = _place_of_micro_batch(parameters, options)

    def build(micro_batch: int) -> Job:
        given = (micro_batch,) if place == "first" else ()
        named = {"micro_batch": micro_batch} if place == "named" else {}
        return as_job(function(*given, **named, **options), micro_batch, optimizer, resize=place == "")

    doubts = () if place else ("The function takes no micro-batch, so that the batch which it returns is a sample.",)
    return build, doubts


def _own_decision(name: str, function: Callable[..., Any]) -> str:
    called = getattr(function, "__name__", "the function")
    return f"{called}() decides this itself, as it has no parameter `{name}`"


def _place_of_micro_batch(parameters: Mapping[str, inspect.Parameter], options: Mapping[str, object]) -> str:
    """named, first, or empty where the function takes no micro-batch."""
    if "micro_batch" in parameters:
        return "named"
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next((each for each in parameters.values() if each.kind in positional), None)
    needed = first is not None and first.default is inspect.Parameter.empty and first.name not in options
    return "first" if needed else ""


def as_job(found: Any, micro_batch: int, optimizer: Optimizer, resize: bool) -> Job:
    """What a person's function returned, as a Job. InputError for anything but RETURNS.

    resize: the batch is a sample, which this micro-batch is made from.
    """
    if isinstance(found, Job):
        return found
    if not isinstance(found, (tuple, list)) or len(found) != 3 or not isinstance(found[0], torch.nn.Module):
        raise InputError(Problem("model", f"must return {RETURNS}, not {_described(found)}"))
    module, second, third = found
    if isinstance(second, torch.optim.Optimizer):
        return Job(module=module, optimizer=second, step=third)
    batch = Sample(second).resized(micro_batch) if resize else _without_data(second)
    if any(each.device.type != "meta" for each in (*module.parameters(), *module.buffers())):
        module = on_meta(module)
    return _job(module, batch, third, optimizer)


def _described(found: Any) -> str:
    if isinstance(found, (tuple, list)):
        return f"({', '.join(type(each).__name__ for each in found)})"
    return "None" if found is None else f"an object of type {type(found).__name__}"


def _job(module: torch.nn.Module, batch: Any, loss: Any, optimizer: Optimizer) -> Job:
    trained = [each for each in module.parameters() if each.requires_grad]
    if not trained:
        raise InputError(Problem("model", "has no parameter that is trained: none has requires_grad"))
    given, evaluate = loss_of(batch, loss)

    def step() -> None:
        if isinstance(given, Mapping):
            result = module(**given)
        else:
            result = module(*given) if isinstance(given, (tuple, list)) else module(given)
        evaluate(result).backward()

    return Job(module=module, optimizer=make_optimizer(optimizer, trained), step=step, batch=batch)


def loss_of(batch: Any, loss: Any) -> tuple[Any, Callable[[Any], Any]]:
    """What the module is called with, and the scalar that backward starts from.

    loss None: the result's `loss`, as Transformers has it, or the result itself. A loss of one argument: of the result.
    Of two: where the batch is a pair, it is (inputs, target), and the loss is that of (result, target); else that of
    (result, batch).
    """
    if loss is None:
        return batch, own_loss
    if not callable(loss):
        raise InputError(Problem("loss", f"is a function of the model's result, not {_described(loss)}"))
    if num_arguments(loss) < 2:
        return batch, loss
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], lambda result: loss(result, batch[1])
    return batch, lambda result: loss(result, batch)


def own_loss(result: Any) -> Any:
    """The loss that a model gives itself. InputError where there is none."""
    found = result.get("loss") if isinstance(result, Mapping) else getattr(result, "loss", result)
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        raise InputError(Problem("loss", f"is missing, and the model's result is no loss but {_described(result)}"))
    return found


def num_arguments(function: Any) -> int:
    """How many arguments without a default a function takes by position."""
    try:
        # A module says it in its forward; its __call__ takes anything.
        signature = inspect.signature(function.forward if isinstance(function, torch.nn.Module) else function)
    except ValueError:  # a function written in C
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is each.empty for each in signature.parameters.values())


class Sample:
    """A batch, which can be had in any other size: tensors whose first dimension is the sample's change it.

    The sample's size is the first dimension of its first tensor that has one. InputError where there is none.
    """

    def __init__(self, batch: object) -> None:
        self.batch = _plain(batch)
        sizes = [each.shape[0] for each in tree_leaves(self.batch) if isinstance(each, torch.Tensor) and each.dim()]
        if not sizes or not sizes[0]:
            raise InputError(Problem("batch", "holds no tensor with a first dimension, so it has no micro-batch"))
        self.size = sizes[0]

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is not certain about a resized batch, in sentences."""
        shapes = [each.shape for each in tree_leaves(self.batch) if isinstance(each, torch.Tensor)]
        kept = [tuple(shape) for shape in shapes if not shape or shape[0] != self.size]
        square = [tuple(shape) for shape in shapes if len(shape) > 1 and shape[0] == shape[1] == self.size]
        found = []
        if kept:
            found.append(f"{_listed(kept)} stays as it is: its first dimension is not {self.size}.")
        if square:
            found.append(f"{_listed(square)} is resized along its first dimension alone.")
        if self.size == 1 and len(shapes) > len(kept) + 1:
            found.append("All tensors with a first dimension of 1 grow with it; a sample of 2 or more would tell.")
        return tuple(found)

    def _is_of_batch(self, tensor: torch.Tensor) -> bool:
        return tensor.dim() > 0 and tensor.shape[0] == self.size

    def resized(self, micro_batch: int) -> Any:
        """The batch of this many samples, on the meta device."""

        def resize(tensor: torch.Tensor) -> torch.Tensor:
            shape = (micro_batch, *tensor.shape[1:]) if self._is_of_batch(tensor) else tensor.shape
            return torch.empty(shape, dtype=tensor.dtype, device="meta", requires_grad=tensor.requires_grad)

        return _each_once(resize, self.batch)


def _each_once(change: Callable[[torch.Tensor], torch.Tensor], batch: Any) -> Any:
    """Every tensor changed; one that is there twice is one afterwards, too."""
    done: dict[int, torch.Tensor] = {}

    def changed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in done:
            done[id(value)] = change(value)
        return done[id(value)]

    return tree_map(changed, batch)


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return "A tensor of shape " + ", ".join(str(shape) for shape in shapes)


def _without_data(batch: object) -> Any:
    def bare(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type == "meta":
            return tensor
        return torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)

    return _each_once(bare, _plain(batch))


def _plain(batch: object) -> Any:
    """A mapping of any kind, such as a tokenizer's result, as a dict."""
    return dict(batch) if isinstance(batch, Mapping) else batch
