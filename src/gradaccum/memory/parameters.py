"""How many bytes the parameters take: trained ones, frozen ones, adapters, quantised weights."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.memory.activations import layers
from gradaccum.memory.recipe import recipe_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.modules import Weight
    from gradaccum.memory.setup import Setup

SMALLEST = 512
"""Bytes of the allocator's smallest block: what a table of 16 numbers takes."""


@dataclass(frozen=True)
class Parameters:
    """What there is of parameters.

    base: bytes of the model's own weights, with their formula. adapters: parameters of adapters. trained: parameters
    that are trained; width: bytes of one of them.
    """

    base: int
    formula: str
    adapters: int
    trained: int
    width: int


def parameters(setup: Setup) -> Parameters:
    """The parameters of one GPU that holds all of them."""
    model, recipe = setup.model, recipe_of(setup)
    if not recipe.rank:
        return Parameters(recipe.weights * model.params, f"{recipe.weights} P", 0, model.params, recipe.weights)
    kinds = layers(model, recipe, setup.sequence_length, setup.checkpointing)
    weights = [(count, weight) for count, kind in kinds for weight in kind.weights]
    adapters = sum(count * recipe.rank * (each.rows + each.columns) for count, each in weights if each.adapted)
    if not recipe.quantised:
        return Parameters(recipe.weights * model.params, f"{recipe.weights} P", adapters, adapters, recipe.adapters)
    quantised = sum(count * each.count for count, each in weights)
    packed = sum(count * packed_bytes(each, setup.quantization) for count, each in weights)
    formula = "{} of {:,} in linear layers, 4 each of {:,}".format(
        {"nf4": "1/2 + 4/64", "nf4-double": "1/2 + 1/64", "int8": "1"}[setup.quantization],
        quantised,
        model.params - quantised,
    )
    return Parameters(packed + 4 * (model.params - quantised), formula, adapters, adapters, recipe.adapters)


def packed_bytes(weight: Weight, quantization: str) -> int:
    """Bytes of one quantised weight with what belongs to it (bitsandbytes/functional.py:quantize_4bit, QuantState).

    4 bits: two in a byte, the largest of each block of 64 in fp32, a table of 16 numbers. nf4-double: those largest in
    one byte, with fp32 for each 256 of them, a table of 256 and an offset. 8 bits: an fp32 scale for each row.
    """
    count = weight.count
    if quantization == "int8":
        return count + 4 * weight.rows
    blocks = -(-count // 64)
    packed = -(-count // 2) + SMALLEST
    if quantization == "nf4":
        return packed + 4 * blocks
    return packed + blocks + 4 * -(-blocks // 256) + 4 * 256 + SMALLEST
