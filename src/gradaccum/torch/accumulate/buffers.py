"""Where gradients are summed when not in their own type: in buffers of ours, cast once at the end of a group.

A bf16 sum of a thousand equal gradients stops at 256 of them: 8 bits of mantissa hold no more (Megatron-LM keeps fp32
`main_grad` for this). Each gradient goes into its buffer as soon as autograd has made it, and is freed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gradaccum.torch.accumulate.errors import AccumulationError

if TYPE_CHECKING:
    from collections.abc import Sequence

KAHAN = "kahan"


class Buffers:
    """One buffer for each parameter that has had a gradient in this group.

    dtype: of the buffers; None sums in the parameters' own type and keeps what each sum lost beside it (Kahan 1965).
    Raises AccumulationError where gradients are not made by autograd on the parameter itself, as under FSDP2.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], dtype: torch.dtype | str, sharded: bool) -> None:
        if not (dtype == KAHAN or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)):
            raise AccumulationError(f"accumulate_in is a floating-point dtype or {KAHAN!r}, not {dtype!r}")
        if sharded:
            raise AccumulationError(
                "accumulate_in does not go with FSDP2, which sums by itself: keep parameters in fp32 and say "
                "MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)"
            )
        self.dtype = None if isinstance(dtype, str) else dtype
        self._sums: dict[torch.nn.Parameter, torch.Tensor] = {}
        self._lost: dict[torch.nn.Parameter, torch.Tensor] = {}
        self._handles = [each.register_post_accumulate_grad_hook(self._take) for each in parameters]

    def _take(self, parameter: torch.Tensor) -> None:
        assert isinstance(parameter, torch.nn.Parameter)
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        found = self._sums.get(parameter)
        if found is None:
            # A copy in any case: a captured CUDA graph writes its next gradient where this one lies.
            self._sums[parameter] = gradient.to(self.dtype, copy=True) if self.dtype else gradient.clone()
        elif self.dtype:
            found.add_(gradient)
        else:
            self._add_exactly(parameter, found, gradient)

    def _add_exactly(self, parameter: torch.nn.Parameter, found: torch.Tensor, gradient: torch.Tensor) -> None:
        lost = self._lost.get(parameter)
        added = gradient if lost is None else gradient.sub_(lost)
        before = found.clone()
        found.add_(added)
        self._lost[parameter] = found.sub(before).sub_(added)

    def get(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        """The sum so far."""
        return self._sums.get(parameter)

    def set(self, parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
        """Put a sum there."""
        self._sums[parameter] = value

    def zeros_for(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """A sum of nothing."""
        return torch.zeros_like(parameter, dtype=self.dtype)

    def lost(self, parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor | None]:
        """What each sum has lost so far, under Kahan's rule."""
        return [self._lost.get(each) for each in parameters]

    def put_lost(self, parameters: Sequence[torch.nn.Parameter], lost: Sequence[torch.Tensor | None]) -> None:
        """Let these be what was lost."""
        self._lost = {each: found for each, found in zip(parameters, lost, strict=True) if found is not None}

    def hand_over(self) -> None:
        """The sums become the parameters' gradients, in their type; the buffers are free again."""
        while self._sums:
            parameter, found = self._sums.popitem()
            parameter.grad = found.to(parameter.dtype)
        self._lost.clear()

    def clear(self) -> None:
        """Forget all sums."""
        self._sums.clear()
        self._lost.clear()

    def close(self) -> None:
        """Gradients stay where autograd puts them from now on."""
        for each in self._handles:
            each.remove()
