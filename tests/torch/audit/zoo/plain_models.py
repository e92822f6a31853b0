"""Plain PyTorch: what a model brings along. Tied weights, adapters, BatchNorm, dropout, recomputing, low precision."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.torch.audit.zoo.loop import Fault, Pen, Truth

PEN = Pen("torch")


def tokens(number: int, batch: int, length: int = 8, vocabulary: int = 16) -> tuple[Tensor, Tensor]:
    """The `number`-th batch of ids, and the same ids one place on."""
    ids = torch.randint(vocabulary, (batch, length + 1), generator=torch.Generator().manual_seed(500 + number))
    return ids[:, :-1], ids[:, 1:]


class Block(nn.Module):
    """Pre-norm attention and a perceptron."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unsqueeze(1) for part in self.c_attn(self.ln_1(x)).chunk(3, -1))
        x = x + self.c_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """nanoGPT in small: forward(idx, targets) gives logits and the mean loss; the head is the embedding."""

    def __init__(self, width: int = 16, layers: int = 2, dropout: float = 0.0, recompute: bool = False) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(16, width), nn.Embedding(8, width)
        self.h = nn.ModuleList(Block(width, dropout) for _ in range(layers))
        self.lm_head = nn.Linear(width, 16, bias=False)
        self.lm_head.weight = self.wte.weight
        nn.init.normal_(self.wte.weight, std=0.02)
        nn.init.normal_(self.wpe.weight, std=0.02)
        self.recompute = recompute

    def forward(self, idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        x = self.wte(idx) + self.wpe.weight[: idx.shape[1]]
        for block in self.h:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.view(-1, 16), targets.reshape(-1), ignore_index=-1)


def _gpt_loss(modules, step: int, micro_steps: int = 4) -> Tensor:
    group = [tokens(micro_steps * step + i, batch=2) for i in range(micro_steps)]
    return modules[0](*(torch.cat(part) for part in zip(*group)))[1]


@PEN.loop(
    "torch-nanogpt",
    target_batch=8,
    truth=Truth(_gpt_loss, updates=4, clip=1.0, rates=(1e-3 / 3, 2e-3 / 3, 1e-3, 5e-4)),
    right={"": "loss / gradient_accumulation_steps, clip at the boundary, the next batch fetched meanwhile"},
    wrong={
        "not-divided": Fault("GA101", "without `loss = loss / gradient_accumulation_steps`; Adam hides it"),
        "iter-each": Fault("GA111", "iter_num += 1 in the micro_step loop: get_lr counts micro-batches"),
        "zero-each": Fault("GA108", "optimizer.zero_grad(set_to_none=True) at the end of the micro_step loop"),
    },
)
def nanogpt(case: str) -> None:
    _nanogpt(case, nullcontext(), grad_clip=1.0)


@PEN.loop(
    "torch-nanogpt-clipped",
    target_batch=8,
    truth=Truth(_gpt_loss, updates=4, clip=0.25),
    right={"": "the same with a norm that clips"},
    wrong={"each": Fault("GA110", "grad_clip moved into the micro_step loop")},
)
def nanogpt_clipped(case: str) -> None:
    _nanogpt("clip-each" if case == "each" else case, nullcontext(), grad_clip=0.25)


@PEN.loop(
    "torch-nanogpt-autocast",
    target_batch=8,
    truth=Truth(lambda modules, step: _autocast_loss(modules, step), updates=4, clip=1.0, tolerance=2e-2),
    right={"": "the same in autocast to bfloat16, fused AdamW"},
    wrong={"divided-twice": Fault("GA102", "divided in the model's loss and in the loop; the clip at 1 stays idle")},
)
def nanogpt_autocast(case: str) -> None:
    _nanogpt(case, torch.autocast("cpu", torch.bfloat16), grad_clip=1.0)


def _autocast_loss(modules, step):
    with torch.autocast("cpu", torch.bfloat16):
        return _gpt_loss(modules, step)


def _nanogpt(case, ctx, grad_clip):
    gradient_accumulation_steps, warmup_iters, lr_decay_iters = 4, 2, 4
    model = GPT()
    decay = [p for p in model.parameters() if p.dim() >= 2]
    no_decay = [p for p in model.parameters() if p.dim() < 2]
    optim_groups = [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(optim_groups, lr=1e-3, betas=(0.9, 0.95), fused=True)

    def get_lr(it: int) -> float:
        if it < warmup_iters:
            return 1e-3 * (it + 1) / (warmup_iters + 1)
        ratio = min(1.0, (it - warmup_iters) / (lr_decay_iters - warmup_iters))
        return 0.5e-3 * (1 + math.cos(math.pi * ratio))

    iter_num, fetched = 0, 0
    x, y = tokens(fetched, batch=2)
    for _update in range(4):
        for group in optimizer.param_groups:
            group["lr"] = get_lr(iter_num)
        for _micro_step in range(gradient_accumulation_steps):
            with ctx:
                _, loss = model(x, y)
                if case != "not-divided":
                    loss = loss / gradient_accumulation_steps
                if case == "divided-twice":
                    loss = loss / gradient_accumulation_steps
            fetched += 1
            x, y = tokens(fetched, batch=2)
            if case == "zero-each":
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if case == "clip-each":
                torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
            iter_num += case == "iter-each"
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        iter_num += case != "iter-each"


@PEN.loop(
    "torch-checkpointing",
    target_batch=8,
    truth=Truth(_gpt_loss, updates=3, clip=0.2),
    right={"": "blocks recomputed in the backward pass, tied head, clip at the boundary"},
    wrong={
        "clip-each": Fault("GA110", "clip_grad_norm_ after each backward"),
        "clip-value-each": Fault("GA110", "clip_grad_value_ after each backward, and the norm at the boundary"),
    },
)
def checkpointing(case: str) -> None:
    model = GPT(recompute=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, 13):
        (model(*tokens(step - 1, batch=2))[1] / 4).backward()
        if case == "clip-value-each":
            torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
        if case == "clip-each" or step % 4 == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        if step % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "torch-dropout",
    target_batch=8,
    right={"": "dropout: each sample has a mask of its own, so no two runs agree, and nothing is wrong"},
    wrong={
        "not-divided": Fault("GA101", "the loss is never divided; dropout is not to blame"),
        "leak": Fault(
            "GA107", "zero_grad at every second update, `if update % 2 == 0`, a line of another loop", "GA101"
        ),
    },
)
def dropout(case: str) -> None:
    model = GPT(dropout=0.2)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for update in range(4):
        for i in range(4):
            _, loss = model(*tokens(4 * update + i, batch=2))
            (loss if case == "not-divided" else loss / 4).backward()
        optimizer.step()
        if case != "leak" or update % 2 == 0:
            optimizer.zero_grad()


class LoRA(nn.Module):
    """A frozen layer and its adapter of rank 2."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, 2, bias=False)
        self.b = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x)) * 2.0


@PEN.loop(
    "torch-lora",
    target_batch=12,
    truth=Truth(lambda modules, step: _gpt_loss(modules, step, micro_steps=6), updates=3),
    right={"": "adapters alone are trained; the optimizer holds nothing else"},
    wrong={
        "zero-each": Fault("GA108", "model.zero_grad() in each micro-batch, optimizer.zero_grad() at the boundary"),
        "not-all-zeroed": Fault("GA107", "zero_grad for one of two parameter groups, by hand"),
    },
)
def lora(case: str) -> None:
    model = GPT().requires_grad_(False)
    for block in model.h:
        block.c_attn = LoRA(block.c_attn)
        block.mlp[0] = LoRA(block.mlp[0])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for i in range(18):
        if case == "zero-each":
            model.zero_grad()
        (model(*tokens(i, batch=2))[1] / 6).backward()
        if (i + 1) % 6 == 0:
            optimizer.step()
            for parameter in trained[::2] if case == "not-all-zeroed" else trained:
                parameter.grad = None


def _convolutions(norm):
    return nn.Sequential(nn.Conv2d(1, 8, 3), norm(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def _pictures(part: slice) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    x, y = torch.randn(24, 1, 6, 6, generator=generator), torch.randint(5, (24,), generator=generator)
    return x[part], y[part]


def _picture_loss(modules, step: int) -> Tensor:
    x, y = _pictures(slice(8 * step, 8 * step + 8))
    return F.cross_entropy(modules[0](x), y)


@PEN.loop(
    "torch-normalisation",
    target_batch=8,
    truth=Truth(_picture_loss, updates=3),
    right={
        "": "GroupNorm: no sample sees another",
        "frozen": "BatchNorm in eval mode, as detectors are fine-tuned",
        "instance": "InstanceNorm without running statistics",
    },
    wrong={"batch": Fault("GA112", "BatchNorm2d in training mode sees 2 samples, not 8 (pytorch-lightning#17446)")},
)
def normalisation(case: str) -> None:
    norms = {"frozen": nn.BatchNorm2d, "batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}
    model = _convolutions(norms.get(case, lambda channels: nn.GroupNorm(2, channels)))
    if case == "frozen":
        model[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(12):
        x, y = _pictures(slice(2 * i, 2 * i + 2))
        (F.cross_entropy(model(x), y) / 4).backward()
        if (i + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


def _outliers(part: slice) -> tuple[Tensor, Tensor]:
    """96 samples for each of 3 updates, the first of them far larger than the others."""
    x = torch.rand(288, 16, generator=torch.Generator().manual_seed(9))
    x[::96] = 450
    return x[part].bfloat16(), torch.full((288, 1), 2.0**16)[part].bfloat16()


def _bf16_loss(modules, step: int) -> Tensor:
    x, y = _outliers(slice(96 * step, 96 * step + 96))
    return F.l1_loss(modules[0](x), y)


@PEN.loop(
    "torch-bf16",
    target_batch=96,
    truth=Truth(_bf16_loss, updates=3, tolerance=6e-3),
    right={"": "bfloat16 weights; the gradients are added up in float32 and handed over once"},
    wrong={"in-place": Fault("GA113", "96 micro-batches added up in a bfloat16 .grad (Megatron-LM#502)")},
)
def bf16(case: str) -> None:
    model = nn.Linear(16, 1).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for start in range(0, 288, 96):
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in model.parameters()]
        for i in range(start, start + 96):
            x, y = _outliers(slice(i, i + 1))
            (F.l1_loss(model(x), y) / 96).backward()
            if case != "in-place":
                for total, parameter in zip(sums, model.parameters()):
                    total += parameter.grad
                    parameter.grad = None
        if case != "in-place":
            for total, parameter in zip(sums, model.parameters()):
                parameter.grad = total.to(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad()


@PEN.loop(
    "torch-compiled",
    target_batch=8,
    right={"": "torch.compile"},
    wrong={"not-divided": Fault("GA101", "never divided, in a compiled model")},
)
def compiled(case: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 5))
    model = torch.compile(net, backend="aot_eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for i in range(12):
        x, y = _pictures(slice(2 * i, 2 * i + 2))
        loss = F.cross_entropy(model(x), y)
        (loss if case == "not-divided" else loss / 4).backward()
        if (i + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


def _bags(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10)
    ids, y = torch.randint(50, (24, 5), generator=generator), torch.rand(24, 1, generator=generator)
    return ids[8 * step : 8 * step + 8], y[8 * step : 8 * step + 8]


@PEN.loop(
    "torch-sparse",
    target_batch=8,
    truth=Truth(lambda modules, step: F.huber_loss(modules[0](_bags(step)[0]), _bags(step)[1]), updates=3),
    right={"": "EmbeddingBag with sparse gradients"},
    wrong={"not-divided": Fault("GA101", "four sparse gradients added up")},
)
def sparse(case: str) -> None:
    model = nn.Sequential(nn.EmbeddingBag(50, 1, mode="sum", sparse=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        ids, y = _bags(step)
        for i in range(0, 8, 2):
            loss = F.huber_loss(model(ids[i : i + 2]), y[i : i + 2])
            (loss if case == "not-divided" else loss / 4).backward()
        optimizer.step()
        optimizer.zero_grad()
