"""The same training in each library, written as its own guide writes it; what is kept is the gradient of each update.

All see a mean loss for each micro-batch. Where a guide leaves something to the loop's author, it is done as in plain
PyTorch loops: under Fabric the loss is divided by the micro-batches of an update.
"""

from __future__ import annotations

import inspect
import tempfile
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.utils.data import DataLoader

from benchmarks.correctness import resuming
from benchmarks.correctness.cases import IGNORE, Case, gradient, info_nce
from gradaccum.torch import Accumulator, Ramp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Loop: TypeAlias = "Callable[[Case], list[torch.Tensor]]"


class NotApplicable(Exception):
    """Why a library has no such case."""


class Recorder(torch.optim.SGD):
    """Steps by nothing, and keeps the gradients of every step."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.seen: list[torch.Tensor] = []

    def step(self, closure: Any = None) -> Any:
        """With a closure, as Lightning's Trainer steps, that runs first."""
        loss = None if closure is None else closure()
        self.seen.append(gradient(self.param_groups[0]["params"]))
        super().step()
        return loss


def loss_of(case: Case, model: Any, batch: Any) -> torch.Tensor:
    """The loss as the case's caller hands it over."""
    loss: torch.Tensor = model(**batch)["loss"]
    if case.divides_twice:
        return loss / case.accum_steps
    return loss * (batch["labels"] != IGNORE).sum() if case.sums else loss


def epochs(case: Case, loader: Any) -> Iterator[tuple[int, Any]]:
    """Micro-batches with their numbers, epoch after epoch."""
    for number, batch in enumerate(loader):
        if case.leaves_after is not None and number == case.leaves_after:
            break
        yield number, batch
    if case.leaves_after is not None:
        yield from enumerate(loader)


def loader_of(case: Case) -> DataLoader[Any]:
    """Of all batches, for a library to share out over the ranks."""
    return DataLoader(case.batches, batch_size=1, collate_fn=lambda items: items[0])


# gradaccum


def ours(case: Case) -> list[torch.Tensor]:
    """docs/accumulator.md: a mean loss with what it is the mean of."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    if case.resumes:
        return resuming.ours(case)
    model = case.model()
    wrapped = model if case.ranks == 1 else DistributedDataParallel(model, static_graph=case.static_graph)
    optimizer = Recorder(model)
    half = next(model.parameters()).dtype == torch.bfloat16
    accumulator = Accumulator(
        wrapped,
        optimizer,
        accum_steps=case.accum_steps if case.then is None else Ramp([(0, case.accum_steps), case.then]),
        clip_norm=case.clip_norm,
        grad_norm=True,
        accumulate_in=torch.float32 if half else None,
    )
    batches = list(enumerate(case.batches))
    own = batches if case.ranks == 1 else batches[dist.get_rank() :: case.ranks]
    for epoch in range(1 if case.leaves_after is None else 2):
        leaves = case.leaves_after is not None and epoch == 0
        for group in accumulator.groups(own):
            if hasattr(model, "encode"):
                group.cached(lambda item: model.encode(item[1]["x"]), info_nce)
            for number, batch in () if hasattr(model, "encode") else group:
                if number in case.skipped:
                    group.skip()
                    continue
                labels = batch["labels"][:, 1:] if "input_ids" in batch else batch["labels"]
                answer = group.backward if case.sums else group.backward_mean
                answer(loss_of(case, wrapped, batch), (labels != IGNORE).sum())
                if leaves and number + 1 == case.leaves_after:
                    break
            group.step()
            if leaves:
                break
    return optimizer.seen


# Accelerate


def accelerate(case: Case) -> list[torch.Tensor]:
    """Its guide "Performing gradient accumulation with Accelerate"."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    if case.resumes:
        raise NotApplicable("the loop's author counts what to skip")
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=case.accum_steps,
        kwargs_handlers=[DistributedDataParallelKwargs(static_graph=case.static_graph)],
    )
    model = case.model()
    optimizer = Recorder(model)
    model, prepared, loader = accelerator.prepare(model, optimizer, loader_of(case))
    for number, batch in epochs(case, loader):
        if case.then is not None and number == case.then[0]:
            accelerator.gradient_accumulation_steps = case.then[1]
        with accelerator.accumulate(model):
            if number in case.skipped:
                continue
            accelerator.backward(loss_of(case, model, batch))
            if case.clip_norm is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), case.clip_norm)
            prepared.step()
            prepared.zero_grad()
    return optimizer.seen


def accelerate_by_count(case: Case) -> list[torch.Tensor]:
    """The same guide on samples of variable size: the author counts, and undoes the library's division."""
    from accelerate import Accelerator

    if "input_ids" in case.batches[0] or hasattr(case.model(), "encode") or case.static_graph:
        raise NotApplicable("the same as without counting")
    if case.leaves_after is not None or case.skipped or case.sums or case.divides_twice or case.then or case.resumes:
        raise NotApplicable("the guide's loop has no such place")
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=case.accum_steps)
    model = case.model()
    optimizer = Recorder(model)
    model, prepared, loader = accelerator.prepare(model, optimizer, loader_of(case))
    batches = list(loader)
    for first in range(0, len(batches), case.accum_steps):
        group = batches[first : first + case.accum_steps]
        count = sum((batch["labels"] != IGNORE).sum() for batch in group)
        count = accelerator.gather(count).sum().item()
        for number, batch in enumerate(group):
            last = number == len(group) - 1 or accelerator.num_processes == 1
            with torch.enable_grad() if last else model.no_sync():
                loss = model(**batch, num_items_in_batch=1)["loss"]
                accelerator.backward(loss * case.accum_steps * accelerator.num_processes / count)
        if case.clip_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), case.clip_norm)
        prepared.step()
        prepared.zero_grad()
    return optimizer.seen


# Lightning


def fabric(case: Case) -> list[torch.Tensor]:
    """Its guide "Efficient Gradient Accumulation"; that counts from 0, and its first update has one micro-batch."""
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    if case.then is not None or case.resumes:
        raise NotApplicable("the loop's author counts")
    strategy: Any = DDPStrategy(static_graph=case.static_graph) if case.ranks > 1 else "auto"
    made = Fabric(accelerator="cpu", devices=case.ranks, strategy=strategy)
    made.launch()
    plain = case.model()
    optimizer = Recorder(plain)
    model, prepared = made.setup(plain, optimizer)
    loader = made.setup_dataloaders(loader_of(case))
    for number, batch in epochs(case, loader):
        if number in case.skipped:
            continue
        is_accumulating = (number + 1) % case.accum_steps != 0
        with made.no_backward_sync(model, enabled=is_accumulating):
            made.backward(loss_of(case, model, batch) / case.accum_steps)
        if not is_accumulating:
            if case.clip_norm is not None:
                made.clip_gradients(model, prepared, max_norm=case.clip_norm)
            prepared.step()
            prepared.zero_grad()
    return optimizer.seen


def lightning(case: Case) -> list[torch.Tensor]:
    """`accumulate_grad_batches` and `gradient_clip_val` of its Trainer; a hook that answers -1 leaves an epoch."""
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import DDPStrategy

    if case.then is not None:
        raise NotApplicable("its schedule is by epochs alone")
    if case.resumes:
        return resuming.lightning(case)
    plain = case.model()
    optimizer = Recorder(plain)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inside = plain

        def training_step(self, batch: Any, number: int) -> torch.Tensor | None:
            return None if number in case.skipped else loss_of(case, self.inside, batch)

        def on_train_batch_start(self, batch: Any, number: int) -> int | None:
            return -1 if self.current_epoch == 0 and number == case.leaves_after else None

        def configure_optimizers(self) -> Recorder:
            return optimizer

    strategy: Any = DDPStrategy(static_graph=case.static_graph) if case.ranks > 1 else "auto"
    common: dict[str, Any] = {"accelerator": "cpu", "devices": case.ranks, "strategy": strategy}
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = pl.Trainer(
        **common,
        **quiet,
        accumulate_grad_batches=case.accum_steps,
        gradient_clip_val=case.clip_norm,
        max_epochs=1 if case.leaves_after is None else 2,
    )
    trainer.fit(Module(), loader_of(case))
    return optimizer.seen


# Hugging Face Trainer


def hf_trainer(case: Case) -> list[torch.Tensor]:
    """With a head that takes the count as those of Transformers do."""
    from transformers import Trainer

    from benchmarks.hf_trainer import arguments

    if case.leaves_after is not None or case.skipped or case.then is not None:
        raise NotApplicable("no such place in its loop")
    if case.resumes:
        return resuming.hf_trainer(case)
    plain = case.model()
    optimizer = Recorder(plain)
    takes_count = "num_items_in_batch" in inspect.signature(plain.forward).parameters
    head = _Head if takes_count and not case.sums and not case.divides_twice else _PlainHead
    model = plain if "input_ids" in case.batches[0] else head(case, plain)
    with tempfile.TemporaryDirectory() as folder:
        own = arguments(
            folder,
            case.accum_steps,
            num_train_epochs=1,
            max_grad_norm=case.clip_norm or 0.0,
            ddp_static_graph=case.static_graph or None,
            save_strategy="no",
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        Trainer(
            model,
            own,
            train_dataset=case.batches,
            data_collator=lambda items: items[0],
            optimizers=(optimizer, schedule),
        ).train()
    return optimizer.seen


class _Head(torch.nn.Module):
    """A head as those of Transformers: it takes keywords, and divides by the count among them, or ignores it."""

    def __init__(self, case: Case, inside: torch.nn.Module) -> None:
        super().__init__()
        self.case, self.inside = case, inside

    def forward(self, x: torch.Tensor, labels: torch.Tensor, **keywords: Any) -> Any:
        return self.inside(x=x, labels=labels, **({} if self.case.ignores_count else keywords))


class _PlainHead(torch.nn.Module):
    """One without keywords, whose loss the Trainer divides."""

    def __init__(self, case: Case, inside: torch.nn.Module) -> None:
        super().__init__()
        self.case, self.inside = case, inside

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:
        return {"loss": loss_of(self.case, self.inside, {"x": x, "labels": labels})}


LOOPS: dict[str, Loop] = {
    "gradaccum": ours,
    "Accelerate": accelerate,
    "Accelerate, counting": accelerate_by_count,
    "Fabric": fabric,
    "Lightning": lightning,
    "HF Trainer": hf_trainer,
}
"""By name, ours first."""
