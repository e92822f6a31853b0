"""How many bytes a parameter takes in each of its roles, by precision and strategy."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.memory.recipe import recipe_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.setup import Setup


@dataclass(frozen=True)
class Widths:
    """Bytes of one parameter in each of its roles.

    computed: what a layer multiplies with, and what autograd makes as its gradient. weight, gradient, state: what is
    kept. master: of fp32 weights beside these, or 0. reduced: what is sent to be reduced.
    """

    computed: int
    weight: int
    master: int
    gradient: int
    state: int
    reduced: int


def widths(setup: Setup) -> Widths:
    """The types that a precision and a strategy ask for.

    DeepSpeed and Megatron's distributed optimizer keep fp32 weights and states beside 16-bit ones; ZeRO-1 and 2 always
    (deepspeed/runtime/zero/stage_1_and_2.py: single_partition_of_fp32_groups, stage3.py: fp32_partitioned_groups_flat);
    Megatron also sums gradients in fp32. Under FSDP2's mixed precision the shards are in fp32, and what is gathered in
    16 bits (MixedPrecisionPolicy).
    """
    recipe = recipe_of(setup)
    stored = 4 if setup.dtype.endswith("-mixed") else recipe.weights
    own = recipe.adapters if recipe.rank else stored
    copied = setup.strategy in ("zero1", "zero2") or (own == 2 and setup.strategy == "zero3")
    mixed = copied or (own == 2 and setup.distributed_optimizer)
    gradient = 4 if setup.distributed_optimizer or setup.gradient_dtype == "fp32" else own
    named = {"auto": gradient, "fp32": 4, "bf16": 2, "fp16": 2}[setup.reduce_dtype]
    computed = recipe.adapters if recipe.rank else recipe.weights
    return Widths(computed, stored, 4 if mixed else 0, gradient, 4 if mixed else own, named)
