"""`torch.autocast("cuda")` without CUDA: which operators cast their inputs, to what, and the cache of cast weights.

Autocast turns itself off where there is no CUDA, refuses the meta device, and its casts look for CUDA tensors. So the
lists of aten/src/ATen/autocast_mode.h are repeated here, as kernels of a dispatch key between autograd and the user
that no device of this program uses: the casts are then seen by autograd and by the recorder, as autocast's own are.
The state (on or off, dtype, cache) stays torch's own, that of "cuda"; the meta device is taken for it.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = torch._C.DispatchKey.AutocastIPU
"""The key of a device type that PyTorch itself has no operators for."""

LOWER = """_convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d.input conv_transpose3d.input
    convolution prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul
    linalg_multi_dot scaled_dot_product_attention""".split()
"""AT_FORALL_LOWER_PRECISION_FP: inputs become fp16 or bf16. Recurrent cells are left out."""

FULL = """acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
    pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm group_norm nuclear_norm cosine_similarity
    poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss
    huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss
    multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp rms_norm""".split()
"""AT_FORALL_FP32: inputs become fp32. Upsampling is left out. PyTorch before 2.8 has no `rms_norm` here."""

FULL_BY_DTYPE = (
    "prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm sum sum.dim_IntList".split()
)
"""AT_FORALL_FP32_SET_OPT_DTYPE: the argument `dtype` becomes fp32 where it is not given."""

WIDEST = "addcdiv addcmul atan2 bilinear cross dot vdot index_put tensordot scatter_add".split()
"""AT_FORALL_PROMOTE: inputs become the widest dtype among them."""


class _Cache:
    """autocast_mode.cpp:cached_cast. Weights (fp32 leaves that want a gradient) are cast once while autocast is on."""

    def __init__(self) -> None:
        self.casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self.cast(each, dtype) for each in value)
        if not _eligible(value) or value.dtype is dtype:
            return value
        keeps = (
            value.dtype is torch.float32
            and dtype is torch.get_autocast_dtype("cuda")
            and value.requires_grad
            and value.is_leaf
            and not value._is_view()
            and torch.is_autocast_cache_enabled()
        )
        if not keeps:
            return value.to(dtype)
        if id(value) not in self.casts:
            self.casts[id(value)] = value, value.to(dtype)
        return self.casts[id(value)][1]


def _eligible(value: Any) -> bool:
    """autocast_mode.h:is_eligible: a floating tensor of the device, and not fp64."""
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == "meta"
        and value.is_floating_point()
        and value.dtype is not torch.float64
    )


@contextmanager
def autocast_of_cuda() -> Iterator[None]:
    """While entered, `torch.autocast` for "cuda" or "meta" works on meta tensors, and GradScaler is on."""
    cache = _Cache()
    clear = torch.clear_autocast_cache

    def clear_both() -> None:
        cache.casts.clear()
        clear()

    with ExitStack() as stack:
        everything = stack.enter_context(torch.library._scoped_library("_", "IMPL"))
        everything.fallback(torch.library.fallthrough_kernel, KEY.name)
        aten = stack.enter_context(torch.library._scoped_library("aten", "IMPL"))
        for name, kernel in _kernels(cache):
            aten.impl(name, kernel, KEY.name)
        patch = stack.enter_context
        patch(mock.patch("torch.clear_autocast_cache", clear_both))
        patch(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False))
        patch(mock.patch("torch.cuda.is_bf16_supported", return_value=True))
        init = torch.amp.autocast_mode.autocast.__init__
        patch(mock.patch("torch.amp.autocast_mode.autocast.__init__", _as_cuda(init, 1)))
        for name in (
            "torch.is_autocast_enabled",
            "torch.get_autocast_dtype",
            "torch.amp.is_autocast_available",
            "torch.amp.autocast_mode.is_autocast_available",
        ):
            module, _, function = name.rpartition(".")
            patch(mock.patch(name, _as_cuda(getattr(_named(module), function), 0)))
        was_excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(KEY)
        torch._C._dispatch_tls_set_dispatch_key_excluded(KEY, False)
        stack.callback(torch._C._dispatch_tls_set_dispatch_key_excluded, KEY, was_excluded)
        stack.enter_context(torch._C._IncludeDispatchKeyGuard(KEY))
        yield


def _as_cuda(function: Callable[..., Any], place: int) -> Callable[..., Any]:
    """The function, with "meta" for its argument `device_type` taken as "cuda"."""

    def called(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("device_type") == "meta":
            kwargs["device_type"] = "cuda"
        elif len(args) > place and args[place] == "meta":
            args = (*args[:place], "cuda", *args[place + 1 :])
        return function(*args, **kwargs)

    return called


def _named(module: str) -> Any:
    return __import__(module, fromlist=["_"])


def _kernels(cache: _Cache) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Each operator's name with its kernel, for those that this version of torch has."""

    def lower(operator: Any, args: Any, kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype("cuda")
        return cache.cast(args, dtype), {name: cache.cast(each, dtype) for name, each in kwargs.items()}

    def full(operator: Any, args: Any, kwargs: Any) -> Any:
        return cache.cast(args, torch.float32), {name: cache.cast(each, torch.float32) for name, each in kwargs.items()}

    def full_by_dtype(operator: Any, args: Any, kwargs: Any) -> Any:
        place = [argument.name for argument in operator._schema.arguments].index("dtype")
        given = args[place] if place < len(args) else kwargs.get("dtype")
        if given is None and _eligible(args[0]):
            args, kwargs = args[:place], {**kwargs, "dtype": torch.float32}
        return args, kwargs

    def widest(operator: Any, args: Any, kwargs: Any) -> Any:
        mixed = any(_eligible(each) and each.dtype is torch.float32 for each in args)
        return (cache.cast(args, torch.float32), kwargs) if mixed else (args, kwargs)

    lists = ((LOWER, lower), (FULL, full), (FULL_BY_DTYPE, full_by_dtype), (WIDEST, widest))
    for names, cast in lists:
        for name in names:
            packet, _, overload = name.partition(".")
            found = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
            if found is not None:
                yield name, _kernel(found, cast)


def _kernel(operator: Any, cast: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    without = torch._C.DispatchKeySet(KEY)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(without):
            if torch.is_autocast_enabled("cuda"):
                args, kwargs = cast(operator, args, kwargs)
            return operator(*args, **kwargs)

    return kernel
