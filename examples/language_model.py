"""A small language model on the English of Python's own manual, on two processes, with `Accumulator`.

    torchrun --nproc-per-node=2 examples/language_model.py --micro-batch 32 --accum-steps 1
    torchrun --nproc-per-node=2 examples/language_model.py --micro-batch 2 --accum-steps 16

Both make updates of 64 paragraphs, and their losses are the same. Paragraphs differ in length, so a loop that takes the
mean of each micro-batch and divides by their number trains for something else: `--mistake` does that.
`python examples/plot_language_model.py` runs all three and draws them.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from gradaccum.torch import Accumulator, ResumableBatches

LONGEST = 128  # bytes of a paragraph
IGNORE = -100  # a target that is padding


def main() -> None:
    """Train, and write the loss of every update, and that on held-out text at the end."""
    options = arguments()
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    training, held_out = paragraphs()
    bare = LanguageModel()
    model = DistributedDataParallel(bare)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    accumulator = Accumulator(model, optimizer, accum_steps=options.accum_steps, clip_norm=1.0)
    batches = ResumableBatches(len(training), options.micro_batch, seed=1)  # the same order, however it is cut
    losses: list[float | None] = []

    while len(losses) < options.updates:
        for group in accumulator.groups(DataLoader(training, batch_sampler=batches, collate_fn=padded)):
            for inputs, targets in group:
                loss = mean_loss(model, inputs, targets)
                group.backward_mean(loss, 1 if options.mistake else (targets != IGNORE).sum())
            update = group.step()
            losses.append(update.loss)
            if dist.get_rank() == 0 and len(losses) % 10 == 0:
                print(f"{len(losses):4} updates of {update.effective_batch}: {update.loss:.4f} nats a byte", flush=True)
            if len(losses) == options.updates:
                break

    if dist.get_rank() == 0:
        found = {"training": losses, "held_out": loss_on(bare, held_out)}
        print(f"on held-out text: {found['held_out']:.4f}")
        if options.out:
            Path(options.out).write_text(json.dumps(found))
    dist.destroy_process_group()


def paragraphs() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The manual's paragraphs as bytes, of shape (length,) each; every twentieth is held out."""
    texts = [each.strip() for _, topic in sorted(topics.items()) for each in re.split(r"\n\s*\n", topic)]
    found = [torch.tensor(list(f"\n{each}\n".encode()[:LONGEST])) for each in texts if each]
    return [each for number, each in enumerate(found) if number % 20], found[::20]


def padded(batch: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs, and the bytes that follow them, both of shape (paragraphs, longest - 1)."""
    inputs = pad_sequence([each[:-1] for each in batch], batch_first=True)
    return inputs, pad_sequence([each[1:] for each in batch], batch_first=True, padding_value=IGNORE)


class LanguageModel(nn.Module):
    """A transformer of two layers over bytes."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.bytes, self.positions = nn.Embedding(256, width), nn.Embedding(LONGEST, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits of shape (paragraphs, length, 256)."""
        length = inputs.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        embedded = self.bytes(inputs) + self.positions(torch.arange(length))
        return self.head(self.layers(embedded, mask=mask, is_causal=True))


def mean_loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats a byte, over the targets that are no padding."""
    return cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


def loss_on(model: nn.Module, held_out: list[torch.Tensor]) -> float:
    """Nats a byte."""
    with torch.no_grad():
        return float(mean_loss(model, *padded(held_out)))


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="A small language model on the English of Python's own manual.")
    parser.add_argument("--micro-batch", type=int, default=2, help="paragraphs of one rank in one pass (default 2)")
    parser.add_argument("--accum-steps", type=int, default=16, help="passes of one update (default 16)")
    parser.add_argument("--updates", type=int, default=120, help="how long to train (default 120)")
    parser.add_argument("--mistake", action="store_true", help="let each micro-batch count the same, long or short")
    parser.add_argument("--out", help="a JSON file for the losses")
    return parser.parse_args()


if __name__ == "__main__":
    main()
