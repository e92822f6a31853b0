"""Memory that runs out above so many samples, by the errors that PyTorch raises for it."""

from __future__ import annotations

import torch


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fits):
        ctx.fits = fits
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if len(gradient) > ctx.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return gradient, None


class Limited:
    """Hands its input on; of more samples than fit it runs out of memory, `where`: forward, backward, allocator."""

    def __init__(self, where, fits):
        self.where, self.fits = where, fits

    def __call__(self, x):
        if self.where == "backward":
            return _Backward.apply(x, self.fits)
        if len(x) > self.fits and self.where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if len(x) > self.fits and self.where == "allocator":
            torch.empty(2**62, dtype=torch.uint8)  # the host's own error: no machine has so much
        return x


class NoMemory(torch.optim.SGD):
    """Whose step has none."""

    def step(self, closure=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
