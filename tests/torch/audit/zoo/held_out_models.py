"""Loops that the audit was never tuned on, plain PyTorch: recurrence, recomputing, experts, prompts, compiling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint_sequential

from tests.torch.audit.zoo.held_out import loader_of, network, sixteens, table
from tests.torch.audit.zoo.held_out_losses import features, seeded
from tests.torch.audit.zoo.loop import Fault, Pen, Truth

PEN = Pen("heldout")


class Recurrent(nn.Module):
    """Predicts the next number of a series from a state that is handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden, state = self.cell(x, state)
        return self.out(hidden), state


def _series(step: int, length: int) -> Tensor:
    return torch.randn(3, length + 1, 1, generator=seeded(80 + step)).cumsum(1)


def _truncated(modules, step: int, length: int) -> Tensor:
    """The mean over all times, with the state cut off after each 5."""
    series, state, total = _series(step, length), None, torch.zeros(())
    for t in range(0, length, 5):
        width = min(5, length - t)
        out, state = modules[0](series[:, t : t + width], state)
        total = total + F.mse_loss(out, series[:, t + 1 : t + width + 1], reduction="sum")
        state = state.detach()
    return total / (3 * length)


def _bptt(name: str, length: int, wrong: dict[str, Fault]) -> None:
    @PEN.loop(
        name,
        truth=Truth(lambda modules, step: _truncated(modules, step, length), updates=3),
        right={"": "truncated backpropagation: a backward pass for each 5 times, a step for each series"},
        wrong=wrong,
    )
    def train(case: str) -> None:
        model = Recurrent()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(3):
            series, hidden = _series(step, length), None
            optimizer.zero_grad()
            for chunk, target in zip(series[:, :-1].split(5, dim=1), series[:, 1:].split(5, dim=1)):
                if hidden is not None:
                    hidden = hidden.detach()
                out, hidden = model(chunk, hidden)
                loss = F.mse_loss(out, target)
                if case != "not-divided":
                    loss = loss * (5 if case == "mean" else chunk.shape[1]) / (20 if case == "mean" else length)
                loss.backward()
            optimizer.step()


_bptt("heldout-bptt", 20, {"not-divided": Fault("GA101", "each chunk's mean, added up over the series")})
_bptt("heldout-bptt-ragged", 17, {"mean": Fault("GA103", "each chunk's mean over 4, the last chunk has 2 times")})


class Recomputed(nn.Module):
    """Its trunk is computed again in the backward pass, the old way."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(12, 12), nn.SiLU(), nn.Linear(12, 12), nn.SiLU())
        self.head, self.again = nn.Linear(12, 4), again

    def forward(self, x: Tensor) -> Tensor:
        if not self.again:
            return self.head(self.trunk(x))
        return self.head(checkpoint_sequential(self.trunk, 2, x.requires_grad_(), use_reentrant=True))


@PEN.loop(
    "heldout-reentrant",
    target_batch=16,
    truth=sixteens(build=Recomputed),
    right={"": "checkpoint_sequential(use_reentrant=True): a backward pass within the backward pass"},
    wrong={
        "not-divided": Fault("GA101", "never divided, recomputed by a nested backward pass"),
        "zero-each": Fault("GA108", "zero_grad for each micro-batch, recomputed by a nested backward pass"),
    },
)
def reentrant(case: str) -> None:
    model = Recomputed(again=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader_of(48), start=1):
        if case == "zero-each":
            optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (loss if case == "not-divided" else loss / 4).backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


class TwoTowers(nn.Module):
    """Items from a sparse table, users from a dense one, and how they fit."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.user = nn.Embedding(30, 6, sparse=True), nn.Linear(6, 6)

    def forward(self, x: Tensor, item: Tensor) -> Tensor:
        return (self.user(x) * self.items(item)).sum(1)


def _clicks(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return features(48)[part], part * 11 % 30, (part % 3 == 0).float()


def _click_loss(model, part):
    x, item, clicked = _clicks(part)
    return F.binary_cross_entropy_with_logits(model(x, item), clicked)


@PEN.loop(
    "heldout-recommender",
    target_batch=16,
    truth=Truth(
        lambda modules, step: _click_loss(modules[0], torch.arange(16 * (step // 2), 16 * (step // 2) + 16)), updates=6
    ),
    right={"": "AdamW for the dense weights, SparseAdam for the table"},
    wrong={
        "one-cleared": Fault("GA107", "only the dense optimizer's zero_grad is called"),
        "not-divided": Fault("GA101", "neither is divided; both optimizers hide it"),
    },
)
def recommender(case: str) -> None:
    model = TwoTowers()
    dense = torch.optim.AdamW(model.user.parameters(), lr=1e-5)
    sparse = torch.optim.SparseAdam(model.items.parameters(), lr=1e-5)
    for i, micro in enumerate(torch.arange(48).split(4), start=1):
        loss = _click_loss(model, micro)
        (loss if case == "not-divided" else loss / 4).backward()
        if i % 4 == 0:
            for optimizer in (sparse, dense):
                optimizer.step()
            for optimizer in (dense,) if case == "one-cleared" else (dense, sparse):
                optimizer.zero_grad()


@dataclass
class Output:
    """What a model of a library hands back."""

    loss: Tensor
    logits: Tensor


class WithLoss(nn.Module):
    """A frozen trunk, a soft prompt before its input, and the loss inside."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(15, 24), nn.ReLU(), nn.Linear(24, 4)).requires_grad_(False)
        self.prompt, self.scale = nn.Parameter(torch.randn(3)), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor, labels: Tensor) -> Output:
        logits = self.trunk(torch.cat([self.prompt.expand(len(x), 3), x], dim=1)) * self.scale
        return Output(nn.CrossEntropyLoss()(logits, labels), logits)


def _with_loss(modules, step: int) -> Tensor:
    x, y = table(48)
    return modules[0](x[16 * step : 16 * step + 16], labels=y[16 * step : 16 * step + 16]).loss


@PEN.loop(
    "heldout-prompt",
    target_batch=16,
    truth=Truth(_with_loss, updates=3),
    right={"": "a soft prompt is trained; the model hands its loss back in a dataclass"},
    wrong={
        "not-divided": Fault("GA101", "outputs.loss.backward()"),
        "divided-twice": Fault("GA102", "outputs.loss /= 4 in place, and (loss / 4).backward() below"),
    },
)
def prompt(case: str) -> None:
    model = WithLoss()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for i, (x, y) in enumerate(loader_of(48), start=1):
        outputs = model(x, labels=y)
        loss = outputs.loss
        if case == "divided-twice":
            loss /= 4
        (loss if case == "not-divided" else loss / 4).backward()
        if i % 4 == 0:
            optimizer.step()
            model.zero_grad()


class Experts(nn.Module):
    """The better of three experts for each sample, and a balancing term of each sample by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(12, 3), nn.ModuleList(nn.Linear(12, 4) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shares = self.gate(x).softmax(-1)
        share, chosen = shares.max(-1)
        out = torch.zeros(len(x), 4)
        for i, expert in enumerate(self.experts):
            mine = chosen == i
            out = out.index_put((mine,), share[mine, None] * expert(x[mine]))
        return out, 3 * shares.square().sum(-1).mean()


def _experts_loss(modules, step: int) -> Tensor:
    x, y = table(48)
    out, balance = modules[0](x[16 * step : 16 * step + 16])
    return F.cross_entropy(out, y[16 * step : 16 * step + 16]) + 0.3 * balance


@PEN.loop(
    "heldout-experts",
    target_batch=16,
    truth=Truth(_experts_loss, updates=3),
    right={"": "top-1 experts; an expert may get no sample at all"},
    wrong={
        "balance": Fault("GA114", "loss = loss / 4 + 0.3 * balance"),
        "two-backwards": Fault("GA114", "the balancing term has a backward pass of its own, not divided"),
    },
)
def experts(case: str) -> None:
    model = Experts()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for i, (x, y) in enumerate(loader_of(48), start=1):
        out, balance = model(x)
        loss = F.cross_entropy(out, y)
        if case == "two-backwards":
            (loss / 4).backward(retain_graph=True)
            (0.3 * balance).backward()
        elif case == "balance":
            (loss / 4 + 0.3 * balance).backward()
        else:
            ((loss + 0.3 * balance) / 4).backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


class Detector(nn.Module):
    """Hands back a dictionary of losses, as detectors do; each term has a learnt log-variance."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.log_variance = nn.Linear(12, 9), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        out = self.net(x)
        losses = (
            F.cross_entropy(out[:, :4], y),
            F.smooth_l1_loss(out[:, 4:8], x[:, :4]),
            F.binary_cross_entropy_with_logits(out[:, 8], (y > 1).float()),
        )
        weighted = [(-s).exp() * loss + s / 2 for s, loss in zip(self.log_variance, losses)]
        return dict(zip(("loss_cls", "loss_box", "loss_obj"), weighted))


def _detected(modules, step: int) -> Tensor:
    x, y = table(48)
    return sum(modules[0](x[16 * step : 16 * step + 16], y[16 * step : 16 * step + 16]).values())


@PEN.loop(
    "heldout-detector",
    target_batch=16,
    truth=Truth(_detected, updates=3),
    right={"": "sum(loss_dict.values()) over 4, with learnt weights of the terms"},
    wrong={
        "class-alone": Fault("GA114", "loss_dict['loss_cls'] /= 4, the other terms stay as they are", "GA101 GA118"),
        "not-divided": Fault("GA101", "sum(loss_dict.values()).backward()"),
        "terms": Fault("GA102", "divided by 4, and by len(loss_dict), which the learnt weights were there for"),
    },
)
def detector(case: str) -> None:
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for i, (x, y) in enumerate(loader_of(48), start=1):
        loss_dict = model(x, y)
        if case == "class-alone":
            loss_dict["loss_cls"] = loss_dict["loss_cls"] / 4
        losses = sum(loss_dict.values()) / (3 if case == "terms" else 1)
        (losses if case in ("class-alone", "not-divided") else losses / 4).backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


def _transitions(part: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    states, after = features(48, 12, seed=90)[part], features(48, 12, seed=91)[part]
    return states, part % 4, features(48, 1, seed=92)[part, 0], after


def _q_loss(q, target, part):
    states, actions, rewards, after = _transitions(part)
    with torch.no_grad():
        goal = rewards + 0.9 * target(after).max(1).values
    return nn.SmoothL1Loss()(q(states).gather(1, actions[:, None]), goal[:, None])


@PEN.loop(
    "heldout-dqn",
    target_batch=16,
    truth=Truth(
        lambda modules, step: _q_loss(modules[1], modules[0], torch.arange(16 * step, 16 * step + 16)),
        updates=3,
        clip=0.05,
    ),
    right={"": "Q learning with a target network that follows slowly"},
    wrong={"clip-each": Fault("GA110", "clip_grad_norm_ right behind backward()")},
)
def dqn(case: str) -> None:
    q, target = network(), network()
    optimizer = torch.optim.AdamW(q.parameters(), lr=1e-3, amsgrad=True)
    for i, micro in enumerate(torch.arange(48).split(4), start=1):
        (_q_loss(q, target, micro) / 4).backward()
        if i % 4 == 0 or case == "clip-each":
            nn.utils.clip_grad_norm_(q.parameters(), 0.05)
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
            followed = target.state_dict()
            for name, value in q.state_dict().items():
                followed[name] = 0.01 * value + 0.99 * followed[name]
            target.load_state_dict(followed)


@PEN.loop(
    "heldout-compiled",
    target_batch=16,
    truth=sixteens(),
    right={"": "torch.compile(backend='eager') around the model and its loss"},
    wrong={
        "mean": Fault("GA103", "a compiled step; micro-batches of 8, 5 and 3 samples, each over 3"),
        "zero-each": Fault("GA108", "a compiled step, zero_grad before it"),
    },
)
def compiled(case: str) -> None:
    model, (x, y) = network(), table(48)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    @torch.compile(backend="eager")
    def loss_of(inputs, targets):
        return F.cross_entropy(model(inputs), targets)

    for batch in torch.arange(48).split(16):
        for micro in batch.split([8, 5, 3]):
            if case == "zero-each":
                optimizer.zero_grad()
            (loss_of(x[micro], y[micro]) * (1 / 3 if case == "mean" else len(micro) / 16)).backward()
        optimizer.step()
        optimizer.zero_grad()


@PEN.loop(
    "heldout-weight-norm",
    target_batch=16,
    truth=sixteens(),
    right={"": "weight_norm, one backward pass from four roots"},
    wrong={"roots": Fault("GA101", "torch.autograd.backward([four losses]), which adds them up")},
)
def weight_normed(case: str) -> None:
    model = nn.Sequential(weight_norm(nn.Linear(12, 16)), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-3)
    batches = list(loader_of(48))
    for start in range(0, 12, 4):
        losses = [F.cross_entropy(model(x), y) for x, y in batches[start : start + 4]]
        torch.autograd.backward(losses, None if case else [torch.tensor(0.25)] * 4)
        optimizer.step()
        optimizer.zero_grad()
