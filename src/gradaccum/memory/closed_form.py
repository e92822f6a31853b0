"""The memory of a training step from shapes alone: what is allocated at each instant that can be the peak.

    end of forward     weights, states, (gradients,) what every layer kept, the logits and the loss, or its gradients
    last layer         the same without the loss: what the layers kept, and the backward pass of one
    recomputation      with checkpointing: what was kept of all layers, and one, computed again or going backward
    end of backward    weights, states, gradients, and the backward pass of the first layer
    gradient of the embedding   the same without activations, before it is added to the sum
    optimizer step     weights, states, gradients, the optimizer's temporary

and under FSDP2, which gathers weights and scatters gradients all along, two more without activations:

    start of forward   the embedding's and head's weights, and the first layer's, each twice
    last reduction     the embedding's and head's gradients

Gradients stand at every instant once there are two micro-steps or more: those of the earlier ones. With a single one
they grow while activations shrink, so that the two ends bound what lies between. The peak is the largest instant,
never a sum of parts that are not there together. Bytes of one GPU: of
the heaviest pipeline stage, where there are several.
"""

from __future__ import annotations

from gradaccum.memory import sharding
from gradaccum.memory.activations import AUTOGRAD, Layer, embedding, layers
from gradaccum.memory.ledger import Line, total
from gradaccum.memory.loss import Head, head
from gradaccum.memory.parallel import Stage, in_the_stream, stages
from gradaccum.memory.recipe import recipe_of
from gradaccum.memory.states import head_gradient, states, temporary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from gradaccum.memory.setup import Setup

END_OF_FORWARD = "end of forward"
LAST_LAYER = "backward of the last layer"
RECOMPUTATION = "recomputation"
END_OF_BACKWARD = "end of backward"
OPTIMIZER_STEP = "optimizer step"
START_OF_FORWARD = "start of forward"
LAST_REDUCTION = "last reduction"
EMBEDDING = "gradient of the embedding"

WORKSPACE = "aten/src/ATen/cuda/CUDABlas.cpp; pytorch#95668, pytorch#89027"
CHECKPOINT = "torch/utils/checkpoint.py"
SELECTIVE = "torchtitan/distributed/activation_checkpoint.py: every other aten.mm, and the fused attention"
DERIVATIVES = "tools/autograd/derivatives.yaml, in the order of the backward pass"
PIPELINE = "megatron/core/pipeline_parallel/schedules.py"
SEQUENCE_PARALLEL = "megatron/core/tensor_parallel/layers.py: one buffer for inputs that are gathered"
RING = "transformer_engine/pytorch/attention: two buffers for keys and values of another rank"
DISPATCH = "megatron/core/transformer/moe/token_dispatcher.py; every expert as many tokens as another"
GROUPED = "transformers/integrations/moe.py:grouped_mm_experts_forward; aten/src/ATen/autocast_mode.cpp:cached_cast"
CACHE = "aten/src/ATen/autocast_mode.cpp:cached_cast"


def instants(setup: Setup, compute_capability: float | None = None) -> dict[str, tuple[Line, ...]]:
    """What is allocated at each instant. compute_capability: as 8.0 for an A100; from 9.0 on workspaces are larger.

    Raises InputError for a model whose step is not known here.
    """
    return heaviest(setup, compute_capability)[1]


def heaviest(setup: Setup, compute_capability: float | None = None) -> tuple[Stage, dict[str, tuple[Line, ...]]]:
    """The pipeline stage with the highest peak, and its instants."""
    found = [(stage, _instants(stage, compute_capability)) for stage in stages(setup)]
    return max(found, key=lambda each: max(total(lines) for lines in each[1].values()))


def peak(setup: Setup, compute_capability: float | None = None) -> tuple[str, tuple[Line, ...]]:
    """The instant with the most bytes, and its ledger, without the lines that are 0."""
    return highest(instants(setup, compute_capability))


def highest(found: Mapping[str, tuple[Line, ...]]) -> tuple[str, tuple[Line, ...]]:
    """The same, of instants that are there."""
    name = max(found, key=lambda each: total(found[each]))
    return name, tuple(line for line in found[name] if line.bytes)


def _instants(stage: Stage, compute_capability: float | None) -> dict[str, tuple[Line, ...]]:
    setup, step = stage.setup, _Step(stage, compute_capability)
    always = (*states(stage), *sharding.held(stage), _workspaces(compute_capability), *step.inputs())
    grown, on_the_way = sharding.gradients(stage), sharding.in_step(stage)
    groups = sharding.fully_sharded(stage)
    earlier = grown if setup.accumulates else []
    first = [head_gradient(stage)] if grown and not groups else []  # else it has a buffer, or a line of its own
    started = grown if setup.accumulates else first
    last_layer = RECOMPUTATION if setup.checkpointing != "none" else LAST_LAYER
    found = {
        END_OF_FORWARD: (*always, *earlier, *on_the_way, *step.end_of_forward()),
        last_layer: (*always, *started, *on_the_way, *step.last_layer()),
        END_OF_BACKWARD: (*always, *grown, *on_the_way, *sharding.at_backward_end(stage), *step.first_layer()),
        OPTIMIZER_STEP: (*always, *sharding.at_step(stage, temporary(stage)), step.held()),
    }
    if groups:
        found[END_OF_FORWARD] += tuple(groups.at_forward_end())
        found[last_layer] += tuple(groups.in_backward())
        found[END_OF_BACKWARD] += tuple(groups.at_backward_end())
        found[START_OF_FORWARD] = (*always, *earlier, *groups.at_start())
        reduced = sharding.gradients(stage, stepping=True)
        found[LAST_REDUCTION] = (*always, *reduced, step.held(), *groups.at_reduction())
    elif setup.accumulates:
        last = (*on_the_way, *sharding.at_backward_end(stage), *sharding.last_gradient(stage), *step.waiting())
        found[EMBEDDING] = (*always, *grown, *last, step.held())
    return found


# What is there all the time


def _workspaces(compute_capability: float | None) -> Line:
    one = 32 * 2**20 if compute_capability is not None and compute_capability >= 9 else 8519680
    return Line("cuBLAS workspaces", 2 * one, "one for the forward and one for the backward thread", WORKSPACE)


# What grows with the micro-batch


class _Step:
    """The lines of one micro-step: of `micro_batch` sequences."""

    def __init__(self, stage: Stage, compute_capability: float | None) -> None:
        self.stage = stage
        self.setup = setup = stage.setup
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
        return [*found, *self._exchanged()]

    def _exchanged(self) -> list[Line]:
        """What model-parallel ranks send each other, as far as it is kept nowhere else."""
        stage, model, w = self.stage, self.setup.model, self.recipe.low or self.recipe.others
        found = []
        if stage.stream > 1:
            count = w * self.setup.tokens * model.hidden
            found.append(Line("gathered input of a layer", count, "w T h", SEQUENCE_PARALLEL))
        if stage.context > 1:
            count = 4 * w * self.setup.tokens * model.kv_heads * model.head_dim
            found.append(Line("keys and values on their way", count, "2 x 2 w T kv", RING))
        if stage.experts > 1:
            count = w * self.setup.tokens * model.experts_per_token * model.hidden
            found.append(Line("tokens on their way to experts", count, "w T k h", DISPATCH))
        return found

    def end_of_forward(self) -> list[Line]:
        """Where the loss is made, or turned into gradients: behind autocast, whose cache is let go before."""
        if not self.stage.has_head:
            return [*self._kept(self.layers), *self.waiting()]
        cached = sum(number * kind.copies for number, kind in self.layers) if self.setup.checkpointing != "none" else 0
        before = max(self.head.forward, key=lambda moment: moment.bytes(self.count))
        after = max(self.head.backward, key=lambda moment: moment.bytes(self.count))
        moment = before if before.bytes(self.count) + cached > after.bytes(self.count) else after
        inputs = min(self.head.inputs, moment.kept)
        loss = moment.kept - inputs + moment.moving
        found = [
            *self._kept(self.layers),
            *self.waiting(),
            Line("last norm, input of the head", self._in_stream(inputs), f"T ({self.head.formula})", AUTOGRAD),
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
        return [*self._kept(others), *self.waiting(), *self._computing(kind), self.held()]

    def first_layer(self) -> list[Line]:
        """The backward pass of the first layer."""
        _, kind = self.layers[0]
        before = [] if self.setup.checkpointing == "none" else [(1, kind)]
        return [*self._kept(before), *self.waiting(), *self._computing(kind), self.held()]

    def held(self) -> Line:
        """The logits, which the loop's `out` holds."""
        words = f"{self._by_vocabulary(self.head.held)}: of the model's output, which the loop holds"
        count = self.count * self.head.held if self.stage.has_head else 0
        return Line("logits", count, words, self.head.source)

    def _in_stream(self, count: int) -> int:
        """Of bytes that are as wide as the residual stream, for one sequence: what one rank has of all sequences."""
        return -(-self.count * count // self.stage.stream)

    def _kept_of(self, kind: Layer) -> int:
        """Bytes that a layer keeps on this rank; what is as wide as the residual stream may be divided."""
        return self.count * kind.kept - self._divided(kind.formula)

    def _divided(self, formula: str) -> int:
        """How much less of a layer's bytes one rank has under sequence parallelism."""
        whole = in_the_stream(formula, self.setup.model.hidden) * self.setup.sequence_length
        return self.count * whole - self._in_stream(whole)

    def waiting(self) -> list[Line]:
        """What is kept of micro-batches that wait for their backward pass on this pipeline stage."""
        others, of_one = self.stage.in_flight - 1, self.stage.virtual_stages
        if not others:
            return []
        count = sum(number * self._kept_of(kind) for number, kind in self.layers) * others // of_one
        words = f"{others} x the layers'" + (f" / {of_one}" if of_one > 1 else "")
        return [Line("micro-batches in flight", count, words, PIPELINE)]

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
        present = [(-(-number // self.stage.virtual_stages), kind) for number, kind in kinds if number]
        bytes_ = sum(number * self._kept_of(kind) for number, kind in present)
        terms = " + ".join(f"{number} ({kind.formula})" for number, kind in present)
        bottom, formula = (0, "none")
        if self.stage.has_embedding:
            bottom, formula = embedding(setup.model, self.recipe, setup.sequence_length, setup.checkpointing != "none")
        copies = sum(number * kind.kept_fixed for number, kind in present)
        return [
            Line(name, bytes_, f"T ({terms})", source),
            Line("embedding's norm and dropout", self._in_stream(bottom), f"T ({formula})", AUTOGRAD),
            self._fixed("weights", copies, [kind.kept_fixed for _, kind in present]),
        ]

    def _computing(self, kind: Layer) -> list[Line]:
        moment = max(kind.computing, key=lambda each: each.bytes(self.count))
        bytes_ = f"{self._per_token(moment.kept, 'still kept of')} {kind.full}"
        divided = self._divided(kind.full) - (self._divided(kind.formula) if self.setup.checkpointing != "none" else 0)
        return [
            Line("activations of one layer", max(0, self.count * moment.kept - divided), bytes_, AUTOGRAD),
            Line(
                "one layer's gradients and temporaries",
                self.count * moment.moving,
                self._per_token(moment.moving, "at their most"),
                DERIVATIVES,
            ),
            self._fixed("one layer's weights", moment.kept_fixed, [kind.kept_fixed]),
            Line(
                "one weight's gradient, or the weight dequantised",
                moment.moving_fixed,
                "of the linear layer at work",
                DERIVATIVES,
            ),
        ]

    def _fixed(self, whose: str, count: int, of_layers: list[int]) -> Line:
        """What is kept whatever the micro-batch. of_layers: the bytes of each kind of layer."""
        ends = 4 * self.setup.model.experts
        if not ends:
            return Line(f"casts of {whose}", count, "kept for the backward pass", CACHE)
        name = "ends of each expert's rows" if max(of_layers, default=0) <= ends else f"casts of {whose}, experts' ends"
        return Line(name, count, "4 bytes for each expert: where its rows end, kept for the backward pass", GROUPED)

    def _per_token(self, count: int, words: str) -> str:
        return f"T x {count // self.setup.sequence_length:,} bytes: {words}"
