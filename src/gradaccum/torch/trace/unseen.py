"""How much an operator may allocate that a trace does not count: the largest that is known for it, in bytes.

The kernels of these operators choose when they run. Nothing is counted for them; what is here bounds it from above, so
that an answer can say how far it may be off.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from gradaccum.torch.trace.everywhere import nbytes

if TYPE_CHECKING:
    from collections.abc import Callable


def most(op: str, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes beyond what is counted in this call; those of its operands and results, where no rule is known."""
    rule = _RULES.get(op)
    if rule is not None:
        return rule(args, kwargs, out)
    return sum(nbytes(each) for each in tree_leaves((args, kwargs, out)) if isinstance(each, torch.Tensor))


def _unfolded(image: torch.Tensor, weight: torch.Tensor, result: torch.Tensor) -> int:
    """The input as a matrix, a column for each element of the result: cudnnConvolutionFwdAlgo_t, `ALGO_GEMM`.

    image: (n, channels, ...), weight: (out, channels / groups, *kernel), result: (n, out, ...). The other algorithms
    keep copies of the three in another order of dimensions, which are counted too. A plan whose workspace finds no
    room is passed over for the next one (native/cudnn/Conv_v8.cpp:try_configs), so this seldom ends a run.
    """
    columns = result.shape[0] * prod(result.shape[2:])
    matrix = columns * image.shape[1] * prod(weight.shape[2:]) * image.element_size()
    return max(matrix, sum(nbytes(each) for each in (image, weight, result)))


def _convolution(args: Any, kwargs: Any, out: Any) -> int:
    image, weight, transposed = args[0], args[1], args[6]
    return _unfolded(out, weight, image) if transposed else _unfolded(image, weight, out)


def _convolution_backward(args: Any, kwargs: Any, out: Any) -> int:
    grad, image, weight, transposed = args[0], args[1], args[2], args[7]
    return _unfolded(grad, weight, image) if transposed else _unfolded(image, weight, grad)


def _sorted(args: Any, kwargs: Any, out: Any) -> int:
    """native/cuda/Sort.cu: two copies of the keys, and for each its place and its row, in and out, of 8 bytes each."""
    keys = args[0]
    return int(keys.numel() * (2 * keys.element_size() + 4 * 8))


def _indexed(args: Any, kwargs: Any, out: Any) -> int:
    """native/cuda/Indexing.cu:index_put_with_sort_kernel: the linear index, sorted, with its places, and as much again
    for CUB's buffers, of 8 bytes each; and the values, expanded.
    """
    indices = [each for each in args[1] if each is not None]
    values = args[2]
    chosen = torch.broadcast_shapes(*(each.shape for each in indices)).numel()
    return int(6 * 8 * chosen + nbytes(values))


_RULES: dict[str, Callable[[Any, Any, Any], int]] = {
    "aten.convolution": _convolution,
    "aten.convolution_backward": _convolution_backward,
    "aten.sort": _sorted,
    "aten.topk": _sorted,
    "aten.index_put_": _indexed,
    "aten._index_put_impl_": _indexed,
}
