"""What one model-parallel rank holds: its share of the widths, of the layers, of the tokens and of the experts.

    tensor parallel    each layer's heads, MLP width and vocabulary, divided; norms, and the residual stream unless
                       sequence parallel divides it too
    pipeline parallel  some of the layers; the first stage has the embedding and the most micro-batches in flight, the
                       last one the head and the loss
    context parallel   a part of each sequence's tokens, and all of the weights
    expert parallel    some of the routed experts, over ranks that are data-parallel to all other layers

A `Stage` holds this as a Setup of its own, whose model is what one rank has of it, so that what is counted for one GPU
is counted for a rank in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.catalog.models import params_by_part, reshaped
from gradaccum.memory.ranks import sharing_ranks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.catalog.models import Model
    from gradaccum.memory.setup import Setup


@dataclass(frozen=True)
class Stage:
    """One pipeline stage's rank; the whole model where there is one stage.

    name: "" or which stage it is. setup: of this rank, its model cut to what it has, without model parallelism.
    spread_params: its parameters with those of all expert-parallel ranks: what the sharing ranks divide among them.
    in_flight: forward passes of a virtual stage whose activations wait for their backward pass, virtual_stages of which
    make up the rank's layers. stream: by what sequence parallelism divides the residual stream. context, experts: ranks
    that share a sequence, and the experts.
    """

    name: str
    setup: Setup
    spread_params: int
    in_flight: int
    virtual_stages: int
    stream: int
    context: int
    experts: int
    has_embedding: bool
    has_head: bool

    @property
    def embedding(self) -> int:
        """Parameters of its embedding, 0 if it has none."""
        return params_by_part(self.setup.model)["embedding"] if self.has_embedding else 0

    @property
    def head(self) -> int:
        """Parameters of its output head; a tied one is a copy of its own on a last stage, and none elsewhere."""
        model = self.setup.model
        if not self.has_head or (model.tied and self.has_embedding):
            return 0
        return params_by_part(model)["head"] + (model.vocab * model.embedding_width if model.tied else 0)


def stages(setup: Setup) -> tuple[Stage, ...]:
    """The stages that can be the heaviest: the first and the last; the others have no more than the first."""
    count = setup.pipeline_parallel
    if count == 1:
        return (_stage(setup, "", 0, True, True),)
    return (
        _stage(setup, f"first of {count} stages", 0, True, False),
        _stage(setup, f"last of {count} stages", count - 1, False, True),
    )


def micro_batches_in_flight(setup: Setup, rank: int) -> int:
    """Forward passes of one virtual stage that wait at the most, on pipeline rank `rank` (from 0).

    1F1B: as many as there are stages from here to the last (arXiv 2104.04473, section 2.2.1). Interleaved: the warm-up
    of Megatron-LM's megatron/core/pipeline_parallel/schedules.py, and one; on the first rank that is p + (p - 1) / v
    times its layers, the penalty of megatron/training/theoretical_memory_usage.py.
    """
    behind, chunks = setup.pipeline_parallel - rank - 1, setup.virtual_pipeline
    waiting = behind + 1
    if chunks > 1:
        waiting = 2 * behind + (chunks - 1) * setup.pipeline_parallel + 1
    return waiting if setup.accum_steps is None else min(waiting, setup.accum_steps * chunks)


def _stage(setup: Setup, name: str, rank: int, first: bool, last: bool) -> Stage:
    model = _held(setup, first)
    parts = params_by_part(model)
    rest = parts["layers"] + (parts["embedding"] if first else 0)
    if last:
        rest += parts["norm"] + parts["head"]
        rest += model.vocab * model.embedding_width if model.tied and not first else 0
    held = rest + parts["experts"] // setup.expert_parallel
    ranks = setup.data_parallel * setup.context_parallel
    own = setup
    if setup.num_gpus != ranks or setup.context_parallel > 1 or setup.expert_parallel > 1:
        own = setup.with_values(
            {
                "model": reshaped(model, params=held),
                "num_gpus": ranks,
                "sequence_length": setup.sequence_length // setup.context_parallel,
                "tensor_parallel": 1, "sequence_parallel": False, "pipeline_parallel": 1, "virtual_pipeline": 1,
                "context_parallel": 1, "expert_parallel": 1,
            }
        )  # fmt: skip
    return Stage(
        name=name,
        setup=own,
        spread_params=rest + parts["experts"],
        in_flight=micro_batches_in_flight(setup, rank),
        virtual_stages=setup.virtual_pipeline,
        stream=setup.tensor_parallel if setup.sequence_parallel else 1,
        context=setup.context_parallel,
        experts=setup.expert_parallel,
        has_embedding=first,
        has_head=last,
    )


def _held(setup: Setup, first: bool) -> Model:
    """The model with the widths of one tensor-parallel rank and the layers of one stage, all experts still there.

    Megatron-LM megatron/core/tensor_parallel/layers.py: columns of queries, keys, values and the MLP's first matrices,
    rows of what follows them, rows of the vocabulary; norms and the biases behind a sum are whole on every rank.
    """
    model, tp, pp = setup.model, setup.tensor_parallel, setup.pipeline_parallel
    if tp == pp == 1:
        return model
    layers = model.layers // pp
    dense = min(model.dense_layers, layers) if first else max(0, model.dense_layers - (model.layers - layers))
    return reshaped(
        model,
        heads=model.heads // tp,
        kv_heads=max(1, model.kv_heads // tp),
        ffn=model.ffn // tp,
        expert_ffn=model.expert_ffn // tp,
        vocab=-(-model.vocab // tp),
        layers=layers,
        dense_layers=dense,
    )


def in_the_stream(formula: str, hidden: int) -> int:
    """Bytes for one token of a layer's formula, "14 h + 8 f + 4", that are as wide as the residual stream."""
    terms = [term.split(" ") for term in formula.split(" + ")]
    return sum(int(term[0]) * hidden for term in terms if term[1:] == ["h"])


def shared_by(stage: Stage, count: int) -> int:
    """One rank's part of `count`, a multiple of its parameters, rounded up: what each sharing rank keeps of it."""
    own = stage.setup
    return -(-count * stage.spread_params // (own.model.params * sharing_ranks(own)))
