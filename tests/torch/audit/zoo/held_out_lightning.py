"""Loops that the audit was never tuned on: Fabric and Lightning."""

from __future__ import annotations

from functools import partial

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.torch.audit.zoo.held_out import loader_of, mean_over, network, sixteens, table
from tests.torch.audit.zoo.loop import Fault, Pen, Truth
from tests.torch.audit.zoo.with_fabric import fabric_of
from tests.torch.audit.zoo.with_lightning import fit

PEN = Pen("heldoutframeworks")


class FabricTrainer:
    """Lightning's example of a trainer of one's own: the last micro-batch runs inside optimizer.step."""

    def __init__(self, case: str) -> None:
        self.case, self.fabric, self.global_step = case, fabric_of(), int(case != "from-zero")

    def training_step(self, model: nn.Module, batch: list[Tensor]) -> Tensor:
        outputs = {"loss": F.cross_entropy(model(batch[0]), batch[1])}
        loss = outputs["loss"]
        self.fabric.call("on_before_backward", loss)
        self.fabric.backward(loss if self.case == "not-divided" else loss / 4)
        return loss.detach()

    def fit(self) -> None:
        model = network()
        model, optimizer = self.fabric.setup(model, torch.optim.Adam(model.parameters(), lr=1e-3))
        model(table(1)[0])  # a sanity check
        for batch in self.fabric.setup_dataloaders(loader_of(48)):
            should_optim_step = self.global_step % 4 == 0
            if should_optim_step:
                optimizer.step(partial(self.training_step, model=model, batch=batch))
                optimizer.zero_grad()
            else:
                self.training_step(model=model, batch=batch)
            self.global_step += 1


@PEN.loop(
    "heldoutframeworks-fabric-trainer",
    target_batch=16,
    truth=sixteens(),
    right={"": "optimizer.step(closure), in which the last micro-batch goes backward"},
    wrong={
        "not-divided": Fault("GA101", "as in the example: the loss goes backward as it is"),
        "from-zero": Fault("GA105", "the counter begins at 0, so the first update has one micro-batch", "GA115"),
    },
)
def fabric_trainer(case: str) -> None:
    FabricTrainer(case).fit()


class Growing(pl.LightningModule):
    """Cross entropy; hooks in which people put what automatic optimisation does already."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case, self.net = case, network()

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        return loss / self.trainer.accumulate_grad_batches if self.case == "divided" else loss

    def on_before_optimizer_step(self, optimizer):
        for p in self.parameters() if self.case == "hook-divides" else ():
            p.grad /= self.trainer.accumulate_grad_batches

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if self.case != "own-zero" or batch_idx == 0:
            optimizer.zero_grad()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@PEN.loop(
    "heldoutframeworks-lightning-growing",
    truth=mean_over(16, [range(8), range(8, 16), range(16), range(16)]),
    right={"": "GradientAccumulationScheduler: 2 micro-batches in the first epoch, 4 from then on"},
    wrong={
        "divided": Fault("GA102", "training_step divides by accumulate_grad_batches, which Lightning does"),
        "hook-divides": Fault("GA102", "on_before_optimizer_step divides the gradients again"),
        "own-zero": Fault("GA107", "optimizer_zero_grad is overridden to clear at the start of an epoch", "GA101"),
    },
)
def lightning_growing(case: str) -> None:
    scheduler = GradientAccumulationScheduler(scheduling={0: 2, 1: 4})
    fit(Growing(case), TensorDataset(*table(16)), 4, max_epochs=3, callbacks=[scheduler])


class Adversarial(pl.LightningModule):
    """Manual optimisation of two models, each with 2 micro-batches an update."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case, self.automatic_optimization = case, False
        self.generator, self.critic = nn.Linear(4, 12), nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        real, (opt_g, opt_d) = batch[0], self.optimizers()
        boundary, one, zero = batch_idx % 2 == 1, torch.ones(len(real), 1), torch.zeros(len(real), 1)
        divisor = 1 if self.case == "not-divided" else 2
        if self.case != "untoggled":
            self.toggle_optimizer(opt_g)
        loss = F.binary_cross_entropy_with_logits(self.critic(self.generator(real[:, :4])), one)
        self.manual_backward(loss / divisor)
        if boundary:
            opt_g.step()
            opt_g.zero_grad()
        if self.case != "untoggled":
            self.untoggle_optimizer(opt_g)
            self.toggle_optimizer(opt_d)
        # the critic's loss, on the input of the generator padded, so that it does not depend on the generator's step
        fake = F.pad(real[:, :4], (0, 8))
        loss = F.binary_cross_entropy_with_logits(self.critic(torch.cat([real, fake])), torch.cat([one, zero]))
        self.manual_backward(loss / 2)
        if boundary:
            opt_d.step()
            opt_d.zero_grad()
        if self.case != "untoggled":
            self.untoggle_optimizer(opt_d)

    def configure_optimizers(self):
        optimizers = [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (self.generator, self.critic)]
        return optimizers, []


def _adversarial(modules, step: int) -> Tensor:
    generator, critic = modules
    real = table(24)[0][8 * (step // 2) : 8 * (step // 2) + 8]
    one, zero = torch.ones(8, 1), torch.zeros(8, 1)
    if step % 2 == 0:
        return F.binary_cross_entropy_with_logits(critic(generator(real[:, :4])), one)
    fake = F.pad(real[:, :4], (0, 8))
    return F.binary_cross_entropy_with_logits(critic(torch.cat([real, fake])), torch.cat([one, zero]))


@PEN.loop(
    "heldoutframeworks-lightning-gan",
    truth=Truth(_adversarial, updates=6),
    right={"": "toggle_optimizer keeps the generator's pass out of the critic's gradients"},
    wrong={
        "untoggled": Fault(
            "GA118", "without toggle_optimizer the generator's pass adds to the critic's .grad", "GA107 GA101"
        ),
        "not-divided": Fault("GA101", "the generator's loss is not divided"),
    },
)
def lightning_gan(case: str) -> None:
    fit(Adversarial(case), TensorDataset(*table(24)), 4)
