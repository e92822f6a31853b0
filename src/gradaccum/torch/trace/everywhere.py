"""What ATen's operators allocate inside, in code that is the same for every device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from gradaccum.torch.trace.device import Kernel, Recording

OPENED = frozenset({"aten.logsumexp", "aten.binary_cross_entropy_with_logits", "aten._safe_softmax"})
"""Operators that are written in terms of others below autograd (CompositeExplicitAutograd: ReduceOps.cpp:logsumexp,
Loss.cpp:binary_cross_entropy_with_logits, transformers/attention.cpp:_safe_softmax) with intermediate results of the
input's shape. They are run as they are written, and the pieces recorded."""


def opened(recorder: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """Call the composite kernel itself, with the recorder on: its pieces then pass the recorder one by one.

    The kernel is the one that every device without its own uses, so any backend's key leads to it; the meta device
    would lead to a rule of its own for the result's shape.
    """
    with recorder:
        return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes of a dense tensor of this shape and type."""
    return tensor.numel() * tensor.element_size()


def _whole(args: Any) -> int:
    """Bytes of the broadcast of the first two arguments in their common type."""
    numel = torch.broadcast_shapes(args[0].shape, args[1].shape).numel()
    return int(numel * torch.result_type(args[0], args[1]).itemsize)


def _reduced(args: Any, kwargs: Any) -> bool:
    reduction = kwargs.get("reduction", args[2] if len(args) > 2 else 1)
    return bool(reduction)


def shrunk_loss(recorder: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """`mse_loss`, `smooth_l1_loss`: a scalar in a storage that is as large as the input.

    Loss.cpp:TORCH_META_FUNC(mse_loss) makes the result for the elements' losses and then shrinks it to one element,
    which leaves its storage as it is.
    """
    if not _reduced(args, kwargs):
        return func(*args, **kwargs)
    scalar = func(*args, **kwargs)
    size = _whole(args) // scalar.element_size()
    return scalar.new_empty(size).as_strided((), ())


def _element_losses(args: Any, kwargs: Any, out: Any) -> tuple[list[int], list[int]]:
    """Loss.cpp:mse_loss_out, smooth_l1_loss_out, huber_loss: the losses of the elements, before they are reduced."""
    return [], [_whole(args)] if _reduced(args, kwargs) else []


REPLACED = {
    **dict.fromkeys(OPENED, opened),
    "aten.mse_loss": shrunk_loss,
    "aten.smooth_l1_loss": shrunk_loss,
}

KERNELS: dict[str, Kernel] = {
    "aten.mse_loss": _element_losses,
    "aten.smooth_l1_loss": _element_losses,
    "aten.huber_loss": _element_losses,
}
