"""Sweeps against nested loops."""

from __future__ import annotations

import itertools
import json

import pytest

import gradaccum
from gradaccum import InputError


def problem_of(**inputs):
    with pytest.raises(InputError) as error:
        gradaccum.table(**inputs)
    return error.value.problems[0]


def test_rows_are_those_of_nested_loops_sorted():
    rows = gradaccum.table(micro_batch="1..6", num_gpus="8,16,32", target_batch=[256, 500])
    looped = []
    for micro, gpus, target in itertools.product(range(1, 7), (8, 16, 32), (256, 500)):
        steps = max(1, (2 * target + micro * gpus) // (2 * micro * gpus))
        drift = micro * gpus * steps - target
        looped.append((abs(drift), gpus, -micro, drift < 0, steps, drift))
    assert [(abs(r.drift), r.num_gpus, -r.micro_batch, r.drift < 0, r.accum_steps, r.drift) for r in rows] == sorted(
        set(looped)
    )


def test_strides_and_python_values():
    assert {r.micro_batch for r in gradaccum.table(micro_batch="8..64..8", num_gpus=1, target_batch=512)} == set(
        range(8, 65, 8)
    )
    assert {r.micro_batch for r in gradaccum.table(micro_batch=range(2, 5), num_gpus=1, target_batch=512)} == {2, 3, 4}
    rows = gradaccum.table(micro_batch=4, num_gpus=8, target_batch=500, rounding="floor,ceil")
    assert [row.varied for row in rows] == [(("rounding", "ceil"),), (("rounding", "floor"),)]


def test_other_inputs_that_vary_stand_in_the_row():
    rows = gradaccum.table(micro_batch=4, num_gpus=8, target_batch="4M tokens, 2M tokens", sequence_length="2048,4096")
    assert len(rows) == 4
    assert set(rows[0].to_dict()) >= {"target_tokens", "sequence_length"}
    for row in rows:
        found = row.to_dict()
        assert row.effective_batch * found["sequence_length"] - found["target_tokens"] == row.drift_tokens


def test_a_preset_is_swept_over():
    rows = gradaccum.table(preset="bloom-176b", micro_batch="1,2,4")
    assert [(row.micro_batch, row.accum_steps) for row in rows] == [(4, 64), (2, 128), (1, 256)]


def test_combinations_without_a_plan_are_left_out_unless_all_are():
    rows = gradaccum.table(micro_batch=4, num_gpus="4..12", tensor_parallel=4, target_batch=64)
    assert {row.num_gpus for row in rows} == {4, 8, 12}
    assert problem_of(micro_batch=4, num_gpus="5,6,7", tensor_parallel=4, target_batch=64).field == "num_gpus"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1..1000000000", "at most 10,000"),
        ("1..100,1..9999", "at most 10,000"),
        ("8..4", "empty range"),
        ("1..2..3..4", "no range"),
        ("1,024", "write 1_024"),
        ("1..x", "not a number"),
        ("0..4", "at least 1"),
        ("1..8..0", "at least 1"),
    ],
)
def test_bad_ranges(text, words):
    problem = problem_of(micro_batch=text, num_gpus=8, target_batch=512)
    assert problem.field == "micro_batch"
    assert words in problem.message


def test_the_product_is_bounded_before_anything_is_computed():
    problem = problem_of(micro_batch="1..1000", num_gpus="1..1000", target_batch="1..1000")
    assert "1,000,000,000 combinations" in problem.message
    assert "10,000" in problem_of(micro_batch=range(10**12), num_gpus=1, target_batch=1).message


def test_a_typo_is_not_left_out_in_silence():
    problem = problem_of(micro_batch=4, num_gpus="8,foo", target_batch=64)
    assert (problem.field, "foo" in problem.message) == ("num_gpus", True)


def test_shares_that_vary_are_numbers_in_json():
    rows = gradaccum.table(micro_batch=4, num_gpus=8, target_batch=64, dataset_size=100, epochs="1,1.5")
    assert [row.to_dict()["epochs"] for row in rows] == [1, 1.5]
    json.dumps([row.to_dict() for row in rows])


def test_only_counts_have_ranges():
    assert "no ranges" in problem_of(micro_batch=1, num_gpus=1, target_batch=1, rounding="floor..ceil").message
    assert problem_of(micro_batch=1, num_gpus=1, target_batch=1, colour="1..3").field == "colour"
