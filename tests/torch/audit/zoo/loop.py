"""What a loop of the zoo is, and how a wrong loop and its right twins come from one function."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from torch import nn


@dataclass(frozen=True)
class Truth:
    """The big batch of each update, to compare with.

    `loss(modules, step)` is the loss of the whole batch that the `step`-th optimizer step (from 0, over all
    optimizers) is meant to see. `modules` are the live outermost modules that have parameters, without their wrappers,
    in the order in which they were first called; a module that cannot be called outside its loop (a sharded one) is
    rebuilt by `build` and given the live values.
    """

    loss: Callable[[Sequence[nn.Module], int], torch.Tensor]
    updates: int
    clip: float | None = None  # the norm that the whole gradient is clipped to
    rates: tuple[float, ...] | None = None  # the learning rate of each update
    build: Callable[[], nn.Module] | None = None
    tolerance: float = 1e-4  # of |gradient - truth| / |truth|; a wrong loop is off by ten times as much


@dataclass(frozen=True)
class Loop:
    """One training loop, which knows nothing of who watches it.

    `run()` makes a few updates on the CPU, seeds itself, prints nothing and leaves no file. With `world` 2 it is called
    on each rank, inside an initialised gloo group with torchrun's environment variables set.
    """

    name: str
    framework: str
    run: Callable[[], None] = field(compare=False)
    faults: frozenset[str]  # codes that have to be found; none for a right loop
    notes: frozenset[str] = frozenset()  # codes that may be said besides
    world: int = 1
    target_batch: int | None = None  # samples over all ranks that the person believes an update sees
    why: str = ""
    truth: Truth | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Fault:
    """A planted mistake: the codes that name it, and what the person did."""

    codes: str
    why: str
    notes: str = ""


class Pen:
    """The loops of one framework."""

    def __init__(self, framework: str) -> None:
        self.framework = framework
        self.loops: list[Loop] = []

    def loop(
        self,
        name: str,
        *,
        wrong: Mapping[str, Fault],
        right: Mapping[str, str],
        truth: Truth | None = None,
        target_batch: int | None = None,
        world: int = 1,
        notes: str = "",
    ) -> Callable[[Callable[[str], None]], Callable[[str], None]]:
        """Registers a function of a case: each key of `wrong` and `right` is one; "" is the loop as it should be."""

        def register(train: Callable[[str], None]) -> Callable[[str], None]:
            for case, fault in {**{case: Fault("", why) for case, why in right.items()}, **wrong}.items():
                self.loops.append(
                    Loop(
                        name=f"{name}-{case}" if case else name,
                        framework=self.framework,
                        run=functools.partial(_alone, train, case),
                        faults=frozenset(fault.codes.split()),
                        notes=frozenset((notes + " " + fault.notes).split()),
                        world=world,
                        target_batch=target_batch,
                        why=fault.why,
                        truth=truth,
                    )
                )
            return train

        return register


def _alone(train: Callable[[str], None], case: str) -> None:
    """Runs a loop from a fixed seed; what libraries say, and leave in the environment, is no part of it."""
    with torch.random.fork_rng(), warnings.catch_warnings(), _silence(), patch.dict(os.environ):
        warnings.simplefilter("ignore")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for each other
        torch.manual_seed(0)
        try:
            train(case)
        finally:
            torch.set_num_threads(threads)


@contextmanager
def _silence() -> Iterator[None]:
    """No log line below an error, which is how libraries greet."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
