"""Loops on two ranks, right and wrong: what an audit has to say of each, and how it differs from the right one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F  # noqa: N812 - as everybody writes it
from torch.nn.parallel import DistributedDataParallel

STEPS = 4
MICRO_BATCH = 4


@dataclass(frozen=True)
class RankLoop:
    """wrap: plain, ddp, fsdp2. sync: the pass that reduces. ragged: targets are left out unevenly, by micro-batch or by
    rank. tokens: divided by the targets of the whole group. scale: each rank by a number of its own. codes: what has to
    be said, and reductions counted.
    """

    name: str
    codes: tuple[str, ...] = ()
    reductions: int = 1
    wrap: str = "ddp"
    sync: str = "last"
    ragged: str = ""
    tokens: bool = False
    clip: bool = False
    scale: bool = False


LOOPS = [
    RankLoop("right"),
    RankLoop("right, clipped", clip=True),
    RankLoop("right by tokens", ragged="micro-batch", tokens=True),
    RankLoop("reduced each time", ("GA116",), 4, sync="every"),
    RankLoop("never reduced", ("GA109",), 0, sync="never"),
    RankLoop("the last forward inside no_sync", ("GA109",), 0, sync="forward inside"),
    RankLoop("reduced, and scaled on each rank", ("GA109",), scale=True),
    RankLoop("a mean on each rank", ("GA104",), ragged="rank"),
    RankLoop("a mean of each micro-batch", ("GA103", "GA104"), ragged="micro-batch"),
    RankLoop("sharded", (), 4, wrap="fsdp2", sync="every"),
    RankLoop("sharded and deferred", wrap="fsdp2"),
    RankLoop(
        "sharded, a mean of each micro-batch", ("GA103", "GA104"), 4, wrap="fsdp2", sync="every", ragged="micro-batch"
    ),
    RankLoop("sharded, by tokens", (), 4, wrap="fsdp2", sync="every", ragged="micro-batch", tokens=True),
    RankLoop("reduced by hand", wrap="plain", sync="by hand"),
    RankLoop("by hand, and forgotten", ("GA109",), 0, wrap="plain", sync="never"),
]


def parts(loop):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5))
    if loop.wrap == "ddp":
        model = DistributedDataParallel(model)
    elif loop.wrap == "fsdp2":
        fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def batches(loop, rank):
    generator = torch.Generator().manual_seed(rank)
    found = []
    for index in range(3 * STEPS):
        targets = torch.randint(0, 5, (MICRO_BATCH,), generator=generator)
        if loop.ragged == "micro-batch":
            targets[: (index + rank) % 3] = -100
        elif loop.ragged == "rank":
            targets[: 2 * rank] = -100
        found.append((torch.randn(MICRO_BATCH, 8, generator=generator), targets))
    return found


def train(loop, model, optimizer):
    world = dist.get_world_size()
    loader = batches(loop, dist.get_rank())
    for index, (inputs, targets) in enumerate(loader):
        last = (index + 1) % STEPS == 0
        count = torch.tensor(float(sum((each != -100).sum() for _, each in loader[index // STEPS * STEPS :][:STEPS])))
        if loop.tokens:
            dist.all_reduce(count)
        reduces = {"every": True, "last": last}.get(loop.sync, False)
        if loop.wrap == "fsdp2":
            model.set_requires_gradient_sync(reduces)
        held = loop.wrap == "ddp" and not reduces
        with model.no_sync() if held else contextlib.nullcontext():
            output = model(inputs)
        if loop.tokens:
            loss = F.cross_entropy(output, targets, reduction="sum") * world / count
        else:
            loss = F.cross_entropy(output, targets) / STEPS
        outside = loop.sync == "forward inside" and last
        with model.no_sync() if held and not outside else contextlib.nullcontext():
            loss.backward()
        if last:
            for each in model.parameters() if loop.scale else ():
                each.grad *= 1 + dist.get_rank()
            if loop.clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if loop.sync == "by hand":
                for each in model.parameters():
                    dist.all_reduce(each.grad)
                    each.grad /= world
            optimizer.step()
            optimizer.zero_grad()
