"""What data-parallel ranks share, and what sharing needs on top. Bytes of one rank.

ddp            nothing is shared; buckets hold the gradients once more
zero1, 2, 3    DeepSpeed: optimizer states and fp32 weights; gradients too; weights too
fsdp2, hsdp    PyTorch's fully_shard: all three (fully_shard.py)
"""

from __future__ import annotations

from gradaccum.memory.fully_shard import SOURCE as FULLY_SHARD
from gradaccum.memory.fully_shard import FullyShard
from gradaccum.memory.ledger import Line, total
from gradaccum.memory.parallel import shared_by
from gradaccum.memory.parameters import parameters
from gradaccum.memory.ranks import reduces, sharing_ranks
from gradaccum.memory.recipe import recipe_of
from gradaccum.memory.widths import widths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.parallel import Stage
    from gradaccum.memory.setup import Setup

DDP = "torch/nn/parallel/distributed.py, torch/csrc/distributed/c10d/reducer.cpp; measured on PyTorch 2.13"
ZERO12 = "deepspeed/runtime/zero/stage_1_and_2.py"
ZERO3 = "deepspeed/runtime/zero/stage3.py, partitioned_param_coordinator.py"
MEGATRON = "megatron/core/distributed/param_and_grad_buffer.py, megatron/training/theoretical_memory_usage.py"

UNSHARDED_GRADIENTS = "unsharded gradients"

REDUCE_BUCKET = 5 * 10**8
PREFETCH_BUCKET = 5 * 10**7
REUSE_DISTANCE = 10**9
SUB_GROUP = 10**9
"""Elements: the defaults of deepspeed/runtime/zero/config.py. Transformers' `auto` makes the buckets h x h."""

SHARED = {
    "single": (),
    "ddp": (),
    "zero1": ("states",),
    "zero2": ("states", "gradients"),
    "zero3": ("states", "gradients", "weights"),
    "fsdp2": ("states", "gradients", "weights"),
    "hsdp": ("states", "gradients", "weights"),
}
"""What each strategy divides among its ranks; a distributed optimizer divides the states under ddp."""


def is_shared(setup: Setup, what: str) -> bool:
    """Whether the ranks share it. what: states, gradients or weights."""
    return what in SHARED[setup.strategy] or (what == "states" and setup.distributed_optimizer)


def share(stage: Stage, what: str, count: int) -> int:
    """What one rank has of `count` bytes, a multiple of the stage's parameters."""
    return shared_by(stage, count) if is_shared(stage.setup, what) else count


def over(setup: Setup, what: str) -> str:
    """For the end of a formula: " / N" of what is shared among N ranks."""
    return " / N" if is_shared(setup, what) else ""


def trained(stage: Stage) -> int:
    """Parameters of the stage that are trained: all, or those of adapters."""
    return parameters(stage.setup).trained


def defers(setup: Setup) -> bool:
    """Whether whole gradients are kept until the last micro-step although the ranks share them."""
    return is_shared(setup, "gradients") and setup.accumulates and reduces(setup) == "last"


def kept_and_sent(stage: Stage) -> tuple[int, int, int]:
    """Bytes of all gradients as they are reduced, of one rank's shard, and of what it sends in one reduce-scatter."""
    wide, params, ranks = widths(stage.setup), trained(stage), sharing_ranks(stage.setup)
    whole = wide.reduced * params
    return whole, shared_by(stage, wide.gradient * params), whole * (ranks - 1) // ranks


# Gradients, and what stands all the time


def held(stage: Stage) -> list[Line]:
    """What is there from the first step to the last."""
    setup, wide = stage.setup, widths(stage.setup)
    params = trained(stage)
    if setup.distributed_optimizer:
        return [Line("gradient buffer", wide.gradient * params, "4 P: sums in fp32", MEGATRON)]
    if setup.strategy == "ddp":
        return [Line("DDP's buckets", wide.gradient * params, "w P", DDP)]
    if setup.strategy == "zero3":
        return [
            Line(
                "gradient shards", share(stage, "gradients", wide.gradient * params), "w P / N, from the start", ZERO3
            ),
            Line("reduce bucket", REDUCE_BUCKET * recipe_of(setup).weights, "w x 5e8", ZERO3),
        ]
    return []


def gradients(stage: Stage, stepping: bool = False) -> list[Line]:
    """The gradient set of earlier micro-steps, or of all where the optimizer is stepping.

    Under DDP the last reduction leaves gradients as views of the buckets, if that is asked for; micro-steps that do
    not reduce make gradients of their own all the same, since those of the step before were set to None.
    """
    setup, wide = stage.setup, widths(stage.setup)
    params, source = trained(stage), "one set, whatever the number of micro-steps"
    if setup.distributed_optimizer or setup.strategy == "zero3":
        return []
    if setup.gradient_as_bucket_view and (stepping or reduces(setup) == "every"):
        return []
    if defers(setup) and not stepping:
        count = wide.reduced * params
        return [Line(UNSHARDED_GRADIENTS, count, "r P: not reduced before the last micro-step", FULLY_SHARD)]
    if setup.strategy == "zero2" or (setup.strategy == "zero1" and stepping):
        # A parameter that lies across the border of two shards is kept whole.
        count = max(shared_by(stage, wide.gradient * params), wide.gradient * _largest(stage))
        return [Line("gradients", count, "w max(P / N, the largest parameter)", ZERO12)]
    # Sums in fp32 are cast for a step in 16 bits one by one, and let go as they are.
    width = wide.state if stepping and setup.gradient_dtype == "fp32" and not wide.master else wide.gradient
    letter = "A" if params < setup.model.params else "P"
    count = share(stage, "gradients", width * params)
    return [Line("gradients", count, f"{width} {letter}{over(setup, 'gradients')}", source)]


def at_step(stage: Stage, temporary: list[Line]) -> list[Line]:
    """Gradients and temporaries where the optimizer steps. temporary: what the optimizer makes for itself.

    ZeRO-3 steps in sub-groups. ZeRO-1 and 2 first take the norm, of a gradient in fp64 (get_grad_norm_direct), then put
    the gradients into one tensor, that into fp32, and let the others go.
    """
    setup, own = stage.setup, gradients(stage, stepping=True)
    if not setup.strategy.startswith("zero") or not widths(setup).master:
        return [*own, *temporary]
    count = trained(stage)
    if setup.strategy == "zero3":
        whole = shared_by(stage, count)
        part = min(whole, SUB_GROUP)
        single = Line("fp32 gradients", 4 * part, "4 min(P / N, 1e9): of one sub-group", ZERO3)
        made = [
            Line(each.name, each.bytes * part // whole, f"{each.formula}, of one sub-group", each.source)
            for each in temporary
        ]
        return [single, *made]
    single = Line("fp32 gradients", share(stage, "states", 4 * count), "4 P / N", ZERO12)
    part = min(_largest(stage), shared_by(stage, count))
    flat = Line("gradients put together", shared_by(stage, widths(setup).gradient * count), "w P / N", ZERO12)
    moments = (
        [*own, Line("a gradient in fp64", 8 * part, "8 min(P / N, the largest parameter)", ZERO12)],
        [*own, flat, single],
        [single, *temporary],
    )
    return max(moments, key=total)


def last_gradient(stage: Stage) -> list[Line]:
    """The embedding's gradient before it is added to the sum."""
    if not stage.has_embedding or trained(stage) < stage.setup.model.params:
        return []
    count = widths(stage.setup).computed * stage.embedding
    return [Line("gradient of the embedding", count, "w V h", "added to the sum when it is whole")]


def _largest(stage: Stage) -> int:
    """Elements of the largest parameter, taken to be the embedding or the head."""
    return min(trained(stage), max(stage.embedding, stage.head))


# On the way


def fully_sharded(stage: Stage) -> FullyShard | None:
    """The groups of FSDP2 or HSDP; None under another strategy."""
    if stage.setup.strategy not in ("fsdp2", "hsdp"):
        return None
    return FullyShard(stage, widths(stage.setup), recipe_of(stage.setup).weights, trained(stage), defers(stage.setup))


def in_step(stage: Stage) -> list[Line]:
    """What DeepSpeed has from the start of a backward pass to its end: buckets, and what ZeRO-3 has gathered.

    ZeRO-3 keeps the weights that are used again within the reuse distance: at the turn from forward to backward half
    of it on either side, and what is fetched ahead.
    """
    setup = stage.setup
    if setup.strategy in ("zero1", "zero2"):
        return [Line("reduce bucket", REDUCE_BUCKET * recipe_of(setup).weights, "w x 5e8, whatever the model", ZERO12)]
    if setup.strategy == "zero3":
        live = min(setup.model.params, REUSE_DISTANCE // 2 + PREFETCH_BUCKET)
        return [Line("gathered weights", live * recipe_of(setup).weights, "w min(P, 1e9 / 2 + 5e7)", ZERO3)]
    return []


def at_backward_end(stage: Stage) -> list[Line]:
    """What there is more of when all gradients of a micro-step are there."""
    setup = stage.setup
    if not setup.accumulates or setup.strategy != "zero2":
        return []
    (line,) = gradients(stage)
    return [Line("this micro-step's gradients", line.bytes, line.formula, ZERO12)]
