"""The bubble against a schedule that is played through clock tick by clock tick."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradaccum


def idle_share(stages: int, micro_batches: int) -> Fraction:
    """GPipe: stage s can run micro-batch b one tick after stage s - 1 did. Backward mirrors it."""
    finish: dict[tuple[int, int], int] = {}
    for batch in range(micro_batches):
        for stage in range(stages):
            ready = max(finish.get((stage - 1, batch), 0), finish.get((stage, batch - 1), 0))
            finish[stage, batch] = ready + 1
    length = finish[stages - 1, micro_batches - 1]
    return Fraction(length - micro_batches, length)


@given(st.integers(2, 9), st.integers(1, 40))
def test_the_share_of_a_schedule_that_is_played_through(stages, count):
    plan = gradaccum.plan(micro_batch=1, num_gpus=stages, pipeline_parallel=stages, target_batch=count)
    bubble = plan.pipeline.bubble
    assert plan.pipeline.micro_batches == plan.accum_steps == count
    assert Fraction(bubble.numerator, bubble.denominator) == idle_share(stages, count)


@pytest.mark.parametrize(
    ("stages", "virtual", "count", "over_ideal"),
    [(8, 1, 8, Fraction(7, 8)), (8, 2, 8, Fraction(7, 16)), (12, 1, 128, Fraction(11, 128))],
)
def test_the_published_ratio(stages, virtual, count, over_ideal):
    """arXiv:2104.04473 gives the bubble over the ideal time, (p - 1) / (v m)."""
    plan = gradaccum.plan(
        micro_batch=1, num_gpus=stages, pipeline_parallel=stages, virtual_pipeline=virtual, target_batch=count
    )
    bubble = plan.pipeline.bubble
    share = Fraction(bubble.numerator, bubble.denominator)
    assert share / (1 - share) == over_ideal


def test_interleaving_wants_a_multiple_of_the_stages():
    inputs = {"micro_batch": 1, "num_gpus": 4, "pipeline_parallel": 4, "virtual_pipeline": 2}
    assert gradaccum.plan(**inputs, target_batch=8).pipeline.nearest_even == ()
    assert gradaccum.plan(**inputs, target_batch=9).pipeline.nearest_even == (8, 12)
    assert gradaccum.plan(**inputs, target_batch=3).pipeline.nearest_even == (4,)
    assert gradaccum.plan(micro_batch=1, num_gpus=4, target_batch=8).pipeline is None


def test_bloom():
    """BLOOM-176B: 12 stages, 128 micro-batches; 11 / 139 of an update."""
    plan = gradaccum.plan(preset="bloom-176b")
    assert plan.to_dict()["bubble_percent"] == "7.91"
