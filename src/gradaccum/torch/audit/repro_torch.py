"""Faults of a loop in plain PyTorch, each as a script of its own."""

from __future__ import annotations

_TWO_RANKS = """
import os
import subprocess
import sys

import torch
import torch.distributed as dist

if "RANK" not in os.environ:  # start this script on two ranks
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    sys.exit(subprocess.call(start))
dist.init_process_group("gloo")
rank = dist.get_rank()
"""

TORCH = {
    "GA101": '''
"""Not divided: the gradients of two micro-batches are added up."""
import torch

w = torch.nn.Parameter(torch.tensor(0.0))
x = torch.tensor([1.0, 10.0, 100.0, 1000.0])
for part in x.split(2):
    (w * part).mean().backward()
print("wrong", w.grad.item())

w.grad = None
for part in x.split(2):
    ((w * part).mean() / 2).backward()
print("right", w.grad.item())
''',
    "GA102": '''
"""Divided twice: the loss by two micro-batches, and the gradient again."""
import torch

w = torch.nn.Parameter(torch.tensor(0.0))
x = torch.tensor([1.0, 10.0, 100.0, 1000.0])
for part in x.split(2):
    ((w * part).mean() / 2).backward()
print("wrong", (w.grad / 2).item())
print("right", w.grad.item())
''',
    "GA103": '''
"""A mean of means: 2 over one token and 10 over three tokens."""
import torch

w = torch.nn.Parameter(torch.tensor(1.0))
parts = [torch.tensor([2.0]), torch.tensor([10.0, 10.0, 10.0])]
for part in parts:
    ((w * part).mean() / 2).backward()
print("wrong", w.grad.item())

w.grad = None
for part in parts:
    ((w * part).sum() / 4).backward()
print("right", w.grad.item())
''',
    "GA104": '''
"""A mean of means over two ranks: 2 over one token, and 10 over three tokens. DDP takes the mean over ranks."""
'''
    + _TWO_RANKS.lstrip("\n")
    + """

class Scalar(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.w * x


model = torch.nn.parallel.DistributedDataParallel(Scalar())
x = [torch.tensor([2.0]), torch.tensor([10.0, 10.0, 10.0])][rank]
model(x).mean().backward()
wrong, model.module.w.grad = model.module.w.grad.item(), None

total = torch.tensor(float(len(x)))
dist.all_reduce(total)
(model(x).sum() * dist.get_world_size() / total).backward()
if rank == 0:
    print("wrong", wrong)
    print("right", model.module.w.grad.item())
dist.destroy_process_group()
""",
    "GA105": '''
"""Six micro-batches in groups of four: the last group has two, and is divided by four."""
import torch

w = torch.nn.Parameter(torch.tensor(0.0))
x = [10.0**i for i in range(6)]
for i, each in enumerate(x):
    (w * each / 4).backward()
    if (i + 1) % 4 == 0:
        w.grad = None  # after the first update
print("wrong", w.grad.item())

w.grad = None
for each in x[4:]:
    (w * each / 2).backward()
print("right", w.grad.item())
''',
    "GA106": '''
"""Cleared within the group, as by a validation pass that calls zero_grad: two of four micro-batches count."""
import torch

w = torch.nn.Parameter(torch.tensor(0.0))
x = [1000.0, 100.0, 10.0, 1.0]
for i, each in enumerate(x):
    if i == 2:
        w.grad = None
    (w * each / 4).backward()
print("wrong", w.grad.item())

w.grad = None
for each in x:
    (w * each / 4).backward()
print("right", w.grad.item())
''',
    "GA107": '''
"""zero_grad is missing: the second update holds the first one's gradient too."""
import torch

w = torch.nn.Parameter(torch.tensor(0.0))
optimizer = torch.optim.SGD([w], lr=0.1)
for group in ([100.0, 1000.0], [1.0, 10.0]):
    for each in group:
        (w * each / 2).backward()
    optimizer.step()
print("wrong", w.grad.item())

optimizer.zero_grad()
for each in (1.0, 10.0):
    (w * each / 2).backward()
print("right", w.grad.item())
''',
    "GA108": '''
"""zero_grad for each micro-batch: the last one alone is left."""
import torch

w = torch.nn.Parameter(torch.tensor(0.0))
optimizer = torch.optim.SGD([w], lr=0.1)
x = [1.0, 10.0, 100.0, 1000.0]
for each in x:
    optimizer.zero_grad()
    (w * each / 4).backward()
print("wrong", w.grad.item())

optimizer.zero_grad()
for each in x:
    (w * each / 4).backward()
print("right", w.grad.item())
''',
    "GA109": '''
"""The last forward pass is inside no_sync(), its backward pass outside: each rank keeps its own gradient."""
'''
    + _TWO_RANKS.lstrip("\n")
    + """

class Scalar(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        return self.w * x


def gradient(inside):
    model = torch.nn.parallel.DistributedDataParallel(Scalar())
    with model.no_sync():
        model(torch.tensor([1.0, 3.0])[rank]).backward()
        if inside:
            loss = model(torch.tensor([10.0, 30.0])[rank])
    (loss if inside else model(torch.tensor([10.0, 30.0])[rank])).backward()
    return model.module.w.grad.item()


wrong, right = gradient(inside=True), gradient(inside=False)
if rank == 0:
    print("wrong", wrong)
    print("right", right)
dist.destroy_process_group()
""",
    "GA110": '''
"""Clipped after each micro-batch: the gradients (3, 0) and (0, 0.1), a threshold of 1. Shown: the second number."""
import torch

w = torch.nn.Parameter(torch.zeros(2))
parts = [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.1])]
for part in parts:
    ((w * part).sum() / 2).backward()
    torch.nn.utils.clip_grad_norm_([w], 1.0)
print("wrong", w.grad[1].item())

w.grad = None
for part in parts:
    ((w * part).sum() / 2).backward()
torch.nn.utils.clip_grad_norm_([w], 1.0)
print("right", w.grad[1].item())
''',
    "GA111": '''
"""The scheduler steps for each of four micro-batches. Shown: the learning rate after one update; a step halves it."""
import torch


def rate(each_micro_batch):
    w = torch.nn.Parameter(torch.tensor(0.0))
    optimizer = torch.optim.SGD([w], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    for i in range(4):
        (w / 4).backward()
        if i == 3:
            optimizer.step()
        if each_micro_batch or i == 3:
            scheduler.step()
    return scheduler.get_last_lr()[0]


print("wrong", rate(each_micro_batch=True))
print("right", rate(each_micro_batch=False))
''',
    "GA112": '''
"""BatchNorm normalises each micro-batch by itself. Shown: the gradient of its shift."""
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Tanh()).double()
x = torch.tensor([[1.0], [10.0], [100.0], [1000.0]], dtype=torch.float64)
for part in x.split(2):
    (model(part).mean() / 2).backward()
print("wrong", model[0].bias.grad.item())

model.zero_grad()
model(x).mean().backward()
print("right", model[0].bias.grad.item())
''',
    "GA113": '''
"""1024 gradients of 1.0 are added up in bfloat16, which has 8 bits: from 256 on, one more is rounded away."""
import torch

for word, dtype in (("wrong", torch.bfloat16), ("right", torch.float32)):
    w = torch.nn.Parameter(torch.tensor(0.0, dtype=dtype))
    for _ in range(1024):
        w.backward()
    print(word, w.grad.item())
''',
    "GA114": '''
"""The main loss is divided by four, the auxiliary one (coefficient 0.1) is not. Shown: the gradient of the second."""
import torch

w, router = torch.nn.Parameter(torch.tensor(0.0)), torch.nn.Parameter(torch.tensor(0.0))
x = [1.0, 10.0, 100.0, 1000.0]
for each in x:
    (w * each / 4 + 0.1 * router).backward()
print("wrong", router.grad.item())

router.grad = None
for each in x:
    ((w * each + 0.1 * router) / 4).backward()
print("right", router.grad.item())
''',
    "GA115": '''
"""Samples of an update, all of its micro-batches over all ranks, beside those that were wanted."""
effective_batch = 60
target_batch = 64
print("wrong", effective_batch)
print("right", target_batch)
''',
    "GA117": '''
"""Clipped before the loss scale is taken away: the threshold in effect is 1024 times smaller."""
import torch


def clipped(unscale_first):
    w = torch.nn.Parameter(torch.tensor(0.0))
    optimizer = torch.optim.SGD([w], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(10 * w).backward()
    if unscale_first:
        scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_([w], 1.0)
    if not unscale_first:
        scaler.unscale_(optimizer)
    return w.grad.item()


print("wrong", clipped(unscale_first=False))
print("right", clipped(unscale_first=True))
''',
    "GA118": '''
"""A factor that changes within the group, as of a curriculum: its micro-batches weigh 0.1, 0.2, 0.3 and 0.4."""
import torch

w = torch.nn.Parameter(torch.tensor(0.0))
x = [1.0, 10.0, 100.0, 1000.0]
for i, each in enumerate(x):
    (w * each * (i + 1) / 10).backward()
print("wrong", w.grad.item())

w.grad = None
for each in x:
    (w * each / 4).backward()
print("right", w.grad.item())
''',
    "GA119": '''
"""A contrastive loss with in-batch negatives: a micro-batch of two has one negative, the batch of eight seven."""
import torch
from torch.nn.functional import cross_entropy

torch.manual_seed(0)
w = torch.nn.Parameter(torch.tensor(1.0))
one, other = torch.randn(8, 4), torch.randn(8, 4)


def loss(rows):
    return cross_entropy(w * one[rows] @ other[rows].T, torch.arange(len(rows)))


for rows in torch.arange(8).split(2):
    (loss(rows) / 4).backward()
print("wrong", w.grad.item())

w.grad = None
loss(torch.arange(8)).backward()
print("right", w.grad.item())
''',
    "GA120": '''
"""Every micro-batch makes an update. Shown: samples of one update, beside those that were wanted."""
import torch

effective_batch = 2
target_batch = 8
w = torch.nn.Parameter(torch.tensor(0.0))
optimizer = torch.optim.SGD([w], lr=0.1)
parts, updates = torch.arange(float(target_batch)).split(effective_batch), 0
for part in parts:
    (w * part).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    updates += 1
print("wrong", target_batch // updates)
print("right", target_batch)
''',
}
"""Code -> script."""
