"""Which kernel `scaled_dot_product_attention` takes on a GPU, and the operator that it then calls.

ATen decides by asking whether its inputs are on CUDA, so that on the meta device it always takes the mathematics,
which keep the scores. The order and the conditions here are those of
aten/src/ATen/native/transformers/cuda/sdp_utils.cpp for dense inputs; each condition names its function there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gradaccum.torch.trace.composite import additive_mask, attention_by_products

if TYPE_CHECKING:
    from collections.abc import Callable

FLASH, EFFICIENT, CUDNN, MATH = "flash efficient cudnn math".split()


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for. query: (batch, heads, queries, width); key, value: (batch, key heads, keys, width)."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    dropout_p: float
    is_causal: bool
    enable_gqa: bool

    @property
    def trains(self) -> bool:
        """sdp_utils_cpp.h:input_requires_grad."""
        tensors = (self.query, self.key, self.value)
        return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)


def choose(request: Request, capability: tuple[int, int]) -> str:
    """The kernel for a card of this compute capability: sdp_utils.cpp:select_sdp_backend.

    A kernel that the person has switched off, as `torch.nn.attention.sdpa_kernel` does, is not chosen. RuntimeError,
    as PyTorch's, where no other fits: grouped heads under the memory-efficient kernel alone, for example.
    """
    order = (FLASH, EFFICIENT, CUDNN)
    if capability in {(9, 0), (10, 0), (10, 3)}:  # check_prefer_cudnn_attention, with cuDNN from 9.15.1 on
        order = (CUDNN, FLASH, EFFICIENT)
    chosen = next((each for each in order if _ALLOWED[each]() and _FITS[each](request, capability)), MATH)
    if chosen == MATH and not torch.backends.cuda.math_sdp_enabled():
        raise RuntimeError("scaled_dot_product_attention: no kernel that is allowed fits these inputs")
    return chosen


_ALLOWED: dict[str, Callable[[], bool]] = {
    FLASH: torch.backends.cuda.flash_sdp_enabled,
    EFFICIENT: torch.backends.cuda.mem_efficient_sdp_enabled,
    CUDNN: torch.backends.cuda.cudnn_sdp_enabled,
}


def _heads_fit(request: Request, grouped: bool) -> bool:
    """check_batch_size_and_num_heads_dense, check_nonzero_sequence_lengths_dense, check_tensor_shapes."""
    query, key, value = request.query, request.key, request.value
    if query.dim() != 4 or query.shape[0] != key.shape[0] or key.shape[:2] != value.shape[:2]:
        return False
    same = query.shape[1] == key.shape[1]
    return (same or (grouped and request.enable_gqa)) and query.shape[2] > 0 and key.shape[2] > 0


def _half(request: Request, capability: tuple[int, int]) -> bool:
    """check_dtypes_low_precision."""
    return request.query.dtype is torch.float16 or (request.query.dtype is torch.bfloat16 and capability >= (8, 0))


def _flash_fits(request: Request, capability: tuple[int, int]) -> bool:
    """can_use_flash_attention."""
    width = request.query.shape[-1]
    # check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120
    small = (8, 6) <= capability <= (8, 9) or capability >= (12, 0)
    narrow = width <= 192 or (request.dropout_p == 0 and width > 224)
    return (
        capability >= (8, 0)
        and _half(request, capability)
        and request.mask is None
        and width == request.key.shape[-1] == request.value.shape[-1]
        and width <= 256
        and not (request.trains and small and not narrow)
        and not (request.is_causal and request.query.shape[2] != request.key.shape[2])
        and _heads_fit(request, grouped=True)
    )


def _efficient_fits(request: Request, capability: tuple[int, int]) -> bool:
    """can_use_mem_efficient_attention. Grouped heads only from a version on that no release has yet."""
    query = request.query
    half = query.dtype in (torch.float16, torch.bfloat16)
    # minimum_gemm_alignment
    alignment = 4 if capability >= (8, 0) else 1
    if capability >= (8, 0) or (capability >= (7, 0) and half):
        alignment = max(alignment, 128 // (16 if half else 32))
    return (
        query.dtype in (torch.float16, torch.float32, *((torch.bfloat16,) if capability >= (8, 0) else ()))
        and query.shape[-1] == request.key.shape[-1]
        and query.shape[-1] % alignment == 0
        and request.value.shape[-1] % alignment == 0
        and _heads_fit(request, grouped=False)
    )


def _cudnn_fits(request: Request, capability: tuple[int, int]) -> bool:
    """can_use_cudnn_attention, with cuDNN from 9.15.1 on: check_cudnn_tensor_shapes and those before it."""
    widths = (request.query.shape[-1], request.value.shape[-1])
    return (
        capability >= (8, 0)
        and _half(request, capability)
        and all(width % 8 == 0 and width <= 128 for width in widths)
        and request.dropout_p * 16 == int(request.dropout_p * 16)
        and request.key.shape[2] != 1
        and _heads_fit(request, grouped=True)
    )


_FITS: dict[str, Callable[[Request, tuple[int, int]], bool]] = {
    FLASH: _flash_fits,
    EFFICIENT: _efficient_fits,
    CUDNN: _cudnn_fits,
}


def routed(capability: tuple[int, int]) -> Callable[..., torch.Tensor]:
    """`scaled_dot_product_attention` as on a card of this compute capability."""

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        request = Request(
            query=query,
            key=key,
            value=value,
            mask=attn_mask,
            dropout_p=dropout_p,
            is_causal=is_causal,
            enable_gqa=enable_gqa,
        )
        kernel = choose(request, capability)
        if kernel == MATH:
            return attention_by_products(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            attn_mask = additive_mask(attn_mask, query)
        return _CALLS[kernel](request, attn_mask, scale)

    return attention


def _flash(request: Request, mask: Any, scale: float | None) -> Any:
    """attention.cpp:scaled_dot_product_attention pads the width to a multiple of 8 (pad_last_dim)."""
    query, key, value, width = request.query, request.key, request.value, request.query.shape[-1]
    scale = scale if scale is not None else width**-0.5
    if width % 8:
        query, key, value = (torch.nn.functional.pad(each, (0, 8 - width % 8)) for each in (query, key, value))
    result = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, request.dropout_p, request.is_causal, False, scale=scale
    )[0]
    return result[..., :width] if width % 8 else result


def _efficient(request: Request, mask: Any, scale: float | None) -> Any:
    """attention.cpp:preprocess_mask pads a mask whose rows are not a multiple of 16 bytes, and expands it."""
    query, keys = request.query, request.key.shape[2]
    if mask is not None:
        if mask.dim() == 2 or mask.stride(-2) % 8 or mask.storage_offset() % 8:
            missing = -keys % 8 or 8 if keys % 8 else 0
            if missing:
                mask = torch.nn.functional.pad(mask, (0, missing))[..., :keys]
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], keys)
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, request.key, request.value, mask, request.trains, request.dropout_p, request.is_causal, scale=scale
    )[0]


def _cudnn(request: Request, mask: Any, scale: float | None) -> Any:
    return torch.ops.aten._scaled_dot_product_cudnn_attention(
        request.query,
        request.key,
        request.value,
        mask,
        request.trains,
        request.dropout_p,
        request.is_causal,
        False,
        scale=scale,
    )[0]


_CALLS: dict[str, Callable[[Request, Any, float | None], Any]] = {
    FLASH: _flash,
    EFFICIENT: _efficient,
    CUDNN: _cudnn,
}
