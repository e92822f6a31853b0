"""How a model in 4 bits reaches the device: what transformers allocates, in order, before the first step.

What such a run holds in reserve is decided in part while it loads, by what whole weights have left behind. No weight is
read: the tensors are made on the meta device, where making them is recorded. Function names are of transformers 5.0.0
and 5.17.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.nn import Params4bit
from transformers import BitsAndBytesConfig
from transformers.core_model_loading import dot_natural_key
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WORKERS = 4
"""Threads that bring weights to the device ahead of the one that is quantised: core_model_loading.py:GLOBAL_WORKERS, on
a host of four cores or more."""

META = torch.device("meta")


def skeleton(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """The model, on the meta device, with NF4 layers for its linear ones as from_pretrained chooses them."""
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), settings)
    model.is_loaded_in_4bit = True
    return model


def load(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give the skeleton its tensors, as from_pretrained does with a checkpoint and a device map of one GPU."""
    tied = model.all_tied_weights_keys
    names = sorted((name for name in model.state_dict() if name not in tied), key=dot_natural_key)
    _warm_up(model, names, dtype)
    for name, value in _fetched([(name, model.get_parameter(name).shape) for name in names], dtype):
        module, _, leaf = name.rpartition(".")
        place = model.get_submodule(module)
        setattr(place, leaf, _placed(getattr(place, leaf), value))
        del value  # or it would live until the next one is there
    for name, buffer in model.named_non_persistent_buffers():
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, torch.empty_like(buffer))
    model.tie_weights()


def _warm_up(model: torch.nn.Module, names: Sequence[str], dtype: torch.dtype) -> None:
    """modeling_utils.py:caching_allocator_warmup: one block as large as the model will be, given back at once."""
    size = 0.0
    for name in names:
        weight = model.get_parameter(name)
        size += weight.numel() * (0.5 if isinstance(weight, Params4bit) else dtype.itemsize)
    torch.empty(int(size) // 2, dtype=torch.float16, device=META)


def _fetched(wanted: Sequence[tuple[str, torch.Size]], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """core_model_loading.py:convert_and_load_state_dict_in_model: whole weights in order, and WORKERS more on the way.

    A thread takes the next weight, and allocates its place, as soon as its last one is there. How far the others run
    ahead while a large one is copied depends on the host; here copies arrive in the order in which they were begun.
    """
    there: list[torch.Tensor] = []
    ahead = iter(wanted)
    for name, _ in wanted:
        while len(there) <= WORKERS and (following := next(ahead, None)) is not None:
            there.append(torch.empty(following[1], dtype=dtype, device=META))
        yield name, there.pop(0)


def _placed(old: Any, value: torch.Tensor) -> torch.nn.Parameter:
    """integrations/bitsandbytes.py:Bnb4bitQuantize.convert, or the weight as it is."""
    if not isinstance(old, Params4bit):
        return torch.nn.Parameter(value, requires_grad=False)
    return Params4bit(value, requires_grad=False, **old.__dict__)._quantize(META)
