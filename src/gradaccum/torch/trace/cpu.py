"""The profile of a CPU: no correction that is CUDA's alone. It exists to hold a trace against a run on this machine."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from gradaccum.torch.trace.composite import additive_mask, attention_by_products, linear, overriding
from gradaccum.torch.trace.device import Device

if TYPE_CHECKING:
    from collections.abc import Iterator


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The flash operator of the CPU, as aten/src/ATen/native/transformers/sdp_utils_cpp.cpp:use_flash_attention_cpp
    chooses it for dense inputs without dropout. Other inputs go the way of the mathematics.
    """
    allowed = torch.backends.cuda.flash_sdp_enabled()  # of every device, as sdpa_kernel sets it
    masked_grad = attn_mask is not None and attn_mask.requires_grad
    same = query.shape[-1] == key.shape[-1] == value.shape[-1]
    if allowed and dropout_p == 0.0 and query.dim() == 4 and same and not masked_grad:
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            attn_mask = additive_mask(attn_mask, query)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
    return attention_by_products(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


@contextmanager
def _patches() -> Iterator[None]:
    with overriding({"linear": linear, "scaled_dot_product_attention": _attention}):
        yield


def cpu() -> Device:
    """The CPU. Every storage counts, those of scalars on the host too, for there they share one allocator."""
    return Device(name="cpu", types=frozenset({"meta", "cpu"}), patches=_patches)
