"""`accumulator.run`: where memory runs out a group begins anew in smaller parts, and equals one concatenated batch."""

from __future__ import annotations

import copy
import gc
import re
import weakref

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gradaccum.torch.accumulate import AccumulationError, Accumulator
from tests.torch.accumulate.memory import Limited, NoMemory

pytestmark = pytest.mark.slow

FITS = 3
"""Samples of the largest part for which there is memory."""


def batches(sizes=(6, 6, 5, 6, 6, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 5, generator=generator, dtype=torch.float64) for size in sizes]


def made(where=None, fits=FITS, **options):
    """A model that runs out of memory above so many samples, its accumulator, and the loss."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    limited = Limited(where, fits)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    accumulator = Accumulator(model, optimizer, **{"accum_steps": 3, "clip_norm": 0.5, **options})

    def loss_of(batch):
        return (limited(model(batch)) ** 2).sum(), len(batch)

    return model, accumulator, loss_of


def truth(groups, clip_norm=0.5):
    """Parameters after one concatenated batch for each of the groups, by hand."""
    model, _, _ = made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for group in groups:
        optimizer.zero_grad()
        (model(torch.cat(group)) ** 2).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
    return [each.detach() for each in model.parameters()]


def off(model, right):
    return max(
        float((ours.detach() - theirs).norm() / theirs.norm())
        for ours, theirs in zip(model.parameters(), right, strict=True)
    )


def run(accumulator, loader, loss_of, **options):
    return list(accumulator.run(loader, loss_of, **options))


def test_without_want_of_memory_it_is_the_loop():
    model, accumulator, loss_of = made()
    updates = run(accumulator, batches(), loss_of)
    assert [(each.effective_batch, each.weight, each.micro_batch_split) for each in updates] == [
        (17, 17, 1),
        (14, 14, 1),
    ]
    assert off(model, truth([batches()[:3], batches()[3:]])) < 1e-9


@pytest.mark.parametrize("where", ["forward", "backward", "allocator"])
@pytest.mark.parametrize("options", [{}, {"accumulate_in": torch.float64}, {"accumulate_in": "kahan"}], ids=str)
def test_the_group_begins_anew_in_halves_and_equals_one_batch(where, options):
    model, accumulator, loss_of = made(where, **options)
    with pytest.warns(UserWarning, match="split in 2 from here on"):
        updates = run(accumulator, batches(), loss_of)
    assert [(each.micro_batches, each.micro_batch_split) for each in updates] == [(3, 2), (3, 2)]
    assert [(each.effective_batch, each.weight) for each in updates] == [(17, 17), (14, 14)]
    assert accumulator.progress.samples == 31
    assert accumulator.progress.updates == 2
    assert off(model, truth([batches()[:3], batches()[3:]])) < 1e-9


def test_it_halves_for_as_long_as_it_has_to_and_what_fits_stays():
    model, accumulator, loss_of = made("backward", fits=1)
    with pytest.warns(UserWarning, match="from here on") as said:
        first = run(accumulator, batches(), loss_of)
    assert [re.search(r"split in (\d)", str(each.message)).group(1) for each in said] == ["2", "4", "8"]
    second = run(accumulator, batches(), loss_of)  # without another warning
    assert {each.micro_batch_split for each in first + second} == {8}
    assert off(model, truth([batches()[:3], batches()[3:]] * 2)) < 1e-9


def test_memory_that_runs_out_in_the_middle_of_a_group_repeats_it():
    model, accumulator, loss_of = made("forward", fits=6)
    loader = batches((2, 6, 9, 4))
    with pytest.warns(UserWarning, match="split in 2"):
        updates = run(accumulator, loader, loss_of)
    assert [each.effective_batch for each in updates] == [17, 4]
    assert off(model, truth([loader[:3], loader[3:]])) < 1e-9


@pytest.mark.parametrize("options", [{}, {"accumulate_in": torch.float64}, {"accumulate_in": "kahan"}], ids=str)
def test_a_carried_group_is_carried_still(options):
    model, accumulator, loss_of = made("backward", fits=4, partial="carry", **options)
    first = run(accumulator, batches((3, 4)), loss_of)
    assert [each.reason for each in first] == ["carried"]
    with pytest.warns(UserWarning, match="split in 2"), pytest.warns(UserWarning, match="split in 4"):
        second = run(accumulator, batches((13,), seed=9), loss_of)
    assert [(each.micro_batches, each.effective_batch) for each in second] == [(3, 20)]
    assert off(model, truth([batches((3, 4)) + batches((13,), seed=9)])) < 1e-9


def test_a_weight_that_ends_a_group_and_a_mean_loss():
    model, accumulator, _ = made(accum_steps=None)
    limited = Limited("forward", FITS)
    with pytest.warns(UserWarning, match="split in 2"):
        updates = run(
            accumulator,
            batches(),
            lambda batch: ((limited(model(batch)) ** 2).mean(), len(batch)),
            mean=True,
            until_weight=12,
        )
    assert [each.weight for each in updates] == [12, 17, 2]
    assert off(model, truth([batches()[:2], batches()[2:5], batches()[5:]])) < 1e-9


class Dropping(nn.Module):
    """Dropout, BatchNorm without its normalising, and a buffer that is replaced in each pass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.5), nn.Linear(16, 1)).double()
        self.norm = nn.BatchNorm1d(5).double()
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.norm(x)
        self.passes = self.passes + 1
        return self.body(x)


def halves(loader):
    return [part for batch in loader for part in batch.tensor_split(2)]


@pytest.mark.filterwarnings("ignore:BatchNorm")
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_recovered_run_has_the_bits_of_one_whose_loader_made_the_halves(where):
    """Random numbers and buffers are those of the group's start: what ran out of memory has left no trace."""
    found = []
    for recovers in (True, False):
        model, limited = Dropping(), Limited(where, FITS)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = batches((6, 6, 6, 6, 6, 6))
        torch.manual_seed(11)
        if recovers:
            accumulator = Accumulator(model, optimizer, accum_steps=3)
            with pytest.warns(UserWarning, match="split in 2"):
                run(
                    accumulator,
                    loader,
                    lambda batch, model=model, limited=limited: ((limited(model(batch)) ** 2).sum(), len(batch)),
                )
        else:
            accumulator = Accumulator(model, optimizer, accum_steps=6)
            for group in accumulator.groups(halves(loader)):
                for batch in group:
                    group.backward((model(batch) ** 2).sum(), len(batch))
                group.step()
        found.append((model.state_dict(), torch.rand(3)))
    (recovered, after), (plain, after_plain) = found
    assert recovered["passes"] == 12
    for name, value in plain.items():
        assert torch.allclose(recovered[name], value, rtol=1e-12, atol=0), name
    assert torch.equal(after, after_plain)


def test_one_part_draws_the_random_numbers_of_the_loop():
    found = []
    for through_run in (True, False):
        model = Dropping().eval()
        model.body.train()
        accumulator = Accumulator(model, torch.optim.SGD(model.parameters(), lr=0.1), accum_steps=3)
        torch.manual_seed(11)
        if through_run:
            run(accumulator, batches(), lambda batch, model=model: ((model(batch) ** 2).sum(), len(batch)))
        else:
            for group in accumulator.groups(batches()):
                for batch in group:
                    group.backward((model(batch) ** 2).sum(), len(batch))
                group.step()
        found.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*found)


def test_what_the_failed_pass_held_is_free_before_the_next():
    model, accumulator, _ = made()
    held, alive = [], []

    def loss_of(batch):
        alive.append([each() is not None for each in held])
        hidden = model(batch)
        held.append(weakref.ref(hidden))
        if len(batch) > FITS:
            raise torch.OutOfMemoryError("none left")
        return (hidden**2).sum(), len(batch)

    gc.disable()  # what is freed is freed by us
    try:
        with pytest.warns(UserWarning, match="split in 2"):
            run(accumulator, batches((6,)), loss_of)
    finally:
        gc.enable()
    assert alive[1] == [False]


def test_a_batch_that_cannot_be_split_further_is_an_error_and_leaves_all_as_it_was():
    model, accumulator, loss_of = made("forward", fits=0)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with (
        pytest.warns(UserWarning, match="split in 2"),
        pytest.raises(AccumulationError, match="cannot be split further") as caught,
    ):
        run(accumulator, batches((2, 2, 2)), loss_of)
    assert "in 2 parts" in str(caught.value)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert accumulator.open_micro_batches == 0
    assert all(each.grad is None for each in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_memory_that_runs_out_in_the_step_is_no_matter_of_the_micro_batch():
    model, _, loss_of = made()
    optimizer = NoMemory(model.parameters(), lr=0.1)
    accumulator = Accumulator(model, optimizer, accum_steps=3)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run(accumulator, batches(), loss_of)
    assert "go on from the last checkpoint" in caught.value.__notes__[0]


def test_in_the_loop_of_ones_own_the_error_names_the_way():
    model, accumulator, loss_of = made("backward")
    group = next(accumulator.groups(batches()))
    loss_sum, weight = loss_of(next(iter(group)))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        group.backward(loss_sum, weight)
    assert "find_micro_batch" in caught.value.__notes__[0]
    accumulator.discard()
    assert all(each.grad is None for each in model.parameters())


def test_another_error_is_raised_on_and_the_run_may_be_called_again():
    model, accumulator, loss_of = made()

    def once(batch):
        if len(batch) == 5:
            raise ValueError("mine")
        return loss_of(batch)

    with pytest.raises(ValueError, match="mine"):
        run(accumulator, batches(), once)
    assert all(each.grad is None for each in model.parameters())
    run(accumulator, batches(), loss_of)
    assert off(model, truth([batches()[:3], batches()[3:]])) < 1e-9


def test_the_loop_may_be_left_after_an_update_and_taken_up_again():
    model, accumulator, loss_of = made()
    loader = iter(batches())
    for update in accumulator.run(loader, loss_of):
        assert update.applied
        break
    run(accumulator, loader, loss_of)
    assert off(model, truth([batches()[:3], batches()[3:]])) < 1e-9


def test_a_split_of_ones_own():
    model, accumulator, _ = made()
    calls = []

    def split(batch, parts):
        calls.append(parts)
        return [{"x": each} for each in batch["x"].chunk(parts)]

    def loss_of(batch):
        if len(batch["x"]) > FITS:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
        return (model(batch["x"]) ** 2).sum(), len(batch["x"])

    with pytest.warns(UserWarning, match="split in 2"):
        run(accumulator, [{"x": each} for each in batches()], loss_of, split=split)
    assert set(calls) == {2}
    assert off(model, truth([batches()[:3], batches()[3:]])) < 1e-9
    for wrong, words in (
        (lambda batch, parts: batch, "returns a list"),
        (lambda batch, parts: [batch] * parts, "together they are"),
    ):
        model, accumulator, loss_of = made("forward")
        with pytest.raises(AccumulationError, match=words):
            run(accumulator, batches(), loss_of, split=wrong)


def test_what_fits_is_kept_over_a_restart_of_the_same_cut():
    _, accumulator, loss_of = made("forward")
    with pytest.warns(UserWarning, match="split in 2"):
        run(accumulator, batches(), loss_of)
    saved = accumulator.state_dict()
    for group, split in ((True, 2), (False, 1)):
        _, again, loss_of = made()
        again.load_state_dict(saved, group=group)
        assert [each.micro_batch_split for each in run(again, batches((1, 1, 1)), loss_of)] == [split]


def test_a_loss_of_another_model():
    _, accumulator, _ = made()
    _, _, loss_of = made()
    with pytest.raises(AccumulationError, match="does not depend on"):
        run(accumulator, batches(), loss_of)


def test_a_sharded_model_says_what_to_do(two_ranks):
    model = fully_shard(nn.Linear(5, 2), mesh=init_device_mesh("cpu", (2,)))
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters()), accum_steps=2)
    accumulator.sync.gather = lambda value, device: [value, value]
    for error, words in ((torch.OutOfMemoryError("none left"), "no rank can repeat"), (ValueError("mine"), "mine")):

        def loss_of(batch, error=error):
            raise error

        with pytest.raises((AccumulationError, ValueError), match=words):
            run(accumulator, batches(), loss_of)
        accumulator.discard()


def test_a_static_graph_defers_no_reduction(two_ranks):
    static = DistributedDataParallel(nn.Linear(5, 1).double(), static_graph=True)
    accumulator = Accumulator(static, torch.optim.SGD(static.parameters()), accum_steps=2, reduce="every")
    with pytest.raises(AccumulationError, match="wrap without static_graph"):
        run(accumulator, batches(), lambda batch: (static(batch).sum(), len(batch)))
