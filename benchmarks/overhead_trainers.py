"""Two trainers beside the loops of overhead_loops.py. Each turn is one epoch of a `fit` or `train` of its own, and what
is measured lies between their hooks at the epoch's begin and end, so that neither is charged for setting itself up.

Neither can do all that the loop by hand does. Lightning's cannot weigh by tokens, whose number is the same in every
micro-batch here, so that its mean of means is right; nor does it hand out the norm. Hugging Face's wants a dataset, not
batches, and logs nothing here; the loss and the norm are read by nobody.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from accelerate.state import GradientState
from transformers import Trainer, TrainerCallback

from benchmarks.hf_trainer import arguments

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock:
    """Seconds of the epoch that was last."""

    seconds = 0.0
    _begun = 0.0

    def start(self) -> None:
        """As its first micro-batch is asked for."""
        self._begun = time.perf_counter()

    def stop(self) -> None:
        """After its last update."""
        self.seconds = time.perf_counter() - self._begun


class Loader:
    """The batches as they are, since a list would be read as several loaders."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class Lightning:
    """A LightningModule that reads the loss of each update."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        clock = self.clock = Clock()
        self.steps = steps

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.inside, self.total = model, torch.zeros(())

            def training_step(self, batch: Any, number: int) -> torch.Tensor:
                loss = torch.nn.functional.mse_loss(self.inside(batch[0]), batch[1])
                self.total += loss.detach()
                if (number + 1) % steps == 0:
                    (self.total / steps).item()
                    self.total.zero_()
                return loss

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return optimizer

            def on_train_epoch_start(self) -> None:
                clock.start()

            def on_train_epoch_end(self) -> None:
                clock.stop()

        self.module = Module()

    def __call__(self, batches: list[Any]) -> float:
        """One epoch; the seconds that it took."""
        quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
        options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "gradient_clip_val": 1.0}
        pl.Trainer(**quiet, **options, accumulate_grad_batches=self.steps).fit(self.module, Loader(batches))
        return self.clock.seconds


class Head(torch.nn.Module):
    """Divides by the count, as the heads of Transformers do."""

    def __init__(self, inside: torch.nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None, **_: Any) -> Any:
        """The loss of one micro-batch."""
        total = torch.nn.functional.mse_loss(self.inside(inputs), labels, reduction="sum")
        return {"loss": total / num_items_in_batch}


@contextmanager
def own_gradient_state() -> Iterator[None]:
    """Accelerate, which the Trainer is built on, keeps where an update begins for the whole process: another loop with
    it would go on with the Trainer's.
    """
    shared = GradientState._shared_state
    before = dict(shared)
    shared.clear()
    yield
    shared.clear()
    shared.update(before)


class HuggingFace(TrainerCallback):
    """Its Trainer, which counts the labels of each update."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        self.head, self.optimizer, self.steps, self.clock = Head(model), optimizer, steps, Clock()

    def on_epoch_begin(self, *_: Any, **keywords: Any) -> None:
        """Of the one epoch."""
        self.clock.start()

    def on_epoch_end(self, *_: Any, **keywords: Any) -> None:
        """Of the one epoch."""
        self.clock.stop()

    def __call__(self, batches: list[Any]) -> float:
        """One epoch; the seconds that it took."""
        with tempfile.TemporaryDirectory() as folder, own_gradient_state():
            own = arguments(folder, self.steps, num_train_epochs=1, max_grad_norm=1.0, save_strategy="no")
            trainer = Trainer(
                self.head,
                own,
                train_dataset=[{"inputs": inputs, "labels": targets} for inputs, targets, _ in batches],
                data_collator=lambda items: items[0],
                optimizers=(self.optimizer, torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)),
                callbacks=[self],
            )
            trainer.train()
        return self.clock.seconds
