"""A trace against a real run of the same step on this CPU: equal to the byte, and in the same order.

The run is recorded by torch's own profiler, which sees every allocation of the CPU allocator. One thread, since some
CPU kernels ask for a buffer for each thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradaccum.torch.trace import cpu, record
from tests.torch.cpu_steps import (
    LENGTH,
    WIDTH,
    WORDS,
    Attention,
    Block,
    Gated,
    Language,
    Lora,
    dense,
    measured,
    more_than_scalars,
    peak,
    traced,
    without_buffers,
    words,
)
from tests.torch.models import Recurrent

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradaccum.torch.trace import Job

pytestmark = pytest.mark.usefixtures("one_thread")

SGD, MOMENTUM = torch.optim.SGD, lambda parameters: torch.optim.SGD(parameters, momentum=0.9)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, WIDTH))


class In16Bits(nn.Module):
    """A module that computes in bfloat16."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.bfloat16()

    def forward(self, x: Any) -> Any:
        return self.inner(x.bfloat16()).float()


def clipped(step: Job) -> None:
    nn.utils.clip_grad_norm_(step.module.parameters(), 1.0)
    step.optimizer.step()
    step.optimizer.zero_grad()


def residual(x: Any) -> Any:
    return x.sigmoid().cumsum(1).sub(x.mean(-1, keepdim=True)).abs().logsumexp(-1).sum()


EXACT: dict[str, Callable[[int], Job]] = {
    "MLP, AdamW": dense(mlp),
    "MLP, SGD": dense(mlp, optimizer=SGD),
    "MLP, SGD with momentum": dense(mlp, optimizer=MOMENTUM),
    "MLP, Adagrad": dense(mlp, optimizer=torch.optim.Adagrad),
    "MLP, RMSprop": dense(mlp, optimizer=torch.optim.RMSprop),
    "MLP, AdamW of many tensors at once": dense(mlp, optimizer=lambda p: torch.optim.AdamW(p, foreach=True)),
    "MLP, clipped": dense(mlp, update=clipped),
    "LayerNorm": dense(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU())),
    "RMSNorm": dense(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.RMSNorm(WIDTH), nn.Tanh())),
    "GroupNorm": dense(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GroupNorm(4, LENGTH))),
    "gated MLP": dense(Gated),
    "dropout": dense(lambda: nn.Sequential(nn.Linear(WIDTH, 64), nn.Dropout(0.1), nn.Linear(64, WIDTH))),
    "attention, eager": dense(lambda: Attention("eager")),
    "attention, flash of the CPU, and MLP": dense(lambda: nn.Sequential(Attention("sdpa"), mlp())),
    "attention, masked, and MLP": dense(lambda: nn.Sequential(Attention("mask"), mlp())),
    "attention, grouped queries, and MLP": dense(lambda: nn.Sequential(Attention("grouped"), mlp())),
    "attention by products": dense(lambda: Attention("math")),
    "attention by products, in 16 bits": dense(lambda: In16Bits(Attention("math"))),
    "block": dense(Block),
    "block with RMSNorm": dense(lambda: Block(norm=nn.RMSNorm)),
    "torch's encoder layer": dense(
        lambda: nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
    ),
    "LoRA": dense(lambda: nn.Sequential(Lora(nn.Linear(WIDTH, 64)), nn.GELU(), Lora(nn.Linear(64, WIDTH)))),
    "a frozen half": dense(lambda: nn.Sequential(mlp().requires_grad_(False), mlp())),
    "mean squared error": dense(mlp, lambda y: functional.mse_loss(y, torch.zeros_like(y))),
    "reductions": dense(lambda: nn.Linear(WIDTH, WIDTH), residual),
    "embedding": words(lambda: nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS))),
    "language model": words(Language),
    "language model, eager attention": words(lambda: Language("eager")),
    "language model, tied": words(lambda: Language(tied=True)),
    "language model, checkpointed": words(lambda: Language(keep="checkpoint", blocks=3)),
    "language model, checkpointed by re-entering": words(lambda: Language(keep="reentrant", blocks=3)),
}


class Image(nn.Module):
    """A convolution, as the input is (micro_batch, LENGTH, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(LENGTH, 24, 3)

    def forward(self, x: Any) -> Any:
        return self.convolution(x).relu()


GAPS: dict[str, tuple[Callable[[int], Job], float, str]] = {
    "attention alone": (
        dense(lambda: Attention("sdpa")),
        0.99,
        "_scaled_dot_product_flash_attention_for_cpu_backward keeps a tile of scores and one of row sums",
    ),
    "binary cross-entropy": (
        dense(mlp, lambda y: functional.binary_cross_entropy_with_logits(y, torch.ones_like(y))),
        1.0,
        "log_sigmoid_forward keeps a buffer on CPUs alone; its backward formula works out of place under a mode",
    ),
    "convolution": (dense(Image), 1.0, "mkldnn_convolution packs its operands"),
    "LSTM": (dense(Recurrent), 0.5, "mkldnn_rnn_layer keeps a workspace; the meta device unrolls the steps"),
}
"""Steps that a trace does not follow to the byte on a CPU: the share of the peak that it finds, and what hides."""


@pytest.mark.slow
@pytest.mark.parametrize("accum_steps", [1, 2])
@pytest.mark.parametrize("name", EXACT)
def test_equal_to_the_byte(name: str, accum_steps: int):
    build = EXACT[name]
    ran = [more_than_scalars(each) for each in measured(build, 3, accum_steps, 2)]
    seen = [more_than_scalars(each) for each in traced(record(build, 3, accum_steps=accum_steps, device=cpu()))]
    assert sum(seen[0]) == sum(ran[0])
    assert peak(*seen) == peak(*ran)
    assert seen[1] == without_buffers(ran[1], seen[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", GAPS)
def test_the_gap_of_what_is_hidden(name: str):
    build, share, _why = GAPS[name]
    ran = [more_than_scalars(each) for each in measured(build, 3, 1, 2)]
    seen = [more_than_scalars(each) for each in traced(record(build, 3, accum_steps=1, device=cpu()))]
    # Were nothing hidden any more, the case would belong above.
    assert seen[1] != without_buffers(ran[1], seen[1]) or peak(*seen) != peak(*ran)
    assert share <= peak(*seen) / peak(*ran) <= 1
