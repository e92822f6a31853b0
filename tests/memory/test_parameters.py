"""Bytes of weights, adapters and states, against bitsandbytes' own tensors and PEFT's own counts."""

from __future__ import annotations

import pytest

from gradaccum.catalog.models import find_model
from gradaccum.memory.closed_form import END_OF_FORWARD, OPTIMIZER_STEP, instants
from gradaccum.memory.modules import Weight
from gradaccum.memory.parameters import packed_bytes, parameters
from gradaccum.memory.setup import Setup

QUANTISED = [
    (64, 48, {"nf4": 1536 + 192, "nf4-double": 1536 + 48 + 4 + 1024, "int8": 3072 + 256}),
    (1024, 2048, {"nf4": 1048576 + 131072, "nf4-double": 1048576 + 32768 + 512 + 1024, "int8": 2097152 + 4096}),
    (300, 77, {"nf4": 11550 + 1444, "nf4-double": 11550 + 361 + 8 + 1024, "int8": 23100 + 1200}),
]
"""Bytes of the tensors that bitsandbytes 0.50.2 made of a weight: packed numbers, scales, scales of scales, the table
of 256. The table of 16 and the offset are blocks of 512 bytes on a GPU."""
BLOCKS = {"nf4": 512, "nf4-double": 1024, "int8": 0}


@pytest.mark.parametrize(("rows", "columns", "measured"), QUANTISED)
@pytest.mark.parametrize("quantization", BLOCKS)
def test_a_quantised_weight_is_as_large_as_that_of_bitsandbytes(rows, columns, measured, quantization):
    found = packed_bytes(Weight("q_proj", rows, columns), quantization)
    assert found == measured[quantization] + BLOCKS[quantization]


def test_a_quantised_model_keeps_the_rest_in_fp32():
    """Qwen2.5-7B in NF4: 7.5 GiB, of which 4.1 GiB are in fp32 (FitCheck's measurement of a loaded model)."""
    found = parameters(setup("qwen2.5-7b", quantization="nf4"))
    assert found.base / 2**30 == pytest.approx(7.5, abs=0.05)
    whole = 4 * (152064 * 3584 * 2 + 28 * (2 * 3584 + 3584 + 2 * 512) + 3584)  # tables, norms, biases of q, k, v
    assert whole / 2**30 == pytest.approx(4.1, abs=0.05)
    packed = (28 * 3584 * (2 * 3584 + 2 * 512 + 3 * 18944)) * 9 // 16 + 28 * 7 * 512
    assert found.base == whole + packed


@pytest.mark.parametrize(
    ("model", "rank", "targets", "count"),
    [
        ("llama-2-7b", 8, "default", 4_194_304),  # PEFT's own print for Llama 2 7B, r=8, q_proj and v_proj
        ("llama-3.2-3b", 32, "default", 9_175_040),  # PEFT's MetaMathQA runs: trainable parameters of the default
        ("gpt2", 8, "default", 12 * 8 * (768 + 3 * 768)),
        ("llama-2-7b", 8, "all-linear", 32 * 8 * (4 * 2 * 4096 + 3 * (4096 + 11008))),
    ],
)
def test_adapters_have_as_many_parameters_as_those_of_peft(model, rank, targets, count):
    found = parameters(setup(model, lora_rank=rank, lora_targets=targets))
    assert found.adapters == found.trained == count


def test_adapters_alone_have_gradients_and_states():
    lines = {each.name: each.bytes for each in instants(setup("llama-2-7b"))[OPTIMIZER_STEP]}
    adapters = 32 * 16 * 4 * 2 * 4096
    assert lines["weights"] == 2 * find_model("llama-2-7b").params
    assert lines["adapters"] == lines["gradients"] == lines["optimizer's temporary"] == 4 * adapters
    assert lines["optimizer states"] == 8 * adapters


def test_the_largest_parameter_of_adapters_is_a_side_of_one():
    loop = instants(setup("llama-2-7b", optimizer="adamw-loop", lora_targets="all-linear"))[OPTIMIZER_STEP]
    (line,) = [each for each in loop if each.name == "optimizer's temporary"]
    assert line.bytes == 2 * 4 * 16 * 11008


def test_mixed_precision_has_all_of_its_parameters_in_fp32():
    model = find_model("llama-3.2-1b")
    mixed = Setup(model=model, sequence_length=64, dtype="bf16-mixed")
    lines = {each.name: each.bytes for each in instants(mixed)[OPTIMIZER_STEP]}
    assert lines["weights"] == lines["gradients"] == 4 * model.params
    assert lines["optimizer states"] == 8 * model.params


def test_gradients_summed_in_fp32_are_twice_as_large_and_are_cast_for_the_step():
    model = find_model("llama-3.2-1b")
    found = instants(Setup(model=model, sequence_length=64, gradient_dtype="fp32"))
    summed = {each.name: each.bytes for each in found[END_OF_FORWARD]}
    stepping = {each.name: each.bytes for each in found[OPTIMIZER_STEP]}
    assert (summed["gradients"], stepping["gradients"]) == (4 * model.params, 2 * model.params)


def setup(model, **options):
    options = {"lora_rank": 16, "lora_targets": "attention", **options}
    return Setup(model=find_model(model), sequence_length=64, **options)
