"""From reduced gradients to a step: one factor normalises and clips, in one pass over them or in none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.amp.grad_scaler import OptState

from gradaccum.torch.accumulate.errors import AccumulationError
from gradaccum.torch.accumulate.parts import by_mesh

if TYPE_CHECKING:
    from collections.abc import Sequence


def norm_of(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The 2-norm over all of them, over the shards of all ranks too. Shape ()."""
    norms = [_total_norm(each) for each in by_mesh(gradients)]
    if len(norms) == 1:
        return norms[0]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _total_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    norm = torch.nn.utils.get_total_norm(gradients)
    whole: torch.Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def clipped(factor: float, norm: float, clip_norm: float | None) -> float:
    """The factor that normalises, and clips a mean gradient of norm `factor * norm` to clip_norm.

    As torch.nn.utils.clip_grad_norm_ does it: nothing is made larger, and 1e-6 stands beside the norm.
    """
    if clip_norm is None:
        return factor
    return factor * min(1.0, clip_norm / (factor * norm + 1e-6))


def noise_scale(small: float, one_by_small: float, big: float, one_by_big: float) -> float | None:
    """tr(covariance) / |gradient|^2 from the squared norms of the gradients of a small and a big batch.

    one_by_small, one_by_big: 1 / their sizes. McCandlish et al., arXiv:1812.06162, appendix A.1: both are unbiased,
    their ratio is not; None where the batches are of one size or the estimate of |gradient|^2 is not above 0.
    """
    if not one_by_small > one_by_big:
        return None
    covariance = (small - big) / (one_by_small - one_by_big)
    squared = big - covariance * one_by_big
    return covariance / squared if squared > 0 else None


def unscale(optimizers: Sequence[torch.optim.Optimizer], scaler: torch.amp.GradScaler) -> None:
    """Divide the gradients by the scale. Raises AccumulationError where a loop has done it already."""
    done = [each for each in optimizers if scaler._per_optimizer_states[id(each)]["stage"] is not OptState.READY]
    for each in done:  # what is to be unscaled next is another group
        del scaler._per_optimizer_states[id(each)]
    if done:
        raise AccumulationError(
            "scaler.unscale_(optimizer) was called in the group, and a gradient is unscaled once, when it is whole: "
            "take it out of the loop, and clip by clip_norm=; accumulator.discard() throws the group away"
        )
    for each in optimizers:
        scaler.unscale_(each)


def step_all(
    optimizers: Sequence[torch.optim.Optimizer], gradients: Sequence[torch.Tensor], factor: float, scaler: object
) -> None:
    """Multiply the gradients by the factor and step.

    A fused optimizer divides by its `grad_scale` while it steps, so that there no pass is added. It holds fp32, too
    coarse for float64; fused SGD cannot take one for a DTensor; and a scaler sets its own.
    """
    if (
        factor != 1.0
        and scaler is None
        and all(map(_takes_grad_scale, optimizers))
        and all(map(_divides_well, gradients))
    ):
        device = gradients[0].device
        scale, none_found = torch.tensor(1.0 / factor, device=device), torch.zeros((), device=device)
        for each in optimizers:
            each.grad_scale, each.found_inf = scale, none_found
        try:
            for each in optimizers:
                each.step()
        finally:
            for each in optimizers:
                del each.grad_scale, each.found_inf
        return
    if factor != 1.0:
        multiply(gradients, factor)
    for each in optimizers:
        if scaler is None:
            each.step()
        else:
            scaler.step(each)  # type: ignore[attr-defined]


def multiply(gradients: Sequence[torch.Tensor], factor: float) -> None:
    """All of them, in place."""
    for each in by_mesh(gradients):
        torch._foreach_mul_(each, factor)


def _divides_well(gradient: torch.Tensor) -> bool:
    return gradient.dtype != torch.float64 and not hasattr(gradient, "full_tensor")


def _takes_grad_scale(optimizer: torch.optim.Optimizer) -> bool:
    """torch/amp/grad_scaler.py looks at the same attribute. One that a wrapper hands through from the optimizer inside
    does not count: that one would not see the scale.
    """
    return bool(vars(optimizer).get("_step_supports_amp_scaling", False))
