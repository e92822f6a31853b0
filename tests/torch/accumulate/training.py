"""A training that may be stopped anywhere and go on from what it saved."""

from __future__ import annotations

import io

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradaccum.torch import Accumulator, ResumableBatches

DATA = TensorDataset(*[torch.randn(22, width, generator=torch.Generator().manual_seed(3)) for width in (5, 2)])


class Run:
    """A model with dropout, its optimizer, and what follows from how a batch is made up."""

    def __init__(self, micro_batch, accum_steps, dropout=0.5, dtype=torch.float32, **options):
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 2)).to(dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02)
        self.accumulator = Accumulator(self.model, self.optimizer, accum_steps=accum_steps, clip_norm=1.0, **options)
        self.batches = ResumableBatches(len(DATA), micro_batch, seed=5)
        self.dtype = dtype
        torch.manual_seed(2)

    def train(self, updates, stop_at=None, after_each=lambda seen: None):
        """Until so many updates are made, or `stop_at` micro-batches are answered: what then lies on disk.

        after_each: called with their number after each.
        """
        seen = 0
        while True:
            own = torch.Generator()  # else every pass begins with a draw from the model's
            for group in self.accumulator.groups(DataLoader(DATA, batch_sampler=self.batches, generator=own)):
                for inputs, targets in group:
                    loss = nn.functional.mse_loss(self.model(inputs.to(self.dtype)), targets.to(self.dtype))
                    group.backward_mean(loss, len(inputs))
                    seen += 1
                    after_each(seen)
                    if seen == stop_at:
                        return self.saved()
                group.step()
                if self.accumulator.progress.updates == updates:
                    return self.saved()

    def saved(self):
        file = io.BytesIO()
        parts = {"model": self.model, "optimizer": self.optimizer, "accumulator": self.accumulator}
        torch.save({name: part.state_dict() for name, part in parts.items()}, file)
        file.seek(0)
        return file

    def load(self, file, **options):
        saved = torch.load(file, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.accumulator.load_state_dict(saved["accumulator"], **options)
        self.batches.resume(self.accumulator)
        return self

    def parameters(self):
        return torch.nn.utils.parameters_to_vector(self.model.parameters()).detach()
