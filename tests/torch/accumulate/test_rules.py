"""What a group refuses, with advice; what it leaves as it was; and what an update says."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gradaccum
from gradaccum.torch.accumulate import AccumulationError, Accumulator
from gradaccum.torch.accumulate.boundary import noise_scale
from gradaccum.torch.accumulate.sync import Sync

pytestmark = pytest.mark.slow


def scalar():
    """One weight, whose gradient is the mean of what it is multiplied with."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(0.0)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


def powers(count):
    return [torch.tensor([[10.0**i]], dtype=torch.float64) for i in range(count)]


def run(accumulator, model, loader, **options):
    updates = []
    for group in accumulator.groups(loader, **options):
        for x in group:
            group.backward(model(x).sum(), len(x))
        updates.append(group.step())
    return updates


def go(accumulator, loader, answer):
    """As a loop would, with one answer for every micro-batch."""
    for group in accumulator.groups(loader):
        for x in group:
            answer(group, x)
        group.step()


# What is right where others are wrong: reference cases with one weight


def test_a_short_last_group_is_divided_by_its_own_count():
    model, optimizer = scalar()
    assert [each.micro_batches for each in run(Accumulator(model, optimizer, accum_steps=4), model, powers(6))] == [
        4,
        2,
    ]
    assert -model.weight.item() == pytest.approx(1111 / 4 + 110000 / 2, rel=1e-12)


@pytest.mark.parametrize("loader", [list, lambda batches: Unsized(batches)], ids=["sized", "unsized"])
def test_a_carried_group_ends_with_the_micro_batch_that_fills_it(loader):
    model, optimizer = scalar()
    accumulator = Accumulator(model, optimizer, accum_steps=4, partial="carry")
    first, second = [run(accumulator, model, loader(powers(6))) for _ in range(2)]
    assert [each.reason for each in first + second] == ["", "carried", "", ""]
    assert [each.weight for each in second] == [4, 4]


def test_a_mean_over_few_tokens_weighs_as_little_as_they_do():
    model, optimizer = scalar()
    accumulator = Accumulator(model, optimizer, accum_steps=2)
    for group in accumulator.groups([(2.0, 1), (10.0, 3)]):
        for loss, tokens in group:
            group.backward_mean(loss * (1 + model.weight.sum()), tokens)
        update = group.step()
    assert (update.loss, update.weight) == (8.0, 4.0)
    assert -model.weight.item() == pytest.approx(8.0)


def test_a_skipped_micro_batch_is_not_counted():
    model, optimizer = scalar()
    for group in Accumulator(model, optimizer, accum_steps=4).groups(powers(4)):
        for x in group:
            if float(x) == 10:
                group.skip()
            else:
                group.backward(model(x).sum(), 1)
        assert group.step().skipped == 1
    assert -model.weight.item() == pytest.approx(1101 / 3)


def test_a_micro_batch_without_a_target_adds_nothing_and_a_group_without_one_makes_no_update():
    model, optimizer = scalar()
    accumulator = Accumulator(model, optimizer, accum_steps=2)
    nothing = torch.tensor([-100])
    updates = []
    batches = [torch.tensor([0]), nothing, nothing, nothing]
    for group in accumulator.groups(batches):
        for target in group:
            logits = model(torch.ones(1, 1, dtype=torch.float64)).repeat(1, 2)
            group.backward_mean(nn.functional.cross_entropy(logits, target), (target >= 0).sum())
        updates.append(group.step())
    assert [(each.applied, each.reason) for each in updates] == [(True, ""), (False, "no weight")]
    assert updates[0].loss == pytest.approx(math.log(2))
    assert updates[1].loss is None


def test_the_clip_is_of_the_mean_gradient_over_all_optimizers():
    models = [nn.Linear(1, 1, bias=False).double() for _ in range(2)]
    for each in models:
        nn.init.zeros_(each.weight)
    optimizers = [torch.optim.SGD(each.parameters(), lr=1.0) for each in models]
    accumulator = Accumulator(models, optimizers, accum_steps=2, clip_norm=1.0)
    for group in accumulator.groups([(3.0, 0.0), (0.0, 0.1)]):
        for first, second in group:
            group.backward((first * models[0].weight + second * models[1].weight).sum(), 1)
        update = group.step()
    assert update.grad_norm == pytest.approx(math.hypot(1.5, 0.05))
    assert [-each.weight.item() for each in models] == pytest.approx(
        [1.5 / update.grad_norm, 0.05 / update.grad_norm], rel=1e-5
    )


def test_a_sum_in_half_precision_does_not_overflow():
    model = nn.Linear(1, 1, bias=False).half()
    nn.init.zeros_(model.weight)
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters(), lr=1.0), accum_steps=8)
    for group in accumulator.groups([torch.full((1, 1), 3e4, dtype=torch.float16)] * 8):
        for x in group:
            group.backward(model(x).float().sum(), 1)
        group.step()
    assert -model.weight.item() == pytest.approx(3e4, rel=1e-3)  # and their sum is 240,000, beyond fp16


def test_a_scaler_unscales_once_and_backs_off_once():
    model, optimizer = scalar()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    accumulator = Accumulator(model, optimizer, accum_steps=2, scaler=scaler)
    updates, scales = [], []
    for group in accumulator.groups(
        [torch.tensor([[each]], dtype=torch.float64) for each in (1, 3, 1, math.inf, 5, 7, 1, 1)]
    ):
        for x in group:
            group.backward(model(x).sum(), 1)
        before = model.weight.item()
        updates.append(group.step())
        scales.append((scaler.get_scale(), before - model.weight.item()))
    assert [each.reason for each in updates] == ["", "non-finite gradient", "", ""]
    assert scales == [(2.0**10, 2.0), (2.0**9, 0.0), (2.0**9, 6.0), (2.0**10, 1.0)]


def test_a_scaler_that_is_switched_off_is_none():
    model, optimizer = scalar()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    accumulator = Accumulator(model, optimizer, accum_steps=2, scaler=scaler, grad_norm=True)
    assert [each.reason for each in run(accumulator, model, [*powers(2), torch.tensor([[math.inf]]).double()])] == [
        "",
        "non-finite gradient",
    ]
    assert -model.weight.item() == pytest.approx(5.5)


def test_gradients_are_unscaled_once():
    model, optimizer = scalar()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    accumulator = Accumulator(model, optimizer, accum_steps=2, scaler=scaler)

    def too_early(group, x):
        group.backward(model(x).sum(), 1)
        if float(x) == 10:
            scaler.unscale_(optimizer)

    with pytest.raises(AccumulationError, match="unscaled once"):
        go(accumulator, powers(2), too_early)
    accumulator.discard()
    run(accumulator, model, powers(2))
    assert -model.weight.item() == pytest.approx(5.5)


def test_a_gradient_that_is_not_finite_is_an_error_where_one_is_asked_for():
    model, optimizer = scalar()
    accumulator = Accumulator(model, optimizer, accum_steps=2, nonfinite="raise", grad_norm=True)
    with pytest.raises(AccumulationError, match="no parameter has changed"):
        run(accumulator, model, [torch.tensor([[each]], dtype=torch.float64) for each in (1, math.nan)])
    assert model.weight.item() == 0
    assert run(accumulator, model, powers(2))[0].applied


def test_fp32_gradients_of_a_fused_optimizer_are_divided_in_its_step(monkeypatch):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    passes = []
    monkeypatch.setattr(torch, "_foreach_mul_", lambda *arguments: passes.append(arguments))
    run(Accumulator(model, optimizer, accum_steps=2, clip_norm=0.1), model, [torch.randn(2, 3), torch.randn(5, 3)])
    assert passes == []
    assert not hasattr(optimizer, "grad_scale")


@pytest.mark.parametrize("kept", [None, torch.float32, "kahan"])
def test_a_thousand_gradients_in_bf16_add_up_in_buffers(kept):
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.zeros_(model.weight)
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters(), lr=1.0), accum_steps=1024, accumulate_in=kept)
    for group in accumulator.groups([torch.ones(1, 1, dtype=torch.bfloat16)] * 1024):
        for x in group:
            group.backward(model(x).float().sum(), 1 / 1024)
        group.step()
    assert -model.weight.item() == (1024 if kept else 256)
    accumulator.close()
    model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
    assert model.weight.grad is not None


def test_samples_are_counted_apart_and_unknown_where_a_batch_does_not_say():
    model, optimizer = scalar()
    accumulator = Accumulator(model, optimizer, accum_steps=2)
    batches = [{"x": torch.ones(3, 1, dtype=torch.float64), "note": "a"}] * 2
    packed = [{"x": torch.ones(3, 1, dtype=torch.float64), "starts": torch.zeros(2)}] * 2
    for loader, samples in ((batches, 6), (packed, None)):
        for group in accumulator.groups(loader):
            for batch in group:
                group.backward(model(batch["x"]).sum(), 100)
            update = group.step()
        assert (update.effective_batch, update.weight) == (samples, 200)


def test_a_loss_that_is_not_finite_is_left_out_with_its_weight():
    model, optimizer = scalar()
    accumulator = Accumulator(model, optimizer, accum_steps=3, nonfinite_loss="leave_out")
    for answer in ("backward", "backward_mean"):
        for group in accumulator.groups([torch.tensor([[each]], dtype=torch.float64) for each in (1, math.nan, 3)]):
            for x in group:
                getattr(group, answer)((model(x) + x).sum(), 1)
            update = group.step()
        assert (update.skipped, update.weight, update.applied) == (1, 2, True)
    assert -model.weight.item() == pytest.approx(4)


def test_the_noise_scale_of_two_batches():
    assert noise_scale(21, 1, 3, 1 / 10) == pytest.approx(20)  # |G|^2 = 1, tr = 20
    assert noise_scale(3, 1, 3, 1) is None
    assert noise_scale(1, 1, 0, 1 / 10) is None


def test_the_noise_scale_is_in_the_unit_of_the_weight():
    model, optimizer = scalar()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    accumulator = Accumulator(model, optimizer, accum_steps=4, noise_scale=True, scaler=scaler)
    for group in accumulator.groups([torch.tensor([[each], [each]], dtype=torch.float64) for each in (5, 2, 3, 4)]):
        for x in group:
            group.backward(model(x).sum(), 2)
        update = group.step()
    covariance = (5**2 - 3.5**2) / (1 / 2 - 1 / 8)
    assert update.noise_scale == pytest.approx(covariance / (3.5**2 - covariance / 8))


# What is refused, with advice


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accum_steps": 0}, "at least 1"),
        ({"accum_steps": 2.5}, "not 2.5"),
        ({"accum_steps": "4"}, "not '4'"),
        ({"accum_steps": 2, "clip_norm": 0.0}, "above 0"),
        ({"accum_steps": 2, "partial": "keep"}, "partial is one of step, carry, drop"),
        ({"accum_steps": 2, "nonfinite": "stop"}, "nonfinite is one of skip, raise"),
        ({"accum_steps": 2, "reduce": "first"}, "reduce is one of"),
        ({"accum_steps": 2, "accumulate_in": torch.int32}, "floating-point dtype or 'kahan'"),
        ({"accum_steps": 2, "accumulate_in": torch.float32, "scaler": torch.amp.GradScaler("cpu")}, "leave it out"),
    ],
)
def test_options_that_mean_nothing(options, words):
    with pytest.raises(AccumulationError, match=words):
        Accumulator(*scalar(), **options)


def test_a_group_has_a_count_or_a_weight():
    accumulator = Accumulator(*scalar(), accum_steps=2)
    with pytest.raises(AccumulationError, match="or until_weight"):
        next(iter(accumulator.groups([], until_weight=5)))


def test_nothing_to_train():
    model = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(AccumulationError, match="no parameter"):
        Accumulator(model, torch.optim.SGD(model.parameters()), accum_steps=2)


def test_an_optimizer_in_the_backward_pass():
    model, optimizer = scalar()
    model.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(AccumulationError, match="with every micro-batch"):
        Accumulator(model, optimizer, accum_steps=2)
    Accumulator(model, optimizer, accum_steps=1)


def test_batch_norm_that_sees_a_micro_batch_is_warned_of():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.warns(UserWarning, match="no accumulation makes equal"):
        Accumulator(model, optimizer, accum_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Accumulator(model.eval(), optimizer, accum_steps=2)


def test_a_plan_brings_its_steps_and_has_to_be_for_these_ranks():
    plan = gradaccum.plan(micro_batch=4, num_gpus=1, target_batch=32)
    assert Accumulator.from_plan(plan, *scalar(), clip_norm=1.0).accum_steps == 8
    with pytest.raises(AccumulationError, match="for 8 data-parallel ranks, and 1 are there"):
        Accumulator.from_plan(gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=64), *scalar())
    even = gradaccum.plan(micro_batch=4, num_gpus=1, target_batch=32, rounding="exact")
    assert not Accumulator.from_plan(even, *scalar()).cuts_batches


def answered(group, model):
    for x in group:
        group.backward(model(x).sum(), 1)


def test_each_micro_batch_is_answered_once():
    model, optimizer = scalar()
    accumulator = Accumulator(model, optimizer, accum_steps=2)

    def twice(group, x):
        group.backward(model(x).sum(), 1)
        group.skip()

    for answer, words in (
        (lambda group, x: None, "micro-batch 1 of the group got no answer"),
        (twice, "no micro-batch waits"),
        (lambda group, x: group.backward(model(x), 1), "shape"),
        (lambda group, x: group.step(), "has no answer yet"),
    ):
        with pytest.raises(AccumulationError, match=words):
            go(accumulator, powers(2), answer)
        accumulator.discard()
    assert run(accumulator, model, powers(2))[0].applied


def test_a_group_is_gone_through_once_and_steps_once():
    model, optimizer = scalar()
    accumulator = Accumulator(model, optimizer, accum_steps=2)
    group = next(accumulator.groups(powers(2)))
    with pytest.raises(AccumulationError, match="left after 0 micro-batches"):
        group.step()
    answered(group, model)
    with pytest.raises(AccumulationError, match="gone through once"):
        answered(group, model)
    group.step()
    with pytest.raises(AccumulationError, match="has made its step"):
        group.step()


def test_a_group_without_a_step_is_not_forgotten():
    model, optimizer = scalar()
    accumulator = Accumulator(model, optimizer, accum_steps=2)
    groups = accumulator.groups(powers(4))
    answered(next(groups), model)
    with pytest.raises(AccumulationError, match="without step"):
        next(groups)
    with pytest.raises(AccumulationError, match="discard"):
        run(accumulator, model, powers(2))
    accumulator.discard()
    assert model.weight.grad is None
    model.weight.grad = torch.ones_like(model.weight)
    with pytest.raises(AccumulationError, match="before the first micro-batch"):
        run(accumulator, model, powers(2))


def test_a_break_is_the_end_of_a_group_on_one_process():
    model, optimizer = scalar()
    for group in Accumulator(model, optimizer, accum_steps=4).groups(powers(4)):
        for x in group:
            group.backward(model(x).sum(), 1)
            if float(x) == 10:
                break
        update = group.step()
        break
    assert update.micro_batches == 2
    assert -model.weight.item() == pytest.approx(11 / 2)


def test_what_is_no_model_or_not_its_optimizer():
    model, optimizer = scalar()
    with pytest.raises(AccumulationError, match="models come first"):
        Accumulator(optimizer, model, accum_steps=2)
    with pytest.raises(AccumulationError, match="optimizers come second"):
        Accumulator(model, None, accum_steps=2)
    with pytest.raises(AccumulationError, match="1 of the optimizers' 1 parameters are none of the models'"):
        Accumulator(scalar()[0], optimizer, accum_steps=2)
    temperature = nn.Parameter(torch.ones(()))
    optimizer.add_param_group({"params": [temperature]})
    assert repr(Accumulator(model, optimizer, accum_steps=2)) == "<Accumulator: 2 micro-batches, 0 updates>"


def test_a_loss_and_a_weight_are_what_they_say():
    model, optimizer = scalar()
    accumulator = Accumulator(model, optimizer, accum_steps=2)
    with pytest.raises(AccumulationError, match=r"not 1\.5"):
        go(accumulator, powers(2), lambda group, x: group.backward(1.5, 1))
    accumulator.discard()
    for weight in (math.nan, -1):
        with pytest.raises(AccumulationError, match="0 or more"):
            go(accumulator, powers(2), lambda group, x, weight=weight: group.backward(model(x).sum(), weight))
    assert run(accumulator, model, powers(2))[0].applied


def test_gradients_that_are_cleared_within_a_group():
    model, optimizer = scalar()
    accumulator = Accumulator(model, optimizer, accum_steps=3)

    def slip(group, x):
        optimizer.zero_grad()
        group.backward(model(x).sum(), 1)

    with pytest.raises(AccumulationError, match="take zero_grad"):
        go(accumulator, powers(3), slip)
    accumulator.discard()

    def late(group, x):
        group.backward(model(x).sum(), 1)
        if float(x) == 100:
            optimizer.zero_grad()

    with pytest.raises(AccumulationError, match="take zero_grad"):
        go(accumulator, powers(3), late)


class Captured(torch.autograd.Function):
    """Its gradient lies at the same place in each pass, as that of a replayed CUDA graph."""

    place = torch.zeros((), dtype=torch.float64)

    @staticmethod
    def forward(ctx, weight, x):
        ctx.save_for_backward(x)
        return weight * x

    @staticmethod
    def backward(ctx, gradient):
        Captured.place.copy_(gradient * ctx.saved_tensors[0])
        return Captured.place.detach(), None


def captured():
    """One weight, four gradients of .25, and their sum as plain PyTorch makes it."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
    quarters = [torch.tensor([0.25], dtype=torch.float64)] * 4
    for each in quarters:
        Captured.apply(model.weight, each.squeeze()).backward()
    summed, model.weight.grad = model.weight.grad.item(), None
    return model, quarters, summed


def test_gradients_that_the_next_pass_overwrites():
    model, quarters, summed = captured()
    assert summed != 1
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters(), lr=1.0), accum_steps=4)
    with pytest.raises(AccumulationError, match=r"accumulate_in=torch\.float64"):
        go(accumulator, quarters, lambda group, x: group.backward(Captured.apply(model.weight, x.squeeze()), 0.25))
    assert not model.weight._backward_hooks
    assert model.weight.item() == 0


@pytest.mark.parametrize("kept", [torch.float64, "kahan"])
def test_buffers_of_ones_own_are_not_overwritten(kept):
    model, quarters, _ = captured()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    accumulator = Accumulator(model, optimizer, accum_steps=4, accumulate_in=kept)
    go(accumulator, quarters, lambda group, x: group.backward(Captured.apply(model.weight, x.squeeze()), 0.25))
    assert -model.weight.item() == 1.0


def test_parameters_that_change_within_a_group():
    model, optimizer = scalar()

    def too_early(group, x):
        group.backward(model(x).sum(), 1)
        optimizer.step()

    with pytest.raises(AccumulationError, match="different models"):
        go(Accumulator(model, optimizer, accum_steps=2), powers(2), too_early)


def test_a_loader_that_is_shorter_than_it_says():
    class Long(list):
        def __len__(self):
            return 5

    model, optimizer = scalar()
    with pytest.raises(AccumulationError, match="ended before its len"):
        run(Accumulator(model, optimizer, accum_steps=2), model, Long(powers(3)))


# With ranks


def test_how_each_wrapper_reduces_and_what_does_not_go_with_it(two_ranks):
    plain = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(plain.parameters())
    with pytest.warns(UserWarning, match="each rank trains one of its own"):
        assert Accumulator(plain, optimizer, accum_steps=2).sync.world == 1
    assert Accumulator(plain, optimizer, accum_steps=2, process_group=dist.group.WORLD).sync.mode == "after"
    with pytest.raises(AccumulationError, match="wrap it, or say after"):
        Accumulator(plain, optimizer, accum_steps=2, process_group=dist.group.WORLD, reduce="last")
    wrapped = DistributedDataParallel(plain)
    assert Accumulator(wrapped, optimizer, accum_steps=2).sync.mode == "last"
    with pytest.raises(AccumulationError, match="leave reduce at auto"):
        Accumulator(wrapped, optimizer, accum_steps=2, reduce="last", accumulate_in=torch.float32)
    with pytest.raises(AccumulationError, match="hybrid is HSDP's"):
        Accumulator(wrapped, optimizer, accum_steps=2, reduce="hybrid")
    with pytest.raises(AccumulationError, match="wrapped alike"):
        Accumulator([wrapped, nn.Linear(1, 1)], optimizer, accum_steps=2)
    wrapped.register_comm_hook(None, lambda state, bucket: None)
    with pytest.raises(AccumulationError, match="communication hook"):
        Accumulator(wrapped, optimizer, accum_steps=2, reduce="every")
    static = DistributedDataParallel(nn.Linear(2, 2), static_graph=True)
    with pytest.raises(AccumulationError, match="static_graph"):
        Accumulator(static, torch.optim.SGD(static.parameters()), accum_steps=2)


def test_what_may_be_unused_is_reduced_afterwards(two_ranks):
    wrapped = DistributedDataParallel(nn.Linear(2, 2), find_unused_parameters=True)
    optimizer = torch.optim.SGD(wrapped.parameters())
    assert Accumulator(wrapped, optimizer, accum_steps=2).sync.mode == "after"
    with pytest.raises(AccumulationError, match="find_unused_parameters"):
        Accumulator(wrapped, optimizer, accum_steps=2, reduce="last")


def test_a_sharded_model_reduces_in_every_pass_and_leaves_none_out(two_ranks):
    model = fully_shard(nn.Linear(2, 2), mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(AccumulationError, match="MixedPrecisionPolicy"):
        Accumulator(model, optimizer, accum_steps=2, accumulate_in=torch.float32)
    with pytest.raises(AccumulationError, match="in the backward pass alone"):
        Accumulator(model, optimizer, accum_steps=2, reduce="after")
    accumulator = Accumulator(model, optimizer, accum_steps=2)
    assert accumulator.sync.mode == "every"
    with pytest.raises(AccumulationError, match="no rank can leave one out"):
        next(accumulator.groups(powers(2), may_skip=True))
    with pytest.raises(AccumulationError, match="of one rank alone"):
        Accumulator(model, optimizer, accum_steps=2, noise_scale=True)


def test_what_each_way_holds_and_sends_is_told_before(two_ranks):
    def table(made):
        return [(each.mode, each.held_bytes, each.sent_bytes, each.chosen) for each in made.explain()]

    wrapped = DistributedDataParallel(nn.Linear(25, 10, bias=False))  # 1,000 bytes; a ring of two sends as many
    accumulator = Accumulator(wrapped, torch.optim.SGD(wrapped.parameters()), accum_steps=4)
    assert table(accumulator) == [
        ("last", 1000, 1000, True),
        ("every", 1000, 4000, False),
        ("after", 1000, 1000, False),
    ]
    printed = r"reduce= .*\(\* this accumulator\)\n\* last +holds 1000 bytes +sends 1000 bytes\n  every "
    assert re.match(printed, str(accumulator.explain()))
    model = fully_shard(nn.Linear(25, 10, bias=False), mesh=init_device_mesh("cpu", (2,)))
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters()), accum_steps=4)
    assert table(accumulator) == [("every", 500, 2000, True), ("last", 1000, 500, False)]
    half = DistributedDataParallel(nn.Linear(25, 10, bias=False).bfloat16())
    optimizer = torch.optim.SGD(half.parameters())
    buffered = Accumulator(half, optimizer, accum_steps=4, accumulate_in=torch.float32)
    assert table(buffered)[2] == ("after", 1000, 1000, True)


def test_loaders_of_unequal_length_are_not_carried(two_ranks):
    model = DistributedDataParallel(scalar()[0])
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters()), accum_steps=2, partial="carry")
    with pytest.raises(AccumulationError, match=r"theirs are \[3, 0\]"):
        next(accumulator.groups(powers(3)))


def test_flags_are_as_they_were_also_after_an_exception(two_ranks):
    model = DistributedDataParallel(scalar()[0])
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters()), accum_steps=3)
    seen = []

    def break_down(group, x):
        seen.append(model.require_backward_grad_sync)
        if float(x) == 10:
            raise RuntimeError("mine")
        group.backward(model(x).sum(), 1)

    with pytest.raises(RuntimeError, match="mine"):
        go(accumulator, Unsized(powers(3)), break_down)
    assert seen == [False, False]
    assert model.require_backward_grad_sync is True


class Unsized:
    """Without a length, so that the ranks agree on each group; the other one, which is not there, agrees to all."""

    def __init__(self, batches):
        self._batches = batches

    def __iter__(self):
        return iter(self._batches)


def test_the_last_micro_batch_cannot_be_left_out_unless_it_is_said_before(two_ranks, monkeypatch):
    model = DistributedDataParallel(scalar()[0])
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters()), accum_steps=2)
    monkeypatch.setattr(Sync, "gather", lambda self, value, device: [value, value])

    def leave_out(group, x):
        if float(x) == 10:
            group.skip()
        else:
            group.backward(model(x).sum(), 1)

    with pytest.raises(AccumulationError, match="may_skip=True"):
        go(accumulator, powers(2), leave_out)
    accumulator.discard()
    group = next(accumulator.groups(powers(2)))
    for x in group:
        group.backward(model(x).sum(), 1)
        break
    with pytest.raises(AccumulationError, match="other ranks wait for the rest"):
        group.step()
    sharded = fully_shard(nn.Linear(1, 1), mesh=init_device_mesh("cpu", (2,)))
    accumulator = Accumulator(sharded, torch.optim.SGD(sharded.parameters()), accum_steps=2)
    with pytest.raises(AccumulationError, match="is a collective"):
        go(accumulator, powers(2), lambda group, x: group.skip())
