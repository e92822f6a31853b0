"""What a program reads from a tensor that holds no data, and how it is answered.

`.item()`, `bool(mask.all())` and the like need values. A mask that hides nothing, a loss that is finite and a gradient
that needs no clipping are the ordinary case, so that is what is answered; each answer is noted in `Trace.assumed`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradaccum.torch.trace.device import Recording

NOT_SO = frozenset("any isnan isinf isneginf isposinf ne logical_not __or__ bitwise_or logical_or bitwise_not".split())
"""Operators whose truth is the exception: something is masked, is not a number, differs."""


OVERFLOW = "aten._amp_foreach_non_finite_check_and_unscale_"
NOTHING = frozenset(f"full zeros zeros_like new_zeros full_like {OVERFLOW[5:]}".split())
"""Operators whose number is 0 as long as nothing happens: GradScaler's flag of an overflow, a counter."""


def answer_for(func: Any) -> Callable[..., Any] | None:
    """The function that answers this operator for a tensor without data, or None."""
    return _ANSWERS.get(str(func).rpartition(".")[0])


def is_question(func: Any) -> bool:
    """Whether the operator reads a value."""
    return answer_for(func) is not None


def _item(recorder: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """`.item()`, `bool()`, `float()`, `int()`: True or False for a truth, by what made it; else 1."""
    tensor = args[0]
    if tensor.device.type != "meta":
        return func(*args, **kwargs)
    maker = recorder.maker(tensor)
    bare = maker.rpartition(".")[2]
    if maker in recorder.answers:
        value = recorder.answers[maker]
    elif tensor.dtype is torch.bool:
        value = bare not in NOT_SO
    else:
        value = tensor.new_empty((), device="cpu").fill_(bare not in NOTHING).item()
    recorder.assume(maker or "aten.item", value)
    return value


def _equal(recorder: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """`torch.equal`: True."""
    if args[0].device.type != "meta":
        return func(*args, **kwargs)
    value = recorder.answers.get("aten.equal", True)
    recorder.assume("aten.equal", value)
    return value


def _nonzero(recorder: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """`nonzero`, and indexing by a mask: as if every element were chosen, which is the most there can be."""
    tensor = args[0]
    if tensor.device.type != "meta":
        return func(*args, **kwargs)
    recorder.guess("aten.nonzero", "every element is taken to be chosen: an upper bound")
    return torch.empty_strided(
        (tensor.numel(), tensor.dim()), (1, tensor.numel()), dtype=torch.int64, device=tensor.device
    )


def _masked_select(recorder: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """`masked_select`: as if every element were chosen."""
    tensor, mask = args[:2]
    if tensor.device.type != "meta":
        return func(*args, **kwargs)
    recorder.guess("aten.masked_select", "every element is taken to be chosen: an upper bound")
    shape = torch.broadcast_shapes(tensor.shape, mask.shape)
    return tensor.new_empty(shape.numel())


def _index(recorder: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """Indexing by a mask is indexing by its `nonzero`, which is made first, as at::native::index does."""
    tensor, indices = args[:2]
    masks = [each for each in indices if each is not None and each.dtype in (torch.bool, torch.uint8)]
    if not masks or masks[0].device.type != "meta":
        return func(*args, **kwargs)
    found: list[Any] = []
    for each in indices:
        if each is None or each.dtype not in (torch.bool, torch.uint8):
            found.append(each)
        else:
            places = _nonzero(recorder, func, (each,), {})
            recorder.see(places, "aten.nonzero")
            found += places.unbind(1)
    return func(tensor, found, *args[2:], **kwargs)


def _to_copy(recorder: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """A copy to the host, which no data can follow: zeros of the same shape."""
    tensor, device = args[0], kwargs.get("device")
    if device is None or tensor.device.type != "meta" or torch.device(device).type == "meta":
        return func(*args, **kwargs)
    recorder.assume("aten._to_copy", "zeros on the host")
    return torch.zeros(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype, device=device)


def _unscale(recorder: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """GradScaler's check of gradients: its second argument says whether one overflowed, and was 0."""
    recorder.made_by(args[1], OVERFLOW)
    return func(*args, **kwargs)


_ANSWERS: dict[str, Callable[..., Any]] = {
    "aten._local_scalar_dense": _item,
    "aten.item": _item,
    "aten.equal": _equal,
    "aten.nonzero": _nonzero,
    "aten.masked_select": _masked_select,
    "aten.index": _index,
    "aten.index_put": _index,
    "aten.index_put_": _index,
    "aten._to_copy": _to_copy,
    OVERFLOW: _unscale,
}
