"""Which ranks' weights and samples are counted, where ranks share layers or sequences; what is refused there."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import gradaccum
from gradaccum.torch.accumulate import AccumulationError, Accumulator

pytestmark = pytest.mark.slow


def made(model, **options):
    return Accumulator(model, torch.optim.SGD(model.parameters()), accum_steps=2, **options)


def test_a_mesh_is_a_group(four_ranks):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "cp"))
    assert made(nn.Linear(2, 2), process_group=mesh["dp"]).sync.world == 2
    assert made(nn.Linear(2, 2), process_group=mesh, context_parallel=2).sync.world == 4
    assert made(nn.Linear(2, 2), process_group=mesh["dp"].get_group()).sync.world == 2


def test_tensor_parallel_ranks_that_are_all_there_is_are_no_copies_of_a_model(two_ranks):
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(parallelize_module(nn.Linear(2, 2), mesh, ColwiseParallel()))


def test_partners_layers_are_neither_held_nor_sent(four_ranks):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    plain, sharded = (
        parallelize_module(nn.Linear(25, 10, bias=False), mesh["tp"], ColwiseParallel()) for _ in range(2)
    )
    (after,) = made(plain, process_group=mesh["dp"]).explain()  # 1,000 bytes, of which a rank has half
    assert (after.held_bytes, after.sent_bytes) == (500, 500)
    every = made(fully_shard(sharded, mesh=mesh["dp"])).explain()[0]  # each half in two shards
    assert (every.held_bytes, every.sent_bytes) == (250, 2 * 250)


def test_ranks_that_are_not_the_wrappers(four_ranks):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = DistributedDataParallel(nn.Linear(2, 2))
    assert made(model, process_group=dist.group.WORLD).sync.world == 4
    with pytest.raises(AccumulationError, match=r"has the ranks \[0, 2\], and ddp reduces over \[0, 1, 2, 3\]"):
        made(model, process_group=mesh["dp"])
    with pytest.raises(AccumulationError, match="fsdp2 reduces over"):
        made(fully_shard(nn.Linear(2, 2), mesh=mesh["dp"]), process_group=dist.group.WORLD)


def test_ranks_that_share_sequences_divide_the_others(two_ranks):
    for several in (0, 3):
        with pytest.raises(AccumulationError, match=f"context_parallel={several} does not divide the 2 ranks"):
            made(DistributedDataParallel(nn.Linear(2, 2)), context_parallel=several)


def test_ranks_that_share_sequences_have_the_same(two_ranks):
    """The other rank is not there, so that 3 samples are all that were counted."""
    model = nn.Linear(2, 2)
    accumulator = made(model, process_group=dist.group.WORLD, context_parallel=2)
    group = next(accumulator.groups([torch.ones(2, 2), torch.ones(1, 2)], may_skip=True))
    for x in group:
        group.backward(model(x).sum(), 1)
    with pytest.raises(AccumulationError, match="the 3 samples of all ranks are no multiple of 2"):
        group.step()


def test_a_plan_brings_the_ranks_that_share_sequences(four_ranks):
    model = DistributedDataParallel(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters())
    plan = gradaccum.plan(micro_batch=4, num_gpus=4, context_parallel=2, target_batch=32)
    accumulator = Accumulator.from_plan(plan, model, optimizer)
    assert (accumulator.accum_steps, accumulator.sync.context_parallel) == (4, 2)
    other = gradaccum.plan(micro_batch=4, num_gpus=8, context_parallel=2, target_batch=32)
    with pytest.raises(AccumulationError, match=r"for 4 data-parallel ranks, and 2 are there.*num_gpus=4, or"):
        Accumulator.from_plan(other, model, optimizer)


def test_a_batch_of_split_sequences_is_not_cut(four_ranks):
    model = DistributedDataParallel(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters())
    plan = gradaccum.plan(micro_batch=4, num_gpus=4, context_parallel=2, target_batch=13, rounding="exact")
    with pytest.raises(AccumulationError, match="splits its sequences over 2 ranks, which would have to cut the same"):
        Accumulator.from_plan(plan, model, optimizer)


def test_parts_of_a_model_divide_alike(two_ranks):
    """`set_gradient_divide_factor` reaches the one module that it is called on."""
    mesh = init_device_mesh("cpu", (2,))
    model = nn.Sequential(fully_shard(nn.Linear(2, 2), mesh=mesh), nn.Linear(2, 2))
    fully_shard(model, mesh=mesh)
    model.set_gradient_divide_factor(1.0)
    with pytest.raises(AccumulationError, match="by 1 and 2: set_gradient_divide_factor reaches one module"):
        made(model)
    for each in model.modules():
        if isinstance(each, FSDPModule):
            each.set_gradient_divide_factor(1.0)
    assert made(model).sync.mean_over == 1


def test_parts_of_a_model_that_are_sharded_over_fewer_ranks(four_ranks):
    """As experts are: each divides by its own ranks, until all are told by what."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = nn.Sequential(fully_shard(nn.Linear(2, 2), mesh=mesh["shard"]), nn.Linear(2, 2))
    fully_shard(model, mesh=mesh["replicate", "shard"]._flatten("all"))
    with pytest.raises(AccumulationError, match="by 2 and 4"):
        made(model)
    for each in (model, model[0]):
        each.set_gradient_divide_factor(4.0)
    sync = made(model).sync
    assert (sync.world, sync.mean_over) == (4, 4)


# Plans for the ranks that are there


@pytest.mark.parametrize(
    "inputs",
    [
        {"target_batch": 64},
        {"target_tokens": 64 * 128, "sequence_length": 128},
        {"accum_steps": 2},
        {"target_batch": 63, "rounding": "ceil"},
        {"max_micro_batch": 4, "micro_batch": None, "target_batch": 64},
    ],
    ids=str,
)
def test_fewer_ranks_make_the_same_batch_in_more_steps(two_ranks, inputs):
    model = DistributedDataParallel(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters())
    plan = gradaccum.plan(**{"micro_batch": 4, "num_gpus": 8, **inputs})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Accumulator.from_plan(plan, model, optimizer, elastic=True).accum_steps == 8


def test_where_the_batch_cannot_be_made_the_nearest_is_said(four_ranks):
    model = DistributedDataParallel(nn.Linear(2, 2))
    plan = gradaccum.plan(micro_batch=4, num_gpus=1, target_batch=60)
    words = (
        "sees 64 sequences from here on, and not 60: 4 steps of micro-batch 4 on 4 data-parallel ranks are the nearest"
    )
    with pytest.warns(UserWarning, match=rf"{words}; 5 steps of micro-batch 3 make 60"):
        accumulator = Accumulator.from_plan(plan, model, torch.optim.SGD(model.parameters()), elastic=True)
    assert accumulator.accum_steps == 4


def test_ranks_that_share_layers_or_sequences_are_not_counted_among_them(four_ranks):
    plan = gradaccum.plan(micro_batch=4, num_gpus=16, tensor_parallel=2, context_parallel=2, target_batch=64)
    model = DistributedDataParallel(nn.Linear(2, 2))  # over 2 data-parallel x 2 context-parallel of 8 GPUs
    accumulator = Accumulator.from_plan(plan, model, torch.optim.SGD(model.parameters()), elastic=True)
    assert (plan.accum_steps, accumulator.accum_steps) == (4, 8)
