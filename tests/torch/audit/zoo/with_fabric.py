"""Lightning Fabric. It divides nothing: what a loss is divided by is the caller's affair.

Loops for 2 ranks need torchrun's RANK, WORLD_SIZE, LOCAL_RANK, GROUP_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT
and TORCHELASTIC_RUN_ID, besides the group.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from tests.torch.audit.zoo.loop import Fault, Pen, Truth
from tests.torch.audit.zoo.plain import altered, images, perceptron, whole
from tests.torch.audit.zoo.plain_losses import Language, sentences, shifted
from tests.torch.audit.zoo.plain_models import GPT, tokens

PEN = Pen("fabric")


def fabric_of(devices: int = 1, **arguments) -> Fabric:
    strategy = "ddp" if devices > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=devices, strategy=strategy, **arguments)
    fabric.launch()
    return fabric


@PEN.loop(
    "fabric-docs",
    target_batch=16,
    truth=altered(whole(48, 16), rates=(0.1, 0.05, 0.025)),
    right={"": "the loop of the docs, with the division that it leaves out and a counter from 1"},
    wrong={
        "not-divided": Fault("GA101", "as in the docs: fabric.backward(loss) divides nothing"),
        "from-zero": Fault(
            "GA105", "as in the docs: iteration % 4 != 0 from 0, so the first group has one micro-batch", "GA115"
        ),
        "zero-first": Fault("GA108", "optimizer.zero_grad() is the first line of the loop"),
        "scheduler-each": Fault("GA111", "scheduler.step() outside of `if not is_accumulating`"),
    },
)
def from_the_docs(case: str) -> None:
    _classify(case, fabric_of(), micro_batch=4)


@PEN.loop(
    "fabric-ranks",
    world=2,
    target_batch=16,
    truth=whole(48, 16),
    right={"": "no_backward_sync while accumulating"},
    wrong={
        "never-reduced": Fault("GA109", "no_backward_sync(model) without `enabled=`: no micro-batch is reduced"),
        "divided-by-world": Fault("GA102", "divided by the ranks as well, which DDP does"),
    },
)
def on_ranks(case: str) -> None:
    _classify(case, fabric_of(devices=2), micro_batch=2)


def _classify(case, fabric, micro_batch):
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = StepLR(optimizer, 1, gamma=0.5)
    model, optimizer = fabric.setup(model, optimizer)
    loader = DataLoader(TensorDataset(*images(48)), batch_size=micro_batch)
    loader = fabric.setup_dataloaders(loader)
    divisor = {"not-divided": 1, "divided-by-world": 4 * fabric.world_size}.get(case, 4)
    for iteration, (x, y) in enumerate(loader, start=0 if case == "from-zero" else 1):
        if case == "zero-first":
            optimizer.zero_grad()
        is_accumulating = iteration % 4 != 0
        with fabric.no_backward_sync(model, enabled=is_accumulating or case == "never-reduced"):
            fabric.backward(F.cross_entropy(model(x), y) / divisor)
        if not is_accumulating:
            optimizer.step()
            optimizer.zero_grad()
        if not is_accumulating or case == "scheduler-each":
            scheduler.step()


@PEN.loop(
    "fabric-clip",
    target_batch=16,
    truth=altered(whole(40, 16), clip=0.3),
    notes="GA115",
    right={"": "fabric.clip_gradients before the step; the last group has 2 micro-batches"},
    wrong={"each": Fault("GA110", "fabric.clip_gradients after every backward")},
)
def clipped(case: str) -> None:
    fabric = fabric_of()
    model = perceptron()
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    loader = fabric.setup_dataloaders(DataLoader(TensorDataset(*images(40)), batch_size=4))
    for i, (x, y) in enumerate(loader, start=1):
        fabric.backward(F.cross_entropy(model(x), y) / (4 if i <= 8 else 2))
        last = i % 4 == 0 or i == len(loader)
        if last or case == "each":
            fabric.clip_gradients(model, optimizer, max_norm=0.3)
        if last:
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "fabric-last-group",
    target_batch=16,
    truth=whole(40, 16),
    notes="GA115",
    right={"": "divided by the length of the group"},
    wrong={"short": Fault("GA105", "the last group of 2 is divided by 4")},
)
def last_group(case: str) -> None:
    fabric = fabric_of()
    model = perceptron()
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    batches = list(fabric.setup_dataloaders(DataLoader(TensorDataset(*images(40)), batch_size=4)))
    for start in range(0, len(batches), 4):
        group = batches[start : start + 4]
        for i, (x, y) in enumerate(group):
            with fabric.no_backward_sync(model, enabled=i + 1 < len(group)):
                fabric.backward(F.cross_entropy(model(x), y) / (4 if case == "short" else len(group)))
        optimizer.step()
        optimizer.zero_grad()


def _token_mean(modules, step: int, batch: int = 8) -> Tensor:
    ids, targets = shifted(sentences(3 * batch)[batch * step : batch * step + batch])
    return F.cross_entropy(modules[0](ids).flatten(0, 1), targets.flatten(), ignore_index=-100)


@PEN.loop(
    "fabric-ranks-lm",
    world=2,
    target_batch=16,
    truth=Truth(lambda modules, step: _token_mean(modules, step, batch=16), updates=3),
    right={"": "sum x ranks / fabric.all_reduce of the group's tokens"},
    wrong={
        "rank-count": Fault("GA104", "sum / tokens of the group on this rank"),
        "mean": Fault("GA103 GA104", "mean / 4 on each rank"),
    },
)
def language(case: str) -> None:
    fabric = fabric_of(devices=2)
    model = Language()
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    for start in range(0, 48, 16):
        mine = sentences(48)[start : start + 16][8 * fabric.global_rank :][:8]
        group = [shifted(mine[i : i + 2]) for i in range(0, 8, 2)]
        count = torch.stack([(targets != -100).sum() for _, targets in group]).sum()
        everywhere = fabric.all_reduce(count.float(), reduce_op="sum")
        for i, (ids, targets) in enumerate(group):
            with fabric.no_backward_sync(model, enabled=i < 3):
                logits = model(ids).flatten(0, 1)
                if case == "mean":
                    loss = F.cross_entropy(logits, targets.flatten()) / 4
                else:
                    loss = F.cross_entropy(logits, targets.flatten(), reduction="sum")
                    loss = loss / count if case == "rank-count" else loss * fabric.world_size / everywhere
                fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()


def _gpt_in_autocast(modules, step):
    idx, targets = (torch.cat(part) for part in zip(*[tokens(4 * step + i, batch=2) for i in range(4)]))
    with torch.autocast("cpu", torch.bfloat16):
        return modules[0](idx, targets)[1]


@PEN.loop(
    "fabric-bf16-mixed",
    target_batch=8,
    truth=Truth(_gpt_in_autocast, updates=3, tolerance=2e-2),
    right={"": "precision='bf16-mixed', a small GPT"},
    wrong={"leak": Fault("GA107", "zero_grad at logged updates only, `if update % 2 == 0`", "GA101")},
)
def bf16_mixed(case: str) -> None:
    fabric = fabric_of(precision="bf16-mixed")
    model = GPT()
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    for update in range(3):
        for i in range(4):
            _, loss = model(*tokens(4 * update + i, batch=2))
            fabric.backward(loss / 4)
        optimizer.step()
        if case != "leak" or update % 2 == 1:
            optimizer.zero_grad()
