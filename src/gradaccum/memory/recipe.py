"""How the tensors of a Setup's step are made."""

from __future__ import annotations

from gradaccum.memory.modules import Recipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.setup import Setup


def recipe_of(setup: Setup) -> Recipe:
    """The types that the words for precision, adapters and quantised weights ask for."""
    quantised = {"none": "", "int8": "8bit"}.get(setup.quantization, "4bit")
    mixed = setup.dtype.endswith("-mixed")
    full = setup.dtype == "fp32" or (mixed and not quantised)
    return Recipe(
        weights=4 if full else 2,
        low=2 if mixed else 0,
        half=setup.dtype.startswith("fp16"),
        attention=kernel_of(setup),
        rank=setup.lora_rank,
        targets=setup.lora_targets if setup.lora_rank else "",
        adapters=4,  # fp32 for a base of 16 bits, too: PEFT's autocast_adapter_dtype
        quantised=quantised,
    )


def falls_back(setup: Setup) -> bool:
    """Whether no fused kernel takes what the attention reads: grouped queries in fp32.

    Flash needs 16 bits, and the memory-efficient kernel a key for each query head, which Transformers no longer repeats
    (integrations/sdpa_attention.py:use_gqa_in_sdpa). aten/src/ATen/native/transformers/cuda/sdp_utils.cpp
    """
    return setup.attention == "flash" and _in_full(setup) and setup.model.kv_heads < setup.model.heads


def kernel_of(setup: Setup) -> str:
    """The kernel that runs: flash, efficient, or eager, as which PyTorch's math form is counted."""
    model = setup.model
    if setup.attention != "flash":
        return setup.attention
    if falls_back(setup):
        return "eager"
    return "efficient" if _in_full(setup) or model.head_dim != model.value_dim else "flash"


def _in_full(setup: Setup) -> bool:
    """Whether queries and keys are in fp32: with quantised weights, too, whose residual stream is."""
    return setup.dtype == "fp32" or (setup.quantization != "none" and not setup.dtype.endswith("-mixed"))
