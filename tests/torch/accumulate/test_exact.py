"""Exact plans: each update has the target to the sample, and every sample is seen once, in the order of the loader."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gradaccum
from gradaccum.torch.accumulate import AccumulationError, Accumulator, ResumableBatches
from tests.torch.accumulate.memory import Limited

pytestmark = pytest.mark.slow


def made(micro_batch, target, **options):
    plan = gradaccum.plan(micro_batch=micro_batch, num_gpus=1, target_batch=target, rounding="exact")
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return model, Accumulator.from_plan(plan, model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def samples(count):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def train(model, accumulator, loader):
    """The updates, and the samples that each group saw."""
    updates, seen = [], []
    for group in accumulator.groups(loader):
        seen.append([])
        for batch in group:
            seen[-1].append(batch)
            group.backward((model(batch) ** 2).sum(), len(batch))
        updates.append(group.step())
    return updates, seen


def truth(groups):
    model, _ = made(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in groups:
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def parameters(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("target", [5, 6, 7, 9, 13, 16])
@pytest.mark.parametrize("loader", [list, iter], ids=["sized", "unsized"])
def test_each_update_has_the_target_and_each_sample_is_seen_once(target, loader):
    model, accumulator = made(4, target)
    data = samples(70)
    updates, seen = train(model, accumulator, loader(data.split(4)))
    whole, rest = divmod(70, target)
    assert [each.effective_batch for each in updates] == [target] * whole + [rest] * (rest > 0)
    assert torch.equal(torch.cat([batch for group in seen for batch in group]), data)
    assert max(len(batch) for group in seen for batch in group) <= 4
    assert max(len(group) for group in seen) <= -(-target // 4) + 1
    assert torch.allclose(parameters(model), truth(data.split(target)), rtol=1e-9, atol=0)
    assert accumulator.progress.samples == 70


@pytest.mark.parametrize("partial", ["carry", "drop"])
def test_the_end_of_a_loader(partial):
    model, accumulator = made(4, 9, partial=partial)
    data = samples(60)
    first, _ = train(model, accumulator, data[:30].split(4))
    second, _ = train(model, accumulator, data[30:].split(4))
    applied = [each.effective_batch for each in first + second if each.applied]
    if partial == "carry":
        assert applied == [9] * 6
        assert torch.allclose(parameters(model), truth(data.split(9)[:6]), rtol=1e-9, atol=0)
        assert accumulator.open_micro_batches > 0
    else:
        assert applied == [9] * 6
        kept = [*data[:27].split(9), *data[30:57].split(9)]
        assert torch.allclose(parameters(model), truth(kept), rtol=1e-9, atol=0)


def test_a_carried_group_that_is_whole_only_steps():
    model, accumulator = made(4, 6, partial="carry")
    group = next(accumulator.groups(samples(6).split(4)))
    for batch in group:
        group.backward((model(batch) ** 2).sum(), len(batch))
    saved = accumulator.state_dict()
    again, other = made(4, 6, partial="carry")
    other.load_state_dict(saved)
    updates, seen = train(again, other, [])
    assert [(each.applied, each.effective_batch) for each in updates] == [(True, 6)]
    assert seen == [[]]
    assert torch.allclose(parameters(again), truth([samples(6)]), rtol=1e-9, atol=0)


def test_memory_that_runs_out():
    model, accumulator = made(4, 7)
    limited = Limited("backward", 2)
    with pytest.warns(UserWarning, match="split in 2"):
        updates = list(
            accumulator.run(samples(24).split(4), lambda batch: ((limited(model(batch)) ** 2).sum(), len(batch)))
        )
    assert [each.effective_batch for each in updates] == [7, 7, 7, 3]
    assert torch.allclose(parameters(model), truth(samples(24).split(7)), rtol=1e-9, atol=0)


def test_batches_that_cannot_be_cut():
    model, accumulator = made(4, 7)
    with pytest.raises(AccumulationError, match="unknown number of samples in no rows"):
        train(model, accumulator, [None])
    accumulator.discard()
    with pytest.raises(AccumulationError, match="9 samples in 4 rows"):
        next(iter(next(accumulator.groups(samples(8).split(4), count=lambda batch: 9))))


def test_plans_that_cannot_be_run_exactly(two_ranks):
    plan = gradaccum.plan(micro_batch=4, num_gpus=2, target_batch=13, rounding="exact")
    model = fully_shard(nn.Linear(2, 2), mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(AccumulationError, match="a sharded model's passes"):
        Accumulator.from_plan(plan, model, torch.optim.SGD(model.parameters()))
    model = DistributedDataParallel(nn.Linear(2, 2))
    one = gradaccum.plan(micro_batch=4, num_gpus=2, target_batch=1, rounding="exact")
    with pytest.raises(AccumulationError, match="plan with num_gpus=1"):
        Accumulator.from_plan(one, model, torch.optim.SGD(model.parameters()))


def test_a_carried_group_that_no_rank_can_fill(two_ranks):
    plan = gradaccum.plan(micro_batch=4, num_gpus=2, target_batch=13, rounding="exact")
    model = DistributedDataParallel(nn.Linear(3, 1).double())
    accumulator = Accumulator.from_plan(plan, model, torch.optim.SGD(model.parameters()), partial="carry")
    other_rank = iter([1, 0, 0, 1])  # it gives to the first group, waits for no sample of the next, and has a batch
    accumulator.sync.gather = lambda value, device: [value, next(other_rank)]
    with pytest.raises(AccumulationError, match="as many samples on all ranks"):
        train(model, accumulator, samples(6).split(4))


def test_a_restart_begins_behind_the_last_sample_of_an_open_group():
    data = samples(70)

    def batches(accumulator):
        order = ResumableBatches(70, 4, shuffle=False, world=1, rank=0)
        order.resume(accumulator)
        return [data[index] for index in order]

    model, accumulator = made(4, 7)
    seen = 0
    for group in accumulator.groups(batches(accumulator)):
        for batch in group:
            group.backward((model(batch) ** 2).sum(), len(batch))
            seen += len(batch)
            if seen == 8:  # the rest of the second batch, and it began the second group
                break
        if seen == 8:
            break
        group.step()
    again, other = made(4, 7)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(accumulator.state_dict())
    updates, _ = train(again, other, batches(other))
    assert [each.effective_batch for each in updates] == [7] * 9
    assert torch.allclose(parameters(again), truth(data.split(7)), rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match="is to be restarted"):
        ResumableBatches(70, 4, world=2, rank=0).resume(other)
