"""The plan against the four formulas, brute force, and the contract."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradaccum
from gradaccum import InputError
from gradaccum.core.plan import make_headline, make_plan
from gradaccum.core.request import read_inputs

SMALL = st.integers(1, 60)
ROUNDINGS = st.sampled_from(["round", "ceil", "floor", "exact"])


def nearest_multiple(target: int, block: int, rounding: str) -> int:
    """Brute force: look at every count of blocks that can matter and take the one that the words describe."""
    counts = range(1, target // block + 3)
    if rounding == "round":
        return max(counts, key=lambda count: (-abs(count * block - target), count))
    if rounding == "floor":
        return max([count for count in counts if count * block <= target], default=1)
    return min(count for count in counts if count * block >= target)


@given(SMALL, SMALL, st.integers(1, 3000), ROUNDINGS)
def test_steps_are_what_the_words_of_the_rounding_say(micro, gpus, target, rounding):
    plan = gradaccum.plan(micro_batch=micro, num_gpus=gpus, target_batch=target, rounding=rounding)
    assert plan.accum_steps == nearest_multiple(target, micro * gpus, rounding)


@given(SMALL, SMALL, st.integers(1, 3000), ROUNDINGS, st.integers(1, 5000))
def test_the_four_formulas(micro, gpus, target, rounding, length):
    plan = gradaccum.plan(
        micro_batch=micro, num_gpus=gpus, target_batch=target, rounding=rounding, sequence_length=length
    )
    assert plan.device_batch == micro * gpus
    expected = target if rounding == "exact" else micro * gpus * plan.accum_steps
    assert plan.effective_batch == expected
    assert plan.drift == expected - target
    assert plan.tokens_per_step == expected * length
    assert plan.is_exact == (expected == target)


@given(SMALL, SMALL, st.integers(1, 3000))
def test_floor_and_ceil_enclose_the_target(micro, gpus, target):
    floor, ceil, near = gradaccum.plan(micro_batch=micro, num_gpus=gpus, target_batch=target).neighbours
    assert (floor.rounding, ceil.rounding, near.rounding) == ("floor", "ceil", "round")
    assert ceil.effective_batch >= target
    assert floor.effective_batch <= target or floor.accum_steps == 1
    assert abs(near.effective_batch - target) == min(
        abs(floor.effective_batch - target), abs(ceil.effective_batch - target)
    )


@given(SMALL, SMALL, st.integers(1, 3000), ROUNDINGS)
def test_a_larger_target_never_takes_fewer_steps(micro, gpus, target, rounding):
    steps = [
        gradaccum.plan(micro_batch=micro, num_gpus=gpus, target_batch=wanted, rounding=rounding).accum_steps
        for wanted in (target, target + 1)
    ]
    assert steps[0] <= steps[1]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 400))
def test_exact_shares_out_every_sample_once(micro, ranks, target):
    """Deal the samples of the last micro-step to the ranks one by one: the largest hand is last_micro_batch."""
    plan = gradaccum.plan(micro_batch=micro, num_gpus=ranks, target_batch=target, rounding="exact")
    hands = [0] * ranks
    for card in range(target - (plan.accum_steps - 1) * micro * ranks):
        hands[card % ranks] += 1
    assert max(hands) == plan.last_micro_batch <= micro
    assert sum(hands) + (plan.accum_steps - 1) * micro * ranks == target == plan.effective_batch
    assert hands == sorted(hands, reverse=True)  # the first ranks one more


@given(SMALL, SMALL, st.integers(1, 10**6), st.integers(1, 600), st.sampled_from(["round", "ceil", "floor"]))
def test_a_target_in_tokens_is_compared_in_tokens(micro, gpus, tokens, length, rounding):
    plan = gradaccum.plan(
        micro_batch=micro, num_gpus=gpus, target_tokens=tokens, sequence_length=length, rounding=rounding
    )
    assert plan.accum_steps == nearest_multiple(tokens, micro * gpus * length, rounding)
    assert plan.drift_tokens == plan.effective_batch * length - tokens
    assert plan.drift is None
    assert plan.target_batch is None


@given(SMALL, SMALL, st.integers(1, 3000))
def test_drift_percent_rounds_half_away_from_zero(micro, gpus, target):
    plan = gradaccum.plan(micro_batch=micro, num_gpus=gpus, target_batch=target)
    percent = Fraction(100 * plan.drift, target)
    exact = Decimal(percent.numerator) / Decimal(percent.denominator)
    shown = str(exact.quantize(Decimal("0.01"), rounding=ROUND_HALF_UP))
    assert plan.drift_percent == ("0.00" if shown == "-0.00" else shown)


def test_parallel_degrees_divide_the_world():
    plan = gradaccum.plan(
        micro_batch=2, num_gpus=384, target_batch=2048, tensor_parallel=4, pipeline_parallel=12, context_parallel=1
    )
    assert (plan.data_parallel, plan.accum_steps, plan.effective_batch) == (8, 128, 2048)


def test_integers_of_any_size_are_exact():
    big = 10**5000 + 7
    plan = gradaccum.plan(micro_batch=1, num_gpus=1, target_batch=big)
    assert plan.accum_steps == big
    assert plan.drift == 0
    assert str(plan)  # and still printable
    hundred = 10**99 + 1
    assert gradaccum.plan(micro_batch=3, num_gpus=1, target_batch=3 * hundred).accum_steps == hundred


def test_the_contract_of_the_machine_readable_faces():
    """The example of the documented contract, key by key."""
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500, sequence_length=2048).to_dict()
    promised = {
        "schema_version": 1, "micro_batch": 4, "num_gpus": 8, "tensor_parallel": 1, "pipeline_parallel": 1,
        "context_parallel": 1, "data_parallel": 8, "target_batch": 500, "target_tokens": None, "rounding": "round",
        "device_batch": 32, "accum_steps": 16, "effective_batch": 512, "drift": 12, "drift_percent": "2.40",
        "sequence_length": 2048, "tokens_per_step": 1048576, "last_micro_batch": 4, "updates": None,
    }  # fmt: skip
    assert {name: plan[name] for name in promised} == promised
    codes = {finding["code"]: finding["severity"] for finding in plan["findings"]}
    assert codes["GA001"] == "note"
    assert plan["neighbours"][0] == {
        "rounding": "floor", "accum_steps": 15, "effective_batch": 480, "drift": -20, "drift_tokens": None,
    }  # fmt: skip
    assert {
        "micro_batch": 2, "num_gpus": 8, "accum_steps": 31, "effective_batch": 496, "drift": -4, "drift_tokens": None,
    } in plan["better_choices"]  # fmt: skip
    assert json.loads(json.dumps(plan)) == plan


@pytest.mark.parametrize(
    "inputs",
    [
        {"micro_batch": 4, "num_gpus": 8, "target_batch": 500, "vary": "num_gpus"},
        {
            "micro_batch": 4,
            "num_gpus": 8,
            "target_tokens": "4M",
            "sequence_length": 2048,
            "epochs": 2,
            "dataset_size": 9,
        },
        {"max_micro_batch": 9, "num_gpus": 8, "pipeline_parallel": 4, "target_batch": 64},
    ],
)
def test_the_headline_is_the_plan_without_what_is_searched_for(inputs):
    request = read_inputs(inputs)
    whole = make_plan(request)
    assert whole.findings
    assert make_headline(request) == replace(whole, better_choices=(), findings=())


def test_repr_is_one_line():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500)
    assert repr(plan) == "<Plan 4 micro-batch x 8 ranks x 16 accumulation = 512, +2.40%>"


@pytest.mark.parametrize(
    "inputs",
    [
        {"micro_batch": 0, "num_gpus": 8, "target_batch": 5},
        {"micro_batch": 4, "num_gpus": -8, "target_batch": 5},
        {"micro_batch": 4.5, "num_gpus": 8, "target_batch": 5},
        {"micro_batch": True, "num_gpus": 8, "target_batch": 5},
        {"micro_batch": "four", "num_gpus": 8, "target_batch": 5},
        {"micro_batch": 4, "num_gpus": 8, "target_batch": 5, "rounding": "up"},
        {"micro_batch": [4], "num_gpus": 8, "target_batch": 5},
    ],
)
def test_nonsense_gives_no_plan(inputs):
    with pytest.raises(InputError):
        gradaccum.plan(**inputs)
