"""Small training steps, and what a run of them on the CPU allocates: the truth that a trace is held against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.checkpoint import checkpoint

from gradaccum.torch.trace import Job, Trace

if TYPE_CHECKING:
    from collections.abc import Callable

    Build = Callable[[int], Job]

WIDTH, LENGTH, WORDS = 32, 16, 96
"""Of a hidden state, of a sequence and of the vocabulary."""

HOST_SCALAR = 8
"""Bytes. A number in an expression (`x * 2`) becomes a tensor of one element inside ATen (ScalarOps.cpp:
wrapped_scalar_tensor), converted to the other's dtype by the kernel; no operator shows it. On a GPU it stays on the
host. So blocks of at most one element are left out on both sides."""


class Attention(nn.Module):
    """Four heads. how: `sdpa`, `grouped`, `mask`, `eager`, `math` (what PyTorch runs without a fused kernel)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.inner = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.outer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        batch, length, _ = x.shape
        query, key, value = (each.view(batch, length, 4, -1).transpose(1, 2) for each in self.inner(x).chunk(3, dim=-1))
        if self.how == "eager":
            scores = query @ key.transpose(-2, -1) / 8**0.5
            hidden = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            seen = functional.softmax(scores.masked_fill(hidden, -1e9), dim=-1) @ value
        elif self.how == "mask":
            mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        elif self.how == "grouped":
            key, value = key[:, :2], value[:, :2]
            seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        elif self.how == "math":
            with sdpa_kernel(SDPBackend.MATH):
                seen = functional.scaled_dot_product_attention(
                    query, key[:, :2], value[:, :2], is_causal=True, enable_gqa=True
                )
        else:
            seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.outer(seen.transpose(1, 2).reshape(batch, length, -1))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(WIDTH, 80), nn.Linear(WIDTH, 80), nn.Linear(80, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, how: str = "sdpa", norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm, self.attention = norm(WIDTH), Attention(how)
        self.second, self.gated = norm(WIDTH), Gated()

    def forward(self, x: Any) -> Any:
        x = x + self.attention(self.norm(x))
        return x + self.gated(self.second(x))


class Lora(nn.Module):
    """A frozen linear layer and a trained low-rank one beside it."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Any) -> Any:
        return self.base(x) + (x @ self.a.t()) @ self.b.t() * 2


class Language(nn.Module):
    """Embedding, blocks, head. keep: `all`, or `checkpoint`, `reentrant`: recompute each block.

    The state of the random generator, which checkpointing may keep, is a tensor on the host whatever the device.
    """

    def __init__(self, how: str = "sdpa", blocks: int = 2, keep: str = "all", tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block(how) for _ in range(blocks))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.keep = keep
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, words: Any) -> Any:
        x = self.embedding(words)
        for block in self.blocks:
            if self.keep == "all":
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.keep == "reentrant", preserve_rng_state=False)
        return self.head(x)


def job(
    module: nn.Module,
    batch: Any,
    loss: Callable[[Any], Any],
    optimizer: Callable[[Any], torch.optim.Optimizer] = torch.optim.AdamW,
    update: Callable[[Job], object] | None = None,
) -> Job:
    made = optimizer([each for each in module.parameters() if each.requires_grad])
    step = Job(module=module, optimizer=made, step=lambda: loss(module(batch)).backward(), batch=batch)
    if update is None:
        return step
    return Job(module=module, optimizer=made, step=step.step, batch=batch, update=lambda: update(step))


def dense(module: Callable[[], nn.Module], loss: Any = None, **options: Any) -> Build:
    """A module that takes (micro_batch, LENGTH, WIDTH)."""
    return lambda micro_batch: job(
        module(), torch.randn(micro_batch, LENGTH, WIDTH), loss or (lambda y: y.pow(2).mean()), **options
    )


def words(module: Callable[[], nn.Module], **options: Any) -> Build:
    """A language model: words in, cross-entropy out."""

    def build(micro_batch: int) -> Job:
        batch = torch.randint(0, WORDS, (micro_batch, LENGTH))
        return job(module(), batch, lambda y: functional.cross_entropy(y.flatten(0, 1), batch.flatten()), **options)

    return build


# The run


def measured(build: Build, micro_batch: int, accum_steps: int, updates: int) -> tuple[list[int], list[int]]:
    """Bytes allocated (positive) and freed (negative) while the job is built and while it runs, in order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        made = build(micro_batch)
        with record_function("the step"):
            for _ in range(updates):
                for _ in range(accum_steps):
                    made.step()
                if made.update is not None:
                    made.update()
                else:
                    made.optimizer.step()
                    made.optimizer.zero_grad()
    events = profiler.profiler.kineto_results.events()
    (begun,) = (event.start_ns() for event in events if event.name() == "the step")
    memory = sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns())
    before = [event.nbytes() for event in memory if event.start_ns() < begun]
    return before, [event.nbytes() for event in memory if event.start_ns() >= begun]


def traced(trace: Trace) -> tuple[list[int], list[int]]:
    """The same of a trace."""
    sizes = [trace.blocks[event].bytes if event >= 0 else -trace.blocks[~event].bytes for event in trace.events]
    return sizes[: trace.num_setup], sizes[trace.num_setup :]


def more_than_scalars(sizes: list[int]) -> list[int]:
    return [size for size in sizes if abs(size) > HOST_SCALAR]


def without_buffers(ran: list[int], seen: list[int]) -> list[int]:
    """`ran` without what is allocated and freed again before anything happens that the trace has seen: the buffers
    inside one operator. Where the two cannot be matched that way, what is left of `ran` from there on is kept.
    """
    kept: list[int] = []
    place = 0
    while place < len(ran):
        if len(kept) < len(seen) and ran[place] == seen[len(kept)]:
            kept.append(ran[place])
            place += 1
            continue
        balance = after = 0
        while place + after < len(ran) and (after == 0 or balance > 0):
            balance += ran[place + after]
            after += 1
        if balance != 0:
            return kept + ran[place:]
        place += after
    return kept


def peak(before: list[int], during: list[int]) -> int:
    """The most that is alive during the second, in bytes; what is alive after the first counts."""
    live = most = sum(before)
    for size in during:
        live += size
        most = max(most, live)
    return most
