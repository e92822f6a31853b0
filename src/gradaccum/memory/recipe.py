"""How the tensors of a Setup's step are made."""

from __future__ import annotations

from gradaccum.memory.modules import Recipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.setup import Setup


def recipe_of(setup: Setup, compute_capability: float | None = None) -> Recipe:
    """The types that the words for precision, adapters and quantised weights ask for, and the kernel that runs."""
    quantised = {"none": "", "int8": "8bit"}.get(setup.quantization, "4bit")
    mixed = setup.dtype.endswith("-mixed")
    cast = mixed and setup.strategy in ("fsdp2", "hsdp")  # the gathered weights are; autocast has nothing to do
    full = setup.dtype == "fp32" or (mixed and not quantised and not cast)
    return Recipe(
        weights=4 if full else 2,
        low=2 if mixed and not cast else 0,
        half=setup.dtype.startswith("fp16"),
        attention=kernel_of(setup, compute_capability),
        rank=setup.lora_rank,
        targets=setup.lora_targets if setup.lora_rank else "",
        adapters=4,  # fp32 for a base of 16 bits, too: PEFT's autocast_adapter_dtype
        quantised=quantised,
    )


def kernel_of(setup: Setup, compute_capability: float | None = None) -> str:
    """The kernel of the attention: flash, efficient, math or eager.

    Flash needs 16 bits, compute capability 8.0, and values as wide as keys. The memory-efficient kernel needs a key for
    each query head, which Transformers no longer repeats (integrations/sdpa_attention.py:use_gqa_in_sdpa); what neither
    takes is left to plain products and a softmax. aten/src/ATen/native/transformers/cuda/sdp_utils.cpp
    """
    model = setup.model
    if setup.attention != "flash":
        return setup.attention
    # With quantised weights the residual stream is in fp32, and so are queries and keys without autocast.
    in_full = setup.dtype == "fp32" or (setup.quantization != "none" and not setup.dtype.endswith("-mixed"))
    old = compute_capability is not None and compute_capability < 8
    if not in_full and not old and model.head_dim == model.value_dim:
        return "flash"
    return "math" if model.kv_heads < model.heads else "efficient"
