"""Gradients in memory that the next backward pass overwrites, as a captured CUDA graph leaves them.

Autograd takes the first gradient of a parameter as it is. Where a graph is replayed, each gradient lies at the same
place: the next pass writes over the sum, and then adds the new gradient to itself. Four gradients of .25 become .5, and
no error is raised (pytorch issue 96693). What gives it away: what is added lies where the sum does.
"""

from __future__ import annotations

import torch

from gradaccum.torch.accumulate.errors import AccumulationError

WATCHED = 16
"""So many groups of an accumulator are looked at, which costs a hook in one backward pass of each; a graph is captured
within the first few passes."""


class Watch:
    """On one parameter, which has a gradient, for the duration of one more backward pass."""

    def __init__(self, parameter: torch.nn.Parameter) -> None:
        self._parameter = parameter
        self._overwritten = False
        self._handle = parameter.register_hook(self._look)

    def _look(self, added: torch.Tensor) -> None:
        kept = self._parameter.grad
        if kept is not None and kept.layout is added.layout is torch.strided and kept.numel():
            self._overwritten = kept.data_ptr() == added.data_ptr()

    def end(self) -> None:
        """Look no longer."""
        self._handle.remove()

    def check(self) -> None:
        """Raises AccumulationError where a gradient was overwritten."""
        if self._overwritten:
            raise AccumulationError(
                "a backward pass wrote its gradient over the sum of those before it, as captured CUDA graphs do: take "
                "torch.compile without them (mode='default', not 'reduce-overhead'), or say accumulate_in="
                f"{self._parameter.dtype}, which sums in buffers of our own"
            )
