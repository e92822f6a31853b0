"""Loops that the audit was never tuned on, on 2 ranks: DDP, FSDP2, and gradients that are reduced by hand.

Each loop is run inside an initialised group of 2 ranks.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.torch.audit.zoo.held_out import network, sixteens, table
from tests.torch.audit.zoo.loop import Fault, Pen, Truth
from tests.torch.audit.zoo.plain_losses import Language, sentences, shifted

PEN = Pen("heldoutddp")


def mine(number: int, size: int = 2) -> tuple[Tensor, Tensor]:
    """This rank's `number`-th micro-batch: the ranks take turns."""
    x, y = table(48)
    start = (number * dist.get_world_size() + dist.get_rank()) * size
    return x[start : start + size], y[start : start + size]


class Trainer:
    """The class that most repositories have, with what it does beside training."""

    def __init__(self, case: str) -> None:
        self.case, self.model = case, DistributedDataParallel(network())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.logged: list[float] = []

    def maybe_no_sync(self, boundary: bool):
        skip = boundary if self.case == "inverted" else not boundary
        return self.model.no_sync() if skip else nullcontext()

    def train(self) -> None:
        for step in range(12):
            boundary = (step + 1) % 4 == 0
            x, y = mine(step)
            with self.maybe_no_sync(boundary):
                loss = F.cross_entropy(self.model(x), y)
                (loss if self.case == "not-divided" else loss / 4).backward()
            self.log(loss)
            if step % 4 == 1:
                self.evaluate()
            if boundary:
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)

    def log(self, loss: Tensor) -> None:
        loss = loss.detach().clone()
        dist.all_reduce(loss)
        self.logged.append(loss.item() / dist.get_world_size())

    def evaluate(self) -> None:
        self.model.eval()
        with torch.no_grad():
            self.model.module(table(48)[0])
        if self.case == "evaluate-clears":
            self.model.zero_grad()
        self.model.train()


@PEN.loop(
    "heldoutddp-trainer",
    world=2,
    target_batch=16,
    truth=sixteens(),
    right={"": "a class with maybe_no_sync; losses are reduced for the log, and it evaluates within a group"},
    wrong={
        "inverted": Fault("GA109", "no_sync at the boundary, a reduction with every other micro-batch", "GA116"),
        "not-divided": Fault("GA101", "the loss goes backward as it is"),
        "evaluate-clears": Fault("GA106", "evaluate() clears the gradients of an open group", "GA108"),
    },
)
def trainer(case: str) -> None:
    Trainer(case).train()


@PEN.loop(
    "heldoutddp-apex",
    world=2,
    target_batch=16,
    truth=sixteens(),
    right={
        "": "gradients are flattened and reduced at the boundary",
        "each": "flattened and averaged after every backward pass: what is the same on all ranks stays as it is",
    },
    wrong={
        "summed-each": Fault(
            "GA118", "summed over the ranks after every backward pass, divided at the boundary", "GA101"
        ),
        "predivided": Fault("GA102", "divided by the ranks before the reduction, and after it"),
    },
)
def apex(case: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def allreduce_grads(divisor: float) -> None:
        gradients = [p.grad for p in model.parameters()]
        flat = _flatten_dense_tensors(gradients)
        if case == "predivided":
            flat /= dist.get_world_size()
        dist.all_reduce(flat)
        flat /= divisor
        for gradient, reduced in zip(gradients, _unflatten_dense_tensors(flat, gradients)):
            gradient.copy_(reduced)

    for step in range(12):
        x, y = mine(step)
        (F.cross_entropy(model(x), y) / 4).backward()
        boundary = step % 4 == 3
        if boundary or "each" in case:
            allreduce_grads(1 if case == "summed-each" and not boundary else dist.get_world_size())
        if boundary:
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "heldoutddp-hook",
    world=2,
    target_batch=16,
    truth=sixteens(),
    right={"": "a communication hook of one's own, which averages"},
    wrong={"sums": Fault("GA101", "a communication hook of one's own, which sums: DDP leaves the division to it")},
)
def hook(case: str) -> None:
    model = DistributedDataParallel(network())

    def reduce(state, bucket):
        buffer = bucket.buffer() if case == "sums" else bucket.buffer().div_(dist.get_world_size())
        return dist.all_reduce(buffer, async_op=True).get_future().then(lambda done: done.value()[0])

    model.register_comm_hook(None, reduce)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(12):
        x, y = mine(step)
        with model.no_sync() if step % 4 < 3 else nullcontext():
            (F.cross_entropy(model(x), y) / 4).backward()
        if step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()


def _token_mean(modules, step: int) -> Tensor:
    ids, targets = shifted(sentences(48)[16 * step : 16 * step + 16])
    return F.cross_entropy(modules[0](ids).transpose(1, 2), targets, ignore_index=-100)


@PEN.loop(
    "heldoutddp-fairseq",
    world=2,
    target_batch=16,
    truth=Truth(_token_mean, updates=3),
    right={"": "sums go backward; multiply_grads(world / sample_size), with sample_size of all ranks"},
    wrong={
        "own-size": Fault(
            "GA109",
            "sample_size of each rank: the gradients are the same, what divides them is not",
            "GA104 GA118 GA101",
        ),
        "without-world": Fault("GA102", "multiply_grads(1 / sample_size): that DDP takes the mean is forgotten"),
        "first": Fault("GA104", "each rank's sum over its own tokens goes backward, and no multiply_grads"),
    },
)
def fairseq(case: str) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(Language())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    for start in range(0, 48, 16):
        group = [shifted(sentences(48)[i : i + 2]) for i in range(start + 8 * rank, start + 8 * rank + 8, 2)]
        own = sum(int((targets != -100).sum()) for _, targets in group)
        sample_size = torch.tensor(float(own))
        if case != "own-size":
            dist.all_reduce(sample_size)
        for i, (ids, targets) in enumerate(group):
            with model.no_sync() if i < 3 else nullcontext():
                loss = F.cross_entropy(model(ids).transpose(1, 2), targets, ignore_index=-100, reduction="sum")
                (loss / own if case == "first" else loss).backward()
        if case != "first":
            for p in model.parameters():
                p.grad.mul_((1 if case == "without-world" else world) / sample_size)
        optimizer.step()
        optimizer.zero_grad()


@PEN.loop(
    "heldoutddp-unequal",
    world=2,
    target_batch=16,
    truth=sixteens(),
    right={"": "micro-batches of 3 on a large card and 1 on a small one, weighted with their samples"},
    wrong={"mean": Fault("GA104", "micro-batches of 3 and 1, each rank takes its mean over 4")},
)
def unequal(case: str) -> None:
    size, first = ((3, 0), (1, 12))[dist.get_rank()]
    model = DistributedDataParallel(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = table(48)
    for start in range(0, 48, 16):
        parts = torch.arange(start + first, start + first + 4 * size).split(size)
        for i, part in enumerate(parts):
            with model.no_sync() if i + 1 < len(parts) else nullcontext():
                loss = F.cross_entropy(model(x[part]), y[part])
                (loss / 4 if case else loss * 2 * size / 16).backward()
        optimizer.step()
        optimizer.zero_grad()


class TwoHeads(nn.Module):
    """A trunk, and a head for each kind of micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.heads = nn.Linear(12, 16), nn.ModuleList(nn.Linear(16, 4) for _ in range(2))

    def forward(self, x: Tensor, kind: int) -> Tensor:
        return self.heads[kind](self.trunk(x).relu())


def _two_heads(modules, step: int) -> Tensor:
    """Micro-batches 0 and 2 of each rank go to one head, 1 and 3 to the other."""
    x, y = table(48)
    kinds = torch.arange(16).div(4, rounding_mode="floor") % 2
    part = slice(16 * step, 16 * step + 16)
    out = torch.stack([modules[0](x[part], kind) for kind in range(2)])[kinds, torch.arange(16)]
    return F.cross_entropy(out, y[part])


@PEN.loop(
    "heldoutddp-unused",
    world=2,
    target_batch=16,
    truth=Truth(_two_heads, updates=3),
    notes="GA116",
    right={
        "": "find_unused_parameters: every micro-batch uses one of two heads, and is reduced",
        "last-alone": "no_sync: the last micro-batch leaves one head out, and DDP knows that those before used it",
    },
    wrong={
        "zero-each": Fault("GA108", "zero_grad for each micro-batch"),
    },
)
def unused(case: str) -> None:
    model = DistributedDataParallel(TwoHeads(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(12):
        if case == "zero-each":
            optimizer.zero_grad()
        x, y = mine(step)
        with model.no_sync() if case == "last-alone" and step % 4 < 3 else nullcontext():
            (F.cross_entropy(model(x, step % 2), y) / 4).backward()
        if step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "heldoutddp-fsdp2",
    world=2,
    target_batch=16,
    truth=sixteens(clip=0.2, build=network),
    right={"": "fully_shard, gradients divided at the boundary, the norm over all shards"},
    wrong={
        "local-norm": Fault("GA109", "each rank clips its shards with the norm of its own", "GA118 GA110"),
        "clip-each": Fault("GA110", "clip_grad_norm_ in every micro-batch"),
    },
)
def fsdp2(case: str) -> None:
    model = fully_shard(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(12):
        model.set_is_last_backward(step % 4 == 3)
        model.set_requires_gradient_sync(step % 4 == 3 or case == "clip-each")
        x, y = mine(step)
        loss = F.cross_entropy(model(x), y)
        (loss / 4 if case == "clip-each" else loss).backward()
        if case == "clip-each":
            nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        if step % 4 < 3:
            continue
        if case != "clip-each":
            for p in model.parameters():
                p.grad /= 4
        if case == "local-norm":
            shards = [p.grad.to_local() for p in model.parameters()]
            norm = torch.stack([shard.norm() for shard in shards]).norm()
            torch._foreach_mul_(shards, min(1.0, 0.2 / (norm.item() + 1e-6)))
        else:
            nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
        optimizer.zero_grad()


@PEN.loop(
    "heldoutddp-fsdp2-language",
    world=2,
    target_batch=16,
    truth=Truth(_token_mean, updates=3, build=Language),
    right={"": "sums go backward; .grad times ranks / tokens of all ranks at the boundary"},
    wrong={"own-tokens": Fault("GA104", "sum over the tokens of this rank's group")},
)
def fsdp2_language(case: str) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    model = fully_shard(Language())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for start in range(0, 48, 16):
        group = [shifted(sentences(48)[i : i + 2]) for i in range(start + 2 * rank, start + 16, 4)]
        own = sum((targets != -100).sum() for _, targets in group)
        tokens = own.clone()
        dist.all_reduce(tokens)
        for ids, targets in group:
            loss = F.cross_entropy(model(ids).transpose(1, 2), targets, ignore_index=-100, reduction="sum")
            (loss / own if case else loss).backward()
        if case == "":
            for p in model.parameters():
                p.grad.mul_(world / tokens.item())
        optimizer.step()
        optimizer.zero_grad()
