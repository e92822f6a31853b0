"""What the CUDA kernels of operators allocate for themselves: buffers that no tensor of the program shows.

Each rule takes the operator's arguments, keyword arguments and result, and returns the bytes of what is allocated
before the results and of what is after; all of it is gone when the operator returns. `(b, h, s, d)` are batch, heads,
sequence length and width of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from gradaccum.torch.trace.everywhere import nbytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradaccum.torch.trace.device import Kernel

Buffers = tuple[list[int], list[int]]


def up(number: int, multiple: int) -> int:
    """`number`, rounded up to a multiple."""
    return -(-number // multiple) * multiple


def copies(*places: int) -> Kernel:
    """The arguments at these places are made contiguous first, where they are not."""

    def kernel(args: Any, kwargs: Any, out: Any) -> Buffers:
        tensors = (args[place] for place in places if place < len(args))
        return [nbytes(each) for each in tensors if each is not None and not each.is_contiguous()], []

    return kernel


def softmax_backward(args: Any, kwargs: Any, out: Any) -> Buffers:
    """aten/src/ATen/native/cuda/SoftMax.cu:softmax_backward_cuda_out: `Tensor tmp = grad * output`."""
    grad, output = args[:2]
    return [], [nbytes(torch.empty(grad.shape, dtype=torch.result_type(grad, output), device="meta"))]


def flash_backward(args: Any, kwargs: Any, out: Any) -> Buffers:
    """transformers/cuda/flash_attn/flash_api.cpp:mha_bwd: row sums and an accumulator of dq in fp32, lengths rounded up
    to 128 and widths to 32; K and V gradients for all query heads, where the keys have fewer.

    attention_backward.cu:_flash_attention_backward makes the gradient of the result contiguous as (b, s, h, d).
    """
    grad, query, key = args[:3]
    b, h, s, d = query.shape
    rows = b * h * up(s, 128)
    inside = [4 * rows, 4 * rows * up(d, 32)]
    if key.shape[1] != h:
        inside += 2 * [b * key.shape[2] * h * d * query.element_size()]
    return [nbytes(each) for each in (grad, args[4]) if not each.transpose(1, 2).is_contiguous()], inside


def efficient_forward(args: Any, kwargs: Any, out: Any) -> Buffers:
    """transformers/cuda/attention.cu:_efficient_attention_forward: the result is accumulated in fp32 where a head is
    too wide for registers (kernel_forward.h:kNeedsOutputAccumulatorBuffer) and the result is not fp32 itself.
    """
    query, value = args[0], args[2]
    b, h, s, _ = query.shape
    wide = value.shape[-1] > 128 and query.dtype is not torch.float32
    return [], [4 * b * h * s * value.shape[-1]] if wide else []


def efficient_backward(capability: tuple[int, int]) -> Kernel:
    """attention_backward.cu:_efficient_attention_backward: row sums in fp32, and the workspace of
    mem_eff_attention/kernel_backward.h:workspace_size.

    The workspace is dq in fp32 by tiles of 64 x 64, each with 16 bytes of locks, on cards from sm_70 on, where the keys
    are split; and for half precision dk and dv in fp32 for each split, of which there are at most 200 over all heads,
    where a head is wider than what a block keeps in registers: 64, and 128 on the cards with 160 KiB of shared memory.
    For fp32 inputs the row sums are a product, a sum and a copy; the product is as large as the workspace that follows.
    """
    kept = 128 if capability == (8, 0) or (9, 0) <= capability < (12, 0) else 64

    def kernel(args: Any, kwargs: Any, out: Any) -> Buffers:
        grad, query, key, value = args[:4]
        b, h, s, d = query.shape
        before = [] if grad.transpose(1, 2).is_contiguous() else [nbytes(grad)]
        workspace = b * h * (up(s, 64) // 64) * (up(d, 64) // 64) * (64 * 64 * 4 + 16) if capability >= (7, 0) else 0
        if d > kept and query.dtype is not torch.float32:
            splits = max(1, min(up(key.shape[2], 64) // 64, 200 // (b * h)))
            workspace += 4 * b * h * splits * 64 * (up(d, 64) + up(value.shape[-1], 64))
        return before, [4 * b * h * s, workspace]

    return kernel


def embedding_backward(args: Any, kwargs: Any, out: Any) -> Buffers:
    """cuda/Embedding.cu:embedding_dense_backward_cuda: beyond 3072 indices they are sorted with their places, and the
    rows of gradient are summed in parts (EmbeddingBackwardKernel.cu:embedding_backward_cuda_kernel, NROWS_PER_THREAD
    10: at most one part for every 10 indices and one for each distinct word), in fp32.
    """
    grad, indices = args[:2]
    n, width = indices.numel(), grad.shape[-1]
    before = [] if grad.is_contiguous() else [nbytes(grad)]
    if n <= 3072 and args[3] < 0:
        return before, []
    integers = n * indices.element_size()
    parts = up(n, 10) // 10 + min(n, args[2])
    return before, [2 * integers, 2 * integers, 4 * integers, parts * up(width, 32) * 4]


def table(capability: tuple[int, int]) -> dict[str, Kernel]:
    """The rules for a card of this compute capability."""
    efficient = "aten._scaled_dot_product_efficient_attention_backward"
    return {**_KERNELS, efficient: efficient_backward(capability)}


_KERNELS: dict[str, Kernel] = {
    "aten._softmax": copies(0),
    "aten._log_softmax": copies(0),
    "aten._softmax_backward_data": softmax_backward,
    "aten._log_softmax_backward_data": copies(0, 1),
    "aten._scaled_dot_product_flash_attention_backward": flash_backward,
    "aten._scaled_dot_product_efficient_attention": efficient_forward,
    "aten.embedding_dense_backward": embedding_backward,
    "aten.cumsum": copies(0),  # cuda/ScanKernels.cpp; along one of several dimensions without CUB (ScanUtils.cuh)
    "aten.native_layer_norm": copies(0),  # cuda/layer_norm_kernel.cu:layer_norm_cuda: expect_contiguous
    "aten.native_layer_norm_backward": copies(0, 1),
    "aten.native_group_norm": copies(0),
    "aten.native_group_norm_backward": copies(0, 1),
}

UNKNOWN: dict[str, str] = {
    **dict.fromkeys(
        "aten.convolution aten.convolution_backward".split(),
        "cuDNN chooses its workspace when it runs; none is counted",
    ),
    **dict.fromkeys(
        "aten.sort aten.topk aten.index_put_ aten._index_put_impl_".split(),
        "the temporary storage of CUB is not counted",
    ),
    "aten._scaled_dot_product_cudnn_attention_backward": "cuDNN's workspace is not counted",
}

UNKNOWN_MODULES: dict[type, tuple[str, str]] = {
    torch.nn.RNNBase: ("aten._cudnn_rnn", "cuDNN's reserve and workspace; what is counted is the unrolled steps")
}


def efficient_seeds(recorder: Any, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """attention.cu:_efficient_attention_forward: the seeds of dropout lie on the host unless a graph is captured."""
    result, row_sums, seed, offset = func(*args, **kwargs)
    return result, row_sums, torch.empty_like(seed, device="cpu"), torch.empty_like(offset, device="cpu")


def nothing(recorder: Any, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """A fused step of an optimizer: works in place, in one kernel, without a temporary."""


REPLACED = {
    **dict.fromkeys("aten._fused_sgd_ aten._fused_adagrad_ aten._fused_adam_ aten._fused_adamw_".split(), nothing),
    "aten._scaled_dot_product_efficient_attention": efficient_seeds,
}
