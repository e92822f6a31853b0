"""A training step of an 8-billion-parameter Llama, written in plain modules, followed by one engine; JSON on stdout.

    python -m benchmarks.llama_step trace|fit|memtracker

Each engine runs in a process of its own, so that its memory is its own too. The step is the same for all: bf16 weights,
two sequences of 2,048 tokens, two micro-steps, two updates of AdamW in its foreach form.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS, WIDTH, INNER, HEADS, KEY_HEADS, WORDS, LENGTH = 32, 4096, 14_336, 32, 8, 128_256, 2048
"""Llama 3.1 8B, with sequences of 2,048 tokens."""
MICRO_BATCH, ACCUM_STEPS, UPDATES = 2, 2, 2


class Attention(nn.Module):
    """Grouped keys and values, causal."""

    def __init__(self) -> None:
        super().__init__()
        width = WIDTH // HEADS * KEY_HEADS
        self.query, self.output = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.key, self.value = nn.Linear(WIDTH, width, bias=False), nn.Linear(WIDTH, width, bias=False)

    def forward(self, x: Any) -> Any:
        """x: (batch, length, WIDTH)."""
        heads = ((self.query, HEADS), (self.key, KEY_HEADS), (self.value, KEY_HEADS))
        query, key, value = (layer(x).unflatten(-1, (count, -1)).transpose(1, 2) for layer, count in heads)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.output(seen.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Any) -> Any:
        """x: (batch, length, WIDTH)."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """Attention and MLP, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.RMSNorm(WIDTH), Attention()
        self.second, self.gated = nn.RMSNorm(WIDTH), Gated()

    def forward(self, x: Any) -> Any:
        """x: (batch, length, WIDTH)."""
        x = x + self.attention(self.norm(x))
        return x + self.gated(self.second(x))


class Llama(nn.Module):
    """Words in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(WORDS, WIDTH), nn.RMSNorm(WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, words: Any) -> Any:
        """words: (batch, length)."""
        x = self.embedding(words)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def loss_of(logits: Any, words: Any) -> Any:
    """Cross-entropy in fp32."""
    return functional.cross_entropy(logits.float().flatten(0, 1), words.flatten())


def build(micro_batch: int) -> Any:
    """As a person would hand it to `gradaccum fit --model benchmarks.llama_step:build`."""
    words = torch.zeros(micro_batch, LENGTH, dtype=torch.int64)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # a fake tensor cannot be cast where it lies
    try:
        return Llama(), (words, words), loss_of
    finally:
        torch.set_default_dtype(usual)


def trace() -> dict[str, object]:
    """One trace, and its replay."""
    from gradaccum.memory.allocator import Allocator
    from gradaccum.torch.fit.step import from_function
    from gradaccum.torch.trace import cuda, record, replay

    made, _ = from_function(build, "adamw", {})
    peaks = replay(record(made, MICRO_BATCH, device=cuda((9, 0))), Allocator(None))
    return {"allocated_bytes": peaks.allocated, "reserved_bytes": peaks.reserved}


def fit() -> dict[str, object]:
    """The largest micro-batch for an H200, the plan, the ledger and the curve."""
    import gradaccum

    found = gradaccum.fit(model=build, gpu="h200", target_batch=64)
    return {"max_micro_batch": found.max_micro_batch, "traces": list(found.engines[0].traces)}


def memtracker() -> dict[str, object]:
    """PyTorch's own estimator, on the same step; what it calls the peak of the device."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode():
        model, (words, _), loss = build(MICRO_BATCH)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
        tracker = MemTracker()
        tracker.track_external(model, optimizer, words)
        with tracker:
            for _ in range(UPDATES):
                for _ in range(ACCUM_STEPS):
                    logits = model(words)
                    loss(logits, words).backward()
                    tracker.reset_mod_stats()  # without it a second micro-step is refused
                optimizer.step()
                optimizer.zero_grad()
        peak = tracker.get_tracker_snapshot("peak")
    return {"allocated_bytes": max(sizes["Total"] for sizes in peak.values())}


ENGINES: dict[str, Callable[[], dict[str, object]]] = {"trace": trace, "fit": fit, "memtracker": memtracker}


def main() -> None:
    """Run one engine, and say what it found, how long it took and the most memory that its process had."""
    begun, busy = time.perf_counter(), time.process_time()
    found = ENGINES[sys.argv[1]]()
    cost = {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - busy,
        "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps({**found, **cost, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
