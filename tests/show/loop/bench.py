"""A small model, its data, and the truth: the gradient of one concatenated batch on one process, in float64."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import nn
from torch.utils.data import TensorDataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

IGNORE = -100
VOCABULARY, LENGTH, WIDTH = 11, 4, 8
TOLERANCE = 1e-9


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = self.down(torch.tanh(self.up(x)))
        return x + change


def make_model() -> nn.Sequential:
    """The same weights at every call. Each position is on its own, so that sequences may be split anywhere."""
    torch.manual_seed(0)
    layers = OrderedDict[str, nn.Module](
        embed=nn.Embedding(VOCABULARY, WIDTH), block0=Block(), block1=Block(), head=nn.Linear(WIDTH, VOCABULARY)
    )
    return nn.Sequential(layers).double()


def make_dataset(samples: int, ignored: str, update: int) -> TensorDataset:
    """Sequences and targets; `update` is the number of samples in one.

    ignored: the targets without loss. "none"; "ragged", different counts in each sequence, at least one left;
    "micro-batch", samples 1 and 3, the first micro-batch of the second of two ranks; "first micro-batch", samples
    0 and 1; "group", the second update.
    """
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(VOCABULARY, (samples, LENGTH), generator=generator)
    targets = torch.randint(VOCABULARY, (samples, LENGTH), generator=generator)
    if ignored == "ragged":
        kept = torch.randint(1, LENGTH + 1, (samples, 1), generator=generator)
        targets[torch.arange(LENGTH) >= kept] = IGNORE
    elif ignored == "micro-batch":
        targets[[1, 3]] = IGNORE
    elif ignored == "first micro-batch":
        targets[[0, 1]] = IGNORE
    elif ignored == "group":
        targets[update : 2 * update] = IGNORE
    return TensorDataset(inputs, targets)


def loss_function(weighting: str, scaled: bool) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """What the caller of a loop supplies: a mean, or a sum over the tokens that count."""
    reduction, factor = ("sum" if weighting == "tokens" else "mean"), (50.0 if scaled else 1.0)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        flat = outputs.flatten(0, 1), targets.flatten()
        return factor * F.cross_entropy(*flat, ignore_index=IGNORE, reduction=reduction)

    return loss


def expected_updates(
    dataset: TensorDataset, updates: Iterable[torch.Tensor], weighting: str, scaled: bool, clip_norm: float
) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """The loss and the clipped gradient of each update, one concatenated batch each; none where no token counts."""
    found = []
    for indices in updates:
        inputs, targets = dataset[indices]
        tokens = int((targets != IGNORE).sum())
        if tokens == 0:
            continue
        model = make_model()
        loss = loss_function(weighting, scaled)(model(inputs), targets) / (tokens if weighting == "tokens" else 1)
        torch.autograd.backward(loss)
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        factor = min(1.0, clip_norm / (norm + 1e-6))  # torch's own guard against a norm of 0
        found.append((loss.item(), {name: factor * gradient for name, gradient in gradients.items()}))
    return found


class Recorder:
    """An optimizer with a learning rate of 0 that keeps the gradients that it is given, and a scheduler."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.updates: list[dict[str, torch.Tensor]] = []
        self.optimizer = torch.optim.SGD(parameters.values(), lr=0.0)
        self.optimizer.register_step_pre_hook(self._record)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda update: 1.0)
        self._parameters = parameters

    def _record(self, *_: Any) -> None:
        self.updates.append({name: _whole(each.grad) for name, each in self._parameters.items()})


def _whole(gradient: Any) -> torch.Tensor:
    whole: torch.Tensor = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return whole.detach().clone()


def differences(
    recorder: Recorder, losses: list[torch.Tensor] | None, expected: list[tuple[float, dict[str, torch.Tensor]]]
) -> Iterator[str]:
    """What is not as one big batch would have it: nothing, where the loop is right. losses: None where unreported."""
    if len(recorder.updates) != len(expected):
        yield f"{len(recorder.updates)} updates instead of {len(expected)}"
        return
    if recorder.scheduler.last_epoch != len(expected):
        yield f"the scheduler made {recorder.scheduler.last_epoch} steps in {len(expected)} updates"
    for update, (got, (_, wanted)) in enumerate(zip(recorder.updates, expected, strict=True)):
        for name, gradient in got.items():
            error = float((gradient - wanted[name]).norm() / wanted[name].norm())
            if not error <= TOLERANCE:
                yield f"update {update}: the gradient of {name} is off by {error:.1e}"
    if losses is not None and len(losses) != len(expected):
        yield f"{len(losses)} losses instead of {len(expected)}"
    elif losses is not None:
        for update, (got_loss, (wanted_loss, _)) in enumerate(zip(losses, expected, strict=True)):
            if not abs(got_loss.item() / wanted_loss - 1) <= TOLERANCE:
                yield f"update {update}: the loss is {got_loss.item()} instead of {wanted_loss}"
