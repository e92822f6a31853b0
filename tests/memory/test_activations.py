"""What a layer keeps, against what autograd was seen to save (saved_tensors.json names the versions)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradaccum.catalog.models import find_model, read_config
from gradaccum.errors import InputError
from gradaccum.memory.activations import KNOWN, layer_bytes, layer_parts

MEASURED = json.loads(Path(__file__).with_name("saved_tensors.json").read_text(encoding="utf-8"))
CLASSIC = ("bert", "gpt2", "gpt_neox", "opt", "phi")


@pytest.mark.parametrize("row", MEASURED["rows"], ids=lambda row: f"{row['family']}-{row['dtype']}-{row['attention']}")
def test_a_layer_keeps_what_was_measured(row):
    model = read_config({"model_type": row["family"], "num_hidden_layers": 2, "n_layer": 2, **row["config"]})
    width = {"bfloat16": 2, "float32": 4}[row["dtype"]]
    attention = {"sdpa": "flash", "eager": "eager"}[row["attention"]]
    expected = row["bytes"]
    if row["family"] in CLASSIC and width == 2:
        # Mean and 1/deviation of a LayerNorm: in the dtype on the CPU that was measured, in fp32 on a GPU
        # (aten/src/ATen/native/cuda/layer_norm_kernel.cu: the accumulation type).
        expected += 4 * model.norms
    assert layer_bytes(model, width, attention, MEASURED["sequence_length"]) == expected


def test_every_known_family_but_a_twin_was_measured():
    assert {row["family"] for row in MEASURED["rows"]} == set(KNOWN) - {"roberta"}  # a BERT with other positions


def test_dropout_keeps_a_byte_for_each_element():
    assert find_model("gpt2").hidden_dropout
    (masks,) = [part for part in layer_parts(find_model("gpt2"), 2, "flash", 1024) if part.name == "dropout masks"]
    assert masks.per_token == 2 * 768


def test_a_family_that_is_not_known_is_named():
    with pytest.raises(InputError, match="of the family mixtral"):
        layer_parts(find_model("mixtral-8x7b"), 2, "flash", 1024)
