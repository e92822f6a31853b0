"""A run that is stopped anywhere and started anew ends with the parameters of one that was not."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader

from gradaccum.torch import AccumulationError, Accumulator, Ramp, ResumableBatches
from gradaccum.torch.accumulate import Progress
from tests.torch.accumulate.training import DATA, Run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("options", [{}, {"accumulate_in": torch.float32}, {"accumulate_in": "kahan"}], ids=str)
@pytest.mark.parametrize("stop_at", [1, 3, 4, 6, 11, 13])
def test_the_same_cut_gives_the_same_bits(stop_at, options):
    dtype = torch.bfloat16 if options else torch.float32
    whole = Run(2, 3, dtype=dtype, **options)
    whole.train(9)
    first = Run(2, 3, dtype=dtype, **options)
    file = first.train(9, stop_at)
    torch.manual_seed(99)  # whatever happens in between
    second = Run(2, 3, dtype=dtype, **options).load(file)
    second.train(9)
    assert torch.equal(second.parameters(), whole.parameters())


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it
@pytest.mark.parametrize(("stop_at", "workers"), [(1, 0), (3, 0), (4, 0), (6, 0), (10, 0), (11, 0), (4, 2)])
def test_a_loader_that_keeps_its_own_position_goes_on_from_there(stop_at, workers):
    """An epoch of 11 micro-batches, in groups of 3. (The order of the next one is torchdata's to keep.)"""
    from torchdata.stateful_dataloader import StatefulDataLoader

    def stateful(run):
        options = {"multiprocessing_context": "fork"} if workers else {}
        own = torch.Generator().manual_seed(5)
        run.loader = StatefulDataLoader(DATA, 2, shuffle=True, generator=own, num_workers=workers, **options)
        return run

    def train(run, stop_at=None):
        seen = 0
        while run.accumulator.progress.updates < 4:
            for group in run.accumulator.groups(run.loader):
                for inputs, targets in group:
                    loss = nn.functional.mse_loss(run.model(inputs), targets)
                    group.backward_mean(loss, len(inputs))
                    seen += 1
                    if seen == stop_at:
                        return run.saved(), pickle.dumps(run.loader.state_dict())
                group.step()
        return None, None

    whole = stateful(Run(2, 3))
    train(whole)
    file, position = train(stateful(Run(2, 3)), stop_at)
    torch.manual_seed(99)  # whatever happens in between
    second = stateful(Run(2, 3).load(file))
    second.loader.load_state_dict(pickle.loads(position))
    train(second)
    assert torch.equal(second.parameters(), whole.parameters())


@pytest.mark.parametrize(("micro_batch", "accum_steps"), [(1, 6), (3, 2), (6, 1)])
@pytest.mark.parametrize("stop_at", [6, 8])
def test_another_cut_goes_on_from_the_boundary_with_the_same_samples(micro_batch, accum_steps, stop_at):
    whole = Run(2, 3, dropout=0.0, dtype=torch.float64)
    whole.train(9)
    file = Run(2, 3, dropout=0.0, dtype=torch.float64).train(9, stop_at)
    other = Run(micro_batch, accum_steps, dropout=0.0, dtype=torch.float64).load(file, group=False)
    assert other.batches.position == (stop_at - 1) // 3 * 6
    other.train(9)
    assert torch.allclose(other.parameters(), whole.parameters(), rtol=1e-9, atol=1e-12)


def test_distributed_checkpoints_take_it(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        first = Run(2, 3)
        first.train(2)
        dcp.save({"accumulator": first.accumulator.state_dict()}, checkpoint_id=tmp_path / "saved")
        second = Run(2, 3)
        into = {"accumulator": second.accumulator.state_dict()}
        dcp.load(into, checkpoint_id=tmp_path / "saved")
        second.accumulator.load_state_dict(into["accumulator"])
        assert second.accumulator.progress == first.accumulator.progress == Progress(updates=2, samples=12, weight=12)
    finally:
        dist.destroy_process_group()


def test_what_cannot_be_saved_or_loaded():
    run = Run(2, 3)
    group = next(run.accumulator.groups(DataLoader(DATA, batch_sampler=run.batches)))
    for inputs, _ in group:
        with pytest.raises(AccumulationError, match="has no answer yet"):
            run.accumulator.state_dict()
        group.backward(run.model(inputs).sum(), 1)
        saved = run.accumulator.state_dict()
        break
    with pytest.raises(AccumulationError, match="version 2"):
        run.accumulator.load_state_dict({**saved, "version": 2})
    with pytest.raises(AccumulationError, match="by 2 ranks, and 1 are there"):
        run.accumulator.load_state_dict({**saved, "world": 2})
    run.accumulator.load_state_dict({**saved, "world": 2}, group=False)
    assert run.accumulator.open_micro_batches == 0
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        model = fully_shard(nn.Linear(2, 2), mesh=init_device_mesh("cpu", (2,)))
        deferred = Accumulator(model, torch.optim.SGD(model.parameters()), accum_steps=2, reduce="last")
        deferred.sync.gather = lambda value, device: [value, value]
        group = next(deferred.groups([torch.ones(1, 2)] * 2))
        next(iter(group))
        group.backward(model(torch.ones(1, 2)).sum(), 1)
        with pytest.raises(AccumulationError, match="unsharded gradients"):
            deferred.state_dict()
    finally:
        dist.destroy_process_group()


# Batches


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_batch", [1, 2, 7])
@pytest.mark.parametrize("position", [0, 6, 22, 30])
def test_all_ranks_together_take_the_order_that_one_would(world, micro_batch, position):
    alone = [each for batch in ResumableBatches(22, 1, seed=8, position=position) for each in batch]
    ranks = [ResumableBatches(22, micro_batch, seed=8, rank=r, world=world, position=position) for r in range(world)]
    lengths = [len(each) for each in ranks]
    shares = [list(each) for each in ranks]
    assert [len(each) for each in shares] == lengths
    steps = [[each for share in shares if step < len(share) for each in share[step]] for step in range(max(lengths))]
    assert [each for step in steps for each in step] == alone
    assert all(len(step) == micro_batch * world for step in steps[:-1])
    assert {each.position for each in ranks} == {(position // 22 + 1) * 22}
    options = {"world": world, "position": position, "drop_last": True}
    whole = [ResumableBatches(22, micro_batch, rank=rank, **options) for rank in range(world)]
    assert len({len(each) for each in whole} | {len(list(each)) for each in whole}) == 1


def test_epochs_have_orders_of_their_own_unless_nobody_shuffles():
    batches = ResumableBatches(22, 22)
    first, second = next(iter(batches)), next(iter(ResumableBatches(22, 22, position=22)))
    assert first != second
    assert sorted(first) == sorted(second) == next(iter(ResumableBatches(22, 22, shuffle=False)))
    with pytest.raises(ValueError, match="rank 2 of 2"):
        ResumableBatches(22, 2, rank=2, world=2)


def test_samples_that_nobody_counted_are_not_resumed():
    run = Run(2, 3)
    for group in run.accumulator.groups([torch.ones(1, 5)] * 3, count=lambda batch: None):
        for x in group:
            group.backward(run.model(x).sum(), 1)
        group.step()
    assert run.accumulator.progress == Progress(updates=1, samples=None, weight=3)
    with pytest.raises(ValueError, match="not known"):
        run.batches.resume(run.accumulator)


# Ramps


def test_a_ramp_grows_with_what_was_consumed_and_survives_a_restart():
    ramp = Ramp([(0, 1), (4, 2), (12, 4)])
    whole = Run(2, ramp)
    sizes = []
    for group in whole.accumulator.groups([torch.ones(2, 5)] * 14):
        for x in group:
            group.backward(whole.model(x).sum(), 2)
        sizes.append(group.step().effective_batch)
    assert sizes == [2, 2, 4, 4, 8, 8]
    again = Run(2, ramp)
    again.accumulator.load_state_dict(whole.accumulator.state_dict())
    assert again.accumulator.accum_steps == 4
    assert Ramp([(0, 1), (100, 8)], in_weight=True)(Progress(samples=None, weight=100)) == 8


def test_ramps_that_mean_nothing():
    for stages in ([], [(1, 2)], [(0, 1), (0, 2)], [(0, 0)]):
        with pytest.raises(ValueError, match="begin at 0"):
            Ramp(stages)
    with pytest.raises(ValueError, match="needs their number"):
        Ramp([(0, 1)])(Progress(samples=None))
    run = Run(2, lambda progress: 0)
    with pytest.raises(AccumulationError, match="accum_steps says 0"):
        next(run.accumulator.groups([1]))
