"""The words of the first answer, for every kind of plan."""

from __future__ import annotations

import pytest

import gradaccum
from gradaccum.show.numbers import drift_words
from gradaccum.show.text import Style, biting, equation, explain_text, headline, plan_text, table_text


def text(**inputs):
    return plan_text(gradaccum.plan(**{"micro_batch": 4, "num_gpus": 8, "target_batch": 500, **inputs}))


def test_printing_a_plan_prints_the_answer():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500)
    assert str(plan) == plan_text(plan)


def test_headline_counts_in_words():
    assert headline(gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=32)) == "1 accumulation step"
    assert headline(gradaccum.plan(micro_batch=1, num_gpus=1, target_batch="1M")) == "1,000,000 accumulation steps"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"target_batch": 500}, "12 more than the target of 500 (+2.40%)"),
        ({"target_batch": 520}, "8 fewer than the target of 520 (-1.54%)"),
        ({"target_batch": 512}, "exactly the target of 512"),
        ({"accum_steps": 3}, "which is what these settings make"),
        (
            {"target_tokens": 1_000_000, "sequence_length": 2048},
            "16,960 tokens fewer than the target of 1,000,000 tokens (-1.70%)",
        ),
    ],
)
def test_drift_in_words(inputs, words):
    assert drift_words(gradaccum.plan(micro_batch=4, num_gpus=8, **inputs)) == words


def test_equations():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500)
    assert equation(plan) == "4 micro-batch x 8 GPUs x 16 accumulation steps = 512"
    split = gradaccum.plan(micro_batch=4, num_gpus=8, tensor_parallel=8, target_batch=512)
    assert "x 1 data-parallel rank x 128" in equation(split)
    exact = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500, rounding="exact")
    assert equation(exact).endswith("= 512, less 12 in the last micro-step")


def test_rows_appear_where_they_apply():
    assert "pipeline bubble" not in text()
    assert "20% (8 micro-batches" not in text()
    assert "15.79% (16 micro-batches, 4 stages)" in text(pipeline_parallel=4, num_gpus=32)  # 3 / 19
    assert "updates per epoch   20" in text(dataset_size=10_000)
    run = text(dataset_size=10_000, epochs=3, warmup_ratio=0.1, sequence_length=2048, params="1B")
    assert "60, 20 per epoch, 6 of warm-up" in run
    assert "tokens per param    0.06144 " in run  # 3 x 10,000 x 2048 / 1e9
    assert "warm-up updates     7" in text(warmup_updates=7)
    assert "loss tokens         about 314,572 per update" in text(
        target_batch=512, sequence_length=2048, supervised_fraction=0.3
    )
    rates = text(target_batch=512, learning_rate=3e-4, base_batch=32)
    assert "0.0048 by the linear rule, for SGD" in rates
    assert "0.0012 by the square root rule, for Adam" in rates


def test_the_finding_that_bites_comes_last_and_others_are_counted():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=10)
    assert biting(plan).code == "GA002"
    assert "warning GA002" in plan_text(plan)
    one = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=32)
    assert biting(one).code == "GA003"
    assert "more finding" not in plan_text(one)
    assert "and 2 more findings: --explain" in text()


def test_better_choices_and_neighbours():
    assert "3 x 8 x 21 = 504 (+4)   2 x 8 x 31 = 496 (-4)" in text()
    assert "other roundings     floor 15 -> 480 (-20)\n" in text()
    exact = text(target_batch=512)
    assert "closer" not in exact
    assert "other roundings" not in exact


def test_a_number_that_nobody_can_read_is_not_pasted():
    assert "per_device_train_batch_size" not in text(target_batch=10**200)


def test_explanations_hold_every_finding():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500, sequence_length="2k")
    shown = explain_text(plan, style=Style(colour=True))
    assert all(finding.code in shown for finding in plan.findings)


def test_an_empty_table_is_its_header():
    assert table_text(()).split() == ["micro-batch", "GPUs", "accum", "steps", "effective", "batch", "drift"]
