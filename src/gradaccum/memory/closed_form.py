"""The memory of a training step from shapes alone: what is allocated at each instant that can be the peak.

    end of forward     weights, states, (gradients,) what every layer kept, the loss
    recomputation      with checkpointing: the inputs of all layers, and all of one layer
    end of backward    weights, states, gradients, what the first layer kept
    optimizer step     weights, states, gradients, the optimizer's temporary

Gradients stand at every instant once there are two micro-steps or more: those of the earlier ones. With a single one
they grow while activations shrink, so that the two ends bound what lies between. The peak is the largest instant,
never a sum of parts that are not there together. Bytes of one GPU.
"""

from __future__ import annotations

from gradaccum.errors import InputError, Problem
from gradaccum.memory.activations import AUTOGRAD, layer_bytes
from gradaccum.memory.ledger import Line, total
from gradaccum.memory.loss import last_norm, loss
from gradaccum.memory.states import gradients, head_gradient, states, temporary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.setup import Setup

END_OF_FORWARD = "end of forward"
RECOMPUTATION = "recomputation"
END_OF_BACKWARD = "end of backward"
OPTIMIZER_STEP = "optimizer step"

FSDP = "torch/distributed/fsdp/_fully_shard: a flat gather, a copy out of it, the next group, the reduce-scatter input"
WORKSPACE = "aten/src/ATen/cuda/CUDABlas.cpp; pytorch#95668, pytorch#89027"


def instants(setup: Setup, compute_capability: float | None = None) -> dict[str, tuple[Line, ...]]:
    """What is allocated at each instant. compute_capability: as 8.0 for an A100; from 9.0 on workspaces are larger.

    Raises InputError for a model whose step is not known here.
    """
    if setup.model.head != "lm":
        raise InputError(Problem("model", f"{setup.model.id} is no causal language model; the closed form knows these"))
    always = (*states(setup), *_communication(setup), _workspaces(compute_capability), _batch(setup))
    one_set, kept = gradients(setup), _kept(setup)
    found = {
        END_OF_FORWARD: (*always, *([one_set] if setup.accumulates else []), kept, last_norm(setup), loss(setup)),
        END_OF_BACKWARD: (*always, one_set, _one_layer(setup)),
        OPTIMIZER_STEP: (*always, one_set, *temporary(setup)),
    }
    if setup.checkpointing == "full":
        earlier = one_set if setup.accumulates else head_gradient(setup)
        found[RECOMPUTATION] = (*always, earlier, kept, _one_layer(setup))
    return found


def peak(setup: Setup, compute_capability: float | None = None) -> tuple[str, tuple[Line, ...]]:
    """The instant with the most bytes, and its ledger, without the lines that are 0."""
    found = instants(setup, compute_capability)
    name = max(found, key=lambda each: total(found[each]))
    return name, tuple(line for line in found[name] if line.bytes)


# What is there all the time


def _communication(setup: Setup) -> list[Line]:
    if setup.strategy != "fsdp2":
        return []
    model, w = setup.model, setup.width
    tables = model.vocab * model.hidden * (1 if model.tied else 2)
    layer = (model.params - tables) // model.layers
    return [
        Line("unsharded embedding and head", w * tables, "w V h" + ("" if model.tied else " x 2"), FSDP),
        Line("unsharded layers in flight", 4 * w * layer, "4 w P / L", FSDP),
    ]


def _workspaces(compute_capability: float | None) -> Line:
    one = 32 * 2**20 if compute_capability is not None and compute_capability >= 9 else 8519680
    return Line("cuBLAS workspaces", 2 * one, "one for the forward and one for the backward thread", WORKSPACE)


def _batch(setup: Setup) -> Line:
    return Line("batch", 16 * setup.tokens, "16 T", "token ids and labels of 8 bytes; T = m S tokens")


# What grows with the micro-batch


def _kept(setup: Setup) -> Line:
    model, w = setup.model, setup.width
    if setup.checkpointing == "full":
        return Line("inputs of the layers", setup.tokens * model.layers * w * model.hidden, "T L w h", "checkpointing")
    each = layer_bytes(model, w, setup.attention, setup.sequence_length)
    return Line("activations", setup.tokens * model.layers * each, f"T L x {each:,} bytes", AUTOGRAD)


def _one_layer(setup: Setup) -> Line:
    each = layer_bytes(setup.model, setup.width, setup.attention, setup.sequence_length)
    return Line("activations of one layer", setup.tokens * each, f"T x {each:,} bytes", AUTOGRAD)
