"""Plain PyTorch: where the calls stand. Dividing, zeroing, stepping, clipping, scheduling, the last group."""

from __future__ import annotations

from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from tests.torch.audit.zoo.loop import Fault, Pen, Truth

PEN = Pen("torch")


def images(samples: int) -> tuple[Tensor, Tensor]:
    """(samples, 1, 8, 8) pictures and their classes, of 10."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 1, 8, 8, generator=generator), torch.randint(10, (samples,), generator=generator)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def whole(samples: int, batch: int, **cross_entropy: float) -> Truth:
    """The mean cross entropy of `batch` pictures in order, the last ones of an epoch apart; one rate throughout."""
    x, y = images(samples)
    starts = range(0, samples, batch)

    def loss(modules, step):
        part = slice(starts[step % len(starts)], starts[step % len(starts)] + batch)
        return F.cross_entropy(modules[0](x[part]), y[part], **cross_entropy)

    return Truth(loss, updates=len(starts))


def altered(truth: Truth, **changes) -> Truth:
    return Truth(**{**truth.__dict__, **changes})


@PEN.loop(
    "torch-tutorial",
    target_batch=16,
    truth=altered(whole(48, 16), rates=(0.1, 0.05, 0.025)),
    right={
        "": "the tutorial's loop: divide, backward, step at every 4th",
        "zero-in-place": "set_to_none=False",
        "divide-gradients": "the gradients divided once, before the step",
        "zero-at-start": "zero_grad at the first micro-batch of a group",
    },
    wrong={
        "not-divided": Fault("GA101", "the loss is never divided by the accumulation steps"),
        "divided-twice": Fault("GA102", "the loss is divided, and the gradients are divided again"),
        "zero-first": Fault("GA108", "zero_grad at the top of every micro-batch, as in a loop without accumulation"),
        "zero-never": Fault("GA107", "zero_grad stood in the line that was replaced by the accumulation"),
        "step-each": Fault("GA120", "step() left outside the `if`, only zero_grad is inside", "GA115 GA102 GA107"),
        "scheduler-each": Fault("GA111", "scheduler.step() left outside the `if`"),
        "decaying": Fault("GA118", "the gradients, not the loss, are divided in every micro-batch: a decaying sum"),
    },
)
def tutorial(case: str) -> None:
    model = perceptron()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
    accumulation_steps = 4
    optimizer.zero_grad()
    for i, (inputs, labels) in enumerate(DataLoader(TensorDataset(*images(48)), batch_size=4)):
        if case == "zero-first" or (case == "zero-at-start" and i % accumulation_steps == 0):
            optimizer.zero_grad()
        loss = criterion(model(inputs), labels)
        if case not in ("not-divided", "divide-gradients", "decaying"):
            loss = loss / accumulation_steps
        loss.backward()
        boundary = (i + 1) % accumulation_steps == 0
        if case == "decaying" or (case in ("divide-gradients", "divided-twice") and boundary):
            for parameter in model.parameters():
                parameter.grad /= accumulation_steps
        if boundary or case == "step-each":
            optimizer.step()
        if boundary or case == "scheduler-each":
            scheduler.step()
        if boundary and case not in ("zero-never", "zero-at-start"):
            optimizer.zero_grad(set_to_none=case != "zero-in-place")


def _groups_of_an_epoch(full: bool) -> Truth:
    """2 epochs of 6 micro-batches in groups of 4: 16 and 8 samples, or 16 alone where the rest is dropped."""
    x, y = images(24)
    parts = [slice(0, 16), slice(16, 24)] if full else [slice(0, 16)]
    return Truth(
        lambda modules, step: F.cross_entropy(modules[0](x[parts[step % len(parts)]]), y[parts[step % len(parts)]]),
        updates=2 * len(parts),
    )


@PEN.loop(
    "torch-last-group",
    target_batch=16,
    truth=_groups_of_an_epoch(full=True),
    notes="GA115",
    right={"": "the last group of an epoch is divided by its own length"},
    wrong={"short": Fault("GA105", "steps at the end of the loader, still divided by 4 (as pytorch-lightning#19987)")},
)
def last_group(case: str) -> None:
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(*images(24)), batch_size=4)
    for _epoch in range(2):
        for i, (x, y) in enumerate(loader):
            group = 4 if case == "short" else min(4, len(loader) - i // 4 * 4)
            (F.cross_entropy(model(x), y) / group).backward()
            if (i + 1) % 4 == 0 or i + 1 == len(loader):
                optimizer.step()
                optimizer.zero_grad()


@PEN.loop(
    "torch-dropped-group",
    target_batch=16,
    truth=_groups_of_an_epoch(full=False),
    right={"": "an open group is thrown away when the epoch ends"},
    wrong={
        "kept": Fault("GA107", "2 micro-batches stay in .grad over the end of the epoch: 6 in the next", "GA115 GA101")
    },
)
def dropped_group(case: str) -> None:
    model = perceptron()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    for _epoch in range(2):
        if case != "kept":
            optimizer.zero_grad()
        for i, (x, y) in enumerate(DataLoader(TensorDataset(*images(24)), batch_size=4), start=1):
            (F.cross_entropy(model(x), y) / 4).backward()
            if i % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()


@PEN.loop(
    "torch-counter",
    target_batch=16,
    truth=whole(48, 16),
    right={"": "a counter from 1"},
    wrong={
        "from-zero": Fault("GA105", "i % 4 == 0 with i from 0: the first update has one micro-batch, over 4", "GA115")
    },
)
def counter(case: str) -> None:
    model = perceptron()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=1e-2)
    loader = DataLoader(TensorDataset(*images(48)), batch_size=4)
    for i, (x, y) in enumerate(loader, start=0 if case == "from-zero" else 1):
        (F.cross_entropy(model(x), y) / 4).backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "torch-one-backward",
    target_batch=16,
    truth=whole(48, 16),
    right={"": "one backward pass through the mean of four losses"},
    wrong={
        "summed": Fault("GA101", "the sum of four mean losses"),
        "running-total": Fault("GA118", "backward on the running total after each: the first counts four times"),
        "last-only": Fault("GA106", "backward stands inside the `if`: the losses before it are dropped"),
    },
)
def one_backward(case: str) -> None:
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    batches = iter(DataLoader(TensorDataset(*images(48)), batch_size=4))
    while group := list(islice(batches, 4)):
        total = torch.zeros(())
        for x, y in group:
            loss = F.cross_entropy(model(x), y)
            total = loss if case == "last-only" else total + loss
            if case == "running-total":
                (total / 4).backward(retain_graph=True)
        if case != "running-total":
            (total if case == "summed" else total / 4).backward()
        optimizer.step()
        optimizer.zero_grad()


@PEN.loop(
    "torch-functional-grad",
    target_batch=16,
    truth=whole(48, 16),
    right={"": "torch.autograd.grad, added up"},
    wrong={"overwritten": Fault("GA106", "p.grad = g in every micro-batch, where p.grad += g was meant", "GA108")},
)
def functional_grad(case: str) -> None:
    model = perceptron()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    for i, (x, y) in enumerate(DataLoader(TensorDataset(*images(48)), batch_size=4), start=1):
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y) / 4, parameters)
        for parameter, gradient in zip(parameters, gradients):
            if parameter.grad is None or case == "overwritten":
                parameter.grad = gradient
            else:
                parameter.grad += gradient
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "torch-closure",
    target_batch=16,
    truth=whole(48, 16),
    right={"": "a closure that accumulates"},
    wrong={"zeroes": Fault("GA108", "zero_grad is the first line of the inner loop of the closure")},
)
def closure(case: str) -> None:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, nesterov=True, momentum=0.9)
    with torch.no_grad():
        model(images(48)[0])  # the accuracy before training
    batches = iter(DataLoader(TensorDataset(*images(48)), batch_size=4))
    while group := list(islice(batches, 4)):

        def evaluate(group=group):
            optimizer.zero_grad()
            total = 0.0
            for x, y in group:
                if case == "zeroes":
                    optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y) / len(group)
                loss.backward()
                total += loss.item()
            return total

        optimizer.step(evaluate)


@PEN.loop(
    "torch-skip-outliers",
    target_batch=16,
    truth=whole(48, 16),
    right={"": "a loss above the threshold is logged"},
    wrong={
        "lost": Fault(
            "GA106", "`continue` on a large loss: the micro-batch is gone and the rest still over 4", "GA105 GA115"
        )
    },
)
def skip_outliers(case: str) -> None:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seen: list[float] = []
    for i, (x, y) in enumerate(DataLoader(TensorDataset(*images(48)), batch_size=4), start=1):
        loss = F.cross_entropy(model(x), y)
        if i % 4 == 2:  # a spike, as far as the loop can tell
            seen.append(loss.item())
            if case == "lost":
                continue
        (loss / 4).backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "torch-target",
    target_batch=20,
    truth=whole(60, 20),
    right={"": "the target is a multiple of the micro-batch: 5 x 4"},
    wrong={"floored": Fault("GA115", "20 // 8 = 2 micro-batches of 8: 16 samples, in silence (ludwig does so)")},
)
def target(case: str) -> None:
    batch, micro = 20, 8 if case == "floored" else 4
    steps = batch // micro
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(DataLoader(TensorDataset(*images(60)), batch_size=micro, drop_last=True), start=1):
        (F.cross_entropy(model(x), y) / steps).backward()
        if i % steps == 0:
            optimizer.step()
            optimizer.zero_grad()


def _timm_truth() -> Truth:
    """22 micro-batches in groups of 4 are 5 whole groups and one of 2."""
    x, y = images(88)
    return Truth(
        lambda modules, step: F.cross_entropy(
            modules[0](x[16 * step : 16 * step + 16]), y[16 * step : 16 * step + 16], label_smoothing=0.1
        ),
        updates=6,
        clip=0.8,
        rates=tuple(0.01 * (1 - step / 6) for step in range(6)),
    )


@PEN.loop(
    "torch-timm",
    target_batch=16,
    truth=_timm_truth(),
    notes="GA115",
    right={"": "timm's loop: the last group has its own count, need_update guards clip, step and schedule"},
    wrong={
        "last-over-full": Fault("GA105", "without `accum_steps = last_accum_steps`"),
        "clip-each": Fault("GA110", "dispatch_clip_grad before `if need_update`"),
        "updates-each": Fault("GA111", "num_updates += 1 in every micro-batch"),
    },
)
def timm_style(case: str) -> None:
    model = perceptron()
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05, foreach=True)
    lr_scheduler = LambdaLR(optimizer, lambda update: 1 - min(update, 6) / 6)
    loader = DataLoader(TensorDataset(*images(88)), batch_size=4)
    accum_steps, last_accum_steps = 4, len(loader) % 4
    last_batch_idx, last_batch_idx_to_accum = len(loader) - 1, len(loader) - last_accum_steps
    optimizer.zero_grad()
    for batch_idx, (input, target) in enumerate(loader):
        last_batch = batch_idx == last_batch_idx
        need_update = last_batch or (batch_idx + 1) % accum_steps == 0
        if batch_idx >= last_batch_idx_to_accum and case != "last-over-full":
            accum_steps = last_accum_steps
        loss = loss_fn(model(input), target)
        if accum_steps > 1:
            loss /= accum_steps
        loss.backward()
        if need_update or case == "clip-each":
            clip_grad_norm_(model.parameters(), 0.8)
        if case == "updates-each":
            lr_scheduler.step()
        if not need_update:
            continue
        optimizer.step()
        optimizer.zero_grad()
        if case != "updates-each":
            lr_scheduler.step()


@PEN.loop(
    "torch-scaler",
    target_batch=12,
    truth=Truth(
        lambda modules, step: F.cross_entropy(
            modules[0](images(36)[0][12 * step : 12 * step + 12]), images(36)[1][12 * step : 12 * step + 12]
        ),
        updates=3,
        clip=0.1,
        rates=(0.01, 0.0075, 0.0025),
    ),
    right={"": "GradScaler: unscale once at the boundary, clip, step, update"},
    wrong={
        "clip-scaled": Fault("GA117", "clip_grad_norm_ without unscale_: the norm is 65536 times too large"),
        "step-scaled": Fault(
            "GA117", "optimizer.step() in place of scaler.step(optimizer): 65536 times the gradient", "GA101"
        ),
        "cosine-each": Fault("GA111", "CosineAnnealingLR steps with every micro-batch"),
    },
)
def with_scaler(case: str) -> None:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    scheduler = CosineAnnealingLR(optimizer, T_max=3)
    scaler = torch.amp.GradScaler("cpu")
    for i, (x, y) in enumerate(DataLoader(TensorDataset(*images(36)), batch_size=3), start=1):
        loss = F.cross_entropy(model(x), y) / 4
        scaler.scale(loss).backward()
        if i % 4 == 0:
            if case == "step-scaled":
                optimizer.step()
            else:
                if case != "clip-scaled":
                    scaler.unscale_(optimizer)
                clip_grad_norm_(model.parameters(), 0.1)
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
        if i % 4 == 0 or case == "cosine-each":
            scheduler.step()
