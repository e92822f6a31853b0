"""A run that is saved after four updates of four micro-batches, and goes on with another number of them in an update.

Each gives the first sample that the second run sees, which is its x.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.correctness.cases import Case

UPDATES, STEPS = 4, 4


class Watched(torch.nn.Module):
    """Keeps every x that it has seen."""

    def __init__(self, inside: torch.nn.Module) -> None:
        super().__init__()
        self.inside, self.seen = inside, [0.0][:0]

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:
        """As the model inside."""
        self.seen.append(x.item())
        return self.inside(x, labels)


def both_runs(case: Case, run: Callable[[Watched, torch.optim.Optimizer, int, int, Any], Any]) -> list[torch.Tensor]:
    """run(model, optimizer, steps, updates in all, what the first run has left) gives what it leaves."""
    left = None
    for steps, updates in ((STEPS, UPDATES), (case.accum_steps, UPDATES + 1)):
        model = Watched(case.model())
        left = run(model, torch.optim.SGD(model.parameters(), lr=0.0), steps, updates, left)
    return [torch.tensor([model.seen[0]], dtype=torch.float64)]


def ours(case: Case) -> list[torch.Tensor]:
    """docs/accumulator.md, "Stop and go on"."""
    from gradaccum.torch import Accumulator, ResumableBatches

    def run(model: Watched, optimizer: Any, steps: int, updates: int, left: Any) -> Any:
        batches = ResumableBatches(len(case.batches), 1, shuffle=False)
        accumulator = Accumulator(model, optimizer, accum_steps=steps)
        if left is not None:
            accumulator.load_state_dict(left, group=False)
            batches.resume(accumulator)
        loader = DataLoader(case.batches, batch_sampler=batches, collate_fn=lambda items: items[0])
        for group in accumulator.groups(loader):
            for batch in group:
                group.backward_mean(model(**batch)["loss"], 1)
            group.step()
            if accumulator.progress.updates == updates:
                break
        return accumulator.state_dict()

    return both_runs(case, run)


def lightning(case: Case) -> list[torch.Tensor]:
    """`save_checkpoint`, and `fit(ckpt_path=...)`."""
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self, model: Watched, optimizer: Any) -> None:
            super().__init__()
            self.model, self.optimizer = model, optimizer

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            loss: torch.Tensor = self.model(**batch)["loss"]
            return loss

        def configure_optimizers(self) -> Any:
            return self.optimizer

    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "saved.ckpt"

        def run(model: Watched, optimizer: Any, steps: int, updates: int, left: Any) -> Any:
            options: dict[str, Any] = {"accelerator": "cpu", "max_steps": updates, "accumulate_grad_batches": steps}
            trainer = pl.Trainer(**quiet, **options)
            loader = DataLoader(case.batches, batch_size=1, collate_fn=lambda items: items[0])
            trainer.fit(Module(model, optimizer), loader, ckpt_path=left)
            trainer.save_checkpoint(file)
            return file

        return both_runs(case, run)


def hf_trainer(case: Case) -> list[torch.Tensor]:
    """`save_steps`, and `train(resume_from_checkpoint=...)`."""
    from transformers import Trainer

    from benchmarks.hf_trainer import arguments

    with tempfile.TemporaryDirectory() as folder:

        def run(model: Watched, optimizer: Any, steps: int, updates: int, left: Any) -> Any:
            own = arguments(folder, steps, max_steps=updates, save_steps=UPDATES)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
            Trainer(
                model,
                own,
                train_dataset=case.batches,
                data_collator=lambda items: items[0],
                optimizers=(optimizer, schedule),
            ).train(resume_from_checkpoint=left)
            return str(Path(folder) / f"checkpoint-{UPDATES}")

        return both_runs(case, run)
