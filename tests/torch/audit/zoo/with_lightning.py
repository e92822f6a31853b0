"""Lightning's Trainer. Automatic optimisation divides by the nominal count; manual optimisation divides nothing.

Loops for 2 ranks need torchrun's RANK, WORLD_SIZE, LOCAL_RANK, GROUP_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT
and TORCHELASTIC_RUN_ID, besides the group.
"""

from __future__ import annotations

import tempfile
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from tests.torch.audit.zoo.loop import Fault, Pen, Truth
from tests.torch.audit.zoo.plain import altered, images, perceptron, whole
from tests.torch.audit.zoo.plain_losses import Language, sentences, shifted

PEN = Pen("lightning")


def fit(module: pl.LightningModule, data: Any, micro_batch: int | None, devices: int = 1, sampler=None, **more) -> None:
    """One epoch in order; nothing is logged, shown or kept."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            max_epochs=more.pop("max_epochs", 1),
            use_distributed_sampler=False,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **more,
        )
        trainer.fit(module, DataLoader(data, batch_size=micro_batch, sampler=sampler))


class Classifier(pl.LightningModule):
    """Cross entropy of pictures, SGD, a schedule by updates."""

    def __init__(self, case: str, net: nn.Module | None = None) -> None:
        super().__init__()
        self.case, self.net = case, net or perceptron()

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        if self.case == "divided-by-hand":
            return loss / self.trainer.accumulate_grad_batches
        if self.case == "multiplied":
            return loss * self.trainer.accumulate_grad_batches
        if self.case == "skips" and batch_idx % 4 == 1:
            return None
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = {"scheduler": StepLR(optimizer, 1, gamma=0.5), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_batch_start(self, batch, batch_idx):
        if self.case == "zero-first":
            self.optimizers().zero_grad()

    def on_train_batch_end(self, *_):
        if self.case == "scheduler-each":
            self.lr_schedulers().step()

    def on_after_backward(self):
        if self.case == "clip-each":
            nn.utils.clip_grad_norm_(self.parameters(), 0.3)


@PEN.loop(
    "lightning-automatic",
    target_batch=16,
    truth=altered(whole(48, 16), rates=(0.1, 0.05, 0.025)),
    right={"": "accumulate_grad_batches=4, the interval 'step' means updates"},
    wrong={
        "divided-by-hand": Fault("GA102", "training_step divides, and Lightning once more"),
        "multiplied": Fault("GA101", "training_step takes Lightning's division back"),
        "skips": Fault("GA106", "training_step returns None for one of 4: the rest is still over 4", "GA105 GA115"),
        "zero-first": Fault("GA108", "a hook zeroes the gradients with every micro-batch"),
        "scheduler-each": Fault("GA111", "a hook steps the schedule with every micro-batch, besides Lightning"),
    },
)
def automatic(case: str) -> None:
    fit(Classifier(case), TensorDataset(*images(48)), 4, accumulate_grad_batches=4)


@PEN.loop(
    "lightning-clip",
    target_batch=16,
    truth=altered(whole(48, 16), clip=0.3),
    right={"": "gradient_clip_val"},
    wrong={"each": Fault("GA110", "on_after_backward clips, which is called with every micro-batch")},
)
def clipped(case: str) -> None:
    norm = None if case else 0.3
    module = Classifier("clip-each" if case == "each" else "")
    fit(module, TensorDataset(*images(48)), 4, accumulate_grad_batches=4, gradient_clip_val=norm)


class LastGroupAware(Classifier):
    """Takes the nominal count back in a short last group."""

    def training_step(self, batch, batch_idx):
        loss, batches = super().training_step(batch, batch_idx), self.trainer.num_training_batches
        nominal = self.trainer.accumulate_grad_batches
        return loss * nominal / min(nominal, batches - batch_idx // nominal * nominal)


@PEN.loop(
    "lightning-last-group",
    target_batch=16,
    truth=whole(40, 16),
    notes="GA115",
    right={"": "the loss of the short last group is scaled up in training_step"},
    wrong={"short": Fault("GA105", "the last group of 2 is divided by 4 (pytorch-lightning#19987)")},
)
def last_group(case: str) -> None:
    module = Classifier(case) if case == "short" else LastGroupAware(case)
    fit(module, TensorDataset(*images(40)), 4, accumulate_grad_batches=4)


@PEN.loop(
    "lightning-short-epoch",
    target_batch=16,
    truth=Truth(lambda modules, step: F.cross_entropy(modules[0](images(8)[0]), images(8)[1]), updates=3),
    notes="GA115",
    right={"": "an epoch of 2 micro-batches, groups of 2"},
    wrong={
        "shorter-than-group": Fault(
            "GA105", "an epoch of 2, groups of 4: each update is of 2, over 4 (pytorch-lightning#21808)"
        )
    },
)
def short_epoch(case: str) -> None:
    fit(Classifier(case), TensorDataset(*images(8)), 4, accumulate_grad_batches=4 if case else 2, max_epochs=3)


class Manual(pl.LightningModule):
    """Manual optimisation in groups of 4."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case, self.net, self.automatic_optimization = case, perceptron(), False

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.manual_backward(loss if self.case == "not-divided" else loss / 4)
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        if (batch_idx + 1) % 4 == 0:
            optimizer.step()
            if self.case != "zero-never":
                optimizer.zero_grad()
        if (batch_idx + 1) % 4 == 0 or self.case == "scheduler-each":
            scheduler.step()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        return [optimizer], [StepLR(optimizer, 1, gamma=0.5)]


@PEN.loop(
    "lightning-manual",
    target_batch=16,
    truth=altered(whole(48, 16), rates=(0.1, 0.05, 0.025)),
    right={"": "manual_backward(loss / 4), step and zero_grad at every 4th"},
    wrong={
        "not-divided": Fault("GA101", "manual_backward(loss): only automatic optimisation divides"),
        "zero-never": Fault("GA107", "zero_grad is forgotten, which automatic optimisation does by itself"),
        "scheduler-each": Fault("GA111", "lr_schedulers().step() in every training_step"),
    },
)
def manual(case: str) -> None:
    fit(Manual(case), TensorDataset(*images(48)), 4)


class Speaker(pl.LightningModule):
    """Token loss over batches of unequal counts; `counts` is what each of them is divided by."""

    def __init__(self, counts: list[float]) -> None:
        super().__init__()
        self.net, self.counts = Language(), counts

    def training_step(self, batch, batch_idx):
        ids, targets = batch
        total = F.cross_entropy(self.net(ids).flatten(0, 1), targets.flatten(), reduction="sum")
        return total / self.counts[batch_idx]

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def _token_mean(modules, step: int, batch: int = 8) -> Tensor:
    ids, targets = shifted(sentences(3 * batch)[batch * step : batch * step + batch])
    return F.cross_entropy(modules[0](ids).flatten(0, 1), targets.flatten(), ignore_index=-100)


def _count(group) -> int:
    return sum(int((targets != -100).sum()) for _, targets in group)


@PEN.loop(
    "lightning-lm",
    target_batch=8,
    truth=Truth(_token_mean, updates=3),
    right={"": "the counts of a group are known beforehand; sum / (tokens of the group / 4)"},
    wrong={"mean": Fault("GA103", "the mean over the micro-batch's own tokens")},
)
def language(case: str) -> None:
    data = [shifted(sentences(24)[i : i + 2]) for i in range(0, 24, 2)]
    groups = [_count(data[i // 4 * 4 : i // 4 * 4 + 4]) / 4 for i in range(12)]
    fit(Speaker([_count([pair]) for pair in data] if case == "mean" else groups), data, None, accumulate_grad_batches=4)


@PEN.loop(
    "lightning-ranks-lm",
    world=2,
    target_batch=16,
    truth=Truth(lambda modules, step: _token_mean([modules[0].net], step, batch=16), updates=3),
    right={"": "sum / the mean count over the micro-batches of all ranks"},
    wrong={"rank-count": Fault("GA104", "sum / the mean count over the micro-batches of this rank")},
)
def language_on_ranks(case: str) -> None:
    data = [shifted(sentences(48)[i : i + 2]) for i in range(0, 48, 2)]
    rank = torch.distributed.get_rank()
    groups = [data[i // 4 * 8 : i // 4 * 8 + 8] for i in range(12)]
    counts = [_count(group[rank::2]) / 4 if case == "rank-count" else _count(group) / 8 for group in groups]
    module = Speaker(counts)
    sampler = DistributedSampler(data, shuffle=False)  # deals them out by turns
    fit(module, data, None, devices=2, sampler=sampler, accumulate_grad_batches=4)


@PEN.loop(
    "lightning-norm",
    target_batch=16,
    truth=whole(48, 16),
    right={"": "LayerNorm"},
    wrong={"batch": Fault("GA112", "BatchNorm1d in training mode (pytorch-lightning#17446)")},
)
def norm(case: str) -> None:
    layer = nn.BatchNorm1d(32) if case == "batch" else nn.LayerNorm(32)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), layer, nn.ReLU(), nn.Linear(32, 10))
    fit(Classifier(case, net), TensorDataset(*images(48)), 4, accumulate_grad_batches=4)
