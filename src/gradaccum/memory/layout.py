"""How a model lies over several GPUs: the words for it, and which of them go together.

Data-parallel ranks each see sequences of their own; `strategy` says what they share. Tensor, pipeline and context
parallelism split one replica; expert parallelism spreads the experts over data-parallel ranks and divides nothing else.
"""

from __future__ import annotations

from gradaccum.core.request import Request
from gradaccum.errors import InputError, Problem
from gradaccum.units import quote, show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from gradaccum.catalog.models import Model

STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2", "hsdp")
REDUCE = ("auto", "last", "every")
REDUCE_DTYPES = ("auto", "fp32", "bf16", "fp16")

PARALLEL = ("tensor_parallel", "pipeline_parallel", "virtual_pipeline", "context_parallel", "expert_parallel")
COUNTS = ("shard_size", *PARALLEL)
FLAGS = ("sequence_parallel", "distributed_optimizer", "gradient_as_bucket_view", "reshard_after_forward")
CHOICES = {"strategy": STRATEGIES, "reduce": REDUCE, "reduce_dtype": REDUCE_DTYPES}

MEANINGS = {
    "strategy": "what data-parallel ranks share. single: one rank; ddp: nothing; zero1: optimizer states; zero2: "
    "gradients too; zero3, fsdp2: weights too; hsdp: fsdp2 within groups of shard_size ranks",
    "reduce": "when gradients are reduced. every: at each micro-step; last: once for a group, whole gradients are kept "
    "until then; auto: last under ddp and zero1, else every",
    "reduce_dtype": "type that fsdp2 and hsdp reduce gradients in; auto: that of the gradients",
}

DEGREES = ("tensor_parallel", "pipeline_parallel", "context_parallel", "virtual_pipeline")
"""Those that core knows too, and that a plan is made with."""

REDUCES = {
    "single": ("auto",),
    "ddp": ("auto", "last", "every"),
    "zero1": ("auto", "last"),
    "zero2": ("auto", "every"),
    "zero3": ("auto", "every"),
    "fsdp2": ("auto", "last", "every"),
    "hsdp": ("auto", "last", "every"),
}
"""When gradients can be reduced. DeepSpeed's ZeRO-1 reduces at the boundary alone, and its no_sync refuses ZeRO-2 and
3 (deepspeed/runtime/engine.py)."""


def problems(model: Model, values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the layout. values: a Setup's fields; counts and words are right on their own."""
    replica = values["tensor_parallel"] * values["pipeline_parallel"] * values["context_parallel"]
    if values["num_gpus"] % replica or (values["virtual_pipeline"] > 1 and values["pipeline_parallel"] == 1):
        try:
            Request(num_gpus=values["num_gpus"], **{name: values[name] for name in DEGREES})
        except InputError as error:
            yield from error.problems
        return  # there is no number of data-parallel ranks to speak of
    ranks = values["num_gpus"] // replica * values["context_parallel"]
    yield from _strategy(values, ranks)
    yield from _degrees(model, values, ranks)


def _strategy(values: Mapping[str, Any], ranks: int) -> Iterator[Problem]:
    strategy, size, reduce = values["strategy"], values["shard_size"], values["reduce"]
    if strategy == "single" and ranks > 1:
        message = f"is single, which is one data-parallel rank, not {show_count(ranks)}"
        yield Problem("strategy", message, ["ddp", "fsdp2"])
    if strategy == "hsdp":
        if size is None:
            message = "is needed beside hsdp: the ranks of one group that shards, such as the GPUs of a node"
            yield Problem("shard_size", message, near_divisors(ranks, 8))
        elif ranks % size:
            message = f"is {show_count(size)}, which does not divide {show_count(ranks)} ranks"
            yield Problem("shard_size", message, near_divisors(ranks, size))
    elif size is not None:
        yield Problem("shard_size", f"belongs to hsdp; {strategy} has no groups", ["hsdp"])
    if reduce not in REDUCES[strategy]:
        yield Problem("reduce", f"is {reduce}, which {strategy} cannot do", REDUCES[strategy])
    if values["distributed_optimizer"] and strategy != "ddp":
        message = f"shares Megatron's optimizer among DDP's ranks; {strategy} is another way"
        yield Problem("distributed_optimizer", message, ["--strategy ddp"])
    if values["gradient_as_bucket_view"] and (strategy != "ddp" or values["distributed_optimizer"]):
        yield Problem("gradient_as_bucket_view", "belongs to PyTorch's DDP", ["--strategy ddp"])
    if values["reduce_dtype"] != "auto" and strategy not in ("fsdp2", "hsdp"):
        yield Problem("reduce_dtype", "belongs to fsdp2 and hsdp", ["fsdp2", "hsdp"])
    if not values["reshard_after_forward"] and strategy not in ("fsdp2", "hsdp"):
        yield Problem("reshard_after_forward", "belongs to fsdp2 and hsdp", ["fsdp2", "hsdp"])


def _degrees(model: Model, values: Mapping[str, Any], ranks: int) -> Iterator[Problem]:
    tp, pp, vp, cp, ep = (values[name] for name in PARALLEL)
    length = values["sequence_length"]
    if values["sequence_parallel"] and tp == 1:
        message = "splits the residual stream over tensor-parallel ranks, and tensor_parallel is 1"
        yield Problem("sequence_parallel", message, ["--tensor-parallel 2"])
    wanted = [("heads", model.heads), ("MLP width", model.ffn)]
    wanted += [("expert width", model.expert_ffn)] if model.experts else []
    for what, count in wanted:
        if count % tp:
            message = f"is {show_count(tp)}, which does not divide the model's {what} of {show_count(count)}"
            yield Problem("tensor_parallel", message, near_divisors(count, tp))
    if model.layers % (pp * vp):
        what = f"is {show_count(pp)}" + (f" x {show_count(vp)} virtual stages" if vp > 1 else "")
        near = [int(each) for each in near_divisors(model.layers, pp * vp)]
        yield Problem(
            "pipeline_parallel",
            f"{what}, which does not divide the model's {show_count(model.layers)} layers",
            [show_count(each // vp) for each in near if each % vp == 0],
        )
    if cp > 1 and length % (2 * cp):
        below = length // (2 * cp) * 2 * cp
        message = f"is {show_count(length)}; context parallelism cuts it into {show_count(2 * cp)} equal parts"
        yield Problem("sequence_length", message, [str(each) for each in (below, below + 2 * cp) if each])
    if cp > 1 and values["attention"] == "eager":
        yield Problem("attention", "is eager, and context parallelism needs a fused kernel", ["flash"])
    if ep > 1 and not model.experts:
        yield Problem("expert_parallel", f"is {show_count(ep)}, and {quote(model.id)} has no experts", ["1"])
    elif ep > 1 and (model.experts % ep or ranks % ep):
        message = f"is {show_count(ep)}, which must divide {show_count(model.experts)} experts and "
        message += f"{show_count(ranks)} ranks"
        yield Problem("expert_parallel", message, near_divisors(_common(model.experts, ranks), ep))


def near_divisors(count: int, wanted: int) -> list[str]:
    """The divisors of `count` next to `wanted`, below and above, as text; none beyond 4,096 away."""
    found = []
    below = min(wanted, count)
    for candidates in (range(below, max(0, below - 4096), -1), range(wanted + 1, min(count, wanted + 4096) + 1)):
        found += [str(each) for each in candidates if count % each == 0][:1]
    return found


def _common(one: int, other: int) -> int:
    while other:
        one, other = other, one % other
    return one


def with_default_strategy(how: dict[str, object]) -> dict[str, object]:
    """ddp where several ranks see data of their own and nothing is said; a nonsensical count is left to Setup."""
    counts = [how.get(name, 1) for name in ("num_gpus", "tensor_parallel", "pipeline_parallel")]
    if all(isinstance(each, int) for each in counts) and counts[0] > counts[1] * counts[2]:  # type: ignore[operator]
        how.setdefault("strategy", "ddp")
    return how
