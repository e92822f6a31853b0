"""Loops that the audit was never tuned on, plain PyTorch: the shapes in which people write a training loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import contextmanager
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, PolynomialLR
from torch.utils.data import DataLoader, TensorDataset

from tests.torch.audit.zoo.loop import Fault, Pen, Truth

PEN = Pen("heldout")


def table(samples: int) -> tuple[Tensor, Tensor]:
    """(samples, 12) features and their classes, of 4."""
    generator = torch.Generator().manual_seed(21)
    return torch.randn(samples, 12, generator=generator), torch.randint(4, (samples,), generator=generator)


def loader_of(samples: int, micro_batch: int = 4) -> DataLoader:
    return DataLoader(TensorDataset(*table(samples)), batch_size=micro_batch)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 24), nn.SiLU(), nn.Linear(24, 4))


def mean_over(samples: int, parts: Sequence[Sequence[int]], **more) -> Truth:
    """The mean cross entropy of the samples of each update."""
    x, y = table(samples)

    def loss(modules, step):
        part = torch.tensor(parts[step % len(parts)])
        return F.cross_entropy(modules[0](x[part]), y[part])

    return Truth(loss, updates=len(parts), **more)


def sixteens(samples: int = 48, **more) -> Truth:
    return mean_over(samples, [range(i, min(i + 16, samples)) for i in range(0, samples, 16)], **more)


def with_gradients(parameters, gradients) -> Tensor:
    """A loss that has just these gradients, where no loss of a batch does."""
    return sum((p * g.detach()).sum() for p, g in zip(parameters, gradients))


class Engine:
    """The class with a train_step that most repositories have."""

    def __init__(self, case: str, model: nn.Module, accumulate: int) -> None:
        self.case, self.model, self.accumulate, self.micro = case, model, accumulate, 0
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        self.history: list[float] = []

    def fit(self, loader: DataLoader) -> None:
        self.model.train()
        for batch in loader:
            self.history.append(self.train_step(*batch))

    def train_step(self, x: Tensor, y: Tensor) -> float:
        if self.case == "reset":
            self.model.zero_grad()
        loss = self.criterion(self.model(x), y)
        (loss if self.case == "not-divided" else loss / self.accumulate).backward()
        self.micro += 1
        if self.micro % self.accumulate == 0:
            self.update()
        return loss.item()

    def update(self) -> None:
        if self.case == "cleared-first":
            self.optimizer.zero_grad()
        self.optimizer.step()
        if self.case != "cleared-first":
            self.optimizer.zero_grad()


@PEN.loop(
    "heldout-engine",
    target_batch=16,
    truth=sixteens(),
    right={"": "a class with train_step and update"},
    wrong={
        "not-divided": Fault("GA101", "train_step returns the mean loss, and goes backward with it"),
        "reset": Fault("GA108", "self.model.zero_grad() is the first line of train_step"),
        "cleared-first": Fault("GA106", "zero_grad, then step, at the boundary: nothing is left to step with", "GA108"),
    },
)
def engine(case: str) -> None:
    Engine(case, network(), 4).fit(loader_of(48))


@PEN.loop(
    "heldout-chunk",
    target_batch=18,
    truth=mean_over(54, [range(18), range(18, 36), range(36, 54)]),
    right={"": "a big batch cut by chunk(4), 5 + 5 + 5 + 3, each weighted with its share"},
    wrong={
        "mean": Fault("GA103", "each chunk's mean over 4, though the last has 3 samples"),
        "fewer": Fault("GA102", "18.chunk(8) gives 6 chunks of 3, each divided by 8", "GA105 GA118"),
    },
)
def chunks(case: str) -> None:
    model, k = network(), 8 if case == "fewer" else 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y in loader_of(54, 18):
        optimizer.zero_grad()
        for micro_x, micro_y in zip(x.chunk(k), y.chunk(k)):
            loss = F.cross_entropy(model(micro_x), micro_y)
            (loss / k if case else loss * len(micro_x) / len(x)).backward()
        optimizer.step()


@PEN.loop(
    "heldout-iterator",
    truth=mean_over(24, [range(16), [*range(16, 24), *range(8)], range(8, 24)]),
    right={"": "next(it), begun again where it ends, so that groups go over the end of an epoch"},
    wrong={"gives-up": Fault("GA105", "StopIteration breaks the inner loop: 2 micro-batches over 4")},
)
def iterator(case: str) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader, steps = loader_of(24), 0
    it = iter(loader)
    while steps < 3:
        for _ in range(4):
            try:
                x, y = next(it)
            except StopIteration:
                it = iter(loader)
                if case == "gives-up":
                    break
                x, y = next(it)
            loss = F.cross_entropy(model(x), y)
            loss.div(4).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1


@PEN.loop(
    "heldout-grouper",
    target_batch=16,
    truth=sixteens(40),
    right={"": "zip_longest over one iterator four times; the rest has its own length"},
    wrong={"short": Fault("GA105", "the rest of 2 over 4")},
)
def grouper(case: str) -> None:
    model = network()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    for group in zip_longest(*[iter(loader_of(40))] * 4):
        there = [batch for batch in group if batch is not None]
        for x, y in there:
            (F.cross_entropy(model(x), y) / (4 if case == "short" else len(there))).backward()
        optimizer.step()
        optimizer.zero_grad()


@PEN.loop(
    "heldout-flush",
    target_batch=16,
    truth=sixteens(44),
    right={"": "after the epoch the rest is stepped, its gradients scaled by 4 / rest"},
    wrong={"as-is": Fault("GA105", "after the epoch the rest is stepped as it is")},
)
def flush(case: str) -> None:
    model, loader = network(), loader_of(44)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for i, (x, y) in enumerate(loader):
        loss = nn.CrossEntropyLoss()(model(x), y) / 4
        loss.backward()
        if (i + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
    if rest := len(loader) % 4:
        if case == "":
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad.mul_(4 / rest)
        optimizer.step()
        optimizer.zero_grad()


@PEN.loop(
    "heldout-yolo",
    truth=mean_over(40, [range(4), range(4, 12), range(12, 24), range(24, 40)]),
    right={"": "the warm-up lets `accumulate` grow from 1 to 4, set where a group begins"},
    wrong={"within": Fault("GA118", "`accumulate` is set with every micro-batch, so it grows within a group", "GA103")},
)
def yolo(case: str) -> None:
    model, nbs, batch_size, warmup = network(), 16, 4, 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.937, nesterov=True)
    last_opt_step, accumulate = -1, 1
    for ni, (x, y) in enumerate(loader_of(40, batch_size)):
        if case == "within" or ni == last_opt_step + 1:
            accumulate = max(1, round(1 + (nbs / batch_size - 1) * min(ni / warmup, 1)))
        loss = F.cross_entropy(model(x), y) / accumulate
        loss.backward()
        if ni - last_opt_step >= accumulate:
            optimizer.step()
            optimizer.zero_grad()
            last_opt_step = ni


class AccumulatingContext:
    """What people write before they find a library."""

    def __init__(self, optimizer: torch.optim.Optimizer, every: int, resets: bool) -> None:
        self.optimizer, self.every, self.resets, self.count = optimizer, every, resets, 0

    @contextmanager
    def __call__(self):
        self.count += 1
        yield 1 / self.every
        if self.count >= self.every:
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.count = 0 if self.resets else self.count


@PEN.loop(
    "heldout-context",
    target_batch=16,
    truth=sixteens(),
    right={"": "a context manager that steps where it is left"},
    wrong={
        "never-reset": Fault(
            "GA105", "the counter is not reset: after one group every micro-batch steps", "GA120 GA102"
        ),
    },
)
def own_context(case: str) -> None:
    model = network()
    accumulating = AccumulatingContext(torch.optim.NAdam(model.parameters(), lr=1e-3), 4, resets=case == "")
    for x, y in loader_of(48):
        with accumulating() as scale:
            (scale * F.cross_entropy(model(x), y)).backward()


@PEN.loop(
    "heldout-losses-list",
    target_batch=16,
    truth=sixteens(),
    right={"": "losses are kept in a list, their mean goes backward"},
    wrong={
        "deque": Fault("GA115", "deque(maxlen=2), meant for the log: two of four losses have fallen out", "GA106"),
        "sum": Fault("GA101", "sum(losses).backward()"),
    },
)
def losses_list(case: str) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses: deque[Tensor] = deque(maxlen=2 if case == "deque" else None)
    for i, (x, y) in enumerate(loader_of(48)):
        losses.append(F.cross_entropy(model(x), y))
        if i % 4 == 3:
            optimizer.zero_grad()
            (sum(losses) if case == "sum" else torch.stack(list(losses)).mean()).backward()
            optimizer.step()
            losses.clear()


@PEN.loop(
    "heldout-evaluating",
    target_batch=16,
    truth=sixteens(),
    right={
        "": "validation and an average of the weights in the middle of a group",
        "with-graph": "the training accuracy comes from a second forward pass that never goes backward",
    },
    wrong={"clears": Fault("GA106", "evaluate() ends with model.zero_grad(), in the middle of a group", "GA108")},
)
def evaluating(case: str) -> None:
    model, averaged = network(), network().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    held_x, held_y = table(64)
    held_x, held_y, accuracy = held_x[48:], held_y[48:], []

    def evaluate() -> None:
        model.eval()
        with torch.set_grad_enabled(case == "with-graph"):
            F.cross_entropy(model(held_x), held_y)
        with torch.no_grad():
            accuracy.append((averaged(held_x).argmax(1) == held_y).float().mean().item())
        if case == "clears":
            model.zero_grad()
        model.train()

    for i, (x, y) in enumerate(loader_of(48)):
        (F.cross_entropy(model(x), y) / 4).backward()
        if i % 4 == 1:
            evaluate()
        if i % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for slow, fast in zip(averaged.parameters(), model.parameters()):
                    slow.lerp_(fast, 0.1)


@PEN.loop(
    "heldout-nan-guard",
    truth=mean_over(48, [range(16), [*range(16, 20), *range(24, 32)], range(32, 48)]),
    right={"": "a micro-batch that is not finite is left out, and the gradients are divided by those that stayed"},
    wrong={
        "drops-group": Fault(
            "GA106", "a loss that is not finite clears the gradients, and with them the one before it", "GA105 GA115"
        ),
        "nominal": Fault("GA105", "a loss that is not finite is left out, and the other three stay over 4", "GA106"),
    },
)
def nan_guard(case: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    good = 0
    for i, (x, y) in enumerate(loader_of(48)):
        if i == 5:
            x = x / 0
        loss = F.cross_entropy(model(x), y)
        if torch.isfinite(loss):
            good += 1
            (loss / 4 if case else loss).backward()
        elif case == "drops-group":
            optimizer.zero_grad()
        if (i + 1) % 4 == 0:
            if case == "":
                for p in model.parameters():
                    p.grad /= good
            optimizer.step()
            optimizer.zero_grad()
            good = 0


@PEN.loop(
    "heldout-restarts",
    target_batch=16,
    truth=sixteens(rates=tuple(0.05 * (1 + torch.tensor(torch.pi * i / 12).cos().item()) for i in (3, 7, 11))),
    right={"": "CosineAnnealingWarmRestarts.step(epoch + i / iters) with each micro-batch, as its documentation shows"},
    wrong={"counting": Fault("GA111", "step() without its argument with each micro-batch, though T_0 is in updates")},
)
def restarts(case: str) -> None:
    model, loader = network(), loader_of(48)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=3 if case else 1)
    for i, (x, y) in enumerate(loader):
        if case == "":
            scheduler.step(i / len(loader))
        (F.cross_entropy(model(x), y) / 4).backward()
        if (i + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
        if case == "counting":
            scheduler.step()


@PEN.loop(
    "heldout-polynomial",
    target_batch=16,
    truth=sixteens(rates=tuple(0.1 * (1 - update / 12) ** 0.9 for update in range(3))),
    right={"": "PolynomialLR over the updates"},
    wrong={"each": Fault("GA111", "PolynomialLR stepped by the data loop, total_iters in updates")},
)
def polynomial(case: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = PolynomialLR(optimizer, total_iters=12, power=0.9)
    optimizer.zero_grad(set_to_none=True)
    for micro_step, (x, y) in enumerate(loader_of(48)):
        (F.cross_entropy(model(x), y) / 4).backward()
        if micro_step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if case == "":
                scheduler.step()
        if case == "each":
            scheduler.step()


@PEN.loop(
    "heldout-target",
    target_batch=16,
    truth=sixteens(),
    right={"": "the micro-batch is halved after running out of memory, and the steps are doubled"},
    wrong={
        "halved": Fault("GA115", "the micro-batch is halved after running out of memory, the steps are left alone"),
        "forgotten": Fault(
            "GA120", "gradient_accumulation_steps is read from the configuration and used nowhere", "GA115"
        ),
    },
)
def shrinking(case: str) -> None:
    config = {"micro_batch": 8, "gradient_accumulation_steps": 2}
    config["micro_batch"] //= 2  # what `except torch.OutOfMemoryError` does
    steps = config["gradient_accumulation_steps"] * (2 if case == "" else 1)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for i, (x, y) in enumerate(loader_of(48, config["micro_batch"]), start=1):
        loss = F.cross_entropy(model(x), y)
        (loss if case == "forgotten" else loss / steps).backward()
        if case == "forgotten" or i % steps == 0:
            optimizer.step()
            optimizer.zero_grad()
