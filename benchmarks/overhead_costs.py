"""Run by bench_overhead.py under torchrun: what a loop sends over a process group, and its peak of live bytes.

overhead_costs FOLDER: rank 0 writes FOLDER/costs.json, of the loop by hand and of ours, under DDP, with the same
result. Every collective goes through `torch.distributed.all_reduce`, where its bytes are counted: DDP's own too, by the
communication hook that does in Python what it does by itself. Live bytes are those of the CPU allocator, as the
profiler records every allocation.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from gradaccum.torch import Accumulator

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, UPDATES, WIDTH, ROWS = 8, 6, 64, 16
Batch = tuple[torch.Tensor, torch.Tensor]


def loss_of(model: Any, batch: Batch) -> torch.Tensor:
    """Summed."""
    return torch.nn.functional.mse_loss(model(batch[0]), batch[1], reduction="sum")


def by_hand(model: Any, optimizer: Any, batches: list[Batch]) -> None:
    """As an expert writes it: tokens of all ranks, one reduction in the last backward pass, the loss of all ranks."""
    for first in range(0, len(batches), STEPS):
        group = batches[first : first + STEPS]
        tokens = torch.tensor(sum(each[1].numel() for each in group))
        dist.all_reduce(tokens)
        total = torch.zeros(())
        for number, batch in enumerate(group):
            with nullcontext() if number == len(group) - 1 else model.no_sync():
                loss = loss_of(model, batch) * dist.get_world_size() / tokens
                loss.backward()
            total += loss.detach()
        dist.all_reduce(total)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total.item(), norm.item()


def ours(accumulator: Accumulator, model: Any, batches: list[Batch]) -> None:
    """As docs/accumulator.md shows it."""
    for group in accumulator.groups(batches):
        for batch in group:
            group.backward(loss_of(model, batch), batch[1].numel())
        group.step()


def sent(run: Callable[[], None]) -> int:
    """The bytes handed to all-reduces; an all-gather or broadcast of Python's would be an error."""
    plain, found = dist.all_reduce, 0

    def counting(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        nonlocal found
        found += tensor.numel() * tensor.element_size()
        return plain(tensor, *arguments, **options)

    dist.all_reduce = counting
    try:
        run()
    finally:
        dist.all_reduce = plain
    return found


def peak(run: Callable[[], None]) -> int:
    """The most bytes that were live at once, beyond those before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [each for each in profiler.profiler.kineto_results.events() if each.name() == "[memory]"]
    live = most = 0
    for each in sorted(events, key=lambda event: int(event.start_ns())):
        live += each.nbytes()
        most = max(most, live)
    return most


def measured() -> dict[str, Any]:
    """Bytes sent in each update and the peak, of either loop; and how far their parameters lie apart."""
    torch.manual_seed(dist.get_rank())
    batches = [(torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)) for _ in range(STEPS * UPDATES)]
    torch.manual_seed(7)
    first = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, WIDTH))
    found, models = {}, []
    for name in ("by hand", "gradaccum"):
        model = copy.deepcopy(first)
        models.append(model)
        wrapped = DistributedDataParallel(model)
        wrapped.register_comm_hook(None, allreduce_hook)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        accumulator = Accumulator(wrapped, optimizer, accum_steps=STEPS, clip_norm=1.0)
        hand = partial(by_hand, wrapped, optimizer, batches)
        loop = hand if name == "by hand" else partial(ours, accumulator, wrapped, batches)
        begun = sent(loop)
        # DDP's reduction runs in a thread of its own, which may let go of a number later: the least is the loop's own.
        most = min(peak(loop) for _ in range(5))
        found[name] = {"first_pass_bytes": begun, "pass_bytes": sent(loop), "peak_bytes": most}
    right, other = (torch.nn.utils.parameters_to_vector(each.parameters()).detach() for each in models)
    gradient = sum(each.numel() * each.element_size() for each in first.parameters())
    return {
        "updates": UPDATES,
        "gradient_bytes": gradient,
        "apart": float((right - other).norm() / right.norm()),
        "loops": found,
    }


def main(folder: str) -> None:
    """On every rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = measured()
    if dist.get_rank() == 0:
        (Path(folder) / "costs.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # without the end of threads that PyTorch leaves: on a busy machine it may abort there


if __name__ == "__main__":
    main(sys.argv[1])
