"""Encoders, vision and diffusion models in small, written by hand as the usual libraries write them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tests.torch.cpu_steps import LENGTH, WIDTH, WORDS, Lora

HEADS = 4
IMAGE, PATCH, CHANNELS = 16, 4, 3
"""Pixels of a side of an image and of a patch, and its colours."""


class SelfAttention(nn.Module):
    """Of all tokens with all."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Any) -> Any:
        batch, length, width = x.shape
        query, key, value = (
            each(x).view(batch, length, HEADS, -1).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        seen = functional.scaled_dot_product_attention(query, key, value)
        return self.output(seen.transpose(1, 2).reshape(batch, length, width))


class PostNorm(nn.Module):
    """BERT's layer: a norm behind each residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = SelfAttention(), nn.LayerNorm(WIDTH)
        self.inner, self.outer, self.second = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Any) -> Any:
        x = self.norm(x + self.attention(x))
        return self.second(x + self.outer(functional.gelu(self.inner(x))))


class BertLike(nn.Module):
    """Words, places and kinds of token; a head over the vocabulary behind a dense layer and a norm, its table tied."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.kinds, self.norm = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(PostNorm() for _ in range(layers))
        self.dense, self.head_norm, self.head = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)
        self.head.weight = self.words.weight

    def forward(self, words: Any) -> Any:
        places = torch.arange(words.shape[1], device=words.device)
        x = self.norm(self.words(words) + self.kinds(torch.zeros_like(words)) + self.places(places))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.head_norm(functional.gelu(self.dense(x))))


class PreNorm(nn.Module):
    """ViT's layer: a norm before each part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), SelfAttention()
        self.second, self.inner, self.outer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x: Any) -> Any:
        x = x + self.attention(self.norm(x))
        return x + self.outer(functional.gelu(self.inner(self.second(x))))


class VitLike(nn.Module):
    """Patches, a token of the class, places, layers, classes. convolution: patches by one, as ViT is written."""

    def __init__(self, convolution: bool = False) -> None:
        super().__init__()
        count = (IMAGE // PATCH) ** 2
        self.patches: nn.Module = (
            nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH) if convolution else nn.Linear(CHANNELS * PATCH**2, WIDTH)
        )
        self.of_class, self.places = (
            nn.Parameter(torch.zeros(1, 1, WIDTH)),
            nn.Parameter(torch.zeros(1, count + 1, WIDTH)),
        )
        self.layers = nn.ModuleList(PreNorm() for _ in range(2))
        self.norm, self.classes = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, images: Any) -> Any:
        if isinstance(self.patches, nn.Conv2d):
            x = self.patches(images).flatten(2).transpose(1, 2)
        else:
            cut = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
            x = self.patches(cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))
        x = torch.cat([self.of_class.expand(len(x), -1, -1), x], dim=1) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.classes(self.norm(x)[:, 0])


class Residual(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inside, width, 3, stride, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.norm, self.second_norm = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(inside, width, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Any) -> Any:
        y = functional.relu(self.norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class ResNetLike(nn.Module):
    """A stem, two blocks, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(CHANNELS, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Residual(8, 8, 1), Residual(8, 16, 2))
        self.classes = nn.Linear(16, 10)

    def forward(self, images: Any) -> Any:
        return self.classes(self.blocks(functional.relu(self.norm(self.stem(images)))).mean((2, 3)))


class UNetLike(nn.Module):
    """A diffusion model's: down, attention in the middle, up again beside what was kept; the noise is predicted."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, width, 3, 1, 1)
        self.norm, self.down = nn.GroupNorm(4, width), nn.Conv2d(width, WIDTH, 3, 2, 1)
        self.time, self.middle = nn.Linear(WIDTH, WIDTH), SelfAttention(WIDTH)
        self.up, self.out = nn.ConvTranspose2d(WIDTH, width, 2, 2), nn.Conv2d(2 * width, CHANNELS, 3, 1, 1)

    def forward(self, images: Any, times: Any) -> Any:
        kept = functional.silu(self.norm(self.stem(images)))
        x = self.down(kept) + self.time(times)[:, :, None, None]
        flat = x.flatten(2).transpose(1, 2)
        x = x + self.middle(flat).transpose(1, 2).view_as(x)
        return self.out(torch.cat([self.up(x), kept], dim=1))


def with_lora(module: nn.Module, rank: int = 4) -> nn.Module:
    """Every query and value with a low-rank layer beside it, all else frozen."""
    module.requires_grad_(False)
    for each in list(module.modules()):
        if isinstance(each, SelfAttention):
            each.query, each.value = Lora(each.query, rank), Lora(each.value, rank)
    return module


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, 24, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.lstm(x)[0]
