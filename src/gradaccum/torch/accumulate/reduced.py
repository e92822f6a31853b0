"""A loss that is a mean already, where a sum was asked for: its own graph says so.

Divided by the weight once more, its gradient is too small by that factor, and an optimizer such as Adam hides it.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from gradaccum.torch.accumulate.sums import Number

MEAN = 1
"""at::Reduction::Mean (aten/src/ATen/core/Reduction.h), as the losses' nodes keep it."""


def warn_of_a_mean(loss: torch.Tensor, weight: Number) -> None:
    """Once, for the first loss: where its last operation was a mean over what the weight counts. A graph of another
    kind says nothing, nor does a mean that was multiplied; the device is asked for a weight only where one is found.
    """
    node: Any = loss.grad_fn
    while node is not None and node.name() == "ToCopyBackward0":  # a cast
        node = node.next_functions[0][0]
    if node is None:
        return
    by_loss = getattr(node, "_saved_reduction", None) == MEAN
    if not by_loss and not node.name().startswith("MeanBackward"):
        return
    over = float(weight)
    if over > 1 and (by_loss or over in _leading(node._saved_self_sym_sizes)):
        warnings.warn(
            f"this loss is a mean already ({node.name()}), and group.backward divides by the weight, {over:g}, once "
            "more: hand over its sum (reduction='sum'), or say group.backward_mean(loss, weight), run(..., mean=True)",
            stacklevel=4,
        )


def _leading(sizes: tuple[int, ...]) -> set[int]:
    """What a weight may count in a tensor of this shape: its rows, its rows and columns, ... A mean over anything else,
    as over the outputs of a sum over samples, is as it should be.
    """
    found, product = set(), 1
    for size in sizes:
        product *= size
        found.add(product)
    return found
