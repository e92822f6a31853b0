"""DistributedDataParallel on 2 ranks: which backward reduces, and what the mean over ranks does to a loss.

Each loop is run inside an initialised group of 2 ranks.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from tests.torch.audit.zoo.loop import Fault, Pen, Truth
from tests.torch.audit.zoo.plain import images, perceptron
from tests.torch.audit.zoo.plain_losses import Language, sentences, shifted

PEN = Pen("ddp")


def mean_of(samples: int, batch: int, **more) -> Truth:
    """The mean cross entropy of `batch` pictures in order: a sampler deals them out, so a rank has every second."""
    x, y = images(samples)

    def loss(modules, step):
        part = slice(batch * step, batch * step + batch)
        return F.cross_entropy(modules[0](x[part]), y[part])

    return Truth(loss, updates=samples // batch, **more)


def dealt(samples: int, micro_batch: int) -> DataLoader:
    data = TensorDataset(*images(samples))
    return DataLoader(data, batch_size=micro_batch, sampler=DistributedSampler(data, shuffle=False))


@PEN.loop(
    "ddp-classic",
    world=2,
    target_batch=16,
    truth=mean_of(48, 16, rates=(0.1, 0.09, 0.081)),
    right={
        "": "no_sync spans forward and backward of all micro-batches but the last",
        "flag": "nanoGPT's require_backward_grad_sync",
        "view": "gradient_as_bucket_view, gradients zeroed in place",
    },
    wrong={
        "never-reduced": Fault("GA109", "no_sync around every micro-batch, the last one too"),
        "backward-outside": Fault("GA109", "the last forward inside no_sync, its backward outside (build-nanogpt#30)"),
        "flag-late": Fault("GA109", "require_backward_grad_sync = micro_step == 4, counted from 0"),
        "past-the-wrapper": Fault("GA109", "model.module(x): the forward goes past DDP, so nothing is reduced"),
        "not-divided": Fault("GA101", "DDP's mean over ranks is taken for the mean over micro-batches too"),
        "divided-by-world": Fault("GA102", "divided by the micro-batches of all ranks, and by DDP once more"),
        "zero-first": Fault("GA108", "zero_grad with every micro-batch", "GA109"),
        "scheduler-ranks": Fault("GA111", "one scheduler step for each rank (accelerate#1382)"),
    },
)
def classic(case: str) -> None:
    model = DistributedDataParallel(perceptron(), gradient_as_bucket_view=case == "view")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = ExponentialLR(optimizer, gamma=0.9)
    divisor = {"not-divided": 1, "divided-by-world": 4 * dist.get_world_size()}.get(case, 4)
    for i, (x, y) in enumerate(dealt(48, micro_batch=2)):
        micro_step, last = i % 4, i % 4 == 3
        if case == "zero-first":
            optimizer.zero_grad()
        if case.startswith("flag"):
            model.require_backward_grad_sync = micro_step == (4 if case == "flag-late" else 3)
        deferred = not case.startswith("flag") and (not last or case == "never-reduced")
        with model.no_sync() if deferred or case == "backward-outside" else nullcontext():
            loss = F.cross_entropy((model.module if case == "past-the-wrapper" else model)(x), y) / divisor
            if not (case == "backward-outside" and last):
                loss.backward()
        if case == "backward-outside" and last:
            loss.backward()
        if last:
            optimizer.step()
            optimizer.zero_grad(set_to_none=case != "view")
            for _ in range(dist.get_world_size() if case == "scheduler-ranks" else 1):
                scheduler.step()


@PEN.loop(
    "ddp-reduce-each",
    world=2,
    target_batch=16,
    truth=mean_of(48, 16),
    notes="GA116",
    right={"": "no no_sync: right, and reduced four times as often as needed"},
    wrong={"summed": Fault("GA101", "reduced each time, never divided")},
)
def reduce_each(case: str) -> None:
    model = DistributedDataParallel(perceptron())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for i, (x, y) in enumerate(dealt(48, micro_batch=2), start=1):
        loss = nn.CrossEntropyLoss()(model(x), y)
        (loss if case == "summed" else loss / 4).backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


def _all_tokens(modules, step: int) -> Tensor:
    ids, targets = shifted(sentences(48)[16 * step : 16 * step + 16])
    return F.cross_entropy(modules[0](ids).flatten(0, 1), targets.flatten(), ignore_index=-100)


@PEN.loop(
    "ddp-lm",
    world=2,
    target_batch=16,
    truth=Truth(_all_tokens, updates=3),
    right={
        "": "sum / tokens of all ranks, times the ranks, since DDP takes the mean",
        "late": "sums are reduced, the gradients divided by the count at the end",
    },
    wrong={
        "rank-count": Fault("GA104", "tokens are counted over the group, but by each rank alone (transformers#34242)"),
        "micro-count": Fault("GA103", "tokens are counted over the ranks, but in each micro-step alone"),
        "mean": Fault("GA103 GA104", "a mean in each micro-batch of each rank"),
        "without-world": Fault("GA102", "sum / tokens of all ranks, and DDP divides by the ranks once more"),
    },
)
def language(case: str) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(Language())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for start in range(0, 48, 16):
        mine = sentences(48)[start : start + 16][8 * rank : 8 * rank + 8]
        group = [shifted(mine[i : i + 2]) for i in range(0, 8, 2)]
        counts = torch.tensor([float((targets != -100).sum()) for _, targets in group])
        everywhere = counts.clone()
        dist.all_reduce(everywhere)
        for i, (ids, targets) in enumerate(group):
            with nullcontext() if i == 3 else model.no_sync():
                total = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
                scale = {
                    "late": 1.0,
                    "rank-count": 1 / counts.sum(),
                    "micro-count": world / everywhere[i] / 4,
                    "mean": 1 / counts[i] / 4,
                    "without-world": 1 / everywhere.sum(),
                }.get(case, world / everywhere.sum())
                (total * scale).backward()
        if case == "late":
            for parameter in model.parameters():
                parameter.grad *= world / everywhere.sum()
        optimizer.step()
        optimizer.zero_grad()


@PEN.loop(
    "ddp-by-hand",
    world=2,
    target_batch=16,
    truth=mean_of(48, 16),
    right={"": "no wrapper: gradients are averaged over the ranks before the step"},
    wrong={
        "summed": Fault("GA101", "all_reduce sums, and nobody divides by the ranks; Adam hides it"),
        "forgotten-head": Fault("GA109", "the new head is not in the list of parameters to reduce"),
    },
)
def by_hand(case: str) -> None:
    _by_hand(case, max_norm=100.0)


@PEN.loop(
    "ddp-by-hand-clipped",
    world=2,
    target_batch=16,
    truth=mean_of(48, 16, clip=0.3),
    right={"": "averaged, then clipped"},
    wrong={"first": Fault("GA110", "each rank clips its own gradient, then they are averaged")},
)
def by_hand_clipped(case: str) -> None:
    _by_hand("clip-first" if case else "", max_norm=0.3)


def _by_hand(case, max_norm):
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    shared = list(model[:-1].parameters()) if case == "forgotten-head" else list(model.parameters())
    for i, (x, y) in enumerate(dealt(48, micro_batch=2), start=1):
        (F.cross_entropy(model(x), y) / 4).backward()
        if i % 4 == 0:
            if case == "clip-first":
                clip_grad_norm_(model.parameters(), max_norm)
            for parameter in shared:
                dist.all_reduce(parameter.grad)
                if case != "summed":
                    parameter.grad /= dist.get_world_size()
            if case != "clip-first":
                clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "ddp-uneven",
    world=2,
    target_batch=10,
    truth=mean_of(30, 10),
    right={"": "6 samples on one rank and 4 on the other; each loss is weighted with its samples"},
    wrong={"rank-mean": Fault("GA104", "each rank divides by its own micro-batches: 3 and 2")},
)
def uneven(case: str) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(perceptron())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = images(30)
    for start in range(0, 30, 10):
        mine = range(start, start + 6) if rank == 0 else range(start + 6, start + 10)
        micro_batches = torch.tensor(mine).split(2)
        for part in micro_batches:
            with nullcontext() if part is micro_batches[-1] else model.no_sync():
                loss = F.cross_entropy(model(x[part]), y[part])
                weight = 1 / len(micro_batches) if case == "rank-mean" else world * len(part) / 10
                (loss * weight).backward()
        optimizer.step()
        optimizer.zero_grad()


@PEN.loop(
    "ddp-target",
    world=2,
    target_batch=12,
    truth=mean_of(48, 12),
    right={"": "the target is divided by micro-batch and ranks"},
    wrong={"one-device": Fault("GA115", "target // micro_batch forgets the ranks: 24 samples, not 12")},
)
def target(case: str) -> None:
    steps = 12 // 2 if case == "one-device" else 12 // (2 * dist.get_world_size())
    model = DistributedDataParallel(perceptron())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(dealt(48, micro_batch=2), start=1):
        with nullcontext() if i % steps == 0 else model.no_sync():
            (F.cross_entropy(model(x), y) / steps).backward()
        if i % steps == 0:
            optimizer.step()
            optimizer.zero_grad()
