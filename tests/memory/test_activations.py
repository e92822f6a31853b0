"""What a layer keeps, against what autograd was seen to save (saved_tensors.json names the versions)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradaccum.catalog.models import find_model, models, read_config
from gradaccum.errors import InputError
from gradaccum.memory.activations import KNOWN, embedding, layer, layer_parts, layer_tape, layers
from gradaccum.memory.modules import Recipe

MEASURED = json.loads(Path(__file__).with_name("saved_tensors.json").read_text(encoding="utf-8"))
BATCH, LENGTH, RANK = MEASURED["batch"], MEASURED["sequence_length"], MEASURED["rank"]


def name_of(row):
    targets = f"-lora-{row['targets']}" if row["targets"] else ""
    quantised = "" if row["quantization"] == "none" else f"-{row['quantization']}"
    return f"{row['case']}-{row['precision']}-{row['attention']}{targets}{quantised}"


def recipe_of(row):
    mixed, quantised = row["precision"] == "bf16-mixed", row["quantization"] != "none"
    return Recipe(
        weights=2 if row["precision"] == "bf16" or quantised else 4,
        low=2 if mixed else 0,
        attention={"sdpa": "flash", "eager": "eager"}[row["attention"]],
        rank=RANK if row["targets"] else 0,
        targets=row["targets"] or "",
        adapters=4,
        quantised={"none": "", "nf4": "4bit", "int8": "8bit"}[row["quantization"]],
    )


@pytest.mark.parametrize("row", MEASURED["rows"], ids=name_of)
def test_a_layer_keeps_what_was_measured(row):
    """The first layer, whose input wants no gradient where only adapters are trained, and the one behind it."""
    model = read_config({"num_hidden_layers": 3, "n_layer": 3, **MEASURED["configs"][row["case"]]})
    length = model.positions if model.family == "vit" else LENGTH
    recipe = recipe_of(row)
    for place in ("first", "inner"):
        first = place == "first"
        routed = bool(model.experts) and not (first and model.dense_layers)
        tape = layer_tape(model, recipe, length, routed=routed, first=first and bool(recipe.rank)).tape
        kept = sum(BATCH * each.bytes + each.fixed for each in tape.kept())
        if model.norm == "layer" and row["precision"] == "bf16" and not recipe.quantised:
            # Mean and 1/deviation of a LayerNorm: in the dtype on the CPU that was measured, in fp32 on a GPU
            # (aten/src/ATen/native/cuda/layer_norm_kernel.cu: the accumulation type).
            statistics = [each for each in tape.kept() if each.part == "norms" and each.coefficients == {"1": 4}]
            kept -= BATCH * sum(each.bytes for each in statistics) // 2
        assert kept == row[place]


def test_every_known_family_was_measured():
    assert {name.split()[0] for name in MEASURED["configs"]} == set(KNOWN)
    assert {model.family for model in models()} <= set(KNOWN)


def test_dropout_keeps_a_byte_for_each_element():
    """On a GPU (aten/src/ATen/native/cuda/Dropout.cu); on a CPU the mask has the type of what it falls on."""
    model = find_model("gpt2")
    assert model.hidden_dropout
    without = read_config({**GPT2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0})
    kept = [layer(each, Recipe(weights=2), 1024, "none", False, False).kept for each in (model, without)]
    assert kept[0] - kept[1] == 1024 * 2 * 768
    assert [embedding(each, Recipe(weights=2), 1024, False)[0] for each in (model, without)] == [1024 * 768, 0]


GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}


def test_a_family_that_is_not_known_is_named():
    model = find_model("gpt2")
    unknown = type(model)(**{**vars(model), "family": "mamba"})
    with pytest.raises(InputError, match=r"of the family mamba.*known are bert.*--model module:function"):
        layer_tape(unknown, Recipe(weights=2), 64)


def test_the_parts_of_a_layer_and_their_formulas():
    parts = {part.name: part for part in layer_parts(find_model("llama-3.1-8b"), Recipe(weights=2), 4096)}
    assert {name: part.formula for name, part in parts.items()} == {
        "norms": "16 h + 8",  # the input in fp32, what is multiplied with the weight, and the result
        "attention": "4 q + 4 kv + 4 a",
        "MLP": "8 f",
    }
    assert parts["norms"].bytes == 4096 * (16 * 4096 + 8)


def test_full_checkpointing_keeps_the_input_alone():
    kind = layer(find_model("llama-3.1-8b"), Recipe(weights=2), 4096, "full", False, False)
    assert (kind.kept, kind.formula) == (4096 * 2 * 4096, "2 h")


def test_selective_checkpointing_keeps_every_other_product_and_the_attention():
    """The input; of q, k, v, o, gate, up and down the first, third, fifth and seventh; output and log-sum-exp."""
    model = find_model("llama-3.1-8b")
    kind = layer(model, Recipe(weights=2), 4096, "selective", False, False)
    h, kv, f, a = 4096, 1024, 14336, 32
    assert kind.kept == 4096 * (2 * h + 2 * (h + kv + f + h) + 2 * h + 4 * a)
    biased = layer(find_model("gpt2"), Recipe(weights=2), 1024, "selective", False, False)
    assert biased.kept == 1024 * (2 * 768 + 2 * 768 + 4 * 12)  # products with a bias are addmm, and not kept


@pytest.mark.parametrize("row", MEASURED["selective"], ids=lambda row: f"{row['case']}-{row['precision']}")
def test_selective_checkpointing_keeps_what_was_measured(row):
    """With PyTorch's own contexts and torchtitan's policy, in the second of three layers."""
    model = read_config({"num_hidden_layers": 3, "n_layer": 3, **MEASURED["configs"][row["case"]]})
    recipe = Recipe(weights={"bf16": 2, "fp32": 4}[row["precision"]])
    kind = layer(model, recipe, LENGTH, "selective", bool(model.experts), False)
    assert BATCH * kind.kept + kind.kept_fixed == row["bytes"]


def test_the_layers_of_a_mixture_are_of_two_kinds():
    recipe = Recipe(weights=2)
    assert [number for number, _ in layers(find_model("deepseek-v3"), recipe, 128, "none")] == [3, 58]
    adapters = Recipe(weights=2, rank=8, targets="attention", adapters=4)
    assert [number for number, _ in layers(find_model("llama-3.1-8b"), adapters, 128, "none")] == [1, 31]
    assert [number for number, _ in layers(find_model("llama-3.1-8b"), adapters, 128, "full")] == [32]


def test_the_memory_efficient_kernel_keeps_repeated_keys_and_values():
    """Queries, keys and values of every head, the output, and the log-sum-exp with rows rounded up to 32."""
    model = find_model("llama-3.1-8b")
    flash, efficient = (layer(model, Recipe(weights=2, attention=each), 100, "none", False, False) for each in KERNELS)
    more = 100 * 2 * 2 * (4096 - 1024) + 4 * 32 * (128 - 100)
    assert efficient.kept - flash.kept == more


KERNELS = ("flash", "efficient")


@pytest.mark.parametrize("weights", [2, 4])
def test_plain_products_keep_four_tensors_in_fp32(weights):
    """As PyTorch's math form was seen to, for 16-bit queries too: scaled queries and keys, the softmax, values."""
    model = find_model("llama-3.1-8b")
    recipes = [Recipe(weights=weights, attention=each) for each in ("math", "efficient")]
    math, efficient = (layer(model, each, 128, "none", False, False).kept for each in recipes)
    fused = weights * 4 * 4096 + 4 * 32
    assert math - efficient == 128 * (4 * 3 * 4096 + 4 * 32 * 128 + weights * 4096 - fused)
