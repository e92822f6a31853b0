"""Compares every gradient that a loop's optimizers receive with the gradient of one big batch, at the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tests.torch.audit.zoo.loop import Loop, Truth


@dataclass
class Seen:
    """What one run showed: each step's relative error, and its learning rate."""

    errors: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def is_right(self, truth: Truth) -> bool:
        return len(self.errors) == truth.updates and self.worst() <= truth.tolerance and self.rates_hold(truth)

    def is_clearly_wrong(self, truth: Truth) -> bool:
        return len(self.errors) != truth.updates or self.worst() >= 10 * truth.tolerance or not self.rates_hold(truth)

    def worst(self) -> float:
        """Not a number counts as wrong."""
        return max((math.inf if math.isnan(error) else error for error in self.errors), default=math.inf)

    def rates_hold(self, truth: Truth) -> bool:
        return truth.rates is None or all(
            math.isclose(seen, meant, rel_tol=1e-6, abs_tol=1e-12) for seen, meant in zip(self.rates, truth.rates)
        )


def is_as_it_says(loop: Loop, seen: Seen) -> bool:
    """A right loop is right on every rank, and a wrong one wrong on at least one."""
    assert loop.truth is not None
    holds = seen.is_clearly_wrong(loop.truth) if loop.faults else seen.is_right(loop.truth)
    if loop.world == 1:
        return holds
    ranks = torch.tensor(float(holds))
    dist.all_reduce(ranks)
    return bool(ranks >= (1 if loop.faults else loop.world))


def compare(loop: Loop) -> Seen:
    """Runs the loop; the big batch goes through the live modules, without touching a `.grad`."""
    assert loop.truth is not None
    truth, seen = loop.truth, Seen()
    modules = _Outermost()
    expected: list[Tensor] = []

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.rates.append(optimizer.param_groups[0]["lr"])
        with modules.paused(), torch.enable_grad(), torch.random.fork_rng():
            expected[:] = _gradients(truth, modules.seen, len(seen.errors), _parameters(optimizer))

    def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        got = [torch.zeros_like(p) if p.grad is None else p.grad for p in _parameters(optimizer)]
        seen.errors.append(_distance([_full(g) for g in got], expected))

    with ExitStack() as hooks:
        for handle in (
            register_module_forward_pre_hook(modules.enter),
            register_module_forward_hook(modules.leave, always_call=True),
            register_optimizer_step_pre_hook(before),
            register_optimizer_step_post_hook(after),
        ):
            hooks.callback(handle.remove)
        loop.run()
    return seen


class _Outermost:
    """The outermost modules with parameters, in the order in which they are first called."""

    def __init__(self) -> None:
        self.seen: list[nn.Module] = []
        self._open: list[nn.Module] = []
        self._paused = False

    def enter(self, module: nn.Module, *_: Any) -> None:
        if self._paused:
            return
        if not self._open and next(module.parameters(), None) is not None:
            inner = _unwrapped(module)
            if not any(inner is known for known in self.seen):
                self.seen.append(inner)
        self._open.append(module)

    def leave(self, *_: Any) -> None:
        if not self._paused:
            self._open.pop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False


def _unwrapped(module: nn.Module) -> nn.Module:
    for name in ("module", "_orig_mod", "_forward_module"):
        inner = module._modules.get(name)
        if isinstance(inner, nn.Module):
            return _unwrapped(inner)
    return module


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _gradients(truth: Truth, modules: list[nn.Module], step: int, parameters: list[Tensor]) -> list[Tensor]:
    if truth.build:
        live, parameters = parameters, []
        modules = [_rebuilt(truth.build, modules[0], live, parameters)]
    found = torch.autograd.grad(truth.loss(modules, step), parameters, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(parameters, found)]
    if truth.clip is not None:
        norm = torch.stack([g.norm() for g in gradients]).norm()
        gradients = [g * min(1.0, truth.clip / (float(norm) + 1e-6)) for g in gradients]
    return gradients


def _rebuilt(build: Callable[[], nn.Module], live: nn.Module, wanted: list[Tensor], found: list[Tensor]) -> nn.Module:
    """A plain module with the live values; `found` gets its parameters in the order of `wanted`."""
    plain = build()
    pairs = {id(old): new for old, new in zip(live.parameters(), plain.parameters())}
    with torch.no_grad():
        for old, new in zip(live.parameters(), plain.parameters()):
            new.copy_(_full(old))
    found.extend(pairs[id(old)] for old in wanted)
    return plain


def _full(tensor: Tensor) -> Tensor:
    """A sharded tensor as one."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.to_dense()


def _distance(got: list[Tensor], expected: list[Tensor]) -> float:
    """|got - expected| / |expected|, over all parameters together."""
    flat, true = (torch.cat([g.detach().double().flatten() for g in gradients]) for gradients in (got, expected))
    return float((flat - true).norm() / true.norm())
