"""What a batch makes of a run, against published schedules and Hugging Face Trainer's own counting."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradaccum


def run(**inputs):
    return gradaccum.plan(**inputs).training


@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 8), st.integers(1, 2000), st.integers(1, 4))
def test_updates_are_those_of_a_loader_that_is_walked_through(micro, gpus, steps, size, epochs):
    """Deal the dataset out batch by batch, for each policy about the short last group."""
    inputs = {"micro_batch": micro, "num_gpus": gpus, "accum_steps": steps, "dataset_size": size, "epochs": epochs}
    batch = micro * gpus * steps
    counted = {"step": 0, "drop": 0, "carry": 0}
    carried = 0
    for _ in range(epochs):
        group = 0
        for _ in range(size):
            group += 1
            carried += 1
            if group == batch:
                counted["step"] += 1
                counted["drop"] += 1
                group = 0
            if carried == batch:
                counted["carry"] += 1
                carried = 0
        if group:
            counted["step"] += 1
    for policy, updates in counted.items():
        found = run(**inputs, last_group=policy)
        assert found.updates == updates
        assert found.last_group_size == (carried if policy == "carry" else size % batch)


@given(st.integers(1, 500), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 5))
def test_epochs_count_as_in_hugging_face_trainer(size, micro, gpus, steps, epochs):
    """transformers.Trainer: ceil(len(loader) / accumulation) updates per epoch, ceil(epochs * that) in all."""
    epochs = round(epochs, 2)
    loader = math.ceil(math.ceil(size / gpus) / micro)
    per_epoch = math.ceil(loader / steps)
    found = run(micro_batch=micro, num_gpus=gpus, accum_steps=steps, dataset_size=size, epochs=epochs)
    assert found.updates_per_epoch == per_epoch
    hundredths = round(epochs * 100)
    assert found.updates == -(-hundredths * per_epoch // 100)


@pytest.mark.parametrize(
    ("budget", "batch", "length", "updates"),
    [
        (300 * 10**9, 256, 2048, 572_204),  # llm.c, GPT-3 125M: 300B tokens at 524,288
        (375 * 10**6, 256, 2048, 715),  # OPT: 375e6 // batch
        (375 * 10**6, 512, 2048, 357),
        (375 * 10**6, 2048, 2048, 89),
        (375 * 10**6, 120, 2048, 1_525),  # Cerebras-GPT 111M
    ],
)
def test_a_token_budget_holds_whole_updates(budget, batch, length, updates):
    inputs = {"micro_batch": batch, "num_gpus": 1, "accum_steps": 1, "sequence_length": length}
    assert run(**inputs, token_budget=budget).updates == updates
    assert run(**inputs, warmup_tokens=budget).warmup_updates == updates


def test_a_budget_says_what_is_left_over():
    found = run(micro_batch=1, num_gpus=1, accum_steps=3, sequence_length=100, token_budget=1000)
    assert (found.updates, found.tokens, found.leftover_tokens) == (3, 900, 100)


def test_nanogpt():
    """12 x 1024 x 5 x 8 for 600,000 iterations: 491,520 tokens each, 294.9B in all."""
    plan = gradaccum.plan(micro_batch=12, num_gpus=8, accum_steps=5, sequence_length=1024, iterations=600_000)
    assert plan.tokens_per_step == 491_520
    assert plan.training.tokens == 294_912_000_000


def test_pythia_12b():
    plan = gradaccum.plan(
        micro_batch=8, num_gpus=256, tensor_parallel=4, target_batch=1024, sequence_length=2048, steps=143_000
    )
    assert (plan.data_parallel, plan.accum_steps, plan.training.tokens) == (64, 2, 299_892_736_000)


def test_cerebras_111m_trains_on_twenty_tokens_per_parameter():
    found = run(micro_batch=120, num_gpus=1, target_batch=120, sequence_length=2048, updates=9_037, params=111_000_000)
    assert round(float(found.tokens_per_param), 1) == 20.0


def test_tokens_per_parameter_beyond_every_float():
    sizes = dict.fromkeys(("micro_batch", "num_gpus", "accum_steps", "sequence_length", "updates"), 10**90 + 7)
    assert gradaccum.plan(**sizes, params=1).to_dict()["tokens_per_param"] == 10**450


def test_warmup_as_a_share_rounds_up_as_in_hugging_face_trainer():
    """transformers: math.ceil(num_training_steps * warmup_ratio)."""
    inputs = {"micro_batch": 1, "num_gpus": 1, "accum_steps": 1, "updates": 1001}
    assert run(**inputs, warmup_ratio="3%").warmup_updates == 31
    assert run(**inputs, warmup_steps=40).warmup_updates == 40
    assert run(micro_batch=1, num_gpus=1, accum_steps=1, warmup_ratio=0.1).warmup_updates is None


def test_supervised_tokens():
    found = run(micro_batch=4, num_gpus=8, target_batch=512, sequence_length=2048, supervised_fraction="30%")
    assert found.loss_tokens_per_step == 314_572  # 0.3 x 1,048,576 = 314,572.8


def test_unknown_stays_unknown():
    found = run(micro_batch=4, num_gpus=8, target_batch=512)
    assert set(vars(found).values()) == {None}
