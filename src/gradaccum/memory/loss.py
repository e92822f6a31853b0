"""The end of the forward pass: last norm, head, logits and loss, and how they are turned into gradients.

Written for heads as Transformers has them (loss/loss_utils.py, models/bert/modeling_bert.py:BertLMPredictionHead). The
loop is taken to hold the model's output, and with it the logits, until its next step, as `out = model(...)` does.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.memory.activations import MOST, formula
from gradaccum.memory.modules import Modules, Recipe, sizes_of
from gradaccum.memory.peaks import Backward, Moment, forward, highest
from gradaccum.memory.tape import Tape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.catalog.models import Model
    from gradaccum.memory.tape import Tensor

LOSS = "transformers loss/loss_utils.py:ForCausalLMLoss; torch log_softmax and its backward"
CHUNKS = 8
CHUNKED = "torchtune/modules/loss/cross_entropy_loss.py:LinearCrossEntropyLoss, num_output_chunks=8"
FUSED = "liger_kernel/ops/fused_linear_cross_entropy.py: gradients are made in the forward pass, chunk by chunk"


@dataclass(frozen=True)
class Head:
    """The bytes behind the last layer, of one sequence and fixed.

    forward, backward: the moments of each. inputs: of what they keep, the inputs of last norm and head, formula for
    one token. logits: what is held of them until the next step; loss: in words.
    """

    forward: tuple[Moment, ...]
    backward: tuple[Moment, ...]
    inputs: int
    formula: str
    held: int
    loss: str
    source: str


_HEADS: dict[tuple[object, ...], Head] = {}


def head(model: Model, recipe: Recipe, length: int, loss: str) -> Head:
    """What is behind the last layer."""
    key = (model, recipe, length, loss)
    found = _HEADS.get(key)
    if found is None:
        if len(_HEADS) >= MOST:
            _HEADS.clear()
        found = _HEADS[key] = _head(model, recipe, length, loss)
    return found


def _head(model: Model, recipe: Recipe, length: int, loss: str) -> Head:
    tape = Tape(sizes_of(model, length), recipe.low)
    modules = Modules(model, recipe, tape)
    x = tape.new("h", recipe.others)
    if model.final_norm:
        tape.part = "last norm"
        x = modules.norm(x)
    if model.embedding_width != model.hidden:
        x = modules.linear(x, "e", "project_out")
    if model.head == "classes":
        inputs = sum(each.bytes for each in tape.kept())
        moment = (Moment(inputs, 0, 0, 0),)
        return Head(moment, moment, inputs, formula(tape.kept()), 0, "C classes, left out", LOSS)
    if model.head == "masked_lm":
        x = _transformed(modules, x)
    return {"full": _full, "chunked": _chunked, "fused": _fused}[loss](modules, x)


def _transformed(modules: Modules, x: Tensor) -> Tensor:
    """Dense layer, activation and norm before the vocabulary."""
    tape = modules.tape
    tape.part = "head"
    dense = modules.linear(x, "h", "transform.dense", True)
    return modules.layer_norm(tape.by_input(dense))


def _weight(model: Model) -> int:
    return model.vocab * model.embedding_width


def _full(modules: Modules, x: Tensor) -> Head:
    """The logits, a copy in fp32, its log-softmax; in the backward pass the gradients of both beside them."""
    tape, model = modules.tape, modules.model
    tape.part = "head"
    logits = modules.product(x, "V", _weight(model), modules.recipe.others, modules.recipe.trained)
    if model.family == "gemma2":  # final_logit_softcapping
        logits = tape.scale(tape.by_output(tape.scale(logits)))
    tape.part = "logits"
    # Causal models cast their logits. Else cross_entropy asks for the logits' own type, and under autocast it is
    # nll_loss that reads fp32 (aten/src/ATen/native/LossNLL.cpp).
    wide = tape.cast(logits, 4) if model.head == "lm" else logits
    probabilities = tape.upper(tape.by_output(wide))
    loss = tape.run((probabilities,), "1", 4, saved=[probabilities])
    inputs = [each for each in tape.kept() if each.part != "logits"]
    words = (
        "logits, their log-softmax, and its gradients"
        if wide is logits
        else ("logits, and in fp32 a copy, its log-softmax and the gradient")
    )
    return Head(
        highest(forward(tape, held=[logits.storage])),
        highest(Backward(tape, held=[logits.storage]).run(loss)),
        sum(each.bytes for each in inputs),
        formula(inputs),
        logits.storage.bytes,
        words,
        LOSS,
    )


def _chunked(modules: Modules, x: Tensor) -> Head:
    """Of every chunk the log-softmax in fp32 is kept; the logits, their copy and the gradients are those of one."""
    tape, model = modules.tape, modules.model
    kept = sum(each.bytes for each in tape.kept())
    width = tape.low or x.width
    logits = model.vocab * tape.sizes.length
    kept += 4 * logits + width * model.hidden * tape.sizes.length
    gradient = width * _weight(model) if modules.recipe.trained else 0
    of_one = (width + (4 if width < 4 else 0)) * logits // CHUNKS
    back = 8 * logits // CHUNKS
    moments = (Moment(kept, 0, back, gradient),)
    inputs = kept - 4 * logits
    terms = f"{formula(tape.kept())} + {width} h"
    words = f"4 T V kept, and logits and gradients of one of {CHUNKS} chunks"
    return Head((Moment(kept, 0, of_one, 0),), moments, inputs, terms, 0, words, CHUNKED)


def _fused(modules: Modules, x: Tensor) -> Head:
    """Logits of a chunk of about h / V of the tokens, the gradient of the input, and that of the weight."""
    tape, model = modules.tape, modules.model
    width = tape.low or x.width
    kept = sum(each.bytes for each in tape.kept()) + 2 * width * model.hidden * tape.sizes.length
    gradient = width * _weight(model) if modules.recipe.trained else 0
    # chunk_size = next_power_of_2(ceil(T / ceil(V / h))), at most twice T h / V
    chunk = min(2 * model.hidden, model.vocab) * width * tape.sizes.length
    moment = Moment(kept, 0, chunk + 4 * tape.sizes.length, gradient)
    terms = f"{formula(tape.kept())} + {2 * width} h"
    return Head((moment,), (moment,), kept, terms, 0, "logits of a chunk, at most 2 w T h", FUSED)
