"""Each of the four quantities found from the other three, and what is said where they do not fit together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradaccum
from gradaccum import InputError

SMALL = st.integers(1, 40)


def problems(**inputs):
    with pytest.raises(InputError) as error:
        gradaccum.plan(**inputs)
    return error.value.problems


@given(SMALL, SMALL, SMALL)
def test_three_give_the_fourth(micro, gpus, steps):
    """Any three of a consistent four give back the one that is left out."""
    four = {"micro_batch": micro, "num_gpus": gpus, "accum_steps": steps, "target_batch": micro * gpus * steps}
    for missing in four:
        plan = gradaccum.plan(**{name: value for name, value in four.items() if name != missing})
        assert {name: getattr(plan, name) for name in four} == four
        assert plan.solved_for == missing
        assert plan.drift == 0
    assert gradaccum.plan(**four).solved_for is None


@given(SMALL, SMALL, st.integers(1, 4000), st.sampled_from(["round", "ceil", "floor"]))
def test_a_micro_batch_that_is_found_is_the_best_of_all(gpus, steps, target, rounding):
    plan = gradaccum.plan(num_gpus=gpus, accum_steps=steps, target_batch=target, rounding=rounding)
    block = gpus * steps
    candidates = range(1, target // block + 3)
    best = {
        "round": max(candidates, key=lambda micro: (-abs(micro * block - target), micro)),
        "ceil": min(micro for micro in candidates if micro * block >= target),
        "floor": max([micro for micro in candidates if micro * block <= target], default=1),
    }[rounding]
    assert plan.micro_batch == best


def test_gpus_are_found_in_whole_replicas():
    plan = gradaccum.plan(micro_batch=2, accum_steps=128, target_batch=2048, tensor_parallel=4, pipeline_parallel=12)
    assert (plan.num_gpus, plan.data_parallel) == (384, 8)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 2000))
def test_up_to_a_largest_micro_batch_the_plan_picks_by_the_order_of_the_better_choices(largest, gpus, target):
    plan = gradaccum.plan(max_micro_batch=largest, num_gpus=gpus, target_batch=target)

    def gap(micro):
        return min(abs(micro * gpus * steps - target) for steps in range(1, target // (micro * gpus) + 3))

    assert plan.micro_batch == max(range(1, largest + 1), key=lambda micro: (-gap(micro), micro))
    assert abs(plan.drift) == gap(plan.micro_batch)


def test_a_largest_micro_batch_with_fixed_steps():
    assert gradaccum.plan(max_micro_batch=8, num_gpus=4, accum_steps=4, target_batch=64).micro_batch == 4
    assert gradaccum.plan(max_micro_batch=8, num_gpus=4, accum_steps=4).effective_batch == 128
    assert gradaccum.plan(max_micro_batch=8, num_gpus=4, target_batch=100, rounding="exact").micro_batch == 8
    (problem,) = problems(max_micro_batch=2, num_gpus=4, accum_steps=4, target_batch=64)
    assert problem.field == "accum_steps"
    assert problem.nearest == ("8",)  # 2 x 4 x 8 = 64


def test_what_is_missing_is_named():
    (problem,) = problems(target_batch=512)
    assert problem.field == "micro_batch"
    assert "add two of micro_batch or max_micro_batch, num_gpus, accum_steps" in problem.message
    (problem,) = problems(micro_batch=4, num_gpus=8)
    assert problem.field == "target_batch"
    assert "one of target_batch, accum_steps" in problem.message
    (problem,) = problems(max_micro_batch=4, target_batch=8, accum_steps=2)
    assert problem.field == "micro_batch"
    (problem,) = problems()
    assert "three of target_batch" in problem.message


class TestOverDetermined:
    """The cases of DeepSpeed's configuration: train_batch_size = micro x accumulation x world."""

    def test_a_consistent_triad_is_a_plan(self):
        assert gradaccum.plan(train_batch_size=32, micro_batch=4, accum_steps=2, num_gpus=4).drift == 0

    def test_a_mismatch_names_the_product_and_valid_triples(self):
        (problem,) = problems(target_batch=32, micro_batch=4, accum_steps=3, num_gpus=4)
        assert "4 x 4 x 3 = 48, not the target_batch 32" in problem.message
        for text in problem.nearest:
            words = text.split()
            micro, steps, target = (int(words[i]) for i in (1, 4, 7))
            assert micro * 4 * steps == target
        assert problem.nearest[0] == "micro_batch 4 with accum_steps 2 and target_batch 32"

    def test_a_world_of_one_is_named_as_the_usual_cause(self):
        (problem,) = problems(target_batch=256, micro_batch=2, accum_steps=16, num_gpus=1)
        assert "it would hold on 8 GPUs" in problem.message
        assert "without its launcher" in problem.message

    def test_another_world_that_would_do_is_named(self):
        (problem,) = problems(target_batch=256, micro_batch=2, accum_steps=16, num_gpus=8, tensor_parallel=2)
        assert "it would hold on 16 GPUs, but num_gpus is 8" in problem.message

    def test_in_tokens(self):
        inputs = {"micro_batch": 2, "num_gpus": 2, "accum_steps": 2, "sequence_length": 100}
        assert gradaccum.plan(target_tokens=800, **inputs).drift_tokens == 0
        (problem,) = problems(target_tokens=900, **inputs)
        assert "2 x 2 x 2 x 100 = 800, not the target_tokens 900" in problem.message

    def test_exact(self):
        assert (
            gradaccum.plan(target_batch=9, micro_batch=4, num_gpus=1, accum_steps=3, rounding="exact").effective_batch
            == 9
        )
        assert problems(target_batch=9, micro_batch=4, num_gpus=1, accum_steps=4, rounding="exact")


def test_exact_needs_whole_sequences():
    (problem,) = problems(micro_batch=4, num_gpus=8, target_tokens=4_000_000, sequence_length=2048, rounding="exact")
    assert problem.field == "target_tokens"
    assert problem.nearest == (str(1953 * 2048), str(1954 * 2048))
    assert (
        gradaccum.plan(
            micro_batch=4, num_gpus=8, target_tokens=1953 * 2048, sequence_length=2048, rounding="exact"
        ).effective_batch
        == 1953
    )


def test_exact_with_fixed_steps_that_no_micro_batch_meets():
    """Nine samples in exactly four micro-steps of one rank: a micro-batch of 2 holds 8, one of 3 is done in 3."""
    (problem,) = problems(num_gpus=1, accum_steps=4, target_batch=9, rounding="exact")
    assert problem.field == "accum_steps"
    assert problem.nearest == ("3",)
    assert gradaccum.plan(num_gpus=1, accum_steps=4, target_batch=10, rounding="exact").micro_batch == 3


def test_a_world_that_the_degrees_do_not_divide():
    (problem,) = problems(micro_batch=4, num_gpus=12, target_batch=64, tensor_parallel=8)
    assert problem.field == "num_gpus"
    assert problem.nearest == ("8", "16")
    (problem,) = problems(micro_batch=4, num_gpus=4, target_batch=64, tensor_parallel=4, pipeline_parallel=2)
    assert problem.nearest == ("8",)
