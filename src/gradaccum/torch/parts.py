"""A batch cut along its samples, in the form that it has."""

from __future__ import annotations

import copy
from collections import UserDict
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def cut(batch: Any, sizes: Sequence[int], other: Callable[[Any], Any] = lambda value: value) -> list[Any]:
    """Parts of so many samples, which together are the batch. A tensor is cut along its first dimension and not copied,
    dictionaries, lists and tuples in each of their fields; a list of as many other things as samples, such as texts,
    too. other: what goes to each part of anything else; itself by default.
    """
    return [_part(batch, sum(sizes), *bounds, other) for bounds in pairwise(accumulate(sizes, initial=0))]


def _part(value: Any, samples: int, start: int, end: int, other: Callable[[Any], Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return value[start:end] if value.dim() else value
    if isinstance(value, (dict, UserDict)):
        made = copy.copy(value)
        for name, each in value.items():
            made[name] = _part(each, samples, start, end, other)
        return made
    if isinstance(value, (list, tuple)):
        if len(value) == samples and _is_of_samples(value):
            return value[start:end]
        fields = [_part(each, samples, start, end, other) for each in value]
        return type(value)(*fields) if hasattr(value, "_fields") else type(value)(fields)
    return other(value)


def _is_of_samples(value: list[Any] | tuple[Any, ...]) -> bool:
    """Whether each item is one sample's: in a list whatever is no tensor, in a tuple texts, as default_collate does."""
    if isinstance(value, tuple):
        return all(isinstance(each, (str, bytes)) for each in value)
    return not any(isinstance(each, torch.Tensor) for each in tree_leaves(value))
