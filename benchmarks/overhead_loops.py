"""Run by bench_overhead.py where the libraries are: one training loop in each of its spellings, turn by turn.

The model is so small that only the loop shows. Every loop does the same: 8 micro-batches of an update, the loss divided
by the tokens of the whole group, clipped, stepped, the loss and the norm of each update read; where the two trainers of
overhead_trainers.py differ is said there. overhead_loops TURNS FILE writes JSON: seconds of each turn, and the
distance of the parameters from those of the loop by hand after the first.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradaccum.torch import Accumulator

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, UPDATES, WIDTH = 8, 5, 16
WARM = 5
"""Turns before those that count."""
SELDOM, EVERY = ("Lightning Trainer", "HF Trainer"), 10
"""What takes so long to set up that it has one turn in ten, the first that counts among them."""
Batch = tuple[torch.Tensor, torch.Tensor, int]


def loss_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Summed."""
    inputs, targets, _ = batch
    return torch.nn.functional.mse_loss(model(inputs), targets, reduction="sum")


def by_hand(model: Any, optimizer: Any, batches: list[Batch]) -> None:
    """As an expert writes it."""
    for first in range(0, len(batches), STEPS):
        group = batches[first : first + STEPS]
        tokens = sum(each[2] for each in group)
        total = torch.zeros(())
        for batch in group:
            loss = loss_of(model, batch) / tokens
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total.item(), norm.item()


def ours(accumulator: Accumulator, model: Any, batches: list[Batch]) -> None:
    """As docs/accumulator.md shows it."""
    for group in accumulator.groups(batches):
        for batch in group:
            group.backward(loss_of(model, batch), batch[2])
        update = group.step()
        assert update.applied


def with_accelerate(accelerator: Any, model: Any, optimizer: Any, batches: list[Batch]) -> None:
    """As its guide to losses over unequal counts says: the count is gathered by hand, its own division undone."""
    for first in range(0, len(batches), STEPS):
        group = batches[first : first + STEPS]
        tokens = accelerator.gather(torch.tensor(sum(each[2] for each in group))).sum().item()
        total = torch.zeros(())
        for batch in group:
            with accelerator.accumulate(model):
                loss = loss_of(model, batch) * accelerator.num_processes * STEPS / tokens
                accelerator.backward(loss)
                total += loss.detach() / STEPS
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        total.item(), norm.item()


def with_fabric(made: Any, model: Any, optimizer: Any, batches: list[Batch]) -> None:
    """As its guide to gradient accumulation says."""
    for first in range(0, len(batches), STEPS):
        group = batches[first : first + STEPS]
        tokens = sum(each[2] for each in group)
        total = torch.zeros(())
        for number, batch in enumerate(group):
            with made.no_backward_sync(model, enabled=number < len(group) - 1):
                loss = loss_of(model, batch) / tokens
                made.backward(loss)
            total += loss.detach()
        norm = made.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        total.item(), norm.item()


def timed(loop: Callable[..., None], *arguments: Any) -> Callable[[list[Batch]], float]:
    """The loop with these arguments, which gives the seconds that it took."""

    def run(batches: list[Batch]) -> float:
        begun = time.perf_counter()
        loop(*arguments, batches)
        return time.perf_counter() - begun

    return run


def contenders(fused: bool) -> dict[str, tuple[torch.nn.Module, Callable[[list[Batch]], float]]]:
    """Each loop with its own copy of the model, by name."""
    torch.manual_seed(0)
    first = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH))

    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = copy.deepcopy(first)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)

    found: dict[str, tuple[torch.nn.Module, Callable[[list[Batch]], float]]] = {}
    for name in ("by hand", "by hand, again"):  # twice: how far two runs of one thing lie apart
        model, optimizer = fresh()
        found[name] = model, timed(by_hand, model, optimizer)
    model, optimizer = fresh()
    accumulator = Accumulator(model, optimizer, accum_steps=STEPS, clip_norm=1.0)
    found["gradaccum"] = model, timed(ours, accumulator, model)

    from accelerate import Accelerator

    model, optimizer = fresh()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=STEPS)
    prepared: Any = accelerator.prepare(model, optimizer)
    found["Accelerate"] = model, timed(with_accelerate, accelerator, *prepared)

    from lightning.fabric import Fabric

    model, optimizer = fresh()
    made = Fabric(accelerator="cpu", devices=1)
    wrapped: Any = made.setup(model, optimizer)
    found["Fabric"] = model, timed(with_fabric, made, *wrapped)

    from benchmarks.overhead_trainers import HuggingFace, Lightning

    for name, trainer in (("Lightning Trainer", Lightning), ("HF Trainer", HuggingFace)):
        model, optimizer = fresh()
        found[name] = model, trainer(model, optimizer, STEPS)
    return found


def distances(models: dict[str, torch.nn.Module]) -> dict[str, float]:
    """Of their parameters from those of the loop by hand: relative, in the 2-norm."""
    found = {name: torch.nn.utils.parameters_to_vector(model.parameters()).detach() for name, model in models.items()}
    right = found["by hand"]
    return {name: float((each - right).norm() / right.norm()) for name, each in found.items()}


def main(turns: int, file: str) -> None:
    """Every loop in each turn, nobody always first."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(4, WIDTH, generator=generator), torch.randn(4, WIDTH, generator=generator), 4 * WIDTH)
        for _ in range(STEPS * UPDATES)
    ]
    found = {}
    for fused in (False, True):
        loops = contenders(fused)
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        names = list(loops)
        for turn in range(turns + WARM):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:  # nobody is always the first
                if name in SELDOM and turn and turn % EVERY != WARM:
                    continue
                took = loops[name][1](batches)
                if turn >= WARM:
                    seconds[name].append(took)
            if turn == 0:  # as long as all have made the same updates
                apart = distances({name: model for name, (model, _) in loops.items()})
        found["fused AdamW" if fused else "AdamW"] = {"seconds": seconds, "apart": apart}
    Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
