"""Modules that normalise by their whole batch, which no accumulation makes equal to the big one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch


def is_batchnorm(module: torch.nn.Module) -> bool:
    """Whether it is of the BatchNorm kind, in training mode or not."""
    return isinstance(module, _BatchNorm)


def names_in_training(models: Iterable[torch.nn.Module]) -> list[str]:
    """The names of those in training mode."""
    return [name for model in models for name, each in model.named_modules() if is_batchnorm(each) and each.training]
