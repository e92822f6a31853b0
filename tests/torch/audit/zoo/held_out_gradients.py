"""Loops that the audit was never tuned on, plain PyTorch: what people do to gradients, and with which optimizer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tests.torch.audit.zoo.held_out import loader_of, network, sixteens, table, with_gradients
from tests.torch.audit.zoo.loop import Fault, Pen, Truth

PEN = Pen("heldout")


def _sixteen(model: nn.Module, step: int) -> Tensor:
    x, y = table(48)
    return F.cross_entropy(model(x[16 * step : 16 * step + 16]), y[16 * step : 16 * step + 16])


def _gradients(model: nn.Module, step: int) -> list[Tensor]:
    return list(torch.autograd.grad(_sixteen(model, step), list(model.parameters())))


def _clamped(modules, step: int) -> Tensor:
    gradients = [g.clamp(-0.02, 0.02) for g in _gradients(modules[0], step)]
    return with_gradients(modules[0].parameters(), gradients)


@PEN.loop(
    "heldout-own-clip",
    target_batch=16,
    truth=sixteens(clip=0.2),
    right={"": "the norm and the clip written out, before the step"},
    wrong={"each": Fault("GA110", "the norm and the clip written out, in every micro-batch")},
)
def own_clip(case: str) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for i, (x, y) in enumerate(loader_of(48), start=1):
        (F.cross_entropy(model(x), y) / 4).backward()
        if i % 4 == 0 or case == "each":
            total_norm = sum(p.grad.pow(2).sum() for p in model.parameters()).sqrt()
            coefficient = 0.2 / (total_norm + 1e-6)
            if coefficient < 1:
                for p in model.parameters():
                    p.grad.mul_(coefficient)
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "heldout-clip-value",
    target_batch=16,
    truth=Truth(_clamped, updates=3, build=network),
    right={"": "clip_grad_value_ before the step"},
    wrong={
        "hook": Fault("GA110", "p.register_hook(lambda g: g.clamp(...)), which clamps every micro-batch's share"),
        "each": Fault("GA110", "clip_grad_value_ in every micro-batch"),
    },
)
def clip_value(case: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if case == "hook":
        for p in model.parameters():
            p.register_hook(lambda grad: torch.clamp(grad, -0.005, 0.005))
    for i, (x, y) in enumerate(loader_of(48), start=1):
        (F.cross_entropy(model(x), y) / 4).backward()
        if case == "each" or (case == "" and i % 4 == 0):
            nn.utils.clip_grad_value_(model.parameters(), 0.02)
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "heldout-hooks",
    target_batch=16,
    truth=Truth(lambda modules, step: _sixteen(modules[0], step), updates=3, build=network),
    right={"": "a hook on each parameter divides what arrives by the micro-batches"},
    wrong={"and-loss": Fault("GA102", "a hook on each parameter divides, and the loss is divided too")},
)
def hooks(case: str) -> None:
    model = network()
    for p in model.parameters():
        p.register_hook(lambda grad: grad / 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader_of(48), start=1):
        loss = F.cross_entropy(model(x), y)
        (loss / 4 if case else loss).backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "heldout-lbfgs",
    target_batch=16,
    truth=sixteens(),
    right={"": "LBFGS with a closure over the four micro-batches"},
    wrong={"no-zero": Fault("GA107", "the closure does not clear, so each update goes on from the one before")},
)
def lbfgs(case: str) -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.05, max_iter=1)
    batches = list(loader_of(48))
    with torch.no_grad():
        model(table(48)[0])  # where it stands before training
    for start in range(0, 12, 4):

        def closure(start=start):
            if case == "":
                optimizer.zero_grad()
            loss = 0.0
            for x, y in batches[start : start + 4]:
                part = F.cross_entropy(model(x), y) / 4
                part.backward()
                loss += part.detach()
            return loss

        optimizer.step(closure)


class Lion(torch.optim.Optimizer):
    """An optimizer from a single file."""

    def __init__(self, params, lr: float = 1e-4) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.add_((0.9 * average + 0.1 * p.grad).sign(), alpha=-group["lr"])
                average.lerp_(p.grad, 0.01)


@PEN.loop(
    "heldout-lion",
    target_batch=16,
    truth=sixteens(),
    right={"": "an optimizer of one's own"},
    wrong={
        "divided-twice": Fault("GA102", "the criterion has the 1 / 4 already; Lion hides it"),
        "zero-late": Fault("GA108", "zero_grad right before each backward"),
    },
)
def lion(case: str) -> None:
    model = network()
    optimizer = Lion(model.parameters())

    def criterion(output, target):
        return F.cross_entropy(output, target) / 4

    for i, (x, y) in enumerate(loader_of(48)):
        loss = criterion(model(x), y)
        if case == "divided-twice":
            loss = loss / 4
        if case == "zero-late":
            optimizer.zero_grad()
        loss.backward()
        if (i + 1) % 4 == 0:
            optimizer.step()
            if case != "zero-late":
                optimizer.zero_grad()


def _sharpness_aware(modules, step: int) -> Tensor:
    """The gradient of the big batch where the weights went up by 0.05 along the gradient of the big batch."""
    model = modules[0]
    gradients = _gradients(model, step)
    norm = torch.stack([g.norm() for g in gradients]).norm()
    up = {name: p + 0.05 * g / (norm + 1e-12) for (name, p), g in zip(model.named_parameters(), gradients)}
    x, y = table(48)
    part = slice(16 * step, 16 * step + 16)
    return F.cross_entropy(functional_call(model, up, x[part]), y[part])


@PEN.loop(
    "heldout-sam",
    target_batch=16,
    truth=Truth(_sharpness_aware, updates=3),
    right={"": "SAM: the first pass over the group says where to look, the second gives the gradient"},
    wrong={"second-not-divided": Fault("GA101", "the loss of the second pass is not divided")},
)
def sam(case: str) -> None:
    model = network()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    batches = list(loader_of(48))
    for start in range(0, 12, 4):
        group = batches[start : start + 4]
        for x, y in group:
            (F.cross_entropy(model(x), y) / 4).backward()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in parameters]).norm()
            kept = [p.clone() for p in parameters]
            for p in parameters:
                p.add_(p.grad * 0.05 / (norm + 1e-12))
        optimizer.zero_grad()
        for x, y in group:
            loss = F.cross_entropy(model(x), y)
            (loss if case else loss / 4).backward()
        with torch.no_grad():
            for p, old in zip(parameters, kept):
                p.copy_(old)
        optimizer.step()
        optimizer.zero_grad()


def _noisy(modules, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(40 + step)
    gradients = [g + 0.01 * torch.randn(g.shape, generator=generator) for g in _gradients(modules[0], step)]
    return with_gradients(modules[0].parameters(), gradients)


@PEN.loop(
    "heldout-noise",
    target_batch=16,
    truth=Truth(_noisy, updates=3),
    right={"": "noise is added to the gradient before each step, by intent"},
    wrong={"not-divided": Fault("GA101", "never divided, under the noise", "GA118")},
)
def noise(case: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader_of(48)):
        loss = F.cross_entropy(model(x), y)
        (loss if case else loss / 4).backward()
        if i % 4 == 3:
            generator = torch.Generator().manual_seed(40 + i // 4)
            for p in model.parameters():
                p.grad += 0.01 * torch.randn(p.shape, generator=generator)
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "heldout-buffers",
    target_batch=16,
    truth=sixteens(),
    right={"": "a list of own buffers takes each gradient, and hands over their mean"},
    wrong={
        "kept": Fault("GA107", "the buffers are not cleared after the step", "GA101"),
        "sum": Fault("GA101", "the buffers hand over their sum"),
        "last": Fault("GA106", "buffer = p.grad, where buffer += p.grad was meant", "GA108"),
    },
)
def buffers(case: str) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    held = [torch.zeros_like(p) for p in model.parameters()]
    for i, (x, y) in enumerate(loader_of(48), start=1):
        F.cross_entropy(model(x), y).backward()
        for buffer, p in zip(held, model.parameters()):
            buffer.copy_(p.grad) if case == "last" else buffer.add_(p.grad)
        optimizer.zero_grad()
        if i % 4 == 0:
            for buffer, p in zip(held, model.parameters()):
                p.grad = buffer.clone() if case == "sum" else buffer / 4
                if case != "kept":
                    buffer.zero_()
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "heldout-scaler",
    target_batch=16,
    truth=Truth(_clamped, updates=3),
    right={"": "GradScaler, unscale_, clip_grad_value_"},
    wrong={
        "before-unscale": Fault("GA117", "clip_grad_value_ on gradients that still hold the scale of 1024"),
        "never-unscaled": Fault("GA117", "scaler.scale(loss), and no scaler.step", "GA101"),
    },
)
def scaler(case: str) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for i, (x, y) in enumerate(loader_of(48)):
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            loss = F.cross_entropy(model(x), y) / 4
        grad_scaler.scale(loss).backward()
        if (i + 1) % 4 != 0:
            continue
        if case == "never-unscaled":
            optimizer.step()
        else:
            if case == "":
                grad_scaler.unscale_(optimizer)
            nn.utils.clip_grad_value_(model.parameters(), 0.02)
            grad_scaler.step(optimizer)
            grad_scaler.update()
        optimizer.zero_grad(set_to_none=True)


@PEN.loop(
    "heldout-unfreeze",
    target_batch=16,
    truth=sixteens(),
    right={"": "the trunk joins the optimizer after the first update; model.zero_grad() clears all"},
    wrong={
        "stale": Fault(
            "GA107", "optimizer.zero_grad() does not know the trunk yet, so its old gradients are in the second update"
        )
    },
)
def unfreeze(case: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader_of(48), start=1):
        (F.cross_entropy(model(x), y) / 4).backward()
        if i % 4 == 0:
            optimizer.step()
            (model if case == "" else optimizer).zero_grad()
        if i == 4:
            optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.01})


def _reals(i: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(60 + i)
    return torch.randn(3, 5, generator=generator), torch.randn(3, 4, generator=generator)


def _critic_loss(critic, real, fake):
    """Wasserstein, with the gradient penalty halfway between."""
    between = ((real + fake) / 2).detach().requires_grad_()
    slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0]
    return critic(fake).mean() - critic(real).mean(), 10 * (slope.norm(2, dim=1) - 1).square().mean()


def _wasserstein(modules, step: int) -> Tensor:
    """The critic steps, then the generator with the same 2 micro-batches, then the critic with the next 2."""
    generator, critic = modules
    round_, turn = divmod(step, 3)
    first = 4 * round_ + 2 * (turn == 2)
    numbers = range(first, first + 2)
    real, z = (torch.cat(part) for part in zip(*[_reals(i) for i in numbers]))
    if turn == 1:
        return -critic(generator(z)).mean()
    distance, penalty = _critic_loss(critic, real, generator(z).detach())
    return distance + penalty


@PEN.loop(
    "heldout-wgan-gp",
    truth=Truth(_wasserstein, updates=6),
    right={"": "the critic steps twice as often as the generator, with 2 micro-batches each; a gradient penalty"},
    wrong={
        "penalty": Fault("GA114", "the gradient penalty is added to the divided loss"),
        "generator": Fault("GA107", "the critic's gradients of the generator's pass stay for the critic's next update"),
    },
)
def wgan(case: str) -> None:
    generator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))
    critic = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    opt_g = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.0, 0.9))
    opt_d = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.0, 0.9))
    for i in range(8):
        real, z = _reals(i)
        distance, penalty = _critic_loss(critic, real, generator(z).detach())
        (distance / 2 + (penalty if case == "penalty" else penalty / 2)).backward()
        if i % 2 == 1:
            opt_d.step()
            opt_d.zero_grad()
        if i % 4 == 1:
            for j in (i - 1, i):
                (-critic(generator(_reals(j)[1])).mean() / 2).backward()
            opt_g.step()
            opt_g.zero_grad()
            if case != "generator":
                opt_d.zero_grad()


@PEN.loop(
    "heldout-reptile",
    right={"": "Reptile: the outer gradient is the mean distance to weights found by plain inner steps"},
    wrong={},
)
def reptile(case: str) -> None:
    model, tasks = network(), list(loader_of(48))
    meta = torch.optim.Adam(model.parameters(), lr=1e-3)
    for start in range(0, 12, 4):
        meta.zero_grad()
        for x, y in tasks[start : start + 4]:
            learner = network()
            learner.load_state_dict(model.state_dict())
            inner = torch.optim.SGD(learner.parameters(), lr=0.05)
            for _ in range(2):
                inner.zero_grad()
                F.cross_entropy(learner(x), y).backward()
                inner.step()
            with torch.no_grad():
                for p, found in zip(model.parameters(), learner.parameters()):
                    p.grad = (p - found) / 4 if p.grad is None else p.grad + (p - found) / 4
        meta.step()


@PEN.loop(
    "heldout-func",
    target_batch=16,
    truth=sixteens(),
    right={"": "torch.func.grad_and_value over functional_call, summed in a dictionary"},
    wrong={"sum": Fault("GA101", "the dictionary's sums are handed over as they are")},
)
def func(case: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(table(1)[0])  # a first look at the shapes

    def loss_of(parameters, x, y):
        return F.cross_entropy(functional_call(model, parameters, x), y)

    batches = list(loader_of(48))
    for start in range(0, 12, 4):
        detached = {name: p.detach() for name, p in model.named_parameters()}
        sums = {name: torch.zeros_like(p) for name, p in detached.items()}
        for x, y in batches[start : start + 4]:
            gradients, _ = torch.func.grad_and_value(loss_of)(detached, x, y)
            for name, gradient in gradients.items():
                sums[name] += gradient
        for name, p in model.named_parameters():
            p.grad = sums[name] if case == "sum" else sums[name] / 4
        optimizer.step()
