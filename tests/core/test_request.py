"""Reading what people write: aliases, suffixes, everything that is wrong at once."""

from __future__ import annotations

import dataclasses

import pytest

import gradaccum
from gradaccum import InputError, Request
from gradaccum.core import fields
from gradaccum.core.request import over_preset, read_inputs
from gradaccum.units import Ratio


def problems(**inputs):
    with pytest.raises(InputError) as error:
        read_inputs(inputs)
    return {problem.field: problem for problem in error.value.problems}


def test_request_and_table_name_the_same_inputs():
    declared = {each.name: each.default for each in dataclasses.fields(Request) if each.name != "written"}
    assert declared == {spec.name: spec.default for spec in fields.FIELDS}


def test_the_typed_keywords_are_the_inputs():
    """`Inputs` exists for type checkers alone, so that it is read from the source."""
    import ast
    import inspect

    from gradaccum.core import request

    tree = ast.parse(inspect.getsource(request))
    (inputs,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "Inputs"]
    names = [node.target.id for node in inputs.body if isinstance(node, ast.AnnAssign)]
    assert names == [spec.name for spec in fields.FIELDS]


def test_no_two_inputs_share_a_spelling():
    spellings = [spelling for spec in fields.FIELDS for spelling in (spec.name, *spec.aliases)]
    assert len(spellings) == len(set(spellings))
    shorts = [spec.short for spec in fields.FIELDS if spec.short]
    assert len(shorts) == len(set(shorts))


def test_trainers_names_and_text():
    request = read_inputs(
        {
            "per_device_train_batch_size": "4",
            "world-size": "16x8",
            "global_batch_size": " 1_024 ",
            "max_seq_length": "4Ki",
            "tensor_model_parallel_size": 2,
            "num_train_epochs": 1.5,
            "num_samples": "10k",
            "warmup_ratio": "3%",
            "warmup_steps": None,
            "lr": "",
        }
    )
    assert (request.micro_batch, request.num_gpus, request.target_batch) == (4, 128, 1024)
    assert (request.sequence_length, request.tensor_parallel, request.dataset_size) == (4096, 2, 10_000)
    assert request.epochs == gradaccum.core.request.Ratio(3, 2)
    assert request.warmup_fraction == gradaccum.core.request.Ratio(3, 100)
    assert dict(request.written)["num_gpus"] == "16x8"


def test_a_target_may_be_written_in_tokens():
    request = read_inputs({"target_batch": "4M tokens", "sequence_length": 2048})
    assert (request.target_batch, request.target_tokens) == (None, 4_000_000)


def test_whole_numbers_of_other_libraries():
    class Eight:
        def __index__(self):
            return 8

    assert read_inputs({"num_gpus": Eight()}).num_gpus == 8


def test_decimals_of_other_libraries():
    class Half(float):
        def __repr__(self):
            return "np.float64(0.5)"

    request = read_inputs({"epochs": Half(0.5), "dataset_size": 8, "learning_rate": Half(0.5), "base_batch": 8})
    assert request.epochs == Ratio(1, 2)
    assert repr(request.learning_rate) == "0.5"


def test_a_learning_rate_is_a_float_however_it_is_given():
    rates = [read_inputs({"learning_rate": rate, "base_batch": 8}).learning_rate for rate in (1, 1.0, "1")]
    assert [repr(rate) for rate in rates] == ["1.0"] * 3


def test_lists_and_ranges_belong_to_a_table():
    assert "a table takes lists" in problems(num_gpus="4,8")["num_gpus"].message
    assert "a table takes ranges" in problems(num_gpus="4..8")["num_gpus"].message
    assert read_inputs({"num_gpus": "1,024"}).num_gpus == 1024


def test_every_wrong_field_is_named_at_once():
    found = problems(micro_batch="x", num_gpus="0", target_batch="4.5", sequence_length="-1", lr="fast", epochs="0..1")
    assert set(found) == {"micro_batch", "num_gpus", "target_batch", "sequence_length", "learning_rate", "epochs"}
    assert found["num_gpus"].nearest == ("1",)
    assert found["target_batch"].nearest == ("4", "5")


def test_unknown_names_bring_the_nearest():
    assert "micro_batch" in problems(micro_batches=4)["micro_batches"].nearest


def test_one_input_under_two_names():
    assert "twice" in problems(micro_batch=4, per_device_train_batch_size=4)["micro_batch"].message


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"target_batch": 5, "target_tokens": 5, "sequence_length": 1}, "target_tokens"),
        ({"target_tokens": 5}, "sequence_length"),
        ({"token_budget": 5}, "sequence_length"),
        ({"warmup_tokens": 5}, "sequence_length"),
        ({"supervised_fraction": 0.5}, "sequence_length"),
        ({"epochs": 3}, "dataset_size"),
        ({"learning_rate": 3e-4}, "base_batch"),
        ({"base_batch": 32}, "learning_rate"),
        ({"token_budget": 5, "sequence_length": 1, "updates": 4}, "updates"),
        ({"dataset_size": 10, "epochs": 1, "updates": 4}, "epochs"),
        ({"dataset_size": 10, "epochs": 1, "token_budget": 4, "sequence_length": 1}, "epochs"),
        ({"warmup_updates": 1, "warmup_fraction": 0.1}, "warmup_fraction"),
        ({"virtual_pipeline": 2}, "virtual_pipeline"),
        ({"micro_batch": 9, "max_micro_batch": 8}, "micro_batch"),
        ({"supervised_fraction": 1.5, "sequence_length": 1}, "supervised_fraction"),
        ({"supervised_fraction": "-0.5", "sequence_length": 1}, "supervised_fraction"),
        ({"warmup_fraction": 30}, "warmup_fraction"),
        ({"epochs": 0, "dataset_size": 5}, "epochs"),
        ({"rounding": "nearest"}, "rounding"),
        ({"vary": "everything"}, "vary"),
        ({"learning_rate": 0, "base_batch": 1}, "learning_rate"),
        ({"learning_rate": float("nan"), "base_batch": 1}, "learning_rate"),
        ({"learning_rate": True, "base_batch": 1}, "learning_rate"),
        ({"epochs": [1], "dataset_size": 5}, "epochs"),
        ({"micro_batch": 1.0}, "micro_batch"),
    ],
)
def test_values_that_contradict_each_other(inputs, field):
    assert field in problems(**inputs)


def test_a_request_built_by_hand_is_checked_too():
    with pytest.raises(InputError, match="at least 1"):
        Request(micro_batch=0)
    with pytest.raises(InputError, match="whole number"):
        Request(micro_batch="4")  # type: ignore[arg-type]


def test_given_holds_what_is_not_a_default():
    request = read_inputs({"micro_batch": 4, "rounding": "round", "tensor_parallel": 1})
    assert request.given() == {"micro_batch": 4}


def test_own_inputs_win_over_a_presets():
    preset = {"micro_batch": 2, "num_gpus": 384, "target_batch": 2048, "sequence_length": 2048, "token_budget": 10**9}
    assert over_preset(preset, {})["target_batch"] == 2048
    assert over_preset(preset, {"micro-batch": 1}) == {**{k: v for k, v in preset.items() if k != "micro_batch"},
                                                        "micro-batch": 1}  # fmt: skip
    in_tokens = over_preset(preset, {"target_tokens": "4M"})
    assert "target_batch" not in in_tokens
    assert "token_budget" not in over_preset(preset, {"dataset_size": 5, "epochs": 1})
    assert "target_batch" not in over_preset(preset, {"gradient_accumulation_steps": 8})
    assert over_preset(preset, {"target_batch": ""})["target_batch"] == 2048
