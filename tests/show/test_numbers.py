"""Numbers as the page shows them."""

from __future__ import annotations

import pytest

import gradaccum
from gradaccum.show.numbers import brief, drift_of, goal_of, plural, signed


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999_999_999_999_999, "999,999,999,999,999"), (10**15, "1e15"), (-(10**15), "-1e15"), (12, "12")],
)
def test_brief(count, text):
    assert brief(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(12, "+12"), (-4, "\u22124"), (0, "0"), (1_234_567, "+1.23M"), (-2_000_000, "\u22122M")]
)
def test_signed(count, text):
    assert signed(count) == text


def test_plural():
    assert [plural(1, "GPU"), plural(2, "GPU"), plural(0, "GPU")] == ["1 GPU", "2 GPUs", "0 GPUs"]


def test_target_and_drift_in_their_own_unit():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500)
    assert (goal_of(plan).amount, goal_of(plan).in_tokens, drift_of(plan)) == (500, False, 12)
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_tokens=1_000_000, sequence_length=1024)
    # 1e6 / (32 x 1024) = 30.5...: 31 micro-steps
    assert (goal_of(plan).amount, goal_of(plan).in_tokens, drift_of(plan)) == (10**6, True, 31 * 32 * 1024 - 10**6)
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, accum_steps=3)
    assert (goal_of(plan).amount, drift_of(plan)) == (96, 0)
