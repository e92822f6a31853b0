"""Encoders, vision and diffusion models through the trace, against runs on this CPU and counts by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradaccum.torch.fit.ledger import alive
from gradaccum.torch.trace import Job, cpu, cuda, record
from gradaccum.torch.trace.events import ACTIVATION, BACKWARD
from tests.torch.cpu_steps import (
    LENGTH,
    WIDTH,
    job,
    measured,
    more_than_scalars,
    peak,
    traced,
    without_buffers,
    words,
)
from tests.torch.models import CHANNELS, IMAGE, BertLike, ResNetLike, UNetLike, VitLike, with_lora

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("one_thread")

MICRO_BATCH = 3


def images(module: Callable[[], nn.Module]) -> Callable[[int], Job]:
    """A classifier of images."""

    def build(micro_batch: int) -> Job:
        made, batch = module(), torch.randn(micro_batch, CHANNELS, IMAGE, IMAGE)
        classes = torch.zeros(micro_batch, dtype=torch.int64)
        step = job(made, batch, lambda y: functional.cross_entropy(y, classes))
        return replace(step, batch=(batch, classes))

    return build


def diffusion(micro_batch: int) -> Job:
    """Noise predicted from a noisy image and its time."""
    module = UNetLike()
    noisy, times = torch.randn(micro_batch, CHANNELS, IMAGE, IMAGE), torch.randn(micro_batch, WIDTH)
    noise = torch.randn(micro_batch, CHANNELS, IMAGE, IMAGE)

    def step() -> None:
        functional.mse_loss(module(noisy, times), noise).backward()

    optimizer = torch.optim.AdamW(module.parameters())
    return Job(module=module, optimizer=optimizer, step=step, batch=(noisy, times, noise))


EXACT: dict[str, Callable[[int], Job]] = {
    "BERT-like": words(BertLike),
    "ViT-like, patches by a linear layer": images(VitLike),
    "BERT-like with LoRA": words(lambda: with_lora(BertLike())),
}
CONVOLUTIONAL: dict[str, tuple[Callable[[int], Job], float]] = {
    "ViT-like": (images(lambda: VitLike(convolution=True)), 0.99),
    "ResNet-like": (images(ResNetLike), 0.85),
    "UNet-like": (diffusion, 0.89),
}
"""The share of the peak that the trace finds: mkldnn_convolution packs its operands, and keeps them in its backward."""


def both(build: Callable[[int], Job]) -> tuple[list[list[int]], list[list[int]]]:
    """What ran and what was traced: bytes before and during the steps."""
    ran = [more_than_scalars(each) for each in measured(build, MICRO_BATCH, 2, 2)]
    return ran, [more_than_scalars(each) for each in traced(record(build, MICRO_BATCH, device=cpu()))]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_equal_to_the_byte(name: str):
    ran, seen = both(EXACT[name])
    assert sum(seen[0]) == sum(ran[0])
    assert peak(*seen) == peak(*ran)
    assert seen[1] == without_buffers(ran[1], seen[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutions_hide_their_buffers_alone(name: str):
    build, share = CONVOLUTIONAL[name]
    ran, seen = both(build)
    assert sum(seen[0]) == sum(ran[0])
    assert share <= peak(*seen) / peak(*ran) <= 1


def kept(build: Callable[[int], Job]) -> dict[str, int]:
    """Bytes of activations by module, when the first backward pass begins on a GPU."""
    trace = record(build, MICRO_BATCH, device=cuda((8, 0)))
    begun = next(mark.at for mark in trace.marks if mark.phase == BACKWARD)
    found: dict[str, int] = {}
    for block in alive(trace, begun - 1):
        if block.kind == ACTIVATION:
            top = ".".join(block.module.split(".")[:2])
            found[top] = found.get(top, 0) + block.bytes
    return found


def test_a_resnet_keeps_what_each_convolution_and_norm_reads():
    """Of each convolution its result, which the norm reads, and the rectified one, which the next convolution reads; of
    each norm a mean and a deviation for each channel. The sum of a block is not kept: the rectified one is.
    """
    found = kept(images(ResNetLike))
    whole, half = MICRO_BATCH * 8 * IMAGE**2 * 4, MICRO_BATCH * 16 * (IMAGE // 2) ** 2 * 4
    channels = 2 * 4
    assert found["stem"] + found["norm"] == whole + 8 * channels
    assert found["blocks.0"] == 4 * whole + 2 * 8 * channels
    assert found["blocks.1"] == 4 * half + 2 * 16 * channels


def test_frozen_layers_keep_nothing_for_their_weights():
    """With LoRA a layer keeps two products of rank 4 more. It no longer keeps what its frozen linear layers read: what
    attention saw and what the MLP reads, each as wide as a token, and inside the MLP twice that.
    """
    plain, lora = kept(words(BertLike)), kept(words(lambda: with_lora(BertLike())))
    tokens = MICRO_BATCH * LENGTH
    assert plain["layers.1"] - lora["layers.1"] == tokens * (WIDTH + WIDTH + 2 * WIDTH) * 4 - 2 * tokens * 4 * 4
