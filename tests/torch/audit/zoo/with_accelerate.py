"""Hugging Face Accelerate. `backward` divides every loss by the accumulation steps; the boundary follows the loader.

Loops for 2 ranks need torchrun's RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, besides the group.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import islice

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from tests.torch.audit.zoo.loop import Fault, Pen, Truth
from tests.torch.audit.zoo.plain import altered, images, perceptron, whole
from tests.torch.audit.zoo.plain_losses import Language, sentences, shifted

PEN = Pen("accelerate")


def accelerator_of(**arguments) -> Accelerator:
    """Accelerate keeps its state for the whole process: a second script needs a fresh one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(cpu=True, **arguments)


def loader_of(samples: int, micro_batch: int) -> DataLoader:
    return DataLoader(TensorDataset(*images(samples)), batch_size=micro_batch)


@PEN.loop(
    "accelerate-docs",
    target_batch=16,
    truth=altered(whole(48, 16), clip=1.5, rates=(0.1, 0.05, 0.025)),
    right={
        "": "the loop of the docs: accumulate(model), everything inside, clip behind sync_gradients",
        "guarded": "step, schedule and zero_grad behind `if accelerator.sync_gradients` as well",
    },
    wrong={
        "divided-by-hand": Fault("GA102", "divided by hand, and by `backward` once more (accelerate#3533)"),
        "without-accumulate": Fault(
            "GA120", "no `with accumulate(model)`: a step with each micro-batch", "GA102 GA115"
        ),
        "own-backward": Fault("GA101", "loss.backward() where accelerator.backward(loss) divides"),
        "zero-raw": Fault("GA108", "model.zero_grad(), which Accelerate does not guard as optimizer.zero_grad()"),
        "scheduler-raw": Fault(
            "GA111", "the scheduler is not prepared, so it steps with every micro-batch (accelerate#963)"
        ),
    },
)
def from_the_docs(case: str) -> None:
    accelerator = accelerator_of(gradient_accumulation_steps=4)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = StepLR(optimizer, 1, gamma=0.5)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader_of(48, 4))
    if case != "scheduler-raw":
        scheduler = accelerator.prepare(scheduler)
    for inputs, targets in loader:
        with nullcontext() if case == "without-accumulate" else accelerator.accumulate(model):
            if case == "zero-raw":
                model.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            if case == "divided-by-hand":
                loss = loss / accelerator.gradient_accumulation_steps
            loss.backward() if case == "own-backward" else accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.5)
            if accelerator.sync_gradients or case != "guarded":
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()


@PEN.loop(
    "accelerate-clip",
    target_batch=16,
    truth=altered(whole(48, 16), clip=0.3),
    right={"": "clip_grad_norm_ behind `if sync_gradients`"},
    wrong={"each": Fault("GA110", "clip_grad_norm_ with every micro-batch (accelerate#641)")},
)
def clipped(case: str) -> None:
    accelerator = accelerator_of(gradient_accumulation_steps=4)
    model = perceptron()
    model, optimizer, loader = accelerator.prepare(model, torch.optim.Adam(model.parameters()), loader_of(48, 4))
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            if accelerator.sync_gradients or case == "each":
                accelerator.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "accelerate-last-group",
    target_batch=16,
    truth=whole(40, 16),
    notes="GA115",
    right={"": "the short last group is scaled back to its own length"},
    wrong={"short": Fault("GA105", "steps at the end of the loader, the last 2 micro-batches still over 4")},
)
def last_group(case: str) -> None:
    accelerator = accelerator_of(gradient_accumulation_steps=4)
    model = perceptron()
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=1e-3), loader_of(40, 4)
    )
    for i, (inputs, targets) in enumerate(loader):
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(inputs), targets)
            if case == "":
                loss = loss * 4 / min(4, len(loader) - i // 4 * 4)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()


def _token_mean(modules, step: int, batch: int = 8) -> Tensor:
    ids, targets = shifted(sentences(3 * batch)[batch * step : batch * step + batch])
    return F.cross_entropy(modules[0](ids).flatten(0, 1), targets.flatten(), ignore_index=-100)


@PEN.loop(
    "accelerate-lm",
    target_batch=8,
    truth=Truth(_token_mean, updates=3),
    right={"": "the recipe of the docs: sum x accumulation steps / tokens of the group"},
    wrong={
        "mean": Fault("GA103", "the model's mean loss over unequal token counts, handed to `backward`"),
        "without-steps": Fault("GA102", "sum / tokens of the group, which `backward` divides by 4 once more"),
    },
)
def language(case: str) -> None:
    _language(case, accelerator_of(gradient_accumulation_steps=4), batch=8)


@PEN.loop(
    "accelerate-ranks-lm",
    world=2,
    target_batch=16,
    truth=Truth(lambda modules, step: _token_mean(modules, step, batch=16), updates=3),
    right={
        "": "sum x steps x ranks / tokens of the group on all ranks",
        "sync-each": "sync_each_batch=True reduces every micro-batch, to save memory",
    },
    wrong={
        "rank-count": Fault("GA104", "sum x steps / tokens of the group on this rank"),
        "without-world": Fault("GA102", "sum x steps / gathered tokens: the mean over ranks is forgotten"),
        "unwrapped": Fault("GA109", "accelerator.unwrap_model(model)(ids) goes past DDP"),
    },
    notes="GA116",
)
def language_on_ranks(case: str) -> None:
    plugin = GradientAccumulationPlugin(num_steps=4, sync_each_batch=case == "sync-each")
    _language(case, accelerator_of(gradient_accumulation_plugin=plugin), batch=16)


def _language(case, accelerator, batch):
    model = Language()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    rank, world = accelerator.process_index, accelerator.num_processes
    data = sentences(3 * batch)
    micro_batches = iter([shifted(data[i : i + 2]) for i in range(2 * rank, 3 * batch, 2 * world)])
    while group := list(islice(micro_batches, 4)):
        mine = torch.stack([(targets != -100).sum() for _, targets in group]).sum()
        tokens = mine if case == "rank-count" else accelerator.gather(mine).sum()
        for ids, targets in group:
            with accelerator.accumulate(model):
                forward = accelerator.unwrap_model(model) if case == "unwrapped" else model
                logits = forward(ids).flatten(0, 1)
                if case == "mean":
                    loss = F.cross_entropy(logits, targets.flatten())
                else:
                    loss = F.cross_entropy(logits, targets.flatten(), reduction="sum") / tokens
                    loss = loss * (1 if case == "without-steps" else 4)
                    loss = loss * (1 if case in ("without-world", "rank-count") else world)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()


@PEN.loop(
    "accelerate-ranks",
    world=2,
    target_batch=16,
    truth=altered(whole(48, 16), rates=(0.05, 0.075, 0.1)),
    right={
        "": "the warm-up counts updates, behind sync_gradients, and is not prepared",
        "prepared": "prepared, and as many times longer as there are ranks",
    },
    wrong={
        "scheduler-ranks": Fault("GA111", "prepared as it is: `step` steps once for each rank (accelerate#1382)"),
        "not-accumulated": Fault(
            "GA120", "prepare() alone, without accumulate(): a step with each micro-batch", "GA102 GA115"
        ),
    },
    notes="GA116",
)
def on_ranks(case: str) -> None:
    accelerator = accelerator_of(gradient_accumulation_steps=4)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = LinearLR(optimizer, start_factor=0.5, total_iters=4 if case == "prepared" else 2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader_of(48, 2))
    if case in ("prepared", "scheduler-ranks"):
        scheduler = accelerator.prepare(scheduler)
    for inputs, targets in loader:
        with nullcontext() if case == "not-accumulated" else accelerator.accumulate(model):
            accelerator.backward(nn.CrossEntropyLoss()(model(inputs), targets))
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                scheduler.step()


def _pair(modules, step: int) -> Tensor:
    """Both models step with every update, first the one, then the other; each has a loss of its own."""
    x, y = images(48)
    part = slice(16 * (step // 2), 16 * (step // 2) + 16)
    return F.cross_entropy(modules[step % 2](x[part]), y[part])


@PEN.loop(
    "accelerate-two-models",
    target_batch=16,
    truth=Truth(_pair, updates=6),
    right={"": "accumulate(first, second): one block for both models"},
    wrong={
        "two-blocks": Fault(
            "GA102",
            "a block for each model: the counter runs twice as fast (accelerate#668)",
            "GA105 GA106 GA115 GA107",
        )
    },
)
def two_models(case: str) -> None:
    accelerator = accelerator_of(gradient_accumulation_steps=4)
    first, second = perceptron(), perceptron()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (first, second)]
    first, second, *optimizers, loader = accelerator.prepare(first, second, *optimizers, loader_of(48, 4))
    for x, y in loader:
        if case == "two-blocks":
            for model, optimizer in zip((first, second), optimizers):
                with accelerator.accumulate(model):
                    accelerator.backward(F.cross_entropy(model(x), y))
                    optimizer.step()
                    optimizer.zero_grad()
        else:
            with accelerator.accumulate(first, second):
                accelerator.backward(F.cross_entropy(first(x), y) + F.cross_entropy(second(x), y))
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
