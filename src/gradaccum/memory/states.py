"""What belongs to the parameters: weights, gradients, the optimizer's states and its temporary. Bytes of one GPU."""

from __future__ import annotations

from gradaccum.memory.ledger import Line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.setup import Setup

ADAM = "torch/optim/adam.py"


def _share(setup: Setup, count: int) -> int:
    """One rank's part of what FSDP2 shards, rounded up."""
    return -(-count // setup.num_gpus) if setup.strategy == "fsdp2" else count


def states(setup: Setup) -> list[Line]:
    """Weights and optimizer states: there all the time."""
    w, params = setup.width, setup.model.params
    over = " / N" if setup.strategy == "fsdp2" else ""
    count, formula = {
        "sgd": (0, "none"),
        "sgd-momentum": (w * params, "w P"),
        "adamw-8bit": (2 * params + params // 32, "2 P + 8 bytes for each 256"),
    }.get(setup.optimizer, (2 * w * params, "2 w P"))
    return [
        Line("weights", _share(setup, w * params), "w P" + over, "w bytes of the dtype, P parameters"),
        Line("optimizer states", _share(setup, count), formula + over, ADAM),
    ]


def gradients(setup: Setup) -> Line:
    """The gradient set. Under DDP the buckets hold it once more."""
    count = _share(setup, setup.width * setup.model.params)
    if setup.strategy == "ddp":
        view = "torch/nn/parallel/distributed.py; gradient_as_bucket_view=True saves half"
        return Line("gradients and DDP's buckets", 2 * count, "2 w P", view)
    over = " / N" if setup.strategy == "fsdp2" else ""
    return Line("gradients", count, "w P" + over, "one set, whatever the number of micro-steps")


def head_gradient(setup: Setup) -> Line:
    """What stands in the gradients' place early in the only backward pass of a group."""
    model = setup.model
    count = _share(setup, setup.width * model.vocab * model.hidden)
    return Line("gradient of the output head", count, "w V h", "the first gradient that a backward pass makes")


def temporary(setup: Setup) -> list[Line]:
    """What the optimizer makes for itself during its step."""
    w, params, model = setup.width, setup.model.params, setup.model
    if setup.optimizer == "adamw":
        return [Line("optimizer's temporary", _share(setup, w * params), "w P: the square roots of all", ADAM)]
    if setup.optimizer == "adamw-loop":
        largest = _share(setup, w * model.vocab * model.hidden)
        return [Line("optimizer's temporary", 2 * largest, "2 w V h: of the largest parameter", ADAM)]
    return []
