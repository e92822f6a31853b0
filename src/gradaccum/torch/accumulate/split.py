"""A batch cut along its samples: where memory asks for smaller ones, and where an exact update ends within one."""

from __future__ import annotations

from collections import UserDict
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from gradaccum.torch.accumulate.errors import AccumulationError
from gradaccum.torch.parts import cut as cut_along

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


def split(batch: Any, number: int) -> list[Any]:
    """A batch in parts of equal size, the first ones one sample more; fewer parts where there are fewer samples.

    Raises AccumulationError where it does not say how many samples it has, or has something in it that nobody can cut.
    """
    samples = samples_of(batch)
    if samples is None:
        raise AccumulationError(
            f"a batch ({type(batch).__name__}) does not say how many samples it has, so that it cannot be split: say "
            "split=, a function of the batch and the number of parts that returns a list of batches"
        )
    size, more = divmod(samples, number)
    return cut(batch, [size + (part < more) for part in range(max(1, min(number, samples)))])


def cut(batch: Any, sizes: Sequence[int]) -> list[Any]:
    """Parts of so many samples, which together are the batch.

    Raises AccumulationError for what nobody can cut.
    """
    return cut_along(batch, sizes, _of_no_sample)


def _of_no_sample(value: Any) -> Any:
    if isinstance(value, OF_NO_SAMPLE):
        return value
    raise AccumulationError(
        f"a batch has something in it ({type(value).__name__}) that is no tensor, dictionary, list or tuple, so that "
        "it cannot be split: say split=, or make a tensor of it in the loader"
    )
