"""What the layers keep for the backward pass, and the peaks of one layer, forward and back.

A layer is put on a tape, operation by operation, as Transformers, PEFT and bitsandbytes run it; what is kept follows.
Letters of the formulas: h hidden, f MLP width, a heads, q = a x head_dim, kv = kv_heads x head_dim, S sequence length.
Without a cache of keys and values (use_cache=False), as training has no use for one.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.errors import InputError, Problem
from gradaccum.memory.families import LAYERS, run_embedding, run_layer
from gradaccum.memory.modules import COPIES, Modules, Recipe, sizes_of
from gradaccum.memory.peaks import Backward, Moment, forward, highest
from gradaccum.memory.tape import Tape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from gradaccum.catalog.models import Model
    from gradaccum.memory.modules import Weight
    from gradaccum.memory.tape import Storage

KNOWN = tuple(sorted(LAYERS))

AUTOGRAD = "the tensors that autograd saves in Transformers' modelling code"


@dataclass(frozen=True)
class Part:
    """Some of the saved tensors. bytes: of one sequence; fixed: whatever the batch; formula: bytes for one token."""

    name: str
    bytes: int
    fixed: int
    formula: str


@dataclass(frozen=True)
class Layer:
    """One layer's bytes: of one sequence, and fixed ones that do not grow with the batch.

    kept: from its forward pass to its backward pass; formula: its bytes for one token. copies: what of it autocast's
    cache holds as well. computing: the moments at which it runs forward, keeping all, and backward; behind
    checkpointing they leave out what was kept. weights: its linear layers.
    """

    kept: int
    kept_fixed: int
    formula: str
    copies: int
    computing: tuple[Moment, ...]
    full: str
    weights: tuple[Weight, ...]


def layer_tape(model: Model, recipe: Recipe, length: int, *, routed: bool = False, first: bool = False) -> Modules:
    """One layer on a tape. length: tokens of a sequence; first: its input wants no gradient, as the first one's.

    Raises InputError for a family whose layer is not known here.
    """
    if model.family not in LAYERS:
        raise InputError(
            Problem(
                "model",
                f"is of the family {model.family}, whose layer the closed form does not know; known are "
                f"{', '.join(KNOWN)}. Any PyTorch module can be traced: --model module:function",
            )
        )
    tape = Tape(sizes_of(model, length), recipe.low)
    modules = Modules(model, recipe, tape)
    run_layer(modules, tape.new("h", recipe.others, grad=not first), routed)
    return modules


def layer_parts(model: Model, recipe: Recipe, length: int, *, routed: bool = False, first: bool = False) -> list[Part]:
    """What one layer saves, by part."""
    found: dict[str, list[Storage]] = {}
    for storage in layer_tape(model, recipe, length, routed=routed, first=first).tape.kept():
        found.setdefault(storage.part, []).append(storage)
    return [
        Part(name, sum(each.bytes for each in storages), sum(each.fixed for each in storages), formula(storages))
        for name, storages in found.items()
    ]


def formula(storages: Iterable[Storage]) -> str:
    """The bytes for one token by letter: "14 h + 8 f + 4"."""
    total: dict[str, int] = {}
    for storage in storages:
        for letter, multiple in storage.coefficients.items():
            total[letter] = total.get(letter, 0) + multiple
    numbers = sum(int(letter) * multiple for letter, multiple in total.items() if letter.isdigit())
    terms = [f"{multiple} {letter}" for letter, multiple in total.items() if not letter.isdigit()]
    return " + ".join(terms + [str(numbers)] * (numbers > 0))


_LAYERS: dict[tuple[object, ...], Layer] = {}
MOST = 256
"""Layers that are remembered: a search asks for the same ones for each micro-batch."""


def layer(model: Model, recipe: Recipe, length: int, checkpointing: str, routed: bool, first: bool) -> Layer:
    """One layer's bytes. checkpointing: none, selective or full."""
    key = (model, recipe, length, checkpointing, routed, first)
    found = _LAYERS.get(key)
    if found is None:
        if len(_LAYERS) >= MOST:
            _LAYERS.clear()
        found = _LAYERS[key] = _layer(model, recipe, length, checkpointing, routed, first)
    return found


def _layer(model: Model, recipe: Recipe, length: int, checkpointing: str, routed: bool, first: bool) -> Layer:
    modules = layer_tape(model, recipe, length, routed=routed, first=first)
    tape = modules.tape
    saved = tape.kept()
    entry, output = tape.operations[0].inputs[0], tape.operations[-1].output
    kept = saved
    if checkpointing != "none":
        kept = [entry.storage, *(_cached(tape) if checkpointing == "selective" else [])]
    without = {id(storage) for storage in kept} if checkpointing != "none" else set()
    moments = Backward(tape, without).run(output)
    if checkpointing != "none":
        last = output.storage.bytes  # its gradient waits
        moments += [
            Moment(each.kept, each.kept_fixed, each.moving + last, each.moving_fixed) for each in forward(tape, without)
        ]
    return Layer(
        sum(each.bytes for each in kept),
        sum(each.fixed for each in kept),
        formula(kept),
        sum(each.fixed for each in saved if each.part == COPIES),
        highest(moments),
        formula(saved),
        tuple(modules.weights),
    )


def _cached(tape: Tape) -> list[Storage]:
    """What selective checkpointing keeps besides the input: results of every other product, and of the attention.

    torchtitan/distributed/activation_checkpoint.py: aten.mm, of which the second, fourth, ... are computed again, and
    the fused attentions. A linear layer with a bias runs addmm, which is not on that list.
    """
    products = [each for each in tape.operations if each.kind == "mm"]
    found = [each.output.storage for place, each in enumerate(products) if place % 2 == 0]
    for each in tape.operations:
        if each.kind == "attention":
            found += [each.output.storage, each.saved[3]]
    return found


def layers(model: Model, recipe: Recipe, length: int, checkpointing: str) -> list[tuple[int, Layer]]:
    """How many layers there are of each kind, in the order of the forward pass."""
    inputs_want = not recipe.rank or checkpointing != "none"
    kinds = [(model.layers - model.moe_layers, False), (model.moe_layers, True)]
    found: list[tuple[int, Layer]] = []
    for count, routed in kinds:
        if count and not inputs_want and not found:
            # Without checkpointing nothing asks for the gradient of the first layer's input.
            found.append((1, layer(model, recipe, length, checkpointing, routed, True)))
            count -= 1
        if count:
            found.append((count, layer(model, recipe, length, checkpointing, routed, False)))
    return found


def embedding(model: Model, recipe: Recipe, length: int, checkpointed: bool) -> tuple[int, str]:
    """What is kept between the embedding table and the first layer: bytes of one sequence, formula for one token."""
    tape = Tape(sizes_of(model, length), recipe.low)
    modules = Modules(model, recipe, tape)
    run_embedding(modules, tape.new("h", recipe.others, grad=recipe.trained or checkpointed))
    kept = tape.kept()
    return sum(each.bytes for each in kept), formula(kept)
