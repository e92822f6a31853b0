"""Models in plain PyTorch, so that a GPU, a CPU and a trace run the same code whatever else is installed.

Each takes its batch as keywords and returns its loss. `recompute` wraps the call of a block, to checkpoint it.
Shapes: b sequences or images, s tokens, h width of the residual stream, a heads of width d, e experts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable


def call(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A block's result, without checkpointing."""
    return block(x)


class Attention(nn.Module):
    """Self-attention; with fewer key heads, and with rotary positions, as in Llama. eager: by products and softmax."""

    def __init__(self, width: int, heads: int, key_heads: int, causal: bool, rotary: bool, eager: bool) -> None:
        super().__init__()
        self.heads, self.key_heads, self.causal, self.rotary, self.eager = heads, key_heads, causal, rotary, eager
        self.d = width // heads
        self.inner = nn.Linear(width, (heads + 2 * key_heads) * self.d, bias=not rotary)
        self.outer = nn.Linear(width, width, bias=not rotary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, s, h) to (b, s, h)."""
        b, s, _ = x.shape
        counts = [each * self.d for each in (self.heads, self.key_heads, self.key_heads)]
        query, key, value = (each.view(b, s, -1, self.d).transpose(1, 2) for each in self.inner(x).split(counts, -1))
        if self.rotary:
            query, key = rotated(query), rotated(key)
        if self.key_heads != self.heads:
            key, value = (each.repeat_interleave(self.heads // self.key_heads, 1) for each in (key, value))
        if self.eager:
            scores = query @ key.transpose(-2, -1) * self.d**-0.5
            if self.causal:
                hidden = torch.ones(s, s, dtype=torch.bool, device=x.device).triu(1)
                scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
            seen = functional.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value
        else:
            seen = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.outer(seen.transpose(1, 2).reshape(b, s, -1))


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions (arXiv 2104.09864, eq. 34), the halves of a head turned against each other. x: (b, a, s, d)."""
    s, d = x.shape[-2:]
    rates = 10000 ** (torch.arange(0, d, 2, device=x.device, dtype=torch.float32) / -d)
    angles = torch.outer(torch.arange(s, device=x.device, dtype=torch.float32), rates)
    cos, sin = (torch.cat([each, each], -1).to(x.dtype) for each in (angles.cos(), angles.sin()))
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


class Gelu(nn.Module):
    """The MLP of GPT-2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, s, h) to (b, s, h)."""
        return self.down(functional.gelu(self.up(x), approximate="tanh"))


class Gated(nn.Module):
    """The MLP of Llama."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, s, h) to (b, s, h)."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


CAPACITY = 1.25
"""Of an expert, in even shares of the tokens."""


class Experts(nn.Module):
    """A layer of experts, two for each token, with a fixed capacity, as in GShard (arXiv 2006.16668).

    What is beyond an expert's capacity is dropped, so that every shape follows from the batch.
    """

    def __init__(self, width: int, inner: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.empty(experts, width, inner).normal_(std=0.02))
        self.down = nn.Parameter(torch.empty(experts, inner, width).normal_(std=0.02))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, s, h) to (b, s, h)."""
        tokens, experts = x.reshape(-1, x.shape[-1]), self.up.shape[0]
        capacity = math.ceil(CAPACITY * 2 * tokens.shape[0] / experts)
        shares, chosen = self.router(tokens).softmax(-1).topk(2, -1)
        flat = chosen.reshape(-1)
        before = functional.one_hot(flat, experts).cumsum(0).gather(1, flat[:, None])[:, 0] - 1
        # One row more than there is room for takes all that is dropped.
        slot = torch.where(before < capacity, flat * capacity + before, experts * capacity)
        rows = x.new_zeros(experts * capacity + 1, x.shape[-1])
        rows = rows.index_copy(0, slot, tokens.repeat_interleave(2, 0))
        inside = torch.bmm(rows[:-1].view(experts, capacity, -1), self.up)
        outside = torch.bmm(functional.silu(inside), self.down).reshape(experts * capacity, -1)
        outside = torch.cat([outside, torch.zeros_like(outside[:1])])
        back = outside[slot].view(-1, 2, x.shape[-1]) * shares[..., None].to(outside.dtype)
        return back.sum(1).view_as(x)


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and beside the residual stream."""

    def __init__(self, norm: Callable[[int], nn.Module], width: int, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.first, self.attention, self.second, self.mlp = norm(width), attention, norm(width), mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, s, h) to (b, s, h)."""
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class Language(nn.Module):
    """A causal language model: GPT-2's kind, Llama's kind (`rotary`), or one of experts."""

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        words: int,
        *,
        key_heads: int | None = None,
        inner: int = 0,
        experts: int = 0,
        positions: int = 1024,
        rotary: bool = False,
        eager: bool = False,
    ) -> None:
        super().__init__()
        norm: Callable[[int], nn.Module] = nn.RMSNorm if rotary else nn.LayerNorm

        def mlp() -> nn.Module:
            if experts:
                return Experts(width, inner, experts)
            return Gated(width, inner) if inner else Gelu(width)

        self.embedding = nn.Embedding(words, width)
        self.position = None if rotary else nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(
            Block(norm, width, Attention(width, heads, key_heads or heads, True, rotary, eager), mlp())
            for _ in range(layers)
        )
        self.norm = norm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.recompute: Callable[..., torch.Tensor] = call

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss of the next word. input_ids, labels: (b, s)."""
        x = self.embedding(input_ids)
        if self.position is not None:
            x = x + self.position(torch.arange(input_ids.shape[1], device=input_ids.device))
        for block in self.blocks:
            x = self.recompute(block, x)
        logits = self.head(self.norm(x))[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())


class Vision(nn.Module):
    """A vision transformer (arXiv 2010.11929) on images of 224 pixels, with the mean of the patches as the feature."""

    def __init__(self, layers: int, width: int, heads: int, classes: int = 1000, eager: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.position = nn.Parameter(torch.empty(1, 196, width).normal_(std=0.02))
        self.blocks = nn.ModuleList(
            Block(nn.LayerNorm, width, Attention(width, heads, heads, False, False, eager), Gelu(width))
            for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        self.recompute: Callable[..., torch.Tensor] = call

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss. pixel_values: (b, 3, 224, 224), labels: (b,)."""
        x = self.patches(pixel_values).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = self.recompute(block, x)
        return functional.cross_entropy(self.head(self.norm(x).mean(1)).float(), labels)


class Bottleneck(nn.Module):
    """Three convolutions beside a residual (arXiv 1512.03385, figure 5, right)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.Conv2d(before, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
        )
        self.beside: nn.Module = nn.Identity()
        if stride > 1 or before != 4 * width:
            self.beside = nn.Sequential(nn.Conv2d(before, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, before, side, side) to (b, 4 width, side / stride, side / stride)."""
        return functional.relu(self.inside(x) + self.beside(x), inplace=True)


class Residual(nn.Module):
    """ResNet-50 and its like, for 224 pixels: (3, 4, 6, 3) bottlenecks; ResNet-152: (3, 8, 36, 3)."""

    def __init__(self, counts: tuple[int, ...], classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        blocks: list[nn.Module] = []
        before = 64
        for stage, count in enumerate(counts):
            for place in range(count):
                blocks.append(Bottleneck(before, 64 * 2**stage, 2 if stage and not place else 1))
                before = 256 * 2**stage
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(before, classes)
        self.recompute: Callable[..., torch.Tensor] = call

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss. pixel_values: (b, 3, 224, 224), labels: (b,)."""
        x = self.stem(pixel_values)
        for block in self.blocks:
            x = self.recompute(block, x)
        return functional.cross_entropy(self.head(x.mean((2, 3))).float(), labels)


def make(name: str, attention: str) -> nn.Module:
    """A model of cases.PLAIN, on the default device and in the default dtype. KeyError for another name."""
    return _MAKERS[name](attention == "eager")


_MAKERS: dict[str, Callable[[bool], Any]] = {
    "plain-gpt-13m": lambda eager: Language(6, 320, 5, 16384, positions=512, eager=eager),
    "plain-gpt-110m": lambda eager: Language(12, 768, 12, 32000, eager=eager),
    "plain-llama-196m": lambda eager: Language(12, 1024, 16, 32000, key_heads=4, inner=3584, rotary=True, eager=eager),
    "plain-vit-87m": lambda eager: Vision(12, 768, 12, eager=eager),
    "plain-resnet-50": lambda eager: Residual((3, 4, 6, 3)),
    "plain-resnet-152": lambda eager: Residual((3, 8, 36, 3)),
    "plain-moe-92m": lambda eager: Language(8, 512, 8, 32000, inner=1024, experts=8, eager=eager),
}
