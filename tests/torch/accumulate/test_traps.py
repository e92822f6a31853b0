"""What a loop may do and leave: flags as they were, groups that grow, a NaN that is gone with its group."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gradaccum.torch.accumulate import Accumulator
from gradaccum.torch.accumulate.sync import Sync
from tests.torch.accumulate.cases import Case, loss_of, make_model, make_optimizer, micro_batch
from tests.torch.accumulate.traffic import Held

pytestmark = pytest.mark.slow

FLAGS = ("reduce_grads", "all_reduce_grads")


@pytest.mark.parametrize(
    ("shape", "reduce", "inside"),
    [
        ((4,), "last", [(False, False), (True, True)]),
        ((4,), "every", [(True, True), (True, True)]),
        ((2, 2), "hybrid", [(True, False), (True, True)]),
        ((2, 2), "last", [(False, False), (True, True)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("end", ["raise", "break", "end"])
def test_the_flags_of_shards_are_as_they_were_however_a_group_ends(four_ranks, monkeypatch, shape, reduce, inside, end):
    monkeypatch.setattr(Sync, "gather", lambda self, value, device: [value] * self.world)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    for each in (model[0], model[1], model):
        fully_shard(each, mesh=mesh)
    parts = [state._fsdp_param_groups[0] for state in map(type(model)._get_fsdp_state, (model[0], model[1]))]
    parts[0].all_reduce_grads = False  # somebody's own setting
    before = [tuple(getattr(each, name) for name in FLAGS) for each in parts]
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters()), accum_steps=2, reduce=reduce)
    seen = []

    def go():
        for group in accumulator.groups([torch.ones(1, 2)] * 2):
            for x in group:
                seen.append(tuple(getattr(parts[1], name) for name in FLAGS))
                group.backward(model(x).sum(), 1)
                if len(seen) == 2 and end == "raise":
                    raise RuntimeError("mine")
                if len(seen) == 2 and end == "break":
                    return
            group.step()

    if end == "raise":
        with pytest.raises(RuntimeError, match="mine"):
            go()
    else:
        go()
    assert seen == inside
    accumulator.discard()
    assert [tuple(getattr(each, name) for name in FLAGS) for each in parts] == before


def test_a_group_that_grows_is_counted_from_its_own_beginning():
    """4 micro-batches, from the thirteenth on 5: a counter modulo the steps would make groups of 4, 4, 4, 3 and 5."""
    model = nn.Linear(1, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    accumulator = Accumulator(model, optimizer, accum_steps=lambda progress: 4 if progress.samples < 12 else 5)
    sizes, moves = [], []
    for group in accumulator.groups([torch.full((1, 1), float(i), dtype=torch.float64) for i in range(22)]):
        before = model.weight.item()
        for x in group:
            group.backward(model(x).sum(), 1)
        sizes.append(group.step().micro_batches)
        moves.append(before - model.weight.item())
    assert sizes == [4, 4, 4, 5, 5]
    assert moves == pytest.approx([1.5, 5.5, 9.5, 14.0, 19.0])


def test_a_gradient_that_is_not_finite_is_gone_with_its_group():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters(), lr=1.0), accum_steps=2, grad_norm=True)
    applied = []
    for group in accumulator.groups([torch.tensor([[each]]).double() for each in (1.0, math.nan, 2.0, 4.0)]):
        for x in group:
            group.backward(model(x).sum(), 1)
        applied.append(group.step().applied)
    assert applied == [False, True]
    assert -model.weight.item() == 3


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"accumulate_in": torch.float64}], ids=str)
def test_memory_is_flat_in_the_number_of_micro_batches(options):
    case, peaks = Case(dtype=torch.float32), {}
    for steps in (2, 64):
        model = make_model(torch.float32)
        accumulator = Accumulator(model, make_optimizer(case, model), accum_steps=steps, **options)
        batch = micro_batch(case, 0, 0, 0)
        for group in accumulator.groups([batch] * 2 * steps):  # the first makes the optimizer's state
            with Held() as held:
                for each in group:
                    group.backward(*loss_of(model, each))
                group.step()
        peaks[steps] = held.most
    assert peaks[64] == peaks[2] > sum(each.nbytes for each in model.parameters())


def test_what_is_kept_is_seen():
    kept = []
    with Held() as held:
        for _ in range(3):
            kept.append(torch.ones(10) + 1)
        assert (held.now, held.most) == (120, 160)
        del kept[0]
        assert held.now == 80
