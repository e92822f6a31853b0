"""The algebra: every line of it is evaluated, and comes to what it says."""

from __future__ import annotations

import math
import re

import pytest

import gradaccum
from gradaccum.core.explain import explain

GPT2 = {"micro_batch": 16, "num_gpus": 8, "target_batch": 512, "sequence_length": 1024}


def lines(**inputs):
    return {line.name: line for line in explain(gradaccum.plan(**inputs))}


def evaluate(numbers: str) -> float:
    """The value of `4 x 8 = 32`'s left side, by Python's own arithmetic."""
    expression = numbers.split(" = ")[0].replace(",", "").replace(" x ", " * ")
    names = {
        "round": lambda x: math.floor(x + 0.5),
        "ceil": math.ceil,
        "floor": math.floor,
        "max": max,
        "sqrt": math.sqrt,
    }
    assert re.fullmatch(r"[0-9a-z +*/().,-]*", expression)
    return eval(expression, {"__builtins__": {}}, names)


@pytest.mark.parametrize(
    "inputs",
    [
        {"micro_batch": 4, "num_gpus": 8, "target_batch": 500, "sequence_length": 2048},
        {"micro_batch": 4, "num_gpus": 8, "target_batch": 10, "rounding": "ceil"},
        {"micro_batch": 4, "num_gpus": 16, "tensor_parallel": 2, "target_tokens": 10**6, "sequence_length": 2048},
        {"micro_batch": 2, "num_gpus": 384, "tensor_parallel": 4, "pipeline_parallel": 12, "target_batch": 2048},
        {"micro_batch": 4, "num_gpus": 8, "target_batch": 500, "rounding": "exact"},
        {"micro_batch": 4, "num_gpus": 8, "accum_steps": 3},
        {"num_gpus": 8, "accum_steps": 3, "target_batch": 500},
        {"num_gpus": 16, "tensor_parallel": 2, "accum_steps": 3, "target_tokens": 10**6, "sequence_length": 2048},
        {"micro_batch": 4, "accum_steps": 3, "target_batch": 500, "tensor_parallel": 2},
        {"micro_batch": 4, "accum_steps": 300, "target_batch": 500},
        {**GPT2, "token_budget": "10B", "warmup_tokens": "375M", "params": "124M"},
        {**GPT2, "dataset_size": 52_002, "epochs": 1.5, "warmup_fraction": 0.03},
        {**GPT2, "dataset_size": 52_002, "epochs": 3, "last_group": "drop"},
        {**GPT2, "learning_rate": 6e-4, "base_batch": 64},
    ],
)
def test_every_line_comes_to_its_result(inputs):
    found = lines(**inputs)
    assert {"device_batch", "accum_steps", "effective_batch"} <= set(found)
    for line in found.values():
        result = line.result.split(" ")[0].replace(",", "")
        if line.name in ("tokens_per_param", "linear rule", "square root rule"):
            assert evaluate(line.numbers) == pytest.approx(float(result), rel=5e-4)
            continue
        value = evaluate(line.numbers)
        if result.endswith("%"):
            assert float(result[:-1]) == pytest.approx(100 * value, abs=0.005)
        else:
            assert value == pytest.approx(int(result)) or line.numbers.startswith(("round", "ceil", "floor"))
            if line.numbers.startswith(("round", "ceil", "floor")):
                assert max(1, value) == int(result)


def test_what_was_given_is_not_derived():
    assert lines(micro_batch=4, num_gpus=8, accum_steps=3)["accum_steps"].formula == "given"


def test_the_run_of_build_nanogpt():
    found = lines(**GPT2, token_budget="10B", warmup_tokens="375M")
    assert (found["updates"].result, found["warmup_updates"].result) == ("19,073", "715")
