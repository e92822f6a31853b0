"""The models of a watched loop: the samples of a micro-batch, and whether a backward pass brings ranks together."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from gradaccum.torch.audit.where import alive
from gradaccum.torch.batchnorm import names_in_training

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gradaccum.torch.audit.records import RankSeen


class Models:
    """Those that were handed in, or found; what is seen of them goes into the rank's record.

    listening: whether calls are of interest now. calls: of each model since the last backward pass, the samples of its
    calls, and of those without gradients. divide_factor: by what FSDP2 was told to divide; None for the ranks.
    """

    def __init__(self, seen: RankSeen, listening: Callable[[], bool]) -> None:
        self._seen, self._listening = seen, listening
        self._models: list[weakref.ref[torch.nn.Module]] = []
        self._handles: list[Any] = []
        self._joining: list[weakref.ref[torch.nn.Module]] | None = None  # what brings ranks together; of this update
        self.calls: dict[int, tuple[list[int | None], list[int | None]]] = {}
        self.divide_factor: float | None = None

    def follow(self, model: torch.nn.Module) -> None:
        """Learn from a model's calls how many samples a micro-batch has."""
        self._models.append(weakref.ref(model))

        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._listening() and module.training:
                calls = self.calls.setdefault(id(module), ([], []))
                calls[not torch.is_grad_enabled()].append(_samples([*args, *kwargs.values()]))

        self._handles.append(model.register_forward_pre_hook(hook, with_kwargs=True))

    def find(self, trained: Sequence[torch.Tensor]) -> None:
        """Where none is known, the outermost ones alive that hold any of these parameters."""
        if self._models:
            return
        modules = alive(torch.nn.Module)
        inner = {id(child) for each in modules for child in each.children()}
        sought = {id(each) for each in trained}
        for each in modules:
            if id(each) not in inner and any(id(parameter) in sought for parameter in each.parameters()):
                self.follow(each)
                if hasattr(each, "training_step"):  # a LightningModule is not called itself
                    for child in each.children():
                        self.follow(child)

    def reduce(self) -> bool | None:
        """Whether the backward pass that ran brings the ranks together; None where no DDP or FSDP2 model is known."""
        if self._joining is None:
            self._joining = [
                weakref.ref(each)
                for each in dict.fromkeys(module for model in self._living() for module in model.modules())
                if isinstance(each, DistributedDataParallel) or hasattr(type(each), "_get_fsdp_state")
            ]
        found = None
        for reference in self._joining:
            each: Any = reference()
            if isinstance(each, DistributedDataParallel):
                self._seen.wrapped = "ddp"
                found = bool(found) or bool(each.require_forward_param_sync)
            elif each is not None:
                self._seen.wrapped = "fsdp2"
                group = getattr(each._get_fsdp_state(), "_fsdp_param_group", None)
                found = bool(found) or bool(group is not None and group.reduce_grads)
                self.divide_factor = getattr(group, "gradient_divide_factor", None)
        return found

    def next(self) -> None:
        """An update has ended: the loop may wrap its models anew."""
        self._joining = None

    def look(self) -> None:
        """What stands in the modules: normalisation over the micro-batch, and the size of one reduction."""
        models = self._living()
        self._seen.batchnorm = names_in_training(models)
        self._seen.reduction_bytes = sum(
            each.numel() * each.element_size() for model in models for each in model.parameters() if each.requires_grad
        )

    def leave(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _living(self) -> list[torch.nn.Module]:
        return [model for reference in self._models if (model := reference()) is not None]


def _samples(values: list[Any]) -> int | None:
    """The first dimension of the first tensor."""
    for each in values:
        if isinstance(each, torch.Tensor) and each.dim():
            return each.size(0)
        if isinstance(each, dict):
            return _samples(list(each.values()))
        if isinstance(each, (list, tuple)):
            return _samples(list(each))
    return None
