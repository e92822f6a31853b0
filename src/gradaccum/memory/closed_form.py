"""The memory of a training step from shapes alone: what is allocated at each instant that can be the peak.

    end of forward     weights, states, (gradients,) what every layer kept, the logits and the loss, or its gradients
    last layer         the same without the loss: what the layers kept, and the backward pass of one
    recomputation      with checkpointing: what was kept of all layers, and one, computed again or going backward
    end of backward    weights, states, gradients, and the backward pass of the first layer
    optimizer step     weights, states, gradients, the optimizer's temporary

Gradients stand at every instant once there are two micro-steps or more: those of the earlier ones. With a single one
they grow while activations shrink, so that the two ends bound what lies between. The peak is the largest instant,
never a sum of parts that are not there together. Bytes of one GPU.
"""

from __future__ import annotations

from gradaccum.memory.activations import AUTOGRAD, Layer, embedding, layers
from gradaccum.memory.ledger import Line, total
from gradaccum.memory.loss import Head, head
from gradaccum.memory.recipe import recipe_of
from gradaccum.memory.states import gradients, head_gradient, states, temporary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.setup import Setup

END_OF_FORWARD = "end of forward"
LAST_LAYER = "backward of the last layer"
RECOMPUTATION = "recomputation"
END_OF_BACKWARD = "end of backward"
OPTIMIZER_STEP = "optimizer step"

FSDP = "torch/distributed/fsdp/_fully_shard: a flat gather, a copy out of it, the next group, the reduce-scatter input"
WORKSPACE = "aten/src/ATen/cuda/CUDABlas.cpp; pytorch#95668, pytorch#89027"
CHECKPOINT = "torch/utils/checkpoint.py"
SELECTIVE = "torchtitan/distributed/activation_checkpoint.py: every other aten.mm, and the fused attention"
DERIVATIVES = "tools/autograd/derivatives.yaml, in the order of the backward pass"
CACHE = "aten/src/ATen/autocast_mode.cpp:cached_cast"


def instants(setup: Setup, compute_capability: float | None = None) -> dict[str, tuple[Line, ...]]:
    """What is allocated at each instant. compute_capability: as 8.0 for an A100; from 9.0 on workspaces are larger.

    Raises InputError for a model whose step is not known here.
    """
    step = _Step(setup, compute_capability)
    always = (*states(setup), *_communication(setup), _workspaces(compute_capability), *step.inputs())
    one_set = gradients(setup)
    earlier = [one_set] if setup.accumulates else []
    started = [one_set if setup.accumulates else head_gradient(setup)]
    return {
        END_OF_FORWARD: (*always, *earlier, *step.end_of_forward()),
        RECOMPUTATION if setup.checkpointing != "none" else LAST_LAYER: (*always, *started, *step.last_layer()),
        END_OF_BACKWARD: (*always, one_set, *step.first_layer()),
        OPTIMIZER_STEP: (*always, gradients(setup, stepping=True), step.held(), *temporary(setup)),
    }


def peak(setup: Setup, compute_capability: float | None = None) -> tuple[str, tuple[Line, ...]]:
    """The instant with the most bytes, and its ledger, without the lines that are 0."""
    found = instants(setup, compute_capability)
    name = max(found, key=lambda each: total(found[each]))
    return name, tuple(line for line in found[name] if line.bytes)


# What is there all the time


def _communication(setup: Setup) -> list[Line]:
    if setup.strategy != "fsdp2":
        return []
    model, w = setup.model, recipe_of(setup).weights
    tables = model.vocab * model.hidden * (1 if model.tied else 2)
    layer = (model.params - tables) // model.layers
    return [
        Line("unsharded embedding and head", w * tables, "w V h" + ("" if model.tied else " x 2"), FSDP),
        Line("unsharded layers in flight", 4 * w * layer, "4 w P / L", FSDP),
    ]


def _workspaces(compute_capability: float | None) -> Line:
    one = 32 * 2**20 if compute_capability is not None and compute_capability >= 9 else 8519680
    return Line("cuBLAS workspaces", 2 * one, "one for the forward and one for the backward thread", WORKSPACE)


# What grows with the micro-batch


class _Step:
    """The lines of one micro-step: of `micro_batch` sequences."""

    def __init__(self, setup: Setup, compute_capability: float | None) -> None:
        self.setup = setup
        self.count = setup.micro_batch
        self.recipe = recipe_of(setup, compute_capability)
        model, length = setup.model, setup.sequence_length
        self.layers = layers(model, self.recipe, length, setup.checkpointing)
        self.head: Head = head(model, self.recipe, length, setup.loss)

    def inputs(self) -> list[Line]:
        """The batch, and what all layers share: cosine and sine of the positions, the mask of an eager attention."""
        setup, model, recipe = self.setup, self.setup.model, self.recipe
        if model.image:
            pixels = model.channels * model.image**2 * recipe.weights
            return [Line("batch", self.count * (pixels + 8), "m (w x pixels + 8)", "pixels, and a label of 8 bytes")]
        found = [Line("batch", 16 * setup.tokens, "16 T", "token ids and labels of 8 bytes; T = m S tokens")]
        if setup.attention == "eager":
            mask = setup.tokens * setup.sequence_length * recipe.others
            found.append(Line("attention mask", mask, f"{recipe.others} T S", "transformers/masking_utils.py"))
        return found

    def end_of_forward(self) -> list[Line]:
        """Where the loss is made, or turned into gradients: behind autocast, whose cache is let go before."""
        cached = sum(number * kind.copies for number, kind in self.layers) if self.setup.checkpointing != "none" else 0
        before = max(self.head.forward, key=lambda moment: moment.bytes(self.count))
        after = max(self.head.backward, key=lambda moment: moment.bytes(self.count))
        moment = before if before.bytes(self.count) + cached > after.bytes(self.count) else after
        inputs = min(self.head.inputs, moment.kept)
        loss = moment.kept - inputs + moment.moving
        found = [
            *self._kept(self.layers),
            Line("last norm, input of the head", self.count * inputs, f"T ({self.head.formula})", AUTOGRAD),
            Line(
                "logits and loss", self.count * loss, f"{self._by_vocabulary(loss)}: {self.head.loss}", self.head.source
            ),
            Line("low-precision copy of the head", moment.kept_fixed, "2 V h", CACHE),
            Line("gradient of the head on its way", moment.moving_fixed, "w V h", DERIVATIVES),
        ]
        if moment is before:
            found.append(Line("autocast's cache", cached, "2 bytes for each weight of a linear layer", CACHE))
        return found

    def last_layer(self) -> list[Line]:
        """The backward pass of one of the last layers, behind checkpointing from its recomputation on."""
        _, kind = max(self.layers, key=lambda each: max(m.bytes(self.count) for m in each[1].computing))
        others = self.layers
        if self.setup.checkpointing == "none":
            others = [(n - (k is kind), k) for n, k in self.layers]
        return [*self._kept(others), *self._computing(kind), self.held()]

    def first_layer(self) -> list[Line]:
        """The backward pass of the first layer."""
        _, kind = self.layers[0]
        before = [] if self.setup.checkpointing == "none" else [(1, kind)]
        return [*self._kept(before), *self._computing(kind), self.held()]

    def held(self) -> Line:
        """The logits, which the loop's `out` holds."""
        words = f"{self._by_vocabulary(self.head.held)}: of the model's output, which the loop holds"
        return Line("logits", self.count * self.head.held, words, self.head.source)

    def _by_vocabulary(self, count: int) -> str:
        each, rest = divmod(count // self.setup.sequence_length, self.setup.model.vocab or 1)
        return f"{each} T V" if not rest else f"T ({each} V + {rest:,})" if each else f"T x {rest:,} bytes"

    def _kept(self, kinds: list[tuple[int, Layer]]) -> list[Line]:
        setup = self.setup
        name, source = {
            "none": ("activations", AUTOGRAD),
            "full": ("inputs of the layers", CHECKPOINT),
            "selective": ("kept of the layers", SELECTIVE),
        }[setup.checkpointing]
        present = [(number, kind) for number, kind in kinds if number]
        bytes_ = sum(number * kind.kept for number, kind in present)
        terms = " + ".join(f"{number} ({kind.formula})" for number, kind in present)
        bottom, formula = embedding(setup.model, self.recipe, setup.sequence_length, setup.checkpointing != "none")
        copies = sum(number * kind.kept_fixed for number, kind in present)
        return [
            Line(name, self.count * bytes_, f"T ({terms})", source),
            Line("embedding's norm and dropout", self.count * bottom, f"T ({formula})", AUTOGRAD),
            Line("casts of weights", copies, "kept for the backward pass", CACHE),
        ]

    def _computing(self, kind: Layer) -> list[Line]:
        moment = max(kind.computing, key=lambda each: each.bytes(self.count))
        bytes_ = f"{self._per_token(moment.kept, 'still kept of')} {kind.full}"
        return [
            Line("activations of one layer", self.count * moment.kept, bytes_, AUTOGRAD),
            Line(
                "one layer's gradients and temporaries",
                self.count * moment.moving,
                self._per_token(moment.moving, "at their most"),
                DERIVATIVES,
            ),
            Line("casts of one layer's weights", moment.kept_fixed, "kept for the backward pass", CACHE),
            Line(
                "one weight's gradient, or the weight dequantised",
                moment.moving_fixed,
                "of the linear layer at work",
                DERIVATIVES,
            ),
        ]

    def _per_token(self, count: int, words: str) -> str:
        return f"T x {count // self.setup.sequence_length:,} bytes: {words}"
