"""Learning-rate rules against the figures that their users published."""

from __future__ import annotations

import math

import pytest

import gradaccum
from gradaccum.core.scaling import warmup_updates_linear


def rates(base_batch, learning_rate, batch):
    plan = gradaccum.plan(
        micro_batch=1, num_gpus=1, target_batch=batch, base_batch=base_batch, learning_rate=learning_rate
    )
    return {rate.rule: rate.learning_rate for rate in plan.scaled_rates}


@pytest.mark.parametrize(
    ("base", "rate", "batch", "published"),
    [
        (256, 0.1, 8192, 3.2),  # Goyal et al. 2017, table 1: ResNet-50, 0.1 per 256 images
        (256, 0.1, 512, 0.2),
        (256, 0.1, 65536, 25.6),
        (2, 0.0025, 16, 0.02),  # the same, Mask R-CNN from 1 GPU to 8
        (1152, 8e-5, 9216, 6.4e-4),  # MLPerf training rules, Llama-3.1 405B
    ],
)
def test_linear_rule(base, rate, batch, published):
    assert rates(base, rate, batch)["linear"] == pytest.approx(published, rel=1e-12)


@pytest.mark.parametrize(
    ("base", "rate", "batch", "published"),
    [
        (256, 0.1, 8192, 0.5657),  # Goyal et al. 2017, table 2a: the square-root row
        (16384, 2.4e-5, 15360, 2.3238e-5),  # MLPerf training rules, DeepSeek-V3
        (16384, 2.4e-5, 18432, 2.5456e-5),
    ],
)
def test_square_root_rule(base, rate, batch, published):
    assert rates(base, rate, batch)["square root"] == pytest.approx(published, rel=5e-5)


def test_warm_up_belongs_to_growing_batches():
    plan = gradaccum.plan(micro_batch=1, num_gpus=1, target_batch=64, base_batch=32, learning_rate=0.1)
    assert "5 epochs of gradual warm-up" in plan.scaled_rates[0].advice
    plan = gradaccum.plan(micro_batch=1, num_gpus=1, target_batch=16, base_batch=32, learning_rate=0.1)
    assert "warm-up" not in plan.scaled_rates[0].advice
    assert warmup_updates_linear(157) == 785  # ImageNet at 8192: 157 updates per epoch
    assert warmup_updates_linear(None) is None


def test_a_quotient_that_is_no_float_gives_no_rate():
    assert (
        gradaccum.plan(micro_batch=1, num_gpus=1, target_batch=10**400, base_batch=1, learning_rate=0.1).scaled_rates
        == ()
    )


def test_a_rate_that_is_no_float_is_none():
    inputs = {"micro_batch": 10**90, "num_gpus": 10**90, "accum_steps": 10**90}
    assert gradaccum.plan(**inputs, base_batch=1, learning_rate=1e29).scaled_rates
    assert gradaccum.plan(**{**inputs, "num_gpus": 10**100}, base_batch=1, learning_rate=1e29).scaled_rates == ()


def test_json_holds_numbers():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=512, base_batch=64, learning_rate="3e-4")
    linear, root = plan.to_dict()["scaled_rates"]
    assert linear["learning_rate"] == 0.0024
    assert root["learning_rate"] == float(f"{3e-4 * math.sqrt(8):.4g}")
