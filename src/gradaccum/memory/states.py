"""What belongs to the parameters: weights, gradients, the optimizer's states and its temporary. Bytes of one GPU."""

from __future__ import annotations

from gradaccum.memory.activations import layers
from gradaccum.memory.ledger import Line
from gradaccum.memory.modules import Recipe
from gradaccum.memory.parameters import parameters
from gradaccum.memory.recipe import recipe_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.setup import Setup

ADAM = "torch/optim/adam.py"
WEIGHTS = "bytes of the weights' type, P parameters"
PEFT = "peft/tuners/lora/layer.py: A and B of each adapted layer; in fp32 (autocast_adapter_dtype)"
BITSANDBYTES = "bitsandbytes/functional.py:QuantState; peft/utils/other.py:prepare_model_for_kbit_training"


def _share(setup: Setup, count: int) -> int:
    """One rank's part of what FSDP2 shards, rounded up."""
    return -(-count // setup.num_gpus) if setup.strategy == "fsdp2" else count


def _over(setup: Setup) -> str:
    return " / N" if setup.strategy == "fsdp2" else ""


def states(setup: Setup) -> list[Line]:
    """Weights and optimizer states: there all the time."""
    found, over = parameters(setup), _over(setup)
    lines = [
        Line(
            "weights",
            _share(setup, found.base),
            found.formula + over,
            WEIGHTS if setup.quantization == "none" else BITSANDBYTES,
        )
    ]
    trained, letter = found.trained, "P"
    if found.adapters:
        letter = "A"
        words = f"4 A{over}, A = {found.adapters:,} parameters of adapters"
        lines.append(Line("adapters", _share(setup, 4 * found.adapters), words, PEFT))
    w = found.width
    count, formula = {
        "sgd": (0, "none"),
        "sgd-momentum": (w * trained, f"{w} {letter}"),
        "adamw-8bit": (2 * trained + trained // 32, f"2 {letter} + 8 bytes for each 256"),
    }.get(setup.optimizer, (2 * w * trained, f"{2 * w} {letter}"))
    return [*lines, Line("optimizer states", _share(setup, count), formula + over, ADAM)]


def gradients(setup: Setup, stepping: bool = False) -> Line:
    """The gradient set. Under DDP the buckets hold it once more.

    stepping: as the optimizer reads them. Buffers in fp32 are cast for it one by one, and let go as they are.
    """
    found = parameters(setup)
    width = 4 if setup.gradient_dtype == "fp32" and not stepping else found.width
    letter = "A" if found.adapters else "P"
    count = _share(setup, width * found.trained)
    if setup.strategy == "ddp":
        view = "torch/nn/parallel/distributed.py; gradient_as_bucket_view=True saves half"
        return Line("gradients and DDP's buckets", 2 * count, f"{2 * width} {letter}", view)
    one_set = "one set, whatever the number of micro-steps"
    return Line("gradients", count, f"{width} {letter}{_over(setup)}", one_set)


def head_gradient(setup: Setup) -> Line:
    """What stands in the gradients' place early in the only backward pass of a group."""
    model, recipe = setup.model, recipe_of(setup)
    count = _share(setup, recipe.weights * model.vocab * model.hidden) if recipe.trained else 0
    words = f"{recipe.weights} V h"
    return Line("gradient of the output head", count, words, "the first gradient that a backward pass makes")


def temporary(setup: Setup) -> list[Line]:
    """What the optimizer makes for itself during its step."""
    found = parameters(setup)
    w, letter = found.width, "A" if found.adapters else "P"
    lines = []
    if setup.optimizer == "adamw":
        words = f"{w} {letter}: the square roots of all"
        lines.append(Line("optimizer's temporary", _share(setup, w * found.trained), words, ADAM))
    if setup.optimizer == "adamw-loop":
        largest = _largest(setup, recipe_of(setup))
        lines.append(
            Line("optimizer's temporary", 2 * _share(setup, w * largest), f"{2 * w} x the largest parameter", ADAM)
        )
    return lines


def _largest(setup: Setup, recipe: Recipe) -> int:
    """Elements of the largest trained parameter: the embedding table, or the larger half of an adapter."""
    model = setup.model
    if not recipe.rank:
        return max(model.vocab * model.embedding_width, 2 * model.experts * model.expert_ffn * model.hidden)
    kinds = layers(model, recipe, setup.sequence_length, setup.checkpointing)
    sides = [max(each.rows, each.columns) for _, kind in kinds for each in kind.weights if each.adapted]
    return recipe.rank * max(sides, default=0)
