"""Small loops, each of one pattern that a watch tells from its neighbours; by construction right or wrong."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody writes it

from gradaccum.torch.audit.watch import watch

GROUPS = 3


def parts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
    return model, torch.optim.SGD(model.parameters(), lr=0.05)


def groups(sizes=(4, 4, 4, 4)):
    """Of each update the micro-batches, of so many samples."""
    chance = torch.Generator().manual_seed(1)
    return [
        [(torch.randn(n, 6, generator=chance), torch.randint(0, 5, (n,), generator=chance)) for n in sizes]
        for _ in range(GROUPS)
    ]


def grads(model):
    return [each.grad for each in model.parameters()]


def divided_in_between(by_count):
    """The sums are divided by what each micro-batch holds, or halved, before the next one adds to them."""
    model, optimizer = parts()
    for group in groups((3, 5, 4, 2)):
        for x, y in group:
            F.cross_entropy(model(x), y, reduction="sum").backward()
            torch._foreach_div_(grads(model), len(y) if by_count else 2)
        optimizer.step()
        optimizer.zero_grad()


def own_buffers(kept):
    """Gradients are summed in tensors of the loop's own, which it forgets to clear, or not."""
    model, optimizer = parts()
    held = [torch.zeros_like(each) for each in model.parameters()]
    for group in groups():
        for x, y in group:
            F.cross_entropy(model(x), y).backward()
            torch._foreach_add_(held, grads(model))
            optimizer.zero_grad()
        for each, parameter in zip(held, model.parameters(), strict=True):
            parameter.grad = each / len(group)
        if not kept:
            torch._foreach_zero_(held)
        optimizer.step()
        optimizer.zero_grad()


def own_momentum():
    """Half of what the update before received is added by hand, as some filters of gradients do: that is meant."""
    model, optimizer = parts()
    last = [torch.zeros_like(each) for each in model.parameters()]
    for group in groups():
        for x, y in group:
            (F.cross_entropy(model(x), y) / len(group)).backward()
        torch._foreach_add_(grads(model), last, alpha=0.5)
        last = [each.clone() for each in grads(model)]
        optimizer.step()
        optimizer.zero_grad()


def something_else():
    """What the optimizer is given has nothing to do with what the passes brought."""
    model, optimizer = parts()
    for group in groups():
        for x, y in group:
            (F.cross_entropy(model(x), y) / len(group)).backward()
        for each in model.parameters():
            each.grad = torch.randn_like(each)
        optimizer.step()
        optimizer.zero_grad()


def summed_over(budget):
    """Sums over 14 samples, divided by another number: too large where that is smaller, else a coefficient."""
    model, optimizer = parts()
    for group in groups((3, 5, 4, 2)):
        for x, y in group:
            (F.cross_entropy(model(x), y, reduction="sum") / budget).backward()
        optimizer.step()
        optimizer.zero_grad()


def own_divisors(of_group):
    """Each micro-batch's sum is divided by its hits, which no unit of the loss shows, or by those of the group."""
    model, optimizer = parts()
    for group in groups():
        hits = [number + 1 for number in range(len(group))]
        for (x, y), own in zip(group, hits, strict=True):
            squares = (model(x) - F.one_hot(y, 5)).square()
            (squares.sum() / sum(hits) if of_group else squares.sum() / own / len(group)).backward()
        optimizer.step()
        optimizer.zero_grad()


def full_then_single():
    """The steps are counted once, and after the first group each micro-batch makes an update, divided as before."""
    model, optimizer = parts()
    for seen, (x, y) in enumerate([each for group in groups() for each in group][:7], 1):
        (F.cross_entropy(model(x), y) / 4).backward()
        if seen >= 4:
            optimizer.step()
            optimizer.zero_grad()


def stepping_first():
    """The steps are counted from 0, and the first micro-batch makes an update by itself."""
    model, optimizer = parts()
    for index, (x, y) in enumerate([each for group in groups() for each in group]):
        (F.cross_entropy(model(x), y) / 4).backward()
        if index % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


def short_last(ragged):
    """A mean of each micro-batch, of as many or of different numbers of samples, and a last group of three."""
    model, optimizer = parts()
    found = groups((3, 5, 4, 2) if ragged else (4, 4, 4, 4))
    for group in [*found[:-1], found[-1][:3]]:
        for x, y in group:
            (F.cross_entropy(model(x), y) / 4).backward()
        optimizer.step()
        optimizer.zero_grad()


def weighed(of_group):
    """A weight for each element is handed to the loss, whose sum is divided by all weights of the group, or its own."""
    model, optimizer = parts()
    for group in groups():
        weights = [torch.rand(len(y), 1) + number for number, (_, y) in enumerate(group)]
        for (x, y), own in zip(group, weights, strict=True):
            wanted = F.one_hot(y, 5).float()
            loss = F.binary_cross_entropy_with_logits(model(x), wanted, own.expand_as(wanted), reduction="sum")
            (loss / (5 * sum(each.sum() for each in weights)) if of_group else loss / own.sum() / 20).backward()
        optimizer.step()
        optimizer.zero_grad()


def two_paces():
    """The first layer is stepped with each micro-batch, and the last one with each group: both use all passes."""
    model, _ = parts()
    often, seldom = (torch.optim.SGD(model[place].parameters(), lr=0.05) for place in (0, 2))
    for group in groups():
        for x, y in group:
            (F.cross_entropy(model(x), y) / len(group)).backward()
            often.step()
            often.zero_grad()
        seldom.step()
        seldom.zero_grad()


def first_half_cleared():
    """Something between the second and the third micro-batch clears what the first two brought."""
    model, optimizer = parts()
    for group in groups():
        for number, (x, y) in enumerate(group):
            if number == 2:
                model.zero_grad()
            (F.cross_entropy(model(x), y) / len(group)).backward()
        optimizer.step()
        optimizer.zero_grad()


def first_group_dropped():
    """A whole group is thrown away and the next one trained: each is divided by its own number."""
    model, optimizer = parts()
    for turn, group in enumerate(groups()):
        for x, y in group:
            (F.cross_entropy(model(x), y) / len(group)).backward()
        if turn != 1:
            optimizer.step()
        optimizer.zero_grad()


def joined_later(cleared):
    """The first layer joins the optimizer after an update; its gradients of before are still there, or not."""
    model, _ = parts()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.05)
    for turn, group in enumerate(groups()):
        if turn == 1:
            optimizer.add_param_group({"params": list(model[0].parameters())})
        for x, y in group:
            (F.cross_entropy(model(x), y) / len(group)).backward()
        optimizer.step()
        (model if cleared else optimizer).zero_grad()


def fewer_losses():
    """Of four losses two have fallen out of the list before their mean goes backward."""
    model, optimizer = parts()
    losses: deque[torch.Tensor] = deque(maxlen=2)
    for group in groups():
        losses.extend(F.cross_entropy(model(x), y) for x, y in group)
        torch.stack(list(losses)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def pairs(x):
    signs = 2 * torch.eye(len(x)) - 1
    return -F.logsigmoid(signs * (x @ x.roll(1, 1).T)).mean()


def correlations(x):
    x = (x - x.mean(0)) / len(x)
    return (x.T @ x - torch.eye(x.shape[1])).square().mean()


def covariances(x):
    """Of features, without their own, as VICReg has them."""
    found = (x - x.mean(0)).T @ x / len(x)
    return (found - torch.diag(torch.diag(found))).square().sum()


def two_views():
    """Two calls of the model, and two terms of one product over the samples, as Barlow Twins has them."""
    model, optimizer = parts()
    for group in groups():
        for x, _ in group:
            one, other = model(x), model(x + 0.1)
            found = one.T @ other / len(x)
            far = found.flatten()[1:].view(4, 6)[:, :-1]
            loss = (torch.diagonal(found) - 1).square().sum() + 0.005 * far.square().sum()
            (loss / len(group)).backward()
        optimizer.step()
        optimizer.zero_grad()


def similarities(x):
    """The same pairs, written as a contraction."""
    return F.binary_cross_entropy_with_logits(torch.einsum("id,jd->ij", x, x.tanh()), torch.eye(len(x)))


def each_by_itself(x):
    """A product of what one sample gives, which is nothing of the batch."""
    return (x[:, :, None] @ x[:, None, :]).square().mean()


def of_parameters(x):
    """A last layer whose weight is made of parameters, four classes of four samples."""
    return (x @ F.normalize(of_parameters.layer.weight).T).square().mean()


of_parameters.layer = nn.Linear(5, 4)  # type: ignore[attr-defined]


def loss_of_batch(loss):
    model, optimizer = parts()
    for group in groups():
        for x, _ in group:
            (loss(model(x)) / len(group)).backward()
        optimizer.step()
        optimizer.zero_grad()


LOOPS = {
    "divided by each count in between": (lambda: divided_in_between(True), ["GA118"]),
    "halved in between": (lambda: divided_in_between(False), ["GA118"]),
    "own buffers": (lambda: own_buffers(False), []),
    "own buffers that are kept": (lambda: own_buffers(True), ["GA107"]),
    "own momentum": (own_momentum, []),
    "a budget that is exceeded": (lambda: summed_over(10), ["GA101"]),
    "a constant above all counts": (lambda: summed_over(32), []),
    "hits of the micro-batch": (lambda: own_divisors(False), ["GA103"]),
    "hits of the group": (lambda: own_divisors(True), []),
    "a full group, then single ones": (full_then_single, ["GA105"]),
    "stepping first": (stepping_first, ["GA105"]),
    "a short last group": (lambda: short_last(False), ["GA105"]),
    "a short last group of ragged ones": (lambda: short_last(True), ["GA103", "GA105"]),
    "weights of the group": (lambda: weighed(True), []),
    "weights of the micro-batch": (lambda: weighed(False), ["GA103"]),
    "two paces": (two_paces, []),
    "the first half cleared": (first_half_cleared, ["GA106"]),
    "a group that is dropped": (first_group_dropped, []),
    "joined with what was there": (lambda: joined_later(False), ["GA107"]),
    "joined": (lambda: joined_later(True), []),
    "fewer losses than calls": (fewer_losses, ["GA115"]),
    "pairs of samples": (lambda: loss_of_batch(pairs), ["GA119"]),
    "pairs, contracted": (lambda: loss_of_batch(similarities), ["GA119"]),
    "correlations over samples": (lambda: loss_of_batch(correlations), ["GA119"]),
    "covariances over samples": (lambda: loss_of_batch(covariances), ["GA119"]),
    "two views": (two_views, ["GA119"]),
    "a product for each sample": (lambda: loss_of_batch(each_by_itself), []),
    "a weight of parameters": (lambda: loss_of_batch(of_parameters), []),
}


@pytest.mark.parametrize("name", LOOPS)
def test_each_is_told_from_its_neighbours(name):
    loop, wanted = LOOPS[name]
    target = 16 if name.startswith("fewer") else None
    with watch(target_batch=target, updates=None) as report:
        loop()
    assert [each.code for each in report.findings] == wanted, report
    assert report.verdict == ("fault" if wanted else "right"), report


@pytest.mark.parametrize(("name", "checked"), [("own buffers", False), ("pairs of samples", True)])
def test_in_batch_negatives_are_not_checked_where_the_loss_shows_none(name, checked):
    with watch(updates=None) as report:
        LOOPS[name][0]()
    assert bool(report.facts["not_checked"]) != checked
    assert ("not checked       in-batch negatives" in str(report)) != checked


def test_what_is_no_sum_of_the_passes_has_no_verdict():
    with watch(updates=None) as report:
        something_else()
    assert report.verdict == "not seen"
    assert "what SGD was given: it is no sum of what the backward passes brought" in report.not_seen


def test_what_is_taken_for_a_coefficient_is_said():
    with watch(updates=None) as report:
        summed_over(32)
    assert report.facts["weights_sum_to"] == pytest.approx([14 / 32, 14 / 32])
    assert "0.4375, not 1: a coefficient, clipping, or a divisor of your own" in " ".join(str(report).split())
    with watch(updates=None) as report:
        summed_over(14)
    assert report.facts["weights_sum_to"] is None
    assert "weights sum to" not in str(report)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("divided by each count in between", "divided by what the last one held, 3, 5, 4 targets"),
        ("halved in between", "multiplied by 0.5 between its micro-batches"),
        ("a budget that is exceeded", "sums over 14 targets in all were divided by 10, so that the weights sum to 1.4"),
        ("hits of the micro-batch", "divided by a number of its own, 1, 2, 3, 4, so that some weigh 4 times"),
        ("a full group, then single ones", "divided by 4, not by its micro-batches, 1: its weights sum to 0.25"),
        ("stepping first", "The first group was divided by 4, not by its micro-batches, 1: its weights sum to 0.25"),
        ("pairs of samples", "its 4 samples are multiplied with each other"),
    ],
)
def test_it_says_what_was_found(name, words):
    with watch(updates=None) as report:
        LOOPS[name][0]()
    assert words in report.findings[0].message
    assert "None" not in str(report)
    assert "divisors" not in str(report)  # evidence has words too


def test_passes_that_another_optimizer_used_are_not_left_over():
    """A discriminator's optimizer sees the generator's pass go by after its own last step."""
    torch.manual_seed(0)
    generator, discriminator = nn.Linear(3, 6), nn.Linear(6, 1)
    first, second = (torch.optim.SGD(each.parameters(), lr=0.01) for each in (discriminator, generator))
    with watch(updates=1) as report:
        for _ in range(3):
            first.zero_grad()
            F.softplus(-discriminator(torch.randn(4, 6))).mean().backward()
            first.step()
            second.zero_grad()
            F.softplus(-discriminator(generator(torch.randn(4, 3)))).mean().backward()
            second.step()
    assert report.facts["micro_batches_without_update"] == 0
    assert "left over" not in str(report)
