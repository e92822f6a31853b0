"""The profile of an NVIDIA GPU: what ATen and torch do otherwise on CUDA than on the meta device.

kernels.py holds the buffers inside kernels, attention.py the choice of the attention kernel, quantised.py the linear
layers of 4 bits.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from gradaccum.torch.trace import kernels, quantised
from gradaccum.torch.trace.attention import routed
from gradaccum.torch.trace.autocast import autocast_of_cuda
from gradaccum.torch.trace.composite import linear, overriding
from gradaccum.torch.trace.device import Device

if TYPE_CHECKING:
    from collections.abc import Iterator

KIB = 1024

PRODUCTS = "aten.mm aten.bmm aten.baddbmm aten.addmv aten.mv aten.dot aten.addbmm".split()
"""Operators that call cuBLAS."""


def softmax(input: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """aten/src/ATen/native/SoftMax.cpp:softmax: fp16 in and fp32 out is one kernel on CUDA; bf16 is cast first."""
    if input.dtype is torch.float16 and dtype is torch.float32:
        return torch._softmax(input, dim, True)
    return torch._softmax(input if dtype is None else input.to(dtype), dim, False)


def log_softmax(input: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """SoftMax.cpp:log_softmax: as softmax."""
    if input.dtype is torch.float16 and dtype is torch.float32:
        return torch._log_softmax(input, dim, True)
    return torch._log_softmax(input if dtype is None else input.to(dtype), dim, False)


def dropout(input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """aten/src/ATen/native/Dropout.cpp:dropout: on CUDA one kernel, which keeps a mask of bytes."""
    if train and 0 < p < 1 and input.numel():
        return torch.native_dropout(input, p, train)[0]
    if not train or p == 0 or not input.numel():
        return input
    return input * torch.zeros((), dtype=input.dtype, device=input.device)


class _RMSNorm(torch.autograd.Function):
    """cuda/layer_norm_kernel.cu:_fused_rms_norm_cuda and its backward: results, and one fp32 number for each row."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, rows: torch.Size, weight: torch.Tensor | None) -> torch.Tensor:
        result = torch.empty_like(input)
        scale = input.new_empty(rows, dtype=torch.float32)
        ctx.save_for_backward(input, scale, weight)
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        input, _, weight = ctx.saved_tensors
        wants = ctx.needs_input_grad
        return (
            torch.empty_like(input) if wants[0] else None,
            None,
            torch.empty_like(weight) if wants[2] else None,
        )


def rms_norm(
    input: torch.Tensor, normalized_shape: list[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    """aten/src/ATen/native/layer_norm.cpp:rms_norm_symint: one kernel, unless the weight is of another dtype."""
    if weight is not None and weight.dtype is not input.dtype:
        return torch.ops.aten.rms_norm.default.decompose(input, normalized_shape, weight, eps)
    dims = len(normalized_shape)
    return _RMSNorm.apply(input.contiguous(), (*input.shape[:-dims], *(1,) * dims), weight)


def cuda(
    capability: tuple[int, int],
    *,
    cublas_workspace: int | None = None,
    cublaslt_workspace: int = 1024 * KIB,
) -> Device:
    """A GPU of this compute capability, such as (7, 5) for a T4, (8, 0) for an A100, (9, 0) for an H100.

    cublas_workspace: bytes for each thread that multiplies matrices. Without it, the default of
    aten/src/ATen/cuda/CublasHandlePool.cpp:parseChosenWorkspaceSize: `:4096:2:16:8` in KiB, and 32 MiB from Hopper on.
    cublaslt_workspace: bytes for each thread that adds a bias in the product (getCUDABlasLtWorkspaceSize: 1 MiB).
    """
    if cublas_workspace is None:
        cublas_workspace = 32 * KIB * KIB if capability >= (9, 0) else (2 * 4096 + 8 * 16) * KIB
    libraries = {"cuBLAS": cublas_workspace}
    return Device(
        name=f"cuda sm_{capability[0]}{capability[1]}",
        types=frozenset({"meta"}),
        kernels=kernels.table(capability),
        replaced={**kernels.REPLACED, **quantised.REPLACED},
        workspaces={
            **dict.fromkeys(PRODUCTS, libraries),
            # A bias of one dimension is added inside the product (native/cuda/Blas.cpp:isInputCompliesAddmmCudaLt).
            "aten.addmm": {"cuBLASLt": cublaslt_workspace, **libraries},
        },
        unknown=kernels.UNKNOWN,
        unknown_modules=kernels.UNKNOWN_MODULES,
        patches=partial(_patches, capability),
    )


@contextmanager
def _patches(capability: tuple[int, int]) -> Iterator[None]:
    composites: dict[str, Any] = {
        "linear": linear,
        "softmax.int": softmax,
        "log_softmax.int": log_softmax,
        "dropout": dropout,
        # One kernel from PyTorch 2.9 on.
        **({"rms_norm": rms_norm} if hasattr(torch.ops.aten, "_fused_rms_norm") else {}),
        "scaled_dot_product_attention": routed(capability),
    }
    with ExitStack() as stack:
        stack.enter_context(overriding(composites))
        stack.enter_context(autocast_of_cuda())
        # Optimizers and gradient clipping take many tensors at once by default, where the device can.
        for module in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
            for name in ("_get_foreach_kernels_supported_devices", "_get_fused_kernels_supported_devices"):
                stack.enter_context(_with_meta(module, name))
        yield


def _with_meta(module: str, name: str) -> Any:
    """torch's list of devices, with the meta device in it, where the module has such a list."""
    found = getattr(__import__(module, fromlist=[name]), name, None)
    if found is None:
        return ExitStack()
    return mock.patch(f"{module}.{name}", return_value=[*found(), "meta"])
