"""One update as one batch and as micro-batches: against gradients calculated by hand; and models left alone."""

from __future__ import annotations

import copy
import json
import random
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradaccum.errors import InputError
from gradaccum.torch import verify
from tests.show.markup import parse, the, words

pytestmark = pytest.mark.slow


class Scalar(nn.Module):
    """w * x, so that the gradient of the mean is the mean of x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.w * x


def mean(model, batch):
    return model(batch).mean()


def total(model, batch):
    return model(batch).sum()


def codes(found):
    return [each.code for each in found.findings]


POWERS = torch.tensor([1.0, 10.0, 100.0, 1000.0])


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_mean_of_equal_micro_batches_is_the_batch(micro_batch):
    found = verify(Scalar(), mean, POWERS, micro_batch)
    (row,) = found.table
    assert (found.verdict, found.findings, row.name) == ("right", (), "w")
    assert (row.ratio, row.cosine) == pytest.approx((1, 1))
    assert row.error <= found.tolerance < 1e-3


def test_a_sum_that_is_divided_by_the_micro_batches_is_too_small():
    """As one batch 1111, as two 1111 / 2."""
    found = verify(Scalar(), total, POWERS, 2)
    assert (found.verdict, codes(found)) == ("fault", ["GA102"])
    assert found.table[0].ratio == pytest.approx(1 / 2)
    assert found.findings[0].evidence["ratio"] == 1 / 2


def test_a_sum_beside_its_weight_is_right_and_a_mean_is_not():
    assert verify(Scalar(), lambda m, b: (total(m, b), len(b)), POWERS, 2).verdict == "right"
    assert verify(Scalar(), lambda m, b: (total(m, b), torch.tensor(len(b))), POWERS, 1).verdict == "right"
    found = verify(Scalar(), lambda m, b: (mean(m, b), len(b)), POWERS, 1)  # (1 + 10 + 100 + 1000) / 4 by 1111 / 16
    assert codes(found) == ["GA101"]
    assert found.table[0].ratio == pytest.approx(4)
    assert "mean, not a sum" in found.findings[0].message


X = torch.tensor([[2.0, 5.0, 5.0], [10.0, 10.0, 10.0]])
MASK = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])


def masked(model, batch):
    x, mask = batch
    return (model(x) * mask).sum() / mask.sum()


@pytest.mark.parametrize("mask", [MASK, MASK > 0], ids=["numbers", "booleans"])
def test_a_mean_of_means_is_named_with_its_counts(mask):
    """Means of 2 over one token and 10 over three: 8 as one batch, 6 as a mean of means."""
    found = verify(Scalar(), masked, (X, mask), 1)
    assert (found.verdict, codes(found)) == ("fault", ["GA103"])
    assert found.table[0].ratio == pytest.approx(6 / 8)
    assert found.table[0].error == pytest.approx(2 / 8)
    assert found.findings[0].evidence["counts"] == [1, 3]


def test_summed_and_divided_once_it_is_right():
    found = verify(Scalar(), lambda m, b: ((m(b[0]) * b[1]).sum(), b[1].sum()), (X, MASK), 1)
    assert found.verdict == "right"


def network(*more, inputs=8, classes=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 16), *more, nn.Tanh(), nn.Linear(16, classes))


def labelled(samples=8, ignored=()):
    torch.manual_seed(1)
    targets = torch.randint(0, 5, (samples,))
    targets[list(ignored)] = -100
    return {"x": torch.randn(samples, 8), "labels": targets, "name": "a batch", "ids": list("abcdefgh")[:samples]}


def entropy(model, batch):
    assert len(batch["ids"]) == len(batch["labels"])
    return functional.cross_entropy(model(batch["x"]), batch["labels"])


def test_ignored_targets_make_a_mean_of_means():
    assert verify(network(), entropy, labelled()).verdict == "right"
    found = verify(network(), entropy, labelled(ignored=(0, 4)))
    assert codes(found) == ["GA103"]
    assert found.findings[0].evidence == {"unit": "counted", "counts": [1, 2, 1, 2], "error": found.table[0].error}


def test_a_ragged_mean_beside_a_weight_is_no_sum():
    found = verify(network(), lambda m, b: (entropy(m, b), (b["labels"] >= 0).sum()), labelled(ignored=(0, 4)))
    assert codes(found) == ["GA103"]


def test_a_micro_batch_without_a_target_gives_no_verdict():
    found = verify(Scalar(), masked, (X, torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])), 1)
    assert (found.verdict, found.findings) == ("not seen", ())
    assert "0/0" in found.remarks[0]


@pytest.mark.parametrize("empty", [0, 1])
def test_beside_its_weight_a_micro_batch_without_a_target_counts_nothing(empty):
    """Of x = 2, 5 | 10, 20 one half is masked: the batch's gradient is the mean of the other."""
    x, mask = torch.tensor([2.0, 5.0, 10.0, 20.0]), torch.ones(4)
    mask[2 * empty : 2 * empty + 2] = 0
    found = verify(Scalar(), lambda m, b: ((m(b[0]) * b[1]).sum(), b[1].sum()), (x, mask), 2)
    assert (found.verdict, found.findings) == ("right", ())
    assert (found.table[0].ratio, found.table[0].error) == (pytest.approx(1), 0)
    wrong = verify(Scalar(), lambda m, b: ((m(b[0]) * b[1]).mean(), b[1].sum()), (x, mask), 2)
    assert wrong.verdict == "fault"


def contrastive(model, batch):
    """In-batch negatives: each row's positive is the same row of the other view."""
    one, other = (functional.normalize(model(each), dim=1) for each in batch)
    return functional.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))


def test_in_batch_negatives_are_named_whatever_the_weights_look_like():
    torch.manual_seed(2)
    found = verify(network(), contrastive, (torch.randn(8, 8), torch.randn(8, 8)), 2)
    assert (found.verdict, codes(found)) == ("fault", ["GA119"])
    assert found.findings[0].evidence["rest"] > 0.1
    assert found.table[0].cosine < 0.99


def test_batchnorm_is_the_cause_where_frozen_statistics_agree():
    model = network(nn.BatchNorm1d(16))
    found = verify(model, entropy, labelled())
    assert (found.verdict, codes(found), found.findings[0].severity) == ("fault", ["GA112"], "error")
    assert found.findings[0].evidence["error_with_frozen_statistics"] < 1e-4 < found.findings[0].evidence["error"]
    assert verify(model.eval(), entropy, labelled()).verdict == "right"


def test_batchnorm_hides_no_second_cause():
    assert codes(verify(network(nn.BatchNorm1d(16)), entropy, labelled(ignored=(0,)))) == ["GA112", "GA103"]


def test_dropout_is_accounted_for_and_never_blamed():
    found = verify(network(nn.Dropout(0.5)), entropy, labelled())
    assert (found.verdict, found.findings) == ("right", ())
    assert "dropout off" in found.remarks[0]
    assert codes(verify(network(nn.Dropout(0.5)), entropy, labelled(ignored=(0, 4)))) == ["GA103"]
    both = verify(network(nn.BatchNorm1d(16), nn.Dropout(0.5)), entropy, labelled())
    assert codes(both) == ["GA112"]


def test_other_noise_gives_no_verdict():
    found = verify(network(), lambda m, b: m(b + torch.randn_like(b)).square().mean(), torch.randn(8, 8))
    assert (found.verdict, found.findings) == ("not seen", ())
    assert "noise" in found.remarks[0]


def test_weights_that_nothing_explains_are_shown():
    found = verify(network(), lambda m, b: m(b[0]).square().mean() * b[1].sum(), (torch.randn(8, 8), torch.arange(8.0)))
    # Of the batch's 28 each micro-batch of two takes its own sum: 1, 5, 9, 13.
    assert codes(found) == ["GA118"]
    needed = found.findings[0].evidence["weights_needed"]
    assert [each * own for each, own in zip(needed, (1, 5, 9, 13), strict=True)] == pytest.approx([28] * 4)


def test_too_few_elements_to_tell_the_cause_are_no_guess():
    found = verify(Scalar(), lambda m, b: m(b).square().mean().sqrt(), POWERS, 1)
    assert (found.verdict, codes(found)) == ("fault", ["GA118"])


# Rounding


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_never_a_fault(dtype):
    batch = {**labelled(), "x": labelled()["x"].to(dtype)}
    found = verify(network().to(dtype), entropy, batch, 1)
    assert (found.verdict, found.dtype) == ("right", str(dtype).removeprefix("torch."))
    ragged = {**labelled(ignored=(0, 2, 4)), "x": batch["x"]}
    assert codes(verify(network().to(dtype), entropy, ragged, 2)) == ["GA103"]


def test_autocast_counts_as_what_it_computes_in():
    def cast(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return entropy(model, batch)

    found = verify(network(), cast, labelled(), 1)
    assert (found.verdict, found.dtype) == ("right", "bfloat16")


def test_products_are_in_full_precision_meanwhile():
    seen = []

    def precise(model, batch):
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return mean(model, batch)

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    assert True in before
    verify(Scalar(), precise, POWERS, 2)
    assert set(seen) == {(False, False)}
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_precision_that_was_set_by_the_newer_name_stays():
    convolutions = torch.backends.cudnn.conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        assert verify(Scalar(), mean, POWERS, 2).verdict == "right"
        assert convolutions.fp32_precision == "ieee"
    finally:
        convolutions.fp32_precision = before


def test_a_gradient_that_is_0_is_no_error():
    """A bias before BatchNorm has none but rounding; frozen or not, it must not be the row that decides."""
    model = nn.Sequential(network(), nn.Softmax(dim=1))
    bias = nn.Parameter(torch.zeros(1))
    model.register_parameter("shift", bias)

    def shifted(model, batch):
        return functional.nll_loss(torch.log_softmax(model[0](batch["x"]) + model.shift, 1), batch["labels"])

    found = verify(model, shifted, labelled())
    assert found.verdict == "right"
    (row,) = [each for each in found.table if each.name == "shift"]
    assert row.error < found.tolerance


# What is left alone


def test_the_model_and_the_random_states_are_as_before():
    model = network(nn.BatchNorm1d(16), nn.Dropout(0.5))
    model[2].eval()
    held = model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    batch = labelled()
    before, modes = copy.deepcopy(model.state_dict()), [each.training for each in model.modules()]
    states = torch.get_rng_state(), random.getstate()
    verify(model, entropy, batch)
    assert model[0].weight.grad is held
    assert torch.equal(held, torch.full_like(held, 7.0))
    assert model[0].bias.grad is None
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert [each.training for each in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


class Pair(NamedTuple):
    x: torch.Tensor
    scale: float


def test_batches_of_every_form_are_cut():
    def of_pair(model, batch):
        assert isinstance(batch, Pair)
        return mean(model, batch.x) * batch.scale

    assert verify(Scalar(), of_pair, Pair(POWERS, 2.0)).verdict == "right"
    assert verify(Scalar(), lambda m, b: mean(m, b[0]["x"]), [{"x": POWERS}, torch.tensor(3.0)]).verdict == "right"


# What cannot be compared


def frozen():
    return Scalar().requires_grad_(False)


WITH_LOSS = {
    "must return a scalar loss, or (loss_sum, weight), not a tensor of shape (4,)": lambda m, b: m(b),
    "must return a scalar loss, or (loss_sum, weight), not float": lambda m, b: 1.0,
    "without a gradient": lambda m, b: mean(m, b).detach(),
    "returned the weight 0 for the whole batch": lambda m, b: (total(m, b), 0),
    "returned the weight -1: it must be 0 or more": lambda m, b: (total(m, b), -1),
    "returned the weight nan: it must be 0 or more": lambda m, b: (total(m, b), float("nan")),
    "must return a weight always or never": lambda m, b: (total(m, b), 2) if len(b) == 4 else total(m, b),
}


@pytest.mark.parametrize("message", WITH_LOSS)
def test_a_loss_that_is_none_is_refused(message):
    with pytest.raises(InputError) as error:
        verify(Scalar(), WITH_LOSS[message], POWERS, 2)
    assert f"loss_of: {message}" in str(error.value) or message in str(error.value)


def test_a_loss_of_another_model_is_refused_and_that_model_left_alone():
    outer = Scalar()
    with pytest.raises(InputError, match="gives no gradient to the model that it is handed"):
        verify(outer, lambda m, b: mean(outer, b), POWERS, 2)
    assert outer.w.grad is None


@pytest.mark.parametrize(
    ("model", "batch", "micro_batch", "message"),
    [
        (Scalar, POWERS, 3, "micro_batch: must divide the batch of 4, which 3 does not; nearest: 2 or 1"),
        (Scalar, POWERS, 0, "micro_batch: must divide the batch of 4, which 0 does not; nearest: 1 or 2"),
        (Scalar, POWERS, "2", "micro_batch: must divide the batch of 4, which '2' does not; nearest: 1 or 2"),
        (Scalar, POWERS, 4, "micro_batch: must be smaller than the batch of 4: there is nothing to compare"),
        (Scalar, (POWERS, torch.zeros(3)), 1, "it has first dimensions 3, 4"),
        (Scalar, {"text": "no tensor"}, 1, "it has no tensor with samples"),
        (lambda: "model", POWERS, 2, "model: must be a torch.nn.Module, not str"),
        (frozen, POWERS, 2, "model: has no parameter that is trained"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_can(model, batch, micro_batch, message):
    with pytest.raises(InputError) as error:
        verify(model(), mean, batch, micro_batch)
    assert message in str(error.value)


def test_a_model_that_cannot_be_copied_is_refused():
    model = Scalar()
    model.cached = model.w * 2  # no leaf of the graph
    with pytest.raises(InputError, match="model: cannot be copied"):
        verify(model, mean, POWERS, 2)


# What is shown


def test_the_answer_is_read_at_80_columns_in_json_and_in_a_notebook():
    model = network()
    model.add_module("x" * 120 + "<b>", nn.Linear(5, 5))
    found = verify(model, entropy, labelled(ignored=(0, 4)))
    text = str(found)
    assert text.startswith("fault: 4 micro-batches of 2 do not give the gradient of one batch of 8 (GA103)\n")
    assert max(map(len, text.splitlines())) <= 80
    assert "Errors up to" in text
    data = json.loads(json.dumps(found.to_dict()))
    assert (data["verdict"], data["micro_batches"], len(data["parameters"])) == ("fault", 4, 6)
    root = parse(found._repr_html_())
    assert words(the(root, "verdict")) == text.splitlines()[0]
    assert not list(root.iter("script"))
    assert len(list(the(root, "numbers").iter("tr"))) == 7


def test_many_parameters_are_cut_to_the_worst():
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)])
    found = verify(model, lambda m, b: m(b).square().mean(), torch.randn(8, 8))
    assert "and 4 more with smaller errors" in str(found)
    assert str(found).startswith("right: 4 micro-batches of 2 give the gradient of one batch of 8\n")
    errors = [each.error for each in found.table]
    assert errors == sorted(errors, reverse=True)
