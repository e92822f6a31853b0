"""What is handed to `verify`: the batch, cut along its samples, and what the loss returns; or why it is refused."""

from __future__ import annotations

from collections import UserDict
from typing import TYPE_CHECKING, Any

import torch

from gradaccum.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator


def refused(name: str, message: str, *nearest: str) -> InputError:
    """The error to raise for one argument. nearest: values that would do."""
    return InputError(Problem(name, message, nearest))


def samples_of(model: Any, batch: Any, micro_batch: Any) -> int:
    """The samples of the batch. Raises InputError for what cannot be compared."""
    if not isinstance(model, torch.nn.Module):
        raise refused("model", f"must be a torch.nn.Module, not {type(model).__name__}")
    if not any(each.requires_grad for each in model.parameters()):
        raise refused("model", "has no parameter that is trained")
    sizes = {each.size(0) for each in _tensors(batch) if each.dim()}
    if len(sizes) != 1:
        what = f"first dimensions {', '.join(map(str, sorted(sizes)))}" if sizes else "no tensor with samples"
        raise refused("batch", f"must hold tensors with the samples along the first dimension; it has {what}")
    samples = sizes.pop()
    if not isinstance(micro_batch, int) or isinstance(micro_batch, bool) or micro_batch < 1 or samples % micro_batch:
        near = [each for each in range(1, samples) if samples % each == 0]
        near.sort(key=lambda each: abs(each - micro_batch) if isinstance(micro_batch, (int, float)) else each)
        raise refused(
            "micro_batch", f"must divide the batch of {samples}, which {micro_batch!r} does not", *map(str, near[:2])
        )
    if micro_batch == samples:
        raise refused("micro_batch", f"must be smaller than the batch of {samples}: there is nothing to compare")
    return samples


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, (dict, UserDict)):
        yield from _tensors(list(batch.values()))
    elif isinstance(batch, (list, tuple)):
        for each in batch:
            yield from _tensors(each)


def loss_and_weight(returned: Any) -> tuple[torch.Tensor, float | None]:
    """The loss, and its weight where there is one: 0 for a micro-batch without a target."""
    weight = None
    if isinstance(returned, tuple) and len(returned) == 2:
        returned, weight = returned[0], float(returned[1])
        if not weight >= 0:
            raise refused("loss_of", f"returned the weight {weight:g}: it must be 0 or more")
    if not isinstance(returned, torch.Tensor) or returned.numel() != 1:
        what = (
            f"a tensor of shape {tuple(returned.shape)}"
            if isinstance(returned, torch.Tensor)
            else type(returned).__name__
        )
        raise refused("loss_of", f"must return a scalar loss, or (loss_sum, weight), not {what}")
    if not returned.requires_grad:
        raise refused("loss_of", "returned a loss without a gradient: it was detached, or made under no_grad")
    return returned, weight
