"""Loops that the audit was never tuned on, plain PyTorch: normalisation, half types, micro-batches that differ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from tests.torch.audit.zoo.held_out import loader_of, mean_over, network, sixteens, table
from tests.torch.audit.zoo.held_out_losses import seeded
from tests.torch.audit.zoo.loop import Fault, Pen, Truth

PEN = Pen("heldout")


class Residual(nn.Module):
    """A block with BatchNorm, and its own way to freeze it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(12, 24), nn.BatchNorm1d(24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(checkpoint(self._body, x, use_reentrant=False))

    def _body(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.up(x)))


@PEN.loop(
    "heldout-residual",
    target_batch=16,
    truth=sixteens(),
    right={"": "model.apply(set_bn_eval) after model.train()"},
    wrong={"order": Fault("GA112", "model.apply(set_bn_eval), and then model.train(), which takes it back")},
)
def residual(case: str) -> None:
    def set_bn_eval(module: nn.Module) -> None:
        if "BatchNorm" in type(module).__name__:
            module.eval()

    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    if case == "order":
        model.apply(set_bn_eval)
        model.train()
    else:
        model.train()
        model.apply(set_bn_eval)
    for i, (x, y) in enumerate(loader_of(48), start=1):
        (F.cross_entropy(model(x), y) / 4).backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


def _prices(part: slice) -> tuple[Tensor, Tensor]:
    """Prices that lie far above what the model says at first, so that every sample pulls the same way."""
    return torch.rand(1200, 12, generator=seeded(93))[part], torch.full((1200, 1), 500.0)[part]


def _price_loss(modules, step: int) -> Tensor:
    model, (x, y) = modules[0], _prices(slice(600 * step, 600 * step + 600))
    wide = {name: p.float() for name, p in model.named_parameters()}
    return F.l1_loss(functional_call(model, wide, x), y)


@PEN.loop(
    "heldout-half-sums",
    target_batch=600,
    truth=Truth(_price_loss, updates=2, tolerance=1e-2),
    right={"": "weights in float32, autocast in bfloat16: sums in float32"},
    wrong={"pure": Fault("GA113", "model.to(torch.bfloat16), 600 micro-batches of 1 added up in .grad")},
)
def half_sums(case: str) -> None:
    model = nn.Linear(12, 1)
    if case == "pure":
        model.to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for i in range(1200):
        x, y = _prices(slice(i, i + 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=case == ""):
            loss = F.l1_loss(model(x.to(model.weight.dtype)), y.to(model.weight.dtype))
        (loss / 600).backward()
        if (i + 1) % 600 == 0:
            optimizer.step()
            optimizer.zero_grad()


def _tasks_loss(modules, step: int) -> Tensor:
    trunk, heads = modules[0], modules[1:]
    x, y = table(48)
    first, second = x[16 * step : 16 * step + 8], x[16 * step + 8 : 16 * step + 16]
    mse = F.mse_loss(heads[1](trunk(second)), second[:, :2])
    return F.cross_entropy(heads[0](trunk(first)), y[16 * step : 16 * step + 8]) + 0.2 * mse


@PEN.loop(
    "heldout-tasks",
    target_batch=16,
    truth=Truth(_tasks_loss, updates=3),
    right={"": "two micro-batches of each of two tasks, with a weight for each task, divided by 2"},
    wrong={"not-divided": Fault("GA101", "weights of the tasks, but no division by the micro-batches of each")},
)
def tasks(case: str) -> None:
    trunk, classes, boxes = nn.Linear(12, 16), nn.Linear(16, 4), nn.Linear(16, 2)
    optimizer = torch.optim.AdamW([*trunk.parameters(), *classes.parameters(), *boxes.parameters()], lr=1e-3)
    for i, (x, y) in enumerate(loader_of(48)):
        hidden = trunk(x)
        if i % 4 < 2:
            loss = 1.0 * F.cross_entropy(classes(hidden), y)
        else:
            loss = 0.2 * F.mse_loss(boxes(hidden), x[:, :2])
        (loss if case else loss / 2).backward()
        if i % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()


def _growing() -> list[list[range]]:
    """16 samples an update, in micro-batches that grow: 8 of 2, 4 of 4, then 2 of 8."""
    return [
        [range(start + i, start + i + size) for i in range(0, 16, size)] for start, size in ((0, 2), (16, 4), (32, 8))
    ]


@PEN.loop(
    "heldout-curriculum",
    target_batch=16,
    truth=mean_over(48, [range(start, start + 16) for start in (0, 16, 32)]),
    right={"": "sequences get shorter, micro-batches larger, and the steps fewer"},
    wrong={"frozen": Fault("GA105", "the divisor stays at 8, as in the first phase", "GA102")},
)
def curriculum(case: str) -> None:
    model, (x, y) = network(), table(48)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for parts in _growing():
        for part in parts:
            inputs, targets = x[part.start : part.stop], y[part.start : part.stop]
            (F.cross_entropy(model(inputs), targets) / (8 if case == "frozen" else len(parts))).backward()
        optimizer.step()
        optimizer.zero_grad()
