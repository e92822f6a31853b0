"""A batch cut along its samples: where memory asks for smaller ones, and where an exact update ends within one."""

from __future__ import annotations

import copy
from collections import UserDict
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from gradaccum.torch.accumulate.errors import AccumulationError

if TYPE_CHECKING:
    from collections.abc import Sequence

OF_NO_SAMPLE = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device)
"""What goes to each part as it is."""


def samples_of(batch: Any) -> int | None:
    """The first dimension of the first tensor; None where there is none, or another tensor's differs."""
    fields = isinstance(batch, (dict, UserDict))
    parts = batch.values() if fields else batch if isinstance(batch, (list, tuple)) else (batch,)
    found = None
    for each in parts:
        if isinstance(each, torch.Tensor):
            if each.dim():
                size = each.size(0)
                if found is not None and size != found:
                    return None
                found = size
        elif isinstance(each, (dict, list, tuple)):
            return samples_of(tree_leaves(list(parts)))  # as deep as it goes, which costs ten times as long
    return found


def split(batch: Any, parts: int) -> list[Any]:
    """A batch in parts of equal size, the first ones one sample more; fewer parts where there are fewer samples.

    Raises AccumulationError where it does not say how many samples it has, or has something in it that nobody can cut.
    """
    samples = samples_of(batch)
    if samples is None:
        raise AccumulationError(
            f"a batch ({type(batch).__name__}) does not say how many samples it has, so that it cannot be split: say "
            "split=, a function of the batch and the number of parts that returns a list of batches"
        )
    size, more = divmod(samples, parts)
    return cut(batch, [size + (part < more) for part in range(max(1, min(parts, samples)))])


def cut(batch: Any, sizes: Sequence[int]) -> list[Any]:
    """Parts of so many samples, which together are the batch. A tensor is cut along its first dimension and not copied,
    dictionaries, lists and tuples in each of their fields; a list of as many other things as samples, such as texts,
    too.
    """
    return [_part(batch, sum(sizes), *bounds) for bounds in pairwise(accumulate(sizes, initial=0))]


def _part(value: Any, samples: int, start: int, end: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value[start:end] if value.dim() else value
    if isinstance(value, (dict, UserDict)):
        made = copy.copy(value)
        for name, each in value.items():
            made[name] = _part(each, samples, start, end)
        return made
    if isinstance(value, (list, tuple)):
        if len(value) == samples and _is_of_samples(value):
            return value[start:end]
        fields = [_part(each, samples, start, end) for each in value]
        return type(value)(*fields) if hasattr(value, "_fields") else type(value)(fields)
    if isinstance(value, OF_NO_SAMPLE):
        return value
    raise AccumulationError(
        f"a batch has something in it ({type(value).__name__}) that is no tensor, dictionary, list or tuple, so that "
        "it cannot be split: say split=, or make a tensor of it in the loader"
    )


def _is_of_samples(value: list[Any] | tuple[Any, ...]) -> bool:
    """Whether each item is one sample's: in a list whatever is no tensor, in a tuple texts, as default_collate does."""
    if isinstance(value, tuple):
        return all(isinstance(each, (str, bytes)) for each in value)
    return not any(isinstance(each, torch.Tensor) for each in tree_leaves(value))
