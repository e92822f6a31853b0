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
from gradaccum.memory.activations import layer_bytes, norm_bytes
from gradaccum.memory.ledger import Line, total

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.setup import Setup

END_OF_FORWARD = "end of forward"
RECOMPUTATION = "recomputation"
END_OF_BACKWARD = "end of backward"
OPTIMIZER_STEP = "optimizer step"

AUTOGRAD = "the tensors that autograd saves in Transformers' modelling code"
LOSS = "transformers loss/loss_utils.py:ForCausalLMLoss; torch log_softmax and its backward"
ADAM = "torch/optim/adam.py"
FSDP = "torch/distributed/fsdp/_fully_shard: a flat gather, a copy out of it, the next group, the reduce-scatter input"
WORKSPACE = "aten/src/ATen/cuda/CUDABlas.cpp; pytorch#95668, pytorch#89027"


def instants(setup: Setup, compute_capability: float | None = None) -> dict[str, tuple[Line, ...]]:
    """What is allocated at each instant. compute_capability: as 8.0 for an A100; from 9.0 on workspaces are larger.

    Raises InputError for a model whose step is not known here.
    """
    if setup.model.head != "lm":
        raise InputError(Problem("model", f"{setup.model.id} is no causal language model; the closed form knows these"))
    always = (*_states(setup), *_communication(setup), _workspaces(compute_capability), _batch(setup))
    gradients, kept = _gradients(setup), _kept(setup)
    found = {
        END_OF_FORWARD: (*always, *([gradients] if setup.accumulates else []), kept, _last_norm(setup), _loss(setup)),
        END_OF_BACKWARD: (*always, gradients, _one_layer(setup)),
        OPTIMIZER_STEP: (*always, gradients, *_temporary(setup)),
    }
    if setup.checkpointing == "full":
        earlier = gradients if setup.accumulates else _head_gradient(setup)
        found[RECOMPUTATION] = (*always, earlier, kept, _one_layer(setup))
    return found


def peak(setup: Setup, compute_capability: float | None = None) -> tuple[str, tuple[Line, ...]]:
    """The instant with the most bytes, and its ledger, without the lines that are 0."""
    found = instants(setup, compute_capability)
    name = max(found, key=lambda each: total(found[each]))
    return name, tuple(line for line in found[name] if line.bytes)


def _share(setup: Setup, count: int) -> int:
    """One rank's part of what FSDP2 shards, rounded up."""
    return -(-count // setup.num_gpus) if setup.strategy == "fsdp2" else count


# What is there all the time


def _states(setup: Setup) -> list[Line]:
    w, params = setup.width, setup.model.params
    over = " / N" if setup.strategy == "fsdp2" else ""
    states, formula = {
        "sgd": (0, "none"),
        "sgd-momentum": (w * params, "w P"),
        "adamw-8bit": (2 * params + params // 32, "2 P + 8 bytes for each 256"),
    }.get(setup.optimizer, (2 * w * params, "2 w P"))
    return [
        Line("weights", _share(setup, w * params), "w P" + over, "w bytes of the dtype, P parameters"),
        Line("optimizer states", _share(setup, states), formula + over, ADAM),
    ]


def _gradients(setup: Setup) -> Line:
    """The gradient set. Under DDP the buckets hold it once more."""
    count = _share(setup, setup.width * setup.model.params)
    if setup.strategy == "ddp":
        view = "torch/nn/parallel/distributed.py; gradient_as_bucket_view=True saves half"
        return Line("gradients and DDP's buckets", 2 * count, "2 w P", view)
    over = " / N" if setup.strategy == "fsdp2" else ""
    return Line("gradients", count, "w P" + over, "one set, whatever the number of micro-steps")


def _head_gradient(setup: Setup) -> Line:
    model = setup.model
    count = _share(setup, setup.width * model.vocab * model.hidden)
    return Line("gradient of the output head", count, "w V h", "the first gradient that a backward pass makes")


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


def _last_norm(setup: Setup) -> Line:
    w, h = setup.width, setup.model.hidden
    norm = norm_bytes(setup.model, w, h) if setup.model.final_norm else 0
    return Line("last norm, input of the head", setup.tokens * (norm + w * h), "T (norm + w h)", AUTOGRAD)


def _loss(setup: Setup) -> Line:
    """Logits in the dtype, and in fp32 a copy, its log-softmax and the gradient; in fp32 no copy is made."""
    each = 14 if setup.width == 2 else 12
    return Line("logits and loss", each * setup.tokens * setup.model.vocab, f"{each} T V", LOSS)


def _temporary(setup: Setup) -> list[Line]:
    w, params, model = setup.width, setup.model.params, setup.model
    if setup.optimizer == "adamw":
        return [Line("optimizer's temporary", _share(setup, w * params), "w P: the square roots of all", ADAM)]
    if setup.optimizer == "adamw-loop":
        largest = _share(setup, w * model.vocab * model.hidden)
        return [Line("optimizer's temporary", 2 * largest, "2 w V h: of the largest parameter", ADAM)]
    return []
