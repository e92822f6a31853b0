"""What belongs to the parameters: weights, optimizer states and the optimizer's temporary. Bytes of one rank."""

from __future__ import annotations

from gradaccum.memory.activations import layers
from gradaccum.memory.ledger import Line
from gradaccum.memory.modules import Recipe
from gradaccum.memory.parameters import parameters
from gradaccum.memory.recipe import recipe_of
from gradaccum.memory.sharding import over, share
from gradaccum.memory.widths import widths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.parallel import Stage
    from gradaccum.memory.setup import Setup

ADAM = "torch/optim/adam.py"
WEIGHTS = "bytes of the weights' type, P parameters"
PEFT = "peft/tuners/lora/layer.py: A and B of each adapted layer; in fp32 (autocast_adapter_dtype)"
BITSANDBYTES = "bitsandbytes/functional.py:QuantState; peft/utils/other.py:prepare_model_for_kbit_training"
MASTER = "the optimizer's own weights, from which those in 16 bits are made"


def states(stage: Stage) -> list[Line]:
    """Weights and optimizer states: there all the time."""
    setup = stage.setup
    found, wide = parameters(setup), widths(setup)
    base, formula, source = found.base, found.formula, WEIGHTS
    if setup.quantization != "none":
        source = BITSANDBYTES
    elif wide.weight != recipe_of(setup).weights:
        base, formula = wide.weight * setup.model.params, f"{wide.weight} P"
    lines = [Line("weights", share(stage, "weights", base), formula + over(setup, "weights"), source)]
    trained, letter, shared = found.trained, "A" if found.adapters else "P", over(setup, "states")
    if found.adapters:
        words = f"4 A{over(setup, 'weights')}, A = {found.adapters:,} parameters of adapters"
        lines.append(Line("adapters", share(stage, "weights", 4 * found.adapters), words, PEFT))
    w = wide.state
    count, formula = {
        "sgd": (0, "none"),
        "sgd-momentum": (w * trained, f"{w} {letter}"),
        "adamw-8bit": (2 * trained + trained // 32, f"2 {letter} + 8 bytes for each 256"),
    }.get(setup.optimizer, (2 * w * trained, f"{2 * w} {letter}"))
    lines.append(Line("optimizer states", share(stage, "states", count), formula + shared, ADAM))
    if wide.master:
        lines.append(Line("fp32 weights", share(stage, "states", 4 * trained), f"4 {letter}{shared}", MASTER))
    return lines


def head_gradient(stage: Stage) -> Line:
    """What stands in the gradients' place early in the only backward pass of a group."""
    setup = stage.setup
    model, recipe = setup.model, recipe_of(setup)
    there = recipe.trained and stage.has_head
    count = share(stage, "gradients", recipe.weights * model.vocab * model.hidden) if there else 0
    words = f"{recipe.weights} V h"
    return Line("gradient of the output head", count, words, "the first gradient that a backward pass makes")


def temporary(stage: Stage) -> list[Line]:
    """What the optimizer makes for itself during its step."""
    setup = stage.setup
    found, wide = parameters(setup), widths(setup)
    w, letter = wide.state, "A" if found.adapters else "P"
    lines = []
    if setup.optimizer == "adamw":
        words = f"{w} {letter}: the square roots of all"
        lines.append(Line("optimizer's temporary", share(stage, "states", w * found.trained), words, ADAM))
    if setup.optimizer == "adamw-loop":
        largest = share(stage, "states", w * _largest(setup, recipe_of(setup)))
        lines.append(Line("optimizer's temporary", 2 * largest, f"{2 * w} x the largest parameter", ADAM))
    return lines


def _largest(setup: Setup, recipe: Recipe) -> int:
    """Elements of the largest trained parameter: the embedding table, or the larger half of an adapter."""
    model = setup.model
    if not recipe.rank:
        return max(model.vocab * model.embedding_width, 2 * model.experts * model.expert_ffn * model.hidden)
    kinds = layers(model, recipe, setup.sequence_length, setup.checkpointing)
    sides = [max(each.rows, each.columns) for _, kind in kinds for each in kind.weights if each.adapted]
    return recipe.rank * max(sides, default=0)
