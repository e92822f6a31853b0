"""`watch` around loops of one's own: what it says of right and wrong ones, and that it changes nothing."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - as everybody writes it
from torch.optim import optimizer as optimizers
from torch.optim.lr_scheduler import LambdaLR

from gradaccum.errors import InputError
from gradaccum.torch.audit.watch import watch

STEPS = 4


def made(kind=torch.optim.SGD, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(16, 5))
    return model, kind(model.parameters(), lr=0.01, **options)


def batches(count=12, ragged=False):
    generator = torch.Generator().manual_seed(1)
    found = []
    for index in range(count):
        targets = torch.randint(0, 5, (4,), generator=generator)
        if ragged:
            targets[: index % 3] = -100
        found.append((torch.randn(4, 8, generator=generator), targets))
    return found


def train(model, optimizer, loader, *, divide=True, zero="after", clip="", scheduler="", tokens=False, short=False):
    """A plain loop, in which each option is a way that people write it."""
    schedule = LambdaLR(optimizer, lambda update: 1 / (1 + update)) if scheduler else None
    for index, (inputs, targets) in enumerate(loader):
        loss = F.cross_entropy(model(inputs), targets, reduction="sum" if tokens else "mean")
        if tokens:
            group = loader[index // STEPS * STEPS :][:STEPS]
            loss = loss / sum(int((each != -100).sum()) for _, each in group)
        elif divide:
            loss = loss / STEPS
        if zero == "inside":
            optimizer.zero_grad()
        loss.backward()
        if clip == "inside":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        if (index + 1) % STEPS == 0 or (short and index + 1 == len(loader)):
            if clip == "after":
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            if schedule is not None:
                for _ in range(STEPS if scheduler == "per micro-batch" else 1):
                    schedule.step()
            if zero == "after":
                optimizer.zero_grad()


def audited(loader=None, *, updates=3, target_batch=16, kind=torch.optim.SGD, **options):
    model, optimizer = made(kind)
    with watch(model, optimizer, target_batch=target_batch, updates=updates) as report:
        train(model, optimizer, loader or batches(), **options)
    return report


def codes(report):
    return [each.code for each in report.findings]


RIGHT = {
    "divided": {},
    "clipped at the boundary": {"clip": "after"},
    "a scheduler for each update": {"scheduler": "per update"},
    "by tokens": {"tokens": True, "loader": batches(ragged=True)},
}
WRONG = {
    "GA101": {"divide": False},
    "GA103": {"loader": batches(ragged=True)},
    "GA105": {"loader": batches(10), "short": True},
    "GA107": {"zero": "never"},
    "GA108": {"zero": "inside"},
    "GA110": {"clip": "inside"},
    "GA111": {"scheduler": "per micro-batch"},
    "GA115": {"target_batch": 32},
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_loop_is_right(name):
    report = audited(**RIGHT[name])
    assert (report.verdict, codes(report)) == ("right", [])


@pytest.mark.parametrize("code", WRONG)
def test_a_mistake_has_its_code_alone(code):
    report = audited(**WRONG[code])
    assert (report.verdict, codes(report)) == ("fault", [code])


def test_the_facts_are_those_of_the_loop():
    facts = audited(loader=batches(ragged=True), tokens=True, clip="after").facts
    assert facts["micro_batches_per_update"] == 4
    assert facts["effective_batch"] == 16
    # 4 - index % 3 targets in each of 12 micro-batches, four to a group.
    assert facts["loss_tokens"] == sorted({13, 12, 11})
    assert facts["clipping"] == "at the boundary"
    assert facts["gradient_dtypes"] == ["float32"]


def test_each_micro_batch_has_the_weight_that_arithmetic_gives_it():
    """A mean of means over n targets gives each the weight 1 / (4 n), beside 1 / (all)."""
    (first, *_) = audited(loader=batches(ragged=True)).updates
    counts = [4, 3, 2, 4]
    assert [each.weight for each in first.micro_batches] == pytest.approx([sum(counts) / (4 * n) for n in counts])
    assert [each.units for each in first.micro_batches] == counts


def test_the_consequence_is_that_of_the_optimizer():
    (sgd,) = audited(divide=False).findings
    (adam,) = audited(divide=False, kind=torch.optim.AdamW).findings
    assert "learning rate" in sgd.consequence
    assert "AdamW's step does not change" in adam.consequence


def test_updates_that_are_not_audited_are_counted():
    report = audited(loader=batches(24), updates=2)
    assert (report.facts["updates"], report.facts["audited_updates"]) == (6, 2)


def test_a_loop_that_never_steps_is_not_seen():
    model, optimizer = made()
    with watch(model, optimizer) as report:
        model(torch.randn(4, 8)).sum().backward()
    assert report.verdict == "not seen"
    assert "no optimizer step was seen" in report.not_seen


def test_a_closure_is_followed():
    """Lightning and others call backward inside of `step(closure)`."""
    model, optimizer = made()
    loader = batches()
    with watch(model, optimizer, target_batch=16) as report:
        for start in range(0, 12, STEPS):
            for inputs, targets in loader[start : start + STEPS - 1]:
                (F.cross_entropy(model(inputs), targets) / STEPS).backward()

            def closure(last=loader[start + STEPS - 1]):
                loss = F.cross_entropy(model(last[0]), last[1]) / STEPS
                loss.backward()
                return loss

            optimizer.step(closure)
            optimizer.zero_grad()
    assert (report.verdict, report.facts["micro_batches_per_update"]) == ("right", 4)


def test_two_optimizers_and_a_pass_for_the_other_one():
    """As in a GAN: the generator's pass goes through the discriminator, whose gradients of it are cleared."""
    torch.manual_seed(0)
    generator, discriminator = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)
    first = torch.optim.Adam(generator.parameters(), lr=0.01)
    second = torch.optim.Adam(discriminator.parameters(), lr=0.01)
    with watch((generator, discriminator), (first, second)) as report:
        for _ in range(3):
            fake = generator(torch.randn(6, 4))
            second.zero_grad()
            F.binary_cross_entropy_with_logits(discriminator(torch.randn(6, 8)), torch.ones(6, 1)).backward()
            F.binary_cross_entropy_with_logits(discriminator(fake.detach()), torch.zeros(6, 1)).backward()
            second.step()
            first.zero_grad()
            F.binary_cross_entropy_with_logits(discriminator(fake), torch.ones(6, 1)).backward()
            first.step()
    assert (report.verdict, codes(report)) == ("right", [])
    # Each has a name of its own, and its own micro-batches alone.
    assert report.facts["micro_batches_per_update"] == [1, 2]
    assert sorted(report.facts["optimizers"]) == ["Adam 1", "Adam 2"]
    own = {each.optimizer: [one.index for one in each.micro_batches] for each in report.updates}
    assert sorted(own.values()) == [[0], [0, 1]]
    assert {(each.optimizer, each.number) for each in report.updates} == {
        (name, number) for name in ("Adam 1", "Adam 2") for number in range(3)
    }
    assert "Updates 0, 1, 2 of Adam 2" in str(report)


@pytest.mark.parametrize("steps", [1, 512])
def test_sums_in_bf16_are_measured(steps):
    """A sum of equal gradients stops at 256 of them, where half a step of bf16 is as large as the next one."""
    model = torch.nn.Linear(8, 1, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, optimizer) as report:
        for _ in range(steps):
            (model(torch.ones(4, 8, dtype=torch.bfloat16)).mean() / steps).backward()
        optimizer.step()
    assert codes(report) == (["GA113"] if steps > 1 else [])


def test_micro_batches_without_a_target_are_among_the_counts():
    model, optimizer = made()
    targets = torch.tensor([[0, 1, 1], [0, -100, -100], [-100, -100, -100], [1, 0, -100]])
    with watch(model, optimizer) as report:
        for labels in targets:
            out = model(torch.randn(3, 8))
            (F.cross_entropy(out, labels, reduction="sum") / (labels >= 0).sum().clamp(min=1) / 4).backward()
        optimizer.step()
    assert codes(report)[0] == "GA103"
    assert report.findings[0].evidence["counts"] == [[3, 1, 0, 2]]
    assert "hold 3, 1, 0, 2 targets" in report.findings[0].message


# It changes nothing


def test_the_run_is_that_of_the_unwatched_loop_to_the_bit():
    results = []
    for watched in (False, True):
        model, optimizer = made(torch.optim.AdamW)
        if watched:
            with watch(model, optimizer, updates=2):
                train(model, optimizer, batches(24), clip="after", scheduler="per update")
        else:
            train(model, optimizer, batches(24), clip="after", scheduler="per update")
        results.append(torch.cat([each.detach().reshape(-1) for each in model.parameters()]))
    assert torch.equal(*results)


def test_torch_is_put_back_also_after_an_exception():
    def current():
        return (
            torch.autograd.backward,
            torch.optim.Optimizer.zero_grad,
            torch.nn.utils.clip_grad._clip_grads_with_norm_,
            torch.amp.GradScaler.step,
            torch.optim.lr_scheduler.LRScheduler.step,
            len(optimizers._global_optimizer_pre_hooks),
        )

    before = current()
    model, sgd = made()
    report = watch(model, sgd)
    with pytest.raises(TypeError), report:
        train(model, sgd, [*batches(), None])
    assert current() == before
    assert report.verdict == "right"
    assert not model._forward_pre_hooks
    assert not any(each._backward_hooks for each in model.parameters())


def test_outside_audited_updates_few_of_its_functions_run():
    """At most three calls of ours for each micro-batch, and none for each module."""
    model, optimizer = made()
    loader = batches(40)
    calls = []

    def profile(frame, event, argument):
        if event == "call" and "/gradaccum/torch/audit/" in frame.f_code.co_filename:
            calls.append(frame.f_code.co_name)

    with watch(model, optimizer, updates=1):
        train(model, optimizer, loader[:STEPS])
        for inputs, targets in loader[STEPS:]:
            loss = F.cross_entropy(model(inputs), targets)
            sys.setprofile(profile)
            loss.backward()
            sys.setprofile(None)
    entered = [name for name in calls if name not in ("<listcomp>", "<genexpr>")]
    assert len(entered) <= 3 * (len(loader) - STEPS), sorted(set(entered))


def test_an_error_of_the_audit_itself_ends_the_audit_and_not_the_run(monkeypatch):
    def broken(*_):
        raise RuntimeError("planted")

    model, optimizer = made()
    with watch(model, optimizer) as report:
        monkeypatch.setattr("gradaccum.torch.audit.watcher.site_of_call", broken)
        train(model, optimizer, batches())
    assert report.verdict == "not seen"
    assert any("planted" in each for each in report.not_seen)


# What cannot be watched


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("model",), {}, "must be a torch.nn.Module"),
        ((None, "adam"), {}, "must be a torch.optim.Optimizer"),
        ((), {"target_batch": 0}, "at least 1"),
        ((), {"updates": 2.5}, "at least 1"),
        ((), {"updates": True}, "at least 1"),
    ],
)
def test_what_cannot_be_watched_is_said(arguments, options, words):
    with pytest.raises(InputError, match=words):
        watch(*arguments, **options)


def test_a_report_is_there_after_the_body():
    with watch() as report, pytest.raises(AttributeError, match="after the body"):
        _ = report.verdict


def test_all_optimizers_are_found_where_none_is_named():
    model, optimizer = made()
    with watch(target_batch=16) as report:
        train(model, optimizer, batches())
    assert (report.verdict, report.facts["optimizers"]) == ("right", ["SGD"])
    assert list(itertools.chain(*[update.micro_batches for update in report.updates]))


@pytest.mark.parametrize("often", [1, STEPS])
def test_a_scheduler_whose_class_the_loop_brings_is_counted(often):
    """With a `step` of its own that never calls torch's."""
    model, optimizer = made()
    with watch(updates=2) as report:

        class Halving(LambdaLR):
            def __init__(self, optimizer):
                self.optimizer = optimizer

            def step(self, epoch=None):
                for group in self.optimizer.param_groups:
                    group["lr"] /= 2

        schedule = Halving(optimizer)
        for index, (inputs, targets) in enumerate(batches(8)):
            (F.cross_entropy(model(inputs), targets) / STEPS).backward()
            if (index + 1) % STEPS == 0:
                optimizer.step()
                for _ in range(often):
                    schedule.step()
                optimizer.zero_grad()
    assert report.facts["scheduler_steps_per_update"] == often
    assert codes(report) == ([] if often == 1 else ["GA111"])
    assert "step" in vars(Halving)
    assert Halving.step.__qualname__.endswith("Halving.step")
    assert not hasattr(Halving.step, "__wrapped__")


@pytest.mark.parametrize("steps", [1, STEPS])
@pytest.mark.parametrize("clears", [True, False])
def test_steps_to_another_place_are_no_part_of_the_update(steps, clears):
    """SAM: gradients, a step uphill, the gradients there. Where the first are left in, they are."""
    model, optimizer = made()
    with watch(model, optimizer, target_batch=4 * steps, updates=2) as report:
        for update in range(3):
            there = batches(12)[steps * update :][:steps]
            for uphill in (True, False):
                for inputs, targets in there:
                    (F.cross_entropy(model(inputs), targets) / steps).backward()
                with torch.no_grad():
                    for each in model.parameters():
                        if uphill:
                            each.before = each.clone()
                            each += 0.05 * each.grad / each.grad.norm()
                        else:
                            each.copy_(each.before)
                if clears and uphill:
                    optimizer.zero_grad()
            optimizer.step()
            optimizer.zero_grad()
    assert (report.verdict == "right") == clears
    assert bool(codes(report)) != clears
    if clears:
        assert report.facts["effective_batch"] == 4 * steps


def test_a_search_along_a_line_evaluates_one_batch_several_times():
    model, _ = made()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    inputs, targets = batches(1)[0]

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    with watch(model, optimizer, target_batch=4) as report:
        for _ in range(4):
            optimizer.step(closure)
    assert (report.verdict, codes(report)) == ("right", [])


@pytest.mark.parametrize(("factor", "divided", "found"), [(4, 1, []), (4, 4, ["GA102"]), (1, 1, ["GA101"])])
def test_what_the_loop_s_own_hooks_do_to_gradients_is_followed(factor, divided, found):
    model, optimizer = made()
    for each in model.parameters():
        each.register_hook(lambda gradient: gradient / factor)
    with watch(model, optimizer, target_batch=16) as report:
        for index, (inputs, targets) in enumerate(batches()):
            (F.cross_entropy(model(inputs), targets) / divided).backward()
            if (index + 1) % STEPS == 0:
                optimizer.step()
                optimizer.zero_grad()
    assert codes(report) == found


def test_layers_that_learn_less_by_a_hook_are_the_person_s():
    model, optimizer = made()
    next(model.parameters()).register_hook(lambda gradient: gradient * 0.1)
    with watch(model, optimizer, target_batch=16) as report:
        train(model, optimizer, batches())
    assert (report.verdict, codes(report)) == ("right", [])


def test_clipping_by_a_hook_is_clipping_within_the_group():
    model, optimizer = made()
    for each in model.parameters():
        each.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
    with watch(model, optimizer, target_batch=16) as report:
        train(model, optimizer, batches())
    assert codes(report) == ["GA110"]


def test_a_scheduler_that_is_told_where_it_is_counts_nothing():
    model, optimizer = made()
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10)
    with watch(model, optimizer, target_batch=16) as report:
        for index, (inputs, targets) in enumerate(batches()):
            (F.cross_entropy(model(inputs), targets) / STEPS).backward()
            if (index + 1) % STEPS == 0:
                optimizer.step()
                optimizer.zero_grad()
            schedule.step(index / 12)
    assert codes(report) == []


def test_views_of_one_sample_are_told_from_micro_batches_by_what_was_wanted():
    for wanted, found in ((16, []), (32, []), (8, ["GA115"])):
        model, optimizer = made()
        with watch(model, optimizer, target_batch=wanted) as report:
            for index, (inputs, _) in enumerate(batches()):
                both = torch.cat([model(inputs), model(inputs + 0.1)])
                (both.square().mean() / STEPS).backward()
                if (index + 1) % STEPS == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        assert codes(report) == found


def test_an_optimizer_of_copies_that_no_backward_pass_reaches_is_not_seen():
    """As ZeRO keeps them."""
    model, _ = made()
    copies = [torch.nn.Parameter(each.detach().clone()) for each in model.parameters()]
    optimizer = torch.optim.SGD(copies, lr=0.1)
    with watch(target_batch=16) as report:
        for index, (inputs, targets) in enumerate(batches()):
            (F.cross_entropy(model(inputs), targets) / STEPS).backward()
            if (index + 1) % STEPS == 0:
                for copy, each in zip(copies, model.parameters(), strict=True):
                    copy.grad = each.grad
                optimizer.step()
                model.zero_grad()
    assert report.verdict == "not seen"
    assert report.facts["micro_batches_per_update"] is None
    assert any(each.startswith("what SGD was given: no backward pass") for each in report.report.not_seen)


class Wrapped(torch.optim.Optimizer):
    """As Accelerate wraps one: an Optimizer itself, whose step is that of the one within."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()


def test_an_optimizer_that_is_handed_in_wrapped_is_the_one_within():
    model, within = made()
    wrapped = Wrapped(within)
    with watch(model, wrapped, target_batch=4 * STEPS) as report:
        for index, (inputs, targets) in enumerate(batches()):
            (F.cross_entropy(model(inputs), targets) / STEPS).backward()
            if index % STEPS == STEPS - 1:
                wrapped.step()
                within.zero_grad()
    assert (report.verdict, report.facts["updates"]) == ("right", 3)
