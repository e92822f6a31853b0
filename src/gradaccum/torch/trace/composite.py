"""Composite operators, which ATen writes in terms of others and sometimes writes otherwise for one device.

They are split up before any dispatch mode sees them, so a mode cannot change how. A kernel of our own for the meta
device alone can: the dispatcher prefers it to the composite one, for whoever calls the operator, in recomputation as
in forward, from Python or from C++. Tensors with data, on whatever device, do not notice.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any


@contextmanager
def overriding(kernels: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """While entered, these operators of aten (`softmax.int`) are the given functions on the meta device.

    Gradients flow through what the functions call, as through the pieces of the composite operator.
    """
    with torch.library._scoped_library("aten", "IMPL") as library, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, kernel in kernels.items():
            library.impl(name, kernel, "AutogradMeta")
        yield


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """aten/src/ATen/native/Linear.cpp:linear, which would add the bias out of place under a dispatch mode.

    input: (..., in), weight: (out, in), bias: (out,). Returns (..., out).
    """
    if bias is not None and input.dim() == 2:
        return torch.addmm(bias, input, weight.t())
    if bias is not None and input.dim() == 3 and input.is_contiguous():
        flat = torch.addmm(bias, input.view(-1, input.shape[-1]), weight.t())
        return flat.view(*input.shape[:-1], flat.shape[-1])
    result = torch.matmul(input, weight.t())
    return result if bias is None else result.add_(bias)


def attention_by_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> torch.Tensor:
    """transformers/attention.cpp:_scaled_dot_product_attention_math, which would add the mask out of place under a
    dispatch mode. query, key, value: (batch, heads, length, width), whose scores are length x length.

    Inputs of 16 bits are cast to fp32, unless `torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)` was said;
    the casts live until the result is there, and so does one of the weights back to 16 bits, which the operator
    returns beside the result.
    """
    dtype, root = query.dtype, (abs(scale) if scale is not None else query.shape[-1] ** -0.5) ** 0.5
    if mask is not None and mask.dtype is torch.bool:
        mask = additive_mask(mask, query)
    if dtype in (torch.float16, torch.bfloat16) and not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed():
        query, key, value = query.float(), key.float(), value.float()
    scaled = query * root
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        mask = additive_mask(mask, query)
    keys, values = key, value
    if enable_gqa:
        keys, values = (each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value))
    weights = torch.matmul(scaled, keys.transpose(-2, -1) * root)
    if mask is not None:
        weights.add_(mask)
    weights = torch._safe_softmax(weights, -1)
    if dropout_p > 0:
        weights = torch.dropout(weights, dropout_p, True)
    # Held for its bytes: the second result, which scaled_dot_product_attention drops once the first is there.
    _returned = weights.to(dtype)
    result = torch.matmul(weights, values).to(dtype)
    del weights, values, keys, scaled, mask, value, key, query  # in C++'s order: the last one that was made goes first
    return result


def additive_mask(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """transformers/attention.cpp:convert_boolean_attn_mask: 0 where a key is seen, minus infinity elsewhere."""
    hidden = torch.scalar_tensor(-torch.inf, dtype=like.dtype, device=like.device)
    return torch.where(mask, torch.scalar_tensor(0.0, dtype=like.dtype), hidden)
