"""Optimizers that hold copies as DeepSpeed's do: stand-ins under its names, in one process."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from gradaccum.torch.audit.watch import watch

STEPS, UPDATES, ROWS, SCALE = 4, 3, 4, 8.0


class DeepSpeedZeroOptimizer:
    """Takes gradients out of the parameters as they come; PyTorch's optimizer steps on a flat copy of each group."""

    def __init__(self, optimizer, threshold=0.1):
        self.optimizer, self.clip_grad, self._global_grad_norm = optimizer, threshold, None
        self.bit16_groups = [group["params"] for group in optimizer.param_groups]
        self.single_partition_of_fp32_groups, self.buffers, self.overflow = [], [], False
        for index, (group, own) in enumerate(zip(optimizer.param_groups, self.bit16_groups, strict=True)):
            flat = torch.cat([each.detach().flatten() for each in own]).requires_grad_()
            self.single_partition_of_fp32_groups.append(flat)
            self.buffers.append(torch.zeros_like(flat))
            group["params"], place = [flat], 0
            for each in own:
                there, here = (SimpleNamespace(start=start, numel=each.numel()) for start in (place, 0))
                each._hp_mapping = SimpleNamespace(
                    param_group_index=index, hp_fragment_address=there, lp_fragment_address=here
                )
                each.register_post_accumulate_grad_hook(self._taking(self.buffers[-1], place))
                place += each.numel()

    def _taking(self, buffer, place):
        def take(parameter):
            buffer[place : place + parameter.numel()] += parameter.grad.flatten()
            parameter.grad = None

        return take

    def step(self):
        if self.overflow:
            return
        norm = torch.cat(self.buffers).norm() / SCALE
        self._global_grad_norm = norm
        groups = self.optimizer.param_groups
        for group, flat, buffer in zip(groups, self.single_partition_of_fp32_groups, self.buffers, strict=True):
            flat.grad = buffer / SCALE / max(1.0, float(norm + 1e-6) / self.clip_grad)
            self.optimizer.param_groups = [group]
            self.optimizer.step()
            flat.grad = None
            buffer.zero_()
        self.optimizer.param_groups = groups
        for flat, own in zip(self.single_partition_of_fp32_groups, self.bit16_groups, strict=True):
            torch.nn.utils.vector_to_parameters(flat.detach(), own)


class FP16_UnfusedOptimizer:  # noqa: N801 - DeepSpeed's name
    """Leaves gradients where they are until its step, which casts, unscales and clips them; its norm is scaled."""

    def __init__(self, optimizer, threshold=0.1):
        self.optimizer, self.clip_grad, self._global_grad_norm = optimizer, threshold, None
        self.loss_scale_config, self.overflow = SimpleNamespace(cur_scale=SCALE), False
        self.fp16_groups = [group["params"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["params"] = [each.detach().clone().requires_grad_() for each in group["params"]]

    def step(self):
        own = [each for group in self.fp16_groups for each in group]
        if not self.overflow:
            self._global_grad_norm = torch.cat([each.grad.flatten() for each in own]).norm()
            times = 1 / SCALE / max(1.0, float(self._global_grad_norm / SCALE + 1e-6) / self.clip_grad)
            copies = [each for group in self.optimizer.param_groups for each in group["params"]]
            for copied, each in zip(copies, own, strict=True):
                copied.grad = each.grad * times
            self.optimizer.step()
            for copied, each in zip(copies, own, strict=True):
                each.data.copy_(copied.detach())
        for each in own:
            each.grad = None


MODULES = {
    DeepSpeedZeroOptimizer: "deepspeed.runtime.zero.stage_1_and_2",
    FP16_UnfusedOptimizer: "deepspeed.runtime.fp16.unfused_optimizer",
}


@pytest.fixture(params=[DeepSpeedZeroOptimizer, FP16_UnfusedOptimizer])
def kind(request, monkeypatch):
    """A stand-in where DeepSpeed's own would have been imported."""
    module = ModuleType(MODULES[request.param])
    setattr(module, request.param.__name__, request.param)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return request.param


def train(kind, spoil=lambda step, holder: None, mean=False, watched=True, handed=lambda holder: None, updates=UPDATES):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5))
    base = torch.optim.AdamW([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 1e-2}])
    holder = kind(base)

    def loop():
        for step in range(STEPS * UPDATES):
            labels = torch.randint(5, (ROWS,))
            if mean:
                labels[: step % STEPS] = -100
            (cross_entropy(model(torch.randn(ROWS, 8)), labels) / STEPS * SCALE).backward()
            spoil(step, holder)
            if step % STEPS == STEPS - 1:
                holder.step()

    if not watched:
        loop()
        return model, None
    with watch(None, handed(holder), target_batch=STEPS * ROWS, updates=updates) as report:
        loop()
    return model, report


def codes(report):
    return [each.code for each in report.findings]


def test_a_right_loop_is_right_and_stays_as_it_is(kind):
    model, report = train(kind)
    assert (report.verdict, report.findings, report.not_seen) == ("right", (), ())
    facts = report.facts
    assert (facts["updates"], facts["optimizers"], facts["clipping"]) == (UPDATES, ["AdamW"], "at the boundary")
    assert facts["micro_batches_per_update"] == STEPS
    weights = [each.weight for update in report.updates for each in update.micro_batches]
    assert weights == pytest.approx([1.0] * STEPS * UPDATES, rel=1e-3)
    alone, _ = train(kind, watched=False)
    assert all(map(torch.equal, model.parameters(), alone.parameters()))


@pytest.mark.parametrize("handed", [lambda holder: holder, lambda holder: holder.optimizer])
def test_it_is_known_by_itself_and_by_what_it_steps(kind, handed):
    _, report = train(kind, handed=handed)
    assert (report.verdict, report.facts["updates"]) == ("right", UPDATES)


def test_only_the_first_updates_are_audited(kind):
    _, report = train(kind, updates=1)
    assert (report.verdict, report.facts["updates"], report.facts["audited_updates"]) == ("right", UPDATES, 1)


def test_a_mean_of_means_is_told(kind):
    assert codes(train(kind, mean=True)[1]) == ["GA103"]


def test_what_was_lost_on_the_way_to_the_copies_is_told(kind):
    def spoil(step, holder):
        if step % STEPS == STEPS - 2:
            for each in getattr(holder, "buffers", None) or [p.grad for group in holder.fp16_groups for p in group]:
                each.zero_()

    report = train(kind, spoil)[1]
    assert codes(report) == ["GA106"]
    assert report.findings[0].evidence["lost"] == STEPS - 1


def test_an_overflow_makes_no_update(kind):
    def spoil(step, holder):
        holder.overflow = step < STEPS
        if step == STEPS - 1:
            for each in getattr(holder, "buffers", ()):
                each.zero_()

    report = train(kind, spoil)[1]
    assert (report.verdict, report.facts["skipped_updates"]) == ("right", 1)
    assert report.facts["updates"] == UPDATES - 1


@pytest.mark.parametrize("kind", [DeepSpeedZeroOptimizer], indirect=True)
def test_copies_that_were_given_something_else_are_not_judged(kind):
    def spoil(step, holder):
        for each in holder.buffers:
            each += torch.randn_like(each)

    report = train(kind, spoil)[1]
    assert report.verdict == "not seen"
    assert report.not_seen == ("what AdamW was given: it is no sum of what the backward passes brought",)


def test_a_scheduler_that_is_older_than_the_copies_is_counted(kind):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 5)
    base = torch.optim.AdamW(model.parameters())
    with watch(target_batch=STEPS * ROWS) as report:
        scheduler = torch.optim.lr_scheduler.LambdaLR(base, lambda step: 1.0)
        holder = kind(base)
        for step in range(STEPS * UPDATES):
            (cross_entropy(model(torch.randn(ROWS, 8)), torch.randint(5, (ROWS,))) / STEPS * SCALE).backward()
            if step % STEPS == STEPS - 1:
                holder.step()
                scheduler.step()
    assert (report.verdict, report.facts["scheduler_steps_per_update"]) == ("right", 1)
