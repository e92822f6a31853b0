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
        attention=setup.attention,
        rank=setup.lora_rank,
        targets=setup.lora_targets if setup.lora_rank else "",
        adapters=4,  # fp32 for a base of 16 bits, too: PEFT's autocast_adapter_dtype
        quantised=quantised,
    )
