"""What the loops are run on, as plain data: `worker` runs the cases, `test_runs` asks how they went."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Case:
    """One run of one text over one epoch.

    plan: the inputs of the plan. samples: size of the dataset.
    ignored: which targets carry no loss; see `bench.make_dataset`.
    stream: the loader is a generator without a length. scaled: a large loss, so that clipping acts.
    mutation: a text in the loop, and what a mistaken loop has in its place.
    """

    name: str
    plan: Mapping[str, Any]
    samples: int
    strategy: str = "auto"
    weighting: str = "mean"
    ignored: str = "none"
    stream: bool = False
    scaled: bool = False
    mutation: tuple[str, str] | None = None

    def of(self, strategy: str, weighting: str) -> Case:
        """The same for one form of the loop."""
        name = f"{strategy}, {weighting}: {self.name}"
        return replace(self, name=name, strategy=strategy, weighting=weighting)


# Micro-batch 2 on 2 ranks, 3 micro-steps: an update has 12 samples, 6 on each rank.
TWO = {"micro_batch": 2, "num_gpus": 2, "target_batch": 12}
# 4 + 4 + 1 samples: in the last micro-step rank 0 has one sample, rank 1 has none.
EMPTY_SHARE = {**TWO, "target_batch": 9, "rounding": "exact"}
# 4 + 4 + 3 samples: rank 0 has two, rank 1 has one.
UNEVEN_SHARE = {**TWO, "target_batch": 11, "rounding": "exact"}

SCENARIOS = [
    Case("even", TWO, 24),
    Case("stream", TWO, 24, stream=True),
    Case("short last group", TWO, 20),
    Case("smaller last micro-batch", TWO, 22),
    Case("short last group, smaller micro-batch", TWO, 18),
    Case("short last group left out", {**TWO, "last_group": "drop"}, 20),
    Case("smaller last micro-batch left out", {**TWO, "last_group": "carry"}, 22),
    Case("exact, short last group left out", {**EMPTY_SHARE, "last_group": "drop"}, 23),
    Case("exact, a share of 0", EMPTY_SHARE, 23),
    Case("exact, shares 2 and 1", UNEVEN_SHARE, 25),
    Case("clipped", TWO, 24, scaled=True),
]
TOKEN_SCENARIOS = [
    Case("ragged", TWO, 22, ignored="ragged"),
    Case("a micro-batch without tokens", TWO, 24, ignored="micro-batch"),
    Case("a group without tokens", TWO, 36, ignored="group"),
    Case("exact, ragged, a share of 0", EMPTY_SHARE, 23, ignored="ragged"),
]

# The same on one rank: an update has 6 samples; "exact" has 2 + 2 + 1.
ONE = {"micro_batch": 2, "num_gpus": 1, "target_batch": 6}
SCENARIOS_OF_ONE = [
    Case("even", ONE, 12),
    Case("stream", ONE, 12, stream=True),
    Case("short last group", ONE, 10),
    Case("short last group, smaller micro-batch", ONE, 9),
    Case("exact", {**ONE, "target_batch": 5, "rounding": "exact"}, 13),
    Case("exact, left out", {**ONE, "target_batch": 5, "rounding": "exact", "last_group": "drop"}, 13),
    Case("short last group left out", {**ONE, "last_group": "drop"}, 9),
    Case("clipped", ONE, 12, scaled=True),
]
TOKEN_SCENARIOS_OF_ONE = [
    Case("ragged", ONE, 11, ignored="ragged"),
    Case("a micro-batch without tokens", ONE, 12, ignored="first micro-batch"),
    Case("a group without tokens", ONE, 18, ignored="group"),
]


def _model_parallel(num_gpus: int) -> list[Case]:
    """Two GPUs for each replica of the model; "exact" leaves the second replica a share of 0."""
    cases = []
    replicas = num_gpus // 2
    for degree, strategies in {
        "tensor_parallel": ("fsdp2", "fsdp2-deferred") if replicas > 1 else ("single",),
        "context_parallel": ("ddp", "fsdp2"),
    }.items():
        name = f"{degree} 2 on {num_gpus} GPUs"
        plan = {"micro_batch": 2, "num_gpus": num_gpus, degree: 2, "target_batch": 6 * replicas}
        exact = {**plan, "target_batch": 4 * replicas + 1, "rounding": "exact"}
        for strategy in strategies:
            cases += [
                Case(name, plan, 12 * replicas - 2, ignored="ragged").of(strategy, "tokens"),
                Case(name, plan, 12 * replicas - 2).of(strategy, "mean"),
                Case(f"{name}, exact", exact, 8 * replicas + 5).of(strategy, "mean"),
                Case(f"{name}, clipped", plan, 6 * replicas, scaled=True).of(strategy, "tokens"),
            ]
    return cases


def _pipelines(num_gpus: int, shapes: list[tuple[int, int]]) -> list[Case]:
    """Stages on 2 ranks, for each (stages of a rank, micro-batches): every schedule that a text may choose."""
    cases = []
    replicas = num_gpus // 2
    for virtual, micro_batches in shapes:
        plan = {"micro_batch": 2, "num_gpus": num_gpus, "accum_steps": micro_batches}
        plan |= {"pipeline_parallel": 2, "virtual_pipeline": virtual}
        update = 2 * micro_batches * replicas
        name = f"pipeline 2 x {virtual} on {num_gpus} GPUs, {micro_batches} micro-batches"
        cases += [
            Case(name, plan, 2 * update).of("auto", "mean"),
            Case(f"{name}, the rest left out", plan, update + 2 * replicas).of("auto", "mean"),
            Case(f"{name}, clipped", plan, 2 * update, scaled=True).of("auto", "mean"),
            Case(f"{name}, ragged", plan, 2 * update, ignored="ragged").of("auto", "tokens"),
            Case(f"{name}, a group without tokens", plan, 3 * update, ignored="group").of("auto", "tokens"),
        ]
    return cases


def _pipelines_in_parallel() -> list[Case]:
    """Two stages, the layers or the sequences of each shared by two GPUs."""
    cases = []
    for degree in ("tensor_parallel", "context_parallel"):
        plan = {"micro_batch": 2, "num_gpus": 4, "accum_steps": 3, "pipeline_parallel": 2, degree: 2}
        name = f"pipeline 2 x 1, {degree} 2 on 4 GPUs"
        cases += [
            Case(name, plan, 12, ignored="ragged").of("auto", "tokens"),
            Case(f"{name}, clipped", plan, 12, scaled=True).of("auto", "mean"),
        ]
    return cases


ONE_RANK = [
    *[scenario.of("single", "mean") for scenario in SCENARIOS_OF_ONE],
    *[scenario.of("single", "tokens") for scenario in SCENARIOS_OF_ONE + TOKEN_SCENARIOS_OF_ONE],
]
TWO_RANKS = [
    scenario.of(strategy, weighting)
    for strategy in ("ddp", "fsdp2", "fsdp2-deferred")
    for weighting in ("mean", "tokens")
    for scenario in SCENARIOS + (TOKEN_SCENARIOS if weighting == "tokens" else [])
]
TWO_RANKS += _model_parallel(2)
TWO_RANKS += _pipelines(2, [(1, 3), (1, 1), (2, 4), (2, 5)])  # 1F1B, GPipe, interleaved 1F1B, looped BFS
FOUR_RANKS = _model_parallel(4) + _pipelines(4, [(1, 3), (2, 4)]) + _pipelines_in_parallel()


# The known mistakes. Each is planted in a text, and the comparison must then fail.


def _mistake(mistake: str, cases: list[Case], name: str, right: str, wrong: str) -> Case:
    (case,) = (case for case in cases if case.name == name)
    return replace(case, name=f"{name}: {mistake}", mutation=(right, wrong))


_WITH = "with nullcontext() if micro_step == len(group) else model.no_sync():\n"
_COMMENT = "# Its share of the samples really in the group: 1 / len(group) where all are equal.\n"
_LOSS = "loss = loss_mean(model(inputs), targets) * (len(targets) / samples)\n"
_BACKWARD = "loss.backward()\n"
_INDENT, _DEEPER = " " * 12, " " * 16
_CLIP = "clip_grad_norm_(model.parameters(), CLIP_NORM)\n"

MISTAKES = [
    _mistake(
        "the forward outside no_sync",
        TWO_RANKS,
        "ddp, mean: even",
        _INDENT + _WITH + _DEEPER + _COMMENT + _DEEPER + _LOSS + _DEEPER + _BACKWARD,
        _INDENT + _LOSS + _INDENT + _WITH + _DEEPER + _BACKWARD,
    ),
    _mistake(
        "every forward inside no_sync, every backward outside",
        TWO_RANKS,
        "ddp, mean: even",
        _INDENT + _WITH + _DEEPER + _COMMENT + _DEEPER + _LOSS + _DEEPER + _BACKWARD,
        _INDENT + "with model.no_sync():\n" + _DEEPER + _LOSS + _INDENT + _BACKWARD,
    ),
    _mistake("every backward reduces", TWO_RANKS, "ddp, mean: even", _WITH, "with nullcontext():\n"),
    _mistake(
        "every backward reduces",
        TWO_RANKS,
        "fsdp2-deferred, mean: even",
        "set_requires_gradient_sync(micro_step == len(group))",
        "set_requires_gradient_sync(True)",
    ),
    _mistake(
        "divided by the nominal count",
        TWO_RANKS,
        "ddp, mean: short last group",
        "(len(targets) / samples)",
        "(1 / ACCUM_STEPS)",
    ),
    _mistake(
        "a smaller micro-batch weighs as much",
        TWO_RANKS,
        "fsdp2, mean: smaller last micro-batch",
        "(len(targets) / samples)",
        "(1 / len(group))",
    ),
    _mistake(
        "a mean of means",
        TWO_RANKS,
        "ddp, tokens: ragged",
        "* (NUM_GPUS / tokens)",
        "/ (targets != IGNORE).sum() / len(group)",
    ),
    _mistake(
        "the tokens of one rank",
        TWO_RANKS,
        "fsdp2, tokens: ragged",
        "dist.all_reduce(tokens)",
        "tokens *= NUM_GPUS",
    ),
    _mistake(
        "the ranks' average forgotten",
        TWO_RANKS,
        "fsdp2-deferred, tokens: ragged",
        "(NUM_GPUS / tokens)",
        "(1 / tokens)",
    ),
    _mistake(
        "the repeated sample counts",
        TWO_RANKS,
        "ddp, mean: exact, a share of 0",
        "weights.append(len(share) / len(update))",
        "weights.append(max(1, len(share)) / len(update))",
    ),
    _mistake(
        "the repeated sample counts",
        TWO_RANKS,
        "ddp, tokens: exact, a share of 0",
        "repeats.append(len(share) == 0)",
        "repeats.append(False)",
    ),
    _mistake(
        "clipped in every micro-step",
        TWO_RANKS,
        "fsdp2, mean: clipped",
        "            micro_losses.append(loss.detach())\n\n        " + _CLIP,
        "            micro_losses.append(loss.detach())\n            " + _CLIP,
    ),
    _mistake("gradients kept", TWO_RANKS, "ddp, mean: even", "        optimizer.zero_grad()\n", ""),
    _mistake(
        "the tokens of one context-parallel rank",
        TWO_RANKS,
        "ddp, tokens: context_parallel 2 on 2 GPUs",
        "        dist.all_reduce(tokens, group=replicas)",
        "",
    ),
    _mistake(
        "each stage clipped by itself",
        TWO_RANKS,
        "auto, mean: pipeline 2 x 1 on 2 GPUs, 3 micro-batches, clipped",
        '        dist.all_reduce(squares, group=mesh.get_group("pp"))\n',
        "",
    ),
]
MISTAKES_OF_ONE = [
    _mistake(
        "divided by the nominal count",
        ONE_RANK,
        "single, mean: short last group",
        "(len(targets) / samples)",
        "(1 / ACCUM_STEPS)",
    ),
    _mistake(
        "a smaller micro-batch weighs as much",
        ONE_RANK,
        "single, mean: exact",
        "(len(targets) / samples)",
        "(1 / len(group))",
    ),
    _mistake(
        "a mean of means",
        ONE_RANK,
        "single, tokens: ragged",
        "/ tokens",
        "/ (targets != IGNORE).sum() / len(group)",
    ),
    _mistake("scaled twice", ONE_RANK, "single, tokens: even", "/ tokens", "/ tokens / len(group)"),
    _mistake(
        "an update for each micro-batch",
        ONE_RANK,
        "single, mean: even",
        "islice(batches, ACCUM_STEPS)",
        "islice(batches, 1)",
    ),
]
