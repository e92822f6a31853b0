"""The weight that the instrument reads, beside the one that the logits' gradients show.

Truth: a row's gradient in the loss at hand, by its gradient in the sum of unreduced losses, is what the row weighs.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - as everybody writes it
from torch.utils.checkpoint import checkpoint

from gradaccum.torch.audit.weights import Instrument

ROWS, CLASSES = 6, 5
TARGETS = torch.tensor([0, 1, -100, 3, 4, 2])
MASK = (TARGETS != -100).double()
CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
VALUES = torch.linspace(-1, 1, ROWS * CLASSES, dtype=torch.float64).reshape(ROWS, CLASSES)
ADVANTAGES = torch.tensor([1.5, -2.0, 0.3, 0.7, -0.1, 2.2], dtype=torch.float64)


def nll(x, reduction="none", **more):
    return F.cross_entropy(x, TARGETS, reduction=reduction, **more)


def own_mean(x):
    return (F.cross_entropy(x, TARGETS.clamp(min=0), reduction="none") * MASK).sum() / MASK.sum()


# name: the loss, its unreduced form (one number for each row, or each element), and what is expected of its count
LOSSES = {
    "mean": (lambda x: nll(x, "mean"), nll, 5),
    "mean over 4": (lambda x: nll(x, "mean") / 4, nll, 5),
    "sum": (lambda x: nll(x, "sum"), nll, 5),
    "sum by a count": (lambda x: nll(x, "sum") / torch.tensor(17), nll, 5),
    "scaled for fp16": (lambda x: nll(x, "mean") * 65536.0 / 4, nll, 5),
    "class weights": (lambda x: nll(x, "mean", weight=CLASS_WEIGHTS), lambda x: nll(x, weight=CLASS_WEIGHTS), 5),
    "by hand": (own_mean, lambda x: F.cross_entropy(x, TARGETS.clamp(min=0), reduction="none") * MASK, 5),
    "chosen rows": (lambda x: nll(x)[TARGETS != -100].mean(), nll, 5),
    "mean with the ignored": (lambda x: nll(x).mean(), nll, 5),
    "gathered": (
        lambda x: -torch.log_softmax(x, -1).gather(1, TARGETS.clamp(min=0)[:, None]).squeeze(1).mean(),
        lambda x: F.cross_entropy(x, TARGETS.clamp(min=0), reduction="none"),
        6,
    ),
    "policy gradient": (
        lambda x: (F.cross_entropy(x, TARGETS.clamp(min=0), reduction="none") * ADVANTAGES).mean(),
        lambda x: F.cross_entropy(x, TARGETS.clamp(min=0), reduction="none") * ADVANTAGES,
        6,
    ),
    "added up": (lambda x: sum([nll(x, "mean"), 0.0]) / 2, nll, 5),
    "stacked": (lambda x: torch.stack([nll(x, "mean"), nll(x.detach(), "mean")]).mean(), nll, 5),
    "squared": (lambda x: F.mse_loss(x, VALUES), lambda x: (x - VALUES) ** 2, 30),
    "squared by hand": (lambda x: ((x - VALUES) ** 2).mean() * 3, lambda x: (x - VALUES) ** 2, 30),
    "huber": (lambda x: F.huber_loss(x, VALUES), lambda x: F.huber_loss(x, VALUES, reduction="none"), 30),
    "smooth": (lambda x: F.smooth_l1_loss(x, VALUES), lambda x: F.smooth_l1_loss(x, VALUES, reduction="none"), 30),
    "absolute": (lambda x: F.l1_loss(x, VALUES), lambda x: (x - VALUES).abs(), 30),
    "binary": (
        lambda x: F.binary_cross_entropy_with_logits(x, VALUES.abs()),
        lambda x: F.binary_cross_entropy_with_logits(x, VALUES.abs(), reduction="none"),
        30,
    ),
    "divergence": (
        lambda x: F.kl_div(torch.log_softmax(x, -1), torch.softmax(VALUES, -1), reduction="batchmean"),
        lambda x: F.kl_div(torch.log_softmax(x, -1), torch.softmax(VALUES, -1), reduction="none"),
        30,
    ),
}


def seen(loss):
    instrument = Instrument()
    instrument.attach(loss)
    loss.backward()
    instrument.detach()
    return instrument.settle()


def logits():
    return torch.randn(
        ROWS, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True
    )


def gradient(loss):
    x = logits()
    (found,) = torch.autograd.grad(loss(x).sum(), x)
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_a_unit_weighs_what_its_gradient_says(name):
    loss, unreduced, counted = LOSSES[name]
    whole, each = gradient(loss), gradient(unreduced)
    there = each.abs() > 1e-12
    truth = (whole[there] / each[there]).tolist()
    (term,) = seen(loss(logits()))
    assert term.weight is not None
    assert [abs(term.weight)] * len(truth) == pytest.approx(truth, rel=1e-12)
    assert term.units["counted"] == counted
    assert term.spread == pytest.approx(1)


def test_the_terms_of_a_loss_stand_apart():
    def loss(x):
        return (nll(x, "mean") + 0.01 * x.pow(2).mean()) / 4

    main, auxiliary = seen(loss(logits()))
    assert main.weight == pytest.approx(1 / (5 * 4))
    assert auxiliary.weight == pytest.approx(0.01 / (30 * 4))
    assert any(factor == pytest.approx(0.01) for factor in auxiliary.factors)
    assert all(any(factor == pytest.approx(0.25) for factor in term.factors) for term in (main, auxiliary))


def test_label_smoothing_is_two_terms():
    x = logits()
    main, smooth = seen(nll(x, "mean", label_smoothing=0.1))
    assert main.weight == pytest.approx(0.9 / 5)
    assert abs(smooth.weight or 0) == pytest.approx(0.1 / CLASSES / 5)


def test_losses_of_several_micro_batches_in_one_pass():
    x, y = logits(), logits()
    found = seen(sum([nll(x, "mean"), nll(y, "mean")]) / 2)
    assert [term.weight for term in found] == pytest.approx([0.1, 0.1])


def test_what_follows_a_reduction_by_more_than_a_factor_is_no_weight():
    (term,) = seen(F.mse_loss(logits(), VALUES).sqrt())
    assert term.kind == "nonlinear"


class Fused(torch.autograd.Function):
    """A loss that shows no logits, as fused kernels do."""

    @staticmethod
    def forward(ctx, x, targets):
        ctx.save_for_backward(targets, x)
        return x.sum()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.expand(ROWS, CLASSES), None


def test_a_fused_loss_is_counted_by_the_targets_that_it_saved():
    (term,) = seen(Fused.apply(logits(), TARGETS) / 3)
    assert term.kind == "opaque"
    assert term.weight == pytest.approx(1 / 3)
    assert term.units["counted"] == 5


def test_a_batch_without_targets_weighs_nothing():
    (term,) = seen(F.cross_entropy(logits(), torch.full((ROWS,), -100), reduction="sum"))
    assert term.units["counted"] == 0


def test_what_a_checkpoint_would_compute_again_is_not_looked_at():
    """To look at a target that checkpointing left out would run the forward pass, and count its calls."""
    ran = []

    def loss_of(x):
        ran.append(1)
        return nll(x * 1, "sum")

    x = logits()
    loss = checkpoint(loss_of, x, use_reentrant=False)
    instrument = Instrument()
    instrument.attach(loss)
    assert len(ran) == 1
    loss.backward()
    instrument.detach()
    (term,) = instrument.settle()
    assert term.units == {}
    assert len(ran) == 2
    with torch.autograd.graph.save_on_cpu():  # which only moves tensors
        (term,) = seen(nll(logits() * 1, "sum"))
    assert term.units["counted"] == 5


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_loss_inside_a_compiled_graph_is_not_known(backend):
    compiled = torch.compile(lambda x, y: F.cross_entropy(x * 1, y), backend=backend)
    (term,) = seen(compiled(logits(), TARGETS) / 4)
    assert term.units == ({} if backend == "aot_eager" else {"elements": 6, "rows": 6, "counted": 5, "weighed": 5})


@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_class_weights_are_what_a_sum_weighs(kind):
    (term,) = seen(nll(logits(), kind, weight=CLASS_WEIGHTS))
    there = TARGETS != -100
    assert term.units["weighed"] == pytest.approx(float(CLASS_WEIGHTS[TARGETS[there]].sum()))


@pytest.mark.parametrize(
    ("asked", "contrastive"),
    [([0, 1], True), ([1, 0], False), ([2, 0, 1], True), ([3, 4, 5], True), ([0, 0, 1], False), ([0, 2, 4], False)],
)
def test_classes_that_are_the_samples_themselves(asked, contrastive):
    rows = len(asked)
    x = torch.randn(rows, 2 * rows, requires_grad=True)
    (term,) = seen(F.cross_entropy(x, torch.tensor(asked)))
    assert term.in_batch == contrastive


def test_a_loss_without_a_graph_has_no_terms():
    instrument = Instrument()
    instrument.attach(torch.zeros((), requires_grad=True))
    assert instrument.settle() == []


def test_a_loss_over_too_many_terms_is_one_of_which_nothing_is_known():
    x = logits()
    total = sum(nll(x, "mean") for _ in range(200))
    for most, kinds in ((1000, ["mean"] * 200), (50, ["opaque"])):
        instrument = Instrument(most_nodes=most)
        instrument.attach(total)
        total.backward(retain_graph=True)
        instrument.detach()
        terms = instrument.settle()
        assert [each.kind for each in terms] == kinds
    assert terms[0].leaf == "a loss of more than 50 scalar nodes"
    assert terms[0].weight is None
    assert terms[0].units == {}


def test_hooks_are_gone_afterwards():
    x = logits()
    loss = nll(x, "mean")
    instrument = Instrument()
    instrument.attach(loss)
    loss.backward(retain_graph=True)
    instrument.detach()
    first = instrument.settle()
    (loss * 0).backward()
    assert instrument.settle() == first
