"""The chart of effective batches, against arithmetic done here."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradaccum
from gradaccum.show.batch_chart import batch_chart, chart_points
from tests.show.drawing import SPACE, description, dots, read, texts


def effective(micro_batch, ranks, target):
    """The batch that the smallest gap gives, a tie going up; by brute force."""
    block = micro_batch * ranks
    steps = max(1, target // block)
    return min((block * count for count in (steps, steps + 1)), key=lambda batch: (abs(batch - target), -batch))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 5000))
def test_points_are_what_each_micro_batch_and_gpu_count_gives(micro_batch, num_gpus, target):
    plan = gradaccum.plan(micro_batch=micro_batch, num_gpus=num_gpus, target_batch=target)
    by_micro_batch, by_gpus = chart_points(plan, "micro_batch"), chart_points(plan, "num_gpus")
    assert by_micro_batch == [(value, effective(value, num_gpus, target)) for value, _ in by_micro_batch]
    assert by_gpus == [(value, effective(micro_batch, value, target)) for value, _ in by_gpus]
    assert (micro_batch, plan.effective_batch) in by_micro_batch
    assert (num_gpus, plan.effective_batch) in by_gpus


def test_gpus_come_in_whole_replicas():
    plan = gradaccum.plan(micro_batch=1, num_gpus=24, tensor_parallel=6, target_batch=100)
    assert [value for value, _ in chart_points(plan, "num_gpus")][:3] == [6, 12, 18]


def test_heights_are_in_proportion_and_the_plans_own_point_is_marked():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500)
    chart = read(batch_chart(plan, "micro_batch"))
    (here,) = [each for each in chart.iter(SPACE + "circle") if each.get("class") == "ga-here"]
    (target,) = [each for each in chart.iter(SPACE + "path") if each.get("class") == "ga-target"]
    level = int(target.get("d").split()[1].partition("H")[0])
    points = dots(chart, "point")
    points.insert(3, (int(here.get("cx")), int(here.get("cy"))))
    batches = [effective(value, 8, 500) for value in range(1, 17)]
    assert len(points) == len(batches) == 16
    scale = Fraction(points[3][1] - level, 512 - 500)
    for (_, y), batch in zip(points, batches):
        assert abs(y - level - scale * (batch - 500)) <= 1 + abs(Fraction(batch - 500, 24))
        assert (y < level) == (batch > 500) or batch == 500
    assert "512 (+12)" in texts(chart)
    assert "500" in texts(chart)


def test_the_description_says_what_the_chart_shows():
    words = description(read(batch_chart(gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=96), "micro_batch")))
    batches = {value: effective(value, 8, 96) for value in range(1, 17)}
    exact = ", ".join(str(value) for value, batch in batches.items() if batch == 96)
    assert words == (
        f"Target 96. From micro-batch 1 to 16 an update sees {min(batches.values())} to {max(batches.values())}; "
        f"4 gives 96. Exactly on the target: {exact}."
    )


def test_a_target_in_tokens_is_charted_in_tokens():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_tokens="4M", sequence_length=2048)
    chart = read(batch_chart(plan, "micro_batch"))
    assert dict(chart_points(plan, "micro_batch"))[4] == plan.tokens_per_step
    assert {"tokens per update", "4M"} <= set(texts(chart))


def test_exact_is_always_on_the_target():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500, rounding="exact")
    assert {amount for _, amount in chart_points(plan, "num_gpus")} == {500}
    assert "500 (on target)" in texts(read(batch_chart(plan, "num_gpus")))


COUNTS = st.one_of(st.integers(1, 100), st.integers(1, 10**100 - 1))


@pytest.mark.parametrize("axis", ["micro_batch", "num_gpus"])
@given(COUNTS, COUNTS, COUNTS)
def test_every_plan_is_charted_within_its_frame(axis, micro_batch, num_gpus, target_batch):
    chart = read(
        batch_chart(gradaccum.plan(micro_batch=micro_batch, num_gpus=num_gpus, target_batch=target_batch), axis)
    )
    _, _, width, height = map(int, chart.get("viewBox").split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in dots(chart, "point"))
    assert all(len(text) < 40 for text in texts(chart))
