"""FSDP2 on 2 ranks: when gradients are reduced and scattered, and by what they are divided.

Each loop is run inside an initialised group of 2 ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LinearLR

from tests.torch.audit.zoo.loop import Fault, Pen, Truth
from tests.torch.audit.zoo.plain_losses import sentences, shifted

PEN = Pen("fsdp2")


class Tagger(nn.Module):
    """Logits (batch, length, 20) from an embedding, two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(16, 20)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def sharded(policy: MixedPrecisionPolicy | None = None) -> FSDPModule:
    model = Tagger()
    policy = policy or MixedPrecisionPolicy()
    for block in model.blocks:
        fully_shard(block, mp_policy=policy)
    return fully_shard(model, mp_policy=policy)


def rows(number: int) -> tuple[Tensor, Tensor]:
    """The `number`-th micro-batch: 2 rows of 8 ids, and a label for each."""
    generator = torch.Generator().manual_seed(1400 + number)
    return torch.randint(20, (2, 8), generator=generator), torch.randint(20, (2, 8), generator=generator)


def _mean(modules, step: int, micro_batches: int = 8) -> Tensor:
    numbers = range(micro_batches * step, micro_batches * step + micro_batches)
    ids, labels = (torch.cat(part) for part in zip(*[rows(number) for number in numbers]))
    return F.cross_entropy(modules[0](ids).flatten(0, 1), labels.flatten())


@PEN.loop(
    "fsdp2-rows",
    world=2,
    target_batch=16,
    truth=Truth(_mean, updates=3, clip=0.6, rates=(0.05, 0.075, 0.1), build=Tagger),
    right={
        "": "reduced and scattered with every micro-batch, which is what FSDP is made for",
        "deferred": "set_requires_gradient_sync(last): one reduction, whole gradients in between",
        "fp32-reduce": "a mixed precision policy with float32 for all",
    },
    wrong={
        "never-reduced": Fault(
            "GA109", "set_requires_gradient_sync(False) and never True: no gradient is ever there", "GA106"
        ),
        "late": Fault(
            "GA109", "sync is switched on after the last backward, so that it comes a group late", "GA107 GA106 GA115"
        ),
        "not-divided": Fault("GA101", "never divided by the micro-batches; clipped all the same"),
        "divided-by-world": Fault("GA102", "divided by the ranks, as if FSDP summed; the clip stays idle"),
        "divide-factor": Fault("GA101", "set_gradient_divide_factor(1) with a mean loss"),
        "zero-first": Fault("GA108", "zero_grad at the top of every micro-batch"),
        "warmup-each": Fault("GA111", "the warm-up counts micro-batches"),
    },
)
def equal_rows(case: str) -> None:
    model = sharded(MixedPrecisionPolicy(torch.float32, torch.float32) if case == "fp32-reduce" else None)
    if case == "divide-factor":
        for module in [*model.blocks, model]:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other way to leave the division out
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = LinearLR(optimizer, start_factor=0.5, total_iters=2)
    for i in range(12):
        last = i % 4 == 3
        if case == "zero-first":
            optimizer.zero_grad()
        if case in ("deferred", "never-reduced", "late"):
            model.set_requires_gradient_sync({"deferred": last, "late": i > 0 and i % 4 == 0}.get(case, False))
        ids, labels = rows(2 * i + dist.get_rank())
        loss = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten())
        (loss / {"not-divided": 1, "divided-by-world": 8}.get(case, 4)).backward()
        if last and case != "never-reduced":
            clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 0.6)
        if last:
            optimizer.step()
            optimizer.zero_grad()
        if last or case == "warmup-each":
            scheduler.step()


def _tokens(modules, step: int) -> Tensor:
    ids, targets = shifted(sentences(48)[16 * step : 16 * step + 16])
    return F.cross_entropy(modules[0](ids).flatten(0, 1), targets.flatten(), ignore_index=-100)


@PEN.loop(
    "fsdp2-lm",
    world=2,
    target_batch=16,
    truth=Truth(_tokens, updates=3, build=Tagger),
    right={
        "": "sum / tokens of all ranks, times the ranks",
        "torchtitan": "sum / tokens of all ranks, FSDP's own division switched off",
    },
    wrong={
        "without-world": Fault("GA102", "sum / tokens of all ranks, and FSDP divides by the ranks once more"),
        "rank-count": Fault("GA104", "each rank divides by its own tokens of the group"),
        "mean": Fault("GA103 GA104", "cross_entropy's mean in each micro-batch"),
        "rank-count-deferred": Fault("GA104", "the same, with deferred reduction"),
    },
)
def language(case: str) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    model = sharded()
    if case == "torchtitan":
        for module in [*model.blocks, model]:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other way to leave the division out
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for start in range(0, 48, 16):
        mine = sentences(48)[start : start + 16][8 * rank : 8 * rank + 8]
        group = [shifted(mine[i : i + 2]) for i in range(0, 8, 2)]
        counts = torch.tensor([float((targets != -100).sum()) for _, targets in group])
        everywhere = counts.sum()
        dist.all_reduce(everywhere)
        for i, (ids, targets) in enumerate(group):
            if case == "rank-count-deferred":
                model.set_requires_gradient_sync(i == 3)
            total = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
            if case.startswith("rank-count"):
                loss = total / counts.sum()
            elif case == "mean":
                loss = total / counts[i] / 4
            else:
                loss = total / everywhere * (world if case == "" else 1)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@PEN.loop(
    "fsdp2-clip",
    world=2,
    target_batch=16,
    truth=Truth(_mean, updates=3, clip=0.1, build=Tagger),
    right={"": "the norm over all shards is clipped once, before the step"},
    wrong={"each": Fault("GA110", "clip_grad_norm_ after each backward")},
)
def clipped(case: str) -> None:
    model = sharded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for i in range(12):
        ids, labels = rows(2 * i + dist.get_rank())
        (F.cross_entropy(model(ids).flatten(0, 1), labels.flatten()) / 4).backward()
        if i % 4 == 3 or case == "each":
            clip_grad_norm_(model.parameters(), 0.1)
        if i % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "fsdp2-by-hand",
    world=2,
    target_batch=8,
    truth=Truth(lambda modules, step: _mean(modules, step, micro_batches=4), updates=3, build=Tagger),
    right={"": "gradients of DTensors divided in place at the boundary"},
    wrong={"each": Fault("GA118", "divided in place after every backward: a decaying sum")},
)
def by_hand(case: str) -> None:
    model = sharded()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=True)
    for i in range(6):
        ids, labels = rows(2 * i + dist.get_rank())
        nn.CrossEntropyLoss()(model(ids).transpose(1, 2), labels).backward()
        if i % 2 == 1 or case == "each":
            for parameter in model.parameters():
                assert isinstance(parameter.grad, DTensor)
                parameter.grad /= 2
        if i % 2 == 1:
            optimizer.step()
            optimizer.zero_grad()
