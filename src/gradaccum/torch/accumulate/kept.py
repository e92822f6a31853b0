"""Gradients between the passes of a group: none is there before the first, and the group alone writes to them.

A backward pass beside the group's own, as of a GAN's generator through its discriminator, adds to the same gradients
and nobody hears of it. Before a group it leaves gradients where there should be none; within one it changes a tensor
whose version the group has noted. Both are told from the host's own records: the device is not asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradaccum.torch.accumulate.errors import AccumulationError
from gradaccum.torch.accumulate.parts import local, mesh_size

if TYPE_CHECKING:
    import torch

    from gradaccum.torch.accumulate.state import State


def check_clean(state: State) -> None:
    """Raises AccumulationError where a gradient is there that the group would add its own to. One of zeros adds
    nothing: an optimizer may keep it when it clears, and only then the device is asked.
    """
    found = {each: each.grad for each in state.parameters if each.grad is not None}
    if state.buffers is not None:
        found |= {each: kept for each in state.parameters if (kept := state.buffers.get(each)) is not None}
    left = [each for each, kept in found.items() if bool(local(kept).any())]
    if not left:
        return
    state.open = None  # nothing of this group is in them: the next one may begin
    names = {id(each): name for model in state.sync.models for name, each in model.named_parameters()}
    more = len(left) - 1
    others = f" and {more} more parameter{'s' * (more > 1)}" if more else ""
    raise AccumulationError(
        f"there are gradients before the first micro-batch of a group, which would be added to it: of "
        f"{names.get(id(left[0]), 'a parameter')}{others}. A backward pass beside this accumulator's left them, as a "
        "GAN's generator does in the discriminator: call optimizer.zero_grad(set_to_none=True) before the group, or "
        "keep that pass out of these parameters with model.requires_grad_(False) around it"
    )


def versions(state: State) -> list[int] | None:
    """How often each parameter was written to. A sharded one is written to by each all-gather."""
    return None if state.sync.sharded else [each._version for each in state.parameters]


class Kept:
    """The gradient of one parameter, which a pass of this group has begun."""

    def __init__(self, parameter: torch.nn.Parameter, state: State) -> None:
        self.parameter, self._state = parameter, state
        found = state.sum_of(parameter)
        # A DTensor counts nothing, and DDP's views count what is written beside them in their bucket.
        self._counts = mesh_size(parameter) == 1 and found is not None and not found._is_view()
        self.note()

    def note(self) -> None:
        """After a pass of the group's own."""
        if self._counts:
            found = self._state.sum_of(self.parameter)
            self._version = -1 if found is None else found._version

    def check(self, alone: bool = True) -> None:
        """Raises AccumulationError where the gradient was cleared, or, if `alone`, where another than the group has
        written to it since its last pass.
        """
        found = self._state.sum_of(self.parameter)
        if found is None:
            raise AccumulationError(
                "gradients of this group were cleared before its step: take zero_grad() out of the loop, step() clears "
                "them; accumulator.discard() throws the group away"
            )
        if alone and self._counts and self._version != found._version:
            raise AccumulationError(
                "gradients of this group were changed between its backward passes, as by a loss.backward() beside "
                "group.backward, or by clip_grad_norm_ in the loop: give the whole loss to group.backward, and clip by "
                "clip_norm=; accumulator.discard() throws the group away"
            )
