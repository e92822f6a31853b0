"""Linear layers of 4 bits, as bitsandbytes computes them on CUDA: a weight is made whole again for each product.

bitsandbytes/_ops.py registers shapes for the meta device, so that its modules run there. What its CUDA operators
allocate inside is written here, as backends/cuda/ops.py of version 0.50.2 has it. Releases that multiply in Python,
`F.linear` with the result of `dequantize_4bit`, need no rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gradaccum.torch.trace.device import Recording

ALWAYS_WHOLE = 512
"""Rows of input beyond which the weight is made whole on every card, one case apart: on an A100 or H100, small weights
that are narrow in K (ops.py:_gemm_4bit_use_custom_cuda). With fewer rows it depends on the card's multiprocessors."""


def quantize_4bit(recorder: Recording, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """`bitsandbytes::quantize_4bit`: the scales of the blocks are allocated first, then the packed weight."""
    with recorder:
        return _quantise(*args, **kwargs)


def _quantise(
    weight: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    weight = weight.contiguous()
    count = weight.numel()
    scales = weight.new_empty(-(count // -blocksize), dtype=torch.float32)
    return weight.new_empty(((count + 1) // (quant_storage.itemsize * 2), 1), dtype=quant_storage), scales


def gemm_4bit(recorder: Recording, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """`bitsandbytes::gemm_4bit`: the weight in the type of the input, and a product with it.

    For few rows of input a kernel of its own may read the packed weight instead, which is then no more than a bound.
    """
    if args[0].numel() <= ALWAYS_WHOLE * args[0].shape[-1]:
        recorder.guess("bitsandbytes.gemm_4bit", "the weight is taken to be made whole: an upper bound for few tokens")
    with recorder:
        return _multiply(*args, **kwargs)


def _multiply(
    input: torch.Tensor,
    packed: torch.Tensor,
    shape: Sequence[int],
    scales: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    quantised_scales: torch.Tensor | None = None,
    code: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """ops.py:_dequant_linear_fallback. What is made here lives until the product is there.

    The product is spelt out, since below autograd a recorder would see `linear` and `matmul` as they are.
    """
    made = []
    if quantised_scales is not None:
        made.append(torch.empty_like(quantised_scales, dtype=torch.float32))
        made.append(made[0] + offset)
    made.append(input.new_empty(shape))
    rows, weight = input.reshape(-1, input.shape[-1]), made[-1].t()
    product = torch.mm(rows, weight) if bias is None else torch.addmm(bias, rows, weight)
    return product.view(*input.shape[:-1], product.shape[-1])


REPLACED = {"bitsandbytes.quantize_4bit": quantize_4bit, "bitsandbytes.gemm_4bit": gemm_4bit}
