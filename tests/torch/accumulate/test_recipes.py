"""The recipes of docs/recipes.md with the libraries themselves, and what the accumulator does with what they wrap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from gradaccum.torch.accumulate import AccumulationError, Accumulator
from tests.torchrun import ROOT, torchrun

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parent / "recipes_worker.py"


def test_on_one_process_each_recipe_trains_as_one_big_batch(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "error", str(WORKER), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads((tmp_path / "0.json").read_text())
    assert {name: each["apart"] < 1e-5 for name, each in said.items()} == {
        "Accelerate": True,
        "Fabric": True,
        "causal LM": True,
    }, said
    assert said["Accelerate"]["wrappers"] == ["Linear", "AcceleratedOptimizer"]
    assert said["Fabric"]["wrappers"] == ["_FabricModule", "FabricAdamW"]


def test_on_two_ranks_too(tmp_path):
    torchrun(2, str(WORKER), str(tmp_path))
    for rank in range(2):
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert {name: (each["apart"] < 1e-5, each["ranks"]) for name, each in said.items()} == {
            "Accelerate": (True, 2),
            "Fabric": (True, 2),
        }, said
        assert said["Accelerate"]["wrappers"] == ["DistributedDataParallel", "AcceleratedOptimizer"]
        assert said["Fabric"]["wrappers"] == ["_FabricModule", "FabricAdamW"]


def test_fabrics_mixed_precision_says_itself_that_the_backward_pass_is_not_its_own():
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    model = nn.Linear(2, 2)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters()))
    group = next(Accumulator(model, optimizer, accum_steps=1).groups([torch.ones(1, 2)]))
    loss = model(next(iter(group))).sum()
    with pytest.raises(RuntimeError, match=r"fabric\.backward"):
        group.backward(loss, 1)


def test_a_boundary_of_accelerates_own_does_not_hold_a_step_back():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=8)
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
    with accelerator.accumulate(model):  # of another loop: its state is that of the process
        pass
    assert not accelerator.sync_gradients
    for group in Accumulator(model, optimizer, accum_steps=2).groups([torch.ones(1, 1), torch.full((1, 1), 3.0)]):
        for x in group:
            group.backward(model(x).sum(), 1)
        assert group.step().applied
    assert -model.weight.item() == 2
    assert model.weight.grad is None


def test_an_optimizer_around_another_is_stepped_itself_and_sees_divided_gradients():
    class Watching(torch.optim.Optimizer):
        """Hands through what it does not have, as wrappers do."""

        def __init__(self, inside):
            self.optimizer = inside
            self.seen = []

        def __getattr__(self, name):
            return getattr(self.__dict__["optimizer"], name)

        def zero_grad(self, set_to_none=True):
            self.optimizer.zero_grad(set_to_none)

        def step(self, closure=None):
            self.seen += [each.grad.item() for group in self.param_groups for each in group["params"]]
            self.optimizer.step()

    model = nn.Linear(1, 1, bias=False)
    optimizer = Watching(torch.optim.AdamW(model.parameters(), fused=True))
    assert optimizer._step_supports_amp_scaling
    for group in Accumulator(model, optimizer, accum_steps=2, clip_norm=100).groups([torch.ones(1, 1)] * 2):
        for x in group:
            group.backward(model(3 * x).sum(), 1 + group.sums.micro_batches)
        group.step()
    assert optimizer.seen == pytest.approx([2.0])


def test_ddp_is_found_inside_of_other_wrappers_and_has_to_hold_what_is_trained():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        inside = DistributedDataParallel(nn.Linear(2, 2))
        for wrapped in (torch.compile(inside, backend="eager"), nn.Sequential(inside)):
            sync = Accumulator(wrapped, torch.optim.SGD(wrapped.parameters()), accum_steps=2).sync
            assert (sync.kind, sync.world, list(sync.models)) == ("ddp", 2, [inside])
        half = nn.Sequential(inside, nn.Linear(2, 2))
        with pytest.raises(AccumulationError, match="2 of the optimizers' 4 parameters are none of the models'"):
            Accumulator(half, torch.optim.SGD(half.parameters()), accum_steps=2)
    finally:
        dist.destroy_process_group()
