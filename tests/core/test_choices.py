"""Better choices against brute force over every micro-batch and every count of steps."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

import gradaccum


def brute_force(micro, gpus, target, drift, ranks=None, largest=None):
    found = [
        (abs(m * g * k - target), abs(g - gpus), g, -m, m * g * k < target, m, g, k)
        for g in ranks or [gpus]
        for m in range(1, (largest or micro) + 1)
        for k in range(1, (target + abs(drift)) // (m * g) + 1)
    ]
    best = sorted(entry for entry in found if entry[0] < abs(drift))[:8]
    return [entry[-3:] for entry in best]


def choices(plan):
    return [(each.micro_batch, each.num_gpus, each.accum_steps) for each in plan.better_choices]


@given(st.integers(1, 40), st.integers(1, 24), st.integers(1, 1500), st.sampled_from(["round", "ceil", "floor"]))
def test_better_choices_are_the_best_of_all(micro, gpus, target, rounding):
    plan = gradaccum.plan(micro_batch=micro, num_gpus=gpus, target_batch=target, rounding=rounding)
    assert choices(plan) == brute_force(micro, gpus, target, plan.drift)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 300))
def test_other_gpu_counts_when_asked_for(micro, gpus, target):
    plan = gradaccum.plan(micro_batch=micro, num_gpus=gpus, target_batch=target, vary="num_gpus")
    ranks = range(1, gpus + 129)
    assert choices(plan) == brute_force(micro, gpus, target, plan.drift, ranks)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 300))
def test_larger_micro_batches_when_asked_for(micro, gpus, target):
    plan = gradaccum.plan(micro_batch=micro, num_gpus=gpus, target_batch=target, vary="micro_batch")
    assert choices(plan) == brute_force(micro, gpus, target, plan.drift, largest=2 * micro)


def test_the_documented_example():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500)
    assert choices(plan)[:2] == [(3, 8, 21), (2, 8, 31)]
    assert [each.effective_batch for each in plan.better_choices[:2]] == [504, 496]


def test_choices_count_whole_replicas():
    plan = gradaccum.plan(micro_batch=4, num_gpus=16, target_batch=500, tensor_parallel=2)
    assert choices(plan)[0] == (3, 16, 21)


def test_the_window_ends_at_4095_below():
    """Only micro-batch 1 would hit a target one above a multiple, but it is out of the window."""
    micro = 5000
    plan = gradaccum.plan(micro_batch=micro, num_gpus=1, target_batch=10_007)  # a prime
    assert all(micro - 4095 <= each.micro_batch <= micro for each in plan.better_choices)
    found = [
        (abs(m * k - 10_007), -m, m * k < 10_007, m, k)
        for m in range(micro - 4095, micro + 1)
        for k in range(1, 20_014 // m + 1)
    ]
    best = sorted(entry for entry in found if entry[0] < abs(plan.drift))[:8]
    assert [(m, 1, k) for *_, m, k in best] == choices(plan)


def test_in_tokens():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_tokens=1_024_000, sequence_length=2048)
    assert plan.drift is None
    assert choices(plan)[:2] == [(3, 8, 21), (2, 8, 31)]
    assert [each.drift_tokens for each in plan.better_choices[:2]] == [4 * 2048, -4 * 2048]


def test_hundred_digits_are_answered_at_once():
    started = time.process_time()
    plan = gradaccum.plan(micro_batch=10**90 + 1, num_gpus=7, target_batch=10**99 + 3, vary="num_gpus")
    assert plan.better_choices
    assert time.process_time() - started < 5  # a search without its bounds would take years
