"""From what a person has (a module with a sample batch, or a function) to a training step for any micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from gradaccum.errors import InputError, Problem
from gradaccum.torch.build import as_job, by_micro_batch, job_of
from gradaccum.torch.fit.optimizers import make_optimizer
from gradaccum.torch.trace.record import on_meta

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradaccum.torch.trace import Job

    Build = Callable[[int], Job]
    Optimizer = str | Callable[[Any], torch.optim.Optimizer]


def from_module(
    module: torch.nn.Module, batch: object, loss: Any, optimizer: Optimizer
) -> tuple[Build, tuple[str, ...]]:
    """The step of a module that is there, with data or without, and doubts about its batch. Nothing of it is changed.

    batch: a sample for the module: a tensor, a tuple of arguments, or a dict of keywords, of any size; other
    micro-batches are this one resized. loss: see `gradaccum.torch.build.loss_of`.
    """
    sample = Sample(batch)

    def build(micro_batch: int) -> Job:
        return job_of(on_meta(module), sample.resized(micro_batch), loss, partial(make_optimizer, optimizer))

    return build, sample.doubts


def from_function(
    function: Callable[..., Any], optimizer: Optimizer, options: Mapping[str, object]
) -> tuple[Build, tuple[str, ...]]:
    """The step that a person's function makes, as `gradaccum.torch.build` has it, and doubts about its batch.

    Without a parameter for the micro-batch the batch that it returns is a sample. options: further arguments, by name.
    InputError for an option that the function does not take, or for another result.
    """
    made, sized = by_micro_batch(function, options)

    def build(micro_batch: int) -> Job:
        def bare(module: torch.nn.Module, batch: Any) -> tuple[torch.nn.Module, Any]:
            batch = _without_data(batch) if sized else Sample(batch).resized(micro_batch)
            if any(each.device.type != "meta" for each in (*module.parameters(), *module.buffers())):
                module = on_meta(module)
            return module, batch

        return as_job(made(micro_batch), partial(make_optimizer, optimizer), prepare=bare)

    doubts = () if sized else ("The function takes no micro-batch, so that the batch which it returns is a sample.",)
    return build, doubts


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
