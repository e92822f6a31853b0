"""A loss over the whole batch, as a contrastive one, in pieces: the cached-gradient form.

Such a loss is no sum over micro-batches, so that summing their gradients is not the big batch's gradient. Gao et al.,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv:2101.06983), take it in three passes:
encode every micro-batch without a graph; the loss over all representations, and its gradient in each of them; encode
again with a graph, and go backward from those. One more forward pass is its price.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from gradaccum.torch.accumulate.rng import random_state, set_random_state
from gradaccum.torch.accumulate.sums import checked, checked_weight, loss_and_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gradaccum.torch.accumulate.sums import Number, Sums


class Unanswered(Protocol):
    """What is asked of a group: its micro-batches, and to begin and answer each in its second pass."""

    sums: Sums
    device: torch.device

    def unanswered(self) -> Iterator[Any]:
        """Every micro-batch."""
        ...

    def seed(self, loss: torch.Tensor, weight: Number) -> torch.Tensor:
        """The gradient that a backward pass starts from."""
        ...

    def begin(self, index: int, last: bool) -> None:
        """Before the forward pass of this one."""
        ...

    def answer(self, batch: Any) -> None:
        """After its backward pass."""
        ...


def run_cached(
    group: Unanswered, encode: Callable[[Any], Any], loss_of: Callable[[Any], tuple[torch.Tensor, Number]]
) -> None:
    """All micro-batches of a group, answered. See Group.cached."""
    batches = list(group.unanswered())
    if not batches:
        return
    device = group.device
    random = []
    found = []
    with torch.no_grad():
        for batch in batches:
            random.append(random_state(device))
            found.append(tree_flatten(encode(batch)))
    shape = found[0][1]
    sizes = [[each.shape[0] for each in leaves] for leaves, _ in found]
    whole = [torch.cat(parts).requires_grad_() for parts in zip(*[leaves for leaves, _ in found], strict=True)]
    loss, weight = loss_and_weight(loss_of(tree_unflatten(whole, shape)))
    loss, weight = checked(loss), checked_weight(weight)
    loss.backward(gradient=group.seed(loss, weight))
    parts = [
        torch.zeros_like(each).split(lengths) if each.grad is None else each.grad.split(lengths)
        for each, lengths in zip(whole, map(list, zip(*sizes, strict=True)), strict=True)
    ]
    after = random_state(device)
    for number, batch in enumerate(batches):
        group.begin(number, last=number == len(batches) - 1)
        set_random_state(device, random[number])
        leaves, _ = tree_flatten(encode(batch))
        torch.autograd.backward(leaves, [each[number].to(leaf.dtype) for each, leaf in zip(parts, leaves, strict=True)])
        group.answer(batch)
    set_random_state(device, after)
    group.sums.add(loss, weight)
