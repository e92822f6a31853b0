"""What people get wrong around a group, each found where it happens and answered with what to do."""

from __future__ import annotations

import copy
import math
import re
import warnings

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import gradaccum
from gradaccum.torch.accumulate import AccumulationError, Accumulator

pytestmark = pytest.mark.slow

STEPS = 2


def linear():
    torch.manual_seed(3)
    model = nn.Linear(4, 3)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def batches(sizes):
    return [torch.randn(size, 4, generator=torch.Generator().manual_seed(each)) for each, size in enumerate(sizes)]


def square(model, x):
    return model(x).square().sum()


def go(accumulator, loader, answer):
    for group in accumulator.groups(loader):
        for x in group:
            answer(group, x)
        group.step()


def warned(accumulator, loader, answer):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        go(accumulator, loader, answer)
    return [str(each.message) for each in found]


# Backward passes beside the group's own


class Pair:
    """A generator and a discriminator, each in groups of its own."""

    def __init__(self):
        torch.manual_seed(1)
        self.maker, self.judge = nn.Linear(4, 8), nn.Linear(8, 1)
        self.of_maker, self.of_judge = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (self.maker, self.judge)]
        self.real = [torch.randn(4, 8) for _ in range(8)]
        self.noise = [torch.randn(4, 4) for _ in range(8)]

    def judges(self, i):
        fake = self.judge(self.maker(self.noise[i]).detach())
        return functional.softplus(-self.judge(self.real[i])).sum() + functional.softplus(fake).sum()

    def makes(self, i):
        return functional.softplus(-self.judge(self.maker(self.noise[i]))).sum()

    def truth(self):
        """Both trained by plain PyTorch, each with gradients of its own."""
        for first in range(0, 8, STEPS):
            for optimizer, loss in ((self.of_judge, self.judges), (self.of_maker, self.makes)):
                optimizer.zero_grad()
                (sum(loss(i) for i in range(first, first + STEPS)) / (4 * STEPS)).backward()
                optimizer.step()
        return self.weights()

    def trained(self, clear=None, frozen=False):
        judges = Accumulator(self.judge, self.of_judge, accum_steps=STEPS)
        makes = Accumulator(self.maker, self.of_maker, accum_steps=STEPS)
        for group in judges.groups(range(8)):
            if clear is not None:
                self.of_judge.zero_grad(set_to_none=clear)
            seen = []
            for i in group:
                group.backward(self.judges(i), 4)
                seen.append(i)
            group.step()
            self.judge.requires_grad_(not frozen)
            go(makes, seen, lambda own, i: own.backward(self.makes(i), 4))
            self.judge.requires_grad_(True)
        return self.weights()

    def weights(self):
        return torch.cat([self.maker.weight.flatten(), self.judge.weight.flatten()]).detach()


def test_a_generators_pass_through_the_discriminator_does_not_train_it():
    with pytest.raises(AccumulationError, match=r"of weight and 1 more parameter.*requires_grad_\(False\)"):
        Pair().trained()


@pytest.mark.parametrize("way", [{"clear": True}, {"clear": False}, {"frozen": True}], ids=str)
def test_a_discriminator_that_is_cleared_or_frozen_trains_as_in_plain_pytorch(way):
    torch.testing.assert_close(Pair().trained(**way), Pair().truth())


@pytest.mark.parametrize("kept", [None, torch.float32])
def test_gradients_of_an_evaluation_are_refused_and_cleared_by_discard(kept):
    model, optimizer = linear()
    accumulator = Accumulator(model, optimizer, accum_steps=STEPS, accumulate_in=kept)
    for _ in range(2):
        go(accumulator, batches([4] * STEPS), lambda group, x: group.backward(square(model, x), 4))
        square(model, batches([4])[0]).backward()
        with pytest.raises(AccumulationError, match="gradients before the first micro-batch"):
            go(accumulator, batches([4] * STEPS), lambda group, x: group.backward(square(model, x), 4))
        accumulator.discard()


def test_an_optimizer_that_keeps_zeros_goes_on():
    class Keeps(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            super().zero_grad(set_to_none=False)

    model, _ = linear()
    twin = copy.deepcopy(model)
    for each, kind in ((model, Keeps), (twin, torch.optim.SGD)):
        accumulator = Accumulator(each, kind(each.parameters(), lr=0.1), accum_steps=STEPS)
        go(accumulator, batches([4] * 6), lambda group, x, each=each: group.backward(square(each, x), 4))
    assert model.weight.grad is not None
    torch.testing.assert_close(model.weight, twin.weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kept", "beside"), [(None, "backward"), (None, "clip"), (torch.float32, "backward"), ("kahan", "backward")]
)
def test_gradients_that_change_between_the_passes_of_a_group(kept, beside):
    model, optimizer = linear()
    accumulator = Accumulator(model, optimizer, accum_steps=3, accumulate_in=kept)

    def answer(group, x):
        group.backward(square(model, x), 4)
        if beside == "backward":
            (1000 * model(x).sum()).backward()
        else:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    with pytest.raises(AccumulationError, match="changed between its backward passes"):
        go(accumulator, batches([4] * 3), answer)
    accumulator.discard()
    go(accumulator, batches([4] * 3), lambda group, x: group.backward(square(model, x), 4))


class Turns(nn.Module):
    """Uses one of its layers in every other pass alone."""

    def __init__(self):
        super().__init__()
        self.always, self.sometimes, self.passes = nn.Linear(4, 3), nn.Linear(4, 3), 0

    def forward(self, x):
        self.passes += 1
        return self.always(x) + (self.sometimes(x) if self.passes % 2 else 0)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize(("mode", "unused"), [("last", False), ("every", False), ("every", True), ("after", True)])
def test_what_ddp_writes_between_passes_is_its_own(two_ranks, mode, unused, views):
    model = DistributedDataParallel(
        Turns() if unused else nn.Linear(4, 3), find_unused_parameters=unused, gradient_as_bucket_view=views
    )
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters(), lr=0.1), accum_steps=3, reduce=mode)
    for _ in range(2):
        go(accumulator, batches([4] * 6), lambda group, x: group.backward(square(model, x), 4))

    def beside(group, x):
        group.backward(square(model, x), 4)
        with model.no_sync():
            square(model.module, x).backward()

    with pytest.raises(AccumulationError, match="changed between its backward passes"):
        go(accumulator, batches([4] * 3), beside)


def test_what_a_group_may_do_between_its_last_pass_and_its_step():
    model, optimizer = linear()
    accumulator = Accumulator(model, optimizer, accum_steps=STEPS)
    before = model.weight.detach().clone()
    for group in accumulator.groups(batches([4] * STEPS)):
        for x in group:
            group.backward(square(model, x), 4)
        model.weight.grad.zero_()  # as one who freezes a row
        group.step()
    assert torch.equal(model.weight, before)


# A plan and a loader of another micro-batch


def planned(model, optimizer, **request):
    return Accumulator.from_plan(gradaccum.plan(num_gpus=1, **request), model, optimizer)


@pytest.mark.parametrize(
    ("request_", "sizes", "words"),
    [
        ({"micro_batch": 8, "target_batch": 32}, [4] * 8, "saw 16 samples, and the plan's effective batch is 32: the "),
        ({"micro_batch": 8, "target_batch": 32}, [4] * 4, "load batches of 8, or plan with micro_batch=4"),
        ({"micro_batch": 8, "target_batch": 16, "rounding": "exact"}, [4] * 4, "saw 8 samples"),
        ({"micro_batch": 8, "target_batch": 8}, [4] * 4, "saw 4 samples"),
        ({"micro_batch": 8, "target_batch": 16}, [8, 4, 8, 4], "are not all of the plan's micro-batch, 8"),
    ],
)
def test_a_loader_of_another_micro_batch_than_the_plans_is_warned_of_once(request_, sizes, words):
    model, optimizer = linear()
    accumulator = planned(model, optimizer, **request_)
    found = warned(accumulator, batches(sizes), lambda group, x: group.backward(square(model, x), len(x)))
    assert len(found) == 1
    assert words in found[0]
    assert warned(accumulator, batches(sizes), lambda group, x: group.backward(square(model, x), len(x))) == []


@pytest.mark.parametrize("partial", ["step", "carry", "drop"])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_short_end_of_a_loader_is_none(partial, steps):
    model, optimizer = linear()
    plan = gradaccum.plan(micro_batch=8, num_gpus=1, target_batch=8 * steps)
    accumulator = Accumulator.from_plan(plan, model, optimizer, partial=partial)
    for sizes in ([8] * 4 + [3], [8] * 3 + [3], [8] * 4 + [3]):
        found = warned(accumulator, batches(sizes), lambda group, x: group.backward(square(model, x), len(x)))
        assert found == []


def test_samples_that_nobody_knows_are_not_compared():
    model, optimizer = linear()
    accumulator = planned(model, optimizer, micro_batch=8, target_batch=16)
    packed = [{"x": x, "starts": torch.zeros(2)} for x in batches([4] * 8)]
    assert warned(accumulator, packed, lambda group, batch: group.backward(square(model, batch["x"]), 4)) == []


# Losses and weights


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 0, 1, -100])
MEANS = {
    "cross-entropy": lambda model: functional.cross_entropy(model(X), CLASSES),
    "squares": lambda model: functional.mse_loss(model(X), torch.zeros(6, 3)),
    "all": lambda model: model(X).square().mean(),
    "rows": lambda model: model(X).square().sum(1).mean(0),
    "cast": lambda model: functional.cross_entropy(model(X), CLASSES).double(),
}
NO_MEANS = {
    "sum": lambda model: functional.cross_entropy(model(X), CLASSES, reduction="sum"),
    "times": lambda model: functional.cross_entropy(model(X), CLASSES) * 6,
    "over outputs": lambda model: model(X).square().sum(0).mean(),
    "leaf": lambda model: nn.Parameter(torch.ones(())),
}


@pytest.mark.parametrize("weight", [6, torch.tensor(6)], ids=["number", "tensor"])
@pytest.mark.parametrize("name", MEANS)
def test_a_mean_where_a_sum_is_asked_for_is_warned_of_once(name, weight):
    model, optimizer = linear()
    accumulator = Accumulator(model, optimizer, accum_steps=STEPS)
    found = warned(accumulator, range(4), lambda group, _: group.backward(MEANS[name](model), weight))
    assert len(found) == 1
    assert re.search(r"a mean already .*weight, 6, once more: .*backward_mean", found[0])


@pytest.mark.parametrize("name", NO_MEANS)
def test_what_is_no_mean_over_the_weight_is_not(name):
    model, optimizer = linear()
    accumulator = Accumulator(model, optimizer, accum_steps=STEPS)
    group = next(accumulator.groups(range(STEPS)))
    for _ in group:
        group.backward(NO_MEANS[name](model), 6)  # a warning would be an error


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_that_is_said_to_be_one_or_is_over_one(name):
    for way, weight in (("backward_mean", 6), ("backward", 1)):
        model, optimizer = linear()
        group = next(Accumulator(model, optimizer, accum_steps=STEPS).groups(range(STEPS)))
        for _ in group:
            getattr(group, way)(MEANS[name](model), weight)
        assert group.step().weight == STEPS * weight


@pytest.mark.parametrize("weight", [None, "4", [1], torch.ones(3), numpy.ones(2)], ids=str)
def test_a_weight_is_one_number(weight):
    model, optimizer = linear()
    accumulator = Accumulator(model, optimizer, accum_steps=STEPS)
    for answer in ("backward", "backward_mean"):
        with pytest.raises(AccumulationError, match="the weight of a micro-batch is what its loss sums over"):
            go(accumulator, batches([4]), lambda group, x, way=answer: getattr(group, way)(square(model, x), weight))
        accumulator.discard()


@pytest.mark.parametrize("weight", [True, 4.0, torch.tensor([4]), numpy.int64(4), numpy.float32(4)], ids=repr)
def test_a_number_of_any_kind_is_a_weight(weight):
    model, optimizer = linear()
    for group in Accumulator(model, optimizer, accum_steps=STEPS).groups(batches([4] * STEPS)):
        for x in group:
            group.backward(square(model, x), weight)
        assert group.step().weight == STEPS * float(weight)


@pytest.mark.parametrize("weight", [math.inf, torch.tensor(math.inf)], ids=["number", "tensor"])
def test_a_weight_is_finite_and_the_next_group_is_none_the_worse(weight):
    model, optimizer = linear()
    twin = copy.deepcopy(model)
    accumulator = Accumulator(model, optimizer, accum_steps=STEPS)
    with pytest.raises(AccumulationError, match=r"weight is inf.*a finite number, 0 or more"):
        go(accumulator, batches([4] * STEPS), lambda group, x: group.backward(square(model, x), weight))
    go(accumulator, batches([4] * STEPS), lambda group, x: group.backward(square(model, x), 4))
    (square(twin, torch.cat(batches([4] * STEPS))) / (4 * STEPS)).backward()
    torch.testing.assert_close(model.weight, twin.weight - 0.1 * twin.weight.grad)


def test_a_loss_without_a_graph():
    model, optimizer = linear()
    accumulator = Accumulator(model, optimizer, accum_steps=STEPS)
    with pytest.raises(AccumulationError, match=r"no graph to go back through, as after detach\(\)"):
        go(accumulator, batches([4]), lambda group, x: group.backward(square(model, x).detach(), 4))


def test_a_loss_function_that_returns_no_weight():
    model, optimizer = linear()
    accumulator = Accumulator(model, optimizer, accum_steps=STEPS)
    with pytest.raises(AccumulationError, match="loss_of returns two things"):
        next(accumulator.run(batches([4]), lambda x: square(model, x)))
    group = next(accumulator.groups(batches([4])))
    with pytest.raises(AccumulationError, match="loss_of returns two things"):
        group.cached(model, torch.sum)


# What comes from elsewhere


def test_a_plan_comes_first():
    model, optimizer = linear()
    plan = gradaccum.plan(micro_batch=4, num_gpus=1, target_batch=16)
    for given in ((plan.to_dict(), model, optimizer), (model, optimizer, plan)):
        with pytest.raises(AccumulationError, match=r"a plan comes first, as gradaccum\.plan"):
            Accumulator.from_plan(*given)
    with pytest.raises(AccumulationError, match="brings its accumulation steps, 4"):
        Accumulator.from_plan(plan, model, optimizer, accum_steps=4)


def test_a_state_is_what_state_dict_gave():
    model, optimizer = linear()
    accumulator = Accumulator(model, optimizer, accum_steps=STEPS)
    whole = {"model": model.state_dict(), "ours": accumulator.state_dict()}
    for saved, words in (
        ({}, "it has nothing"),
        (None, "it has None"),
        (optimizer.state_dict(), "it has 'state', 'param_groups'"),
        (whole, "under 'ours'"),
    ):
        with pytest.raises(AccumulationError, match=words):
            accumulator.load_state_dict(saved)
    accumulator.load_state_dict(whole["ours"])


# Loops of another shape


def test_a_step_in_the_inner_loop():
    model, optimizer = linear()

    def early(group, x):
        group.backward(square(model, x), 4)
        group.step()

    with pytest.raises(AccumulationError, match=r"call group.step\(\) once, after `for batch in group`"):
        go(Accumulator(model, optimizer, accum_steps=STEPS), batches([4] * STEPS), early)


def test_a_group_that_is_taken_for_a_batch():
    accumulator = Accumulator(*linear(), accum_steps=STEPS)
    with pytest.raises(AccumulationError, match=r"a loop over the group within the one over accumulator\.groups"):
        for _inputs, _targets in accumulator.groups(batches([4] * STEPS)):
            pass


def test_where_a_group_ends_is_said_once():
    for steps, until, words in ((None, None, "nothing says where a group ends"), (2, 5, "leave one out")):
        accumulator = Accumulator(*linear(), accum_steps=steps)
        with pytest.raises(AccumulationError, match=words):
            next(accumulator.groups([], until_weight=until))


def test_a_run_that_nobody_goes_through():
    model, optimizer = linear()
    accumulator = Accumulator(model, optimizer, accum_steps=STEPS)
    unasked = [accumulator.run(batches([4] * STEPS), lambda x: (square(model, x), 4))]
    with pytest.warns(UserWarning, match="trained nothing"):
        unasked.clear()
    accumulator.run([], lambda x: (square(model, x), 4)).close()
    updates = list(accumulator.run(batches([4] * STEPS), lambda x: (square(model, x), 4)))
    assert [each.applied for each in updates] == [True]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gradient_accumulation_steps": 4}, r"it is accum_steps= of Accumulator\("),
        ({"max_grad_norm": 1.0}, "it is clip_norm="),
        ({"clip_nrm": 1.0}, r"did you mean clip_norm\?"),
        ({"colour": 1}, "its options are accum_steps, clip_norm"),
        ({"until_weight": 9}, r"it is until_weight= of Accumulator\.groups\("),
    ],
)
def test_an_option_by_another_name(options, words):
    with pytest.raises(AccumulationError, match=words):
        Accumulator(*linear(), **options)


def test_an_option_in_another_place():
    own = linear()
    accumulator = Accumulator(*own, accum_steps=STEPS)
    with pytest.raises(AccumulationError, match=r"it is partial= of Accumulator\(\.\.\.\)"):
        accumulator.groups([], partial="drop")
    with pytest.raises(AccumulationError, match=r"models and optimizers by place .* such as accum_steps=; 4 has none"):
        Accumulator(*own, 4)
    with pytest.raises(AccumulationError, match="takes loader and loss_of by place"):
        accumulator.run([], len, 4)


@pytest.mark.parametrize(
    ("name", "words"),
    [("step", "a group has it"), ("backward", "a group has it"), ("zero_grad", "clears"), ("colour", "'colour'$")],
)
def test_what_an_accumulator_does_not_have(name, words):
    with pytest.raises(AttributeError, match=words):
        getattr(Accumulator(*linear(), accum_steps=STEPS), name)
