"""What a layout means for a rank: when it reduces gradients, with whom it shares; in words; and lighter layouts."""

from __future__ import annotations

from gradaccum.memory.layout import PARALLEL
from gradaccum.units import show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.setup import Setup


def reduces(setup: Setup) -> str:
    """last or every: at a group's last micro-step, or at each one. auto is what is usual: last for DDP and ZeRO-1."""
    if setup.reduce != "auto":
        return setup.reduce
    return "last" if setup.strategy in ("single", "ddp", "zero1") else "every"


def sharing_ranks(setup: Setup) -> int:
    """Ranks among which the strategy divides what it divides: all data and context-parallel ones, under HSDP a group.

    torchtitan/distributed/parallel_dims.py (dp_shard x cp); Megatron's distributed optimizer likewise.
    """
    if setup.strategy == "hsdp" and setup.shard_size:
        return setup.shard_size
    return setup.data_parallel * setup.context_parallel


def communicators(setup: Setup) -> int:
    """Groups of ranks that a rank talks with: those of its tensor, pipeline, expert and data-parallel dimensions.

    Under HSDP the groups that shard and those of replicas are two.
    """
    ranks = setup.data_parallel * setup.context_parallel
    split = (setup.tensor_parallel, setup.pipeline_parallel, setup.context_parallel, setup.expert_parallel, ranks)
    return sum([each > 1 for each in split]) + (setup.strategy == "hsdp" and sharing_ranks(setup) < ranks)


def layout_words(setup: Setup) -> list[str]:
    """The layout for people: "fsdp2 over 8 ranks", "tensor parallel 2"; nothing on one GPU."""
    words = []
    ranks = show_count(sharing_ranks(setup))
    if setup.strategy == "hsdp":
        words.append(f"hsdp in groups of {ranks}")
    elif setup.num_gpus > 1:
        words.append(f"{setup.strategy} over {ranks} {'rank' if ranks == '1' else 'ranks'}")
    for name in PARALLEL:
        if getattr(setup, name) > 1:
            words.append(f"{name.replace('_', ' ')} {show_count(getattr(setup, name))}")
    for name in ("sequence_parallel", "distributed_optimizer", "gradient_as_bucket_view"):
        if getattr(setup, name):
            words.append(name.replace("_", " "))
    if not setup.reshard_after_forward:
        words.append("not resharded after forward")
    if setup.reduce != "auto":
        words.append(f"gradients reduced at {'the last' if setup.reduce == 'last' else 'every'} micro-step")
    if setup.reduce_dtype != "auto":
        words.append(f"in {setup.reduce_dtype}")
    return words


def lighter_layouts(setup: Setup) -> list[tuple[dict[str, object], str]]:
    """Other layouts on the same GPUs that may take less: the fields that change, and words for them."""
    found: list[tuple[dict[str, object], str]] = []
    if setup.strategy == "ddp" and setup.num_gpus > 1:
        plain: dict[str, object] = {"gradient_as_bucket_view": False, "distributed_optimizer": False}
        shared = {**plain, "strategy": "fsdp2", "reduce": "auto"}
        if setup.quantization == "none":
            found.append((shared, "FSDP2: weights, gradients and states shared by the ranks"))
        if not setup.distributed_optimizer:
            view: dict[str, object] = {"gradient_as_bucket_view": True}
            found.append((view, "gradient_as_bucket_view: no gradients beside DDP's buckets at the optimizer's step"))
            every = "gradient_as_bucket_view, and gradients reduced at every micro-step: none beside DDP's buckets"
            found.append(({**view, "reduce": "every"}, every))
        if setup.tensor_parallel * setup.pipeline_parallel > 1:
            found.append(({"distributed_optimizer": True}, "Megatron's distributed optimizer: states shared"))
    heavier = {"zero1": "zero2", "zero2": "zero3"}.get(setup.strategy)
    if heavier:
        found.append(({"strategy": heavier, "reduce": "auto"}, f"ZeRO-{heavier[-1]} instead of {setup.strategy[-1]}"))
    if setup.strategy == "hsdp":
        found.append(({"strategy": "fsdp2", "shard_size": None}, "FSDP2 over all ranks instead of groups"))
    if setup.strategy in ("fsdp2", "hsdp"):
        found.append(({"reduce": "every"}, "gradients reduced at every micro-step: only shards are kept"))
        found.append(({"reshard_after_forward": True}, "reshard after forward: weights are gathered once more"))
    if setup.tensor_parallel > 1:
        found.append(({"sequence_parallel": True}, "sequence parallel: the residual stream divided too"))
    return found
