"""Architectures: the counts of Transformers itself, any config.json, and a name that finds its row."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradaccum.catalog import models as room
from gradaccum.catalog.models import (
    CHECKS,
    FAMILIES,
    Model,
    active_params,
    count_params,
    find_model,
    models,
    read_config,
)
from gradaccum.errors import InputError

ROWS = models()
BY_ID = {model.id: model for model in ROWS}
FILE = Path(room.__file__).with_name("models.json")

# Written by docs/make_model_counts.py: the classes of Transformers, built on the meta device.
TRUTH = json.loads(Path(__file__).with_name("model_counts.json").read_text(encoding="utf-8"))
ROW_COUNTS = [row for row in TRUTH["counts"] if "id" in row]
RANDOM_COUNTS = [row for row in TRUTH["counts"] if "id" not in row]

NOT_OF_THE_BLOCK = {"id", "name", "aliases", "note", "source", "checked", "day"}

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 100,
    "max_position_embeddings": 128,
}


def shape(model: Model) -> dict[str, Any]:
    return {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in NOT_OF_THE_BLOCK
    }


def problems(config: Any) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        read_config(config)
    assert {problem.field for problem in caught.value.problems} == {"config"}
    return tuple(problem.message for problem in caught.value.problems)


# Counts


def test_the_truth_names_the_versions_that_the_catalog_names():
    assert TRUTH["transformers"] == "5.24.0"
    assert f"Transformers {TRUTH['transformers']}" in CHECKS["meta"]
    assert [row["id"] for row in ROW_COUNTS] == [model.id for model in ROWS]
    assert {row["config"]["model_type"] for row in RANDOM_COUNTS} == set(FAMILIES)
    assert all("meta" in model.checked for model in ROWS)


@pytest.mark.parametrize("row", ROW_COUNTS, ids=lambda row: row["id"])
def test_a_row_has_the_parameters_of_the_real_class(row: dict[str, Any]):
    model = BY_ID[row["id"]]
    assert model.params == count_params(model) == row["params"]
    # and the config that was built is the row, however it is read
    assert shape(read_config(row["config"])) == shape(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_config_of_a_family_is_counted_as_the_real_class_counts(family: str):
    rows = [row for row in RANDOM_COUNTS if row["config"]["model_type"] == family]
    assert len(rows) >= 6
    assert [read_config(row["config"]).params for row in rows] == [row["params"] for row in rows]


# Counts that publishers print, or that follow from the bytes of their checkpoints; typed from there.
PRINTED = {
    # total_size of model.safetensors.index.json, two bytes each
    "llama-3-8b": 16_060_522_496 // 2,
    "llama-3.1-70b": 141_107_412_992 // 2,
    "mistral-7b-v0.1": 14_483_464_192 // 2,
    "mixtral-8x7b": 93_405_585_408 // 2,
    "qwen2.5-3b": 6_171_877_376 // 2,
    "qwen2.5-7b": 15_231_233_024 // 2,
    "qwen3-8b": 16_381_470_720 // 2,
    "qwen3-30b-a3b": 61_064_245_248 // 2,
    "phi-2": 5_559_367_680 // 2,
    "phi-4": 29_319_014_400 // 2,
    "gemma-2-2b": 5_228_683_776 // 2,
    # BLOOM's model card; the output of a run
    "bloom-3b": 3_002_557_440,
    "llama-1-65b": 65_285_660_672,
}


@pytest.mark.parametrize("name", PRINTED)
def test_a_count_equals_what_is_printed(name: str):
    model = find_model(name)
    assert model.params == PRINTED[name]
    assert set(model.checked) & {"bytes", "count"}


def test_only_these_rows_claim_a_printed_count():
    assert {model.id for model in ROWS if set(model.checked) & {"bytes", "count"}} == set(PRINTED)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    # the publishers' round figures, in 10^9
    [
        ("deepseek-v3", 671, 37),
        ("qwen3-30b-a3b", 30.5, 3.3),
        ("qwen3-235b-a22b", 235, 22),
        ("mixtral-8x7b", 46.7, 12.9),
        ("deepseek-v2-lite", 15.7, 2.4),
    ],
)
def test_total_and_active_parameters_of_mixtures(name: str, total: float, active: float):
    model = find_model(name)
    assert model.params / 1e9 == pytest.approx(total, rel=0.005)
    # DeepSeek leaves the embeddings out of its active parameters, which are many in the small model
    assert active_params(model) / 1e9 == pytest.approx(active, rel=0.15)


def test_every_parameter_of_a_dense_model_is_active():
    assert all(active_params(model) == model.params for model in ROWS if not model.experts)
    assert all(active_params(model) < model.params for model in ROWS if model.experts)


@given(st.randoms(use_true_random=False))
def test_a_llama_is_counted_matrix_by_matrix(pick: random.Random):
    layers, groups, kv, head, ffn, vocab = (pick.randint(1, 10**6) for _ in range(6))
    hidden, heads = pick.randint(1, 10**6), kv * groups
    config = {
        **LLAMA,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": head,
        "intermediate_size": ffn,
        "vocab_size": vocab,
    }
    q, k, v, o = hidden * heads * head, hidden * kv * head, hidden * kv * head, heads * head * hidden
    layer = q + k + v + o + 3 * hidden * ffn + 2 * hidden
    assert read_config(config).params == vocab * hidden + layers * layer + hidden + hidden * vocab


# The rows


def test_every_row_says_where_it_is_from_and_how_it_was_checked():
    for model in ROWS:
        assert model.source.startswith("https://huggingface.co/"), model.id
        assert model.source.endswith("/config.json")
        assert set(model.checked) <= set(CHECKS), model.id
        assert len(model.checked) >= 2, model.id  # the count alone says nothing of the shapes
        assert model.day == "2026-11-24"
    used = {word for model in ROWS for word in model.checked}
    assert used == set(CHECKS)


def test_rows_have_sane_shapes():
    for model in ROWS:
        assert model.heads % model.kv_heads == 0, model.id
        assert model.activation in {"silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"}
        assert model.norm in {"rms", "layer"}
        assert (model.experts > 0) == (model.expert_ffn > 0) == (model.experts_per_token > 0)
        assert model.positions >= 197
        assert model.moe_layers + model.dense_layers == (model.layers if model.experts else 0)
        assert model.transformers_class == FAMILIES[model.family][0]


def test_every_family_has_a_row():
    assert {model.family for model in ROWS} == set(FAMILIES)


def test_ids_are_unique_and_no_alias_means_two_rows():
    assert len(BY_ID) == len(ROWS)
    known = {}
    for model in ROWS:
        for spelling in (model.id, model.name, *model.aliases):
            behind = spelling.split("/")[-1]
            for plain in {room.normalise(spelling), room.normalise(spelling if behind.isdecimal() else behind)}:
                assert known.setdefault(plain, model.id) == model.id, spelling
            assert find_model(spelling) is model


# Facts, typed from the publications and not from the file.
PUBLISHED: dict[str, dict[str, Any]] = {
    # The Llama 3 Herd of Models, arXiv 2407.21783, Table 3
    "llama-3.1-405b": {"layers": 126, "hidden": 16_384, "ffn": 53_248, "heads": 128, "kv_heads": 8, "vocab": 128_256},
    # inference/configs/config_671B.json
    "deepseek-v3": {"layers": 61, "dense_layers": 3, "experts": 256, "experts_per_token": 8, "q_rank": 1536},
    # inference/configs/config_16B.json: q_lora_rank 0, kv_lora_rank 512, 128 + 64 and 128
    "deepseek-v2-lite": {"q_rank": 0, "kv_rank": 512, "head_dim": 192, "value_dim": 128, "ffn": 10_944},
    # a stored config.json: word_embed_proj_dim 512, do_layer_norm_before false
    "opt-350m": {"embedding_width": 512, "final_norm": False, "learned_positions": 2050, "hidden": 1024},
    # a stored config.json: resid_pdrop 0.1
    "phi-2": {"hidden_dropout": True, "attention_dropout": False, "parallel": True, "norms": 1, "head_bias": True},
    "gpt2": {"tied": True, "learned_positions": 1024, "activation": "gelu_new", "hidden_dropout": True},
    "qwen2.5-7b": {"qkv_bias": True, "o_bias": False, "tied": False, "vocab": 152_064},
    "gemma-2-27b": {"norms": 4, "head_dim": 128, "sliding_window": 4096, "tied": True},
    "mistral-7b-v0.1": {"sliding_window": 4096, "vocab": 32_000},
    "mistral-7b-v0.3": {"sliding_window": None, "vocab": 32_768},
    "roberta-base": {"positions": 512, "learned_positions": 514, "head": "masked_lm"},
    "vit-b-16": {"positions": 197, "classes": 1000, "vocab": 0},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_says_what_was_published(name: str):
    model = find_model(name)
    assert {field: getattr(model, field) for field in PUBLISHED[name]} == PUBLISHED[name]


def test_the_file_stays_small():
    content = json.dumps(json.loads(FILE.read_text(encoding="utf-8")), separators=(",", ":"))
    assert len(gzip.compress(content.encode())) < 6000


# The look-up


@pytest.mark.parametrize(
    ("typed", "model"),
    [
        ("llama-3.1-8b", "llama-3.1-8b"),
        ("Llama 3.1 8B", "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("GPT2-XL", "gpt2-xl"),
        ("qwen2.5 0.5b", "qwen2.5-0.5b"),
        ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
        ("EleutherAI/pythia-160m-deduped", "pythia-160m"),
        ("tinyllama", "tinyllama-1.1b"),
        ("bert-base-uncased", "bert-base"),
        ("ViT-B/16", "vit-b-16"),
        ("vit-b", "vit-b-16"),
        ("mistral_7b_v0.3", "mistral-7b-v0.3"),
        ("microsoft/phi-1_5", "phi-1.5"),
        ("deepseek-r1", "deepseek-v3"),
    ],
)
def test_a_model_is_found_however_it_is_spelled(typed: str, model: str):
    assert find_model(typed).id == model


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("llama-3.1-9b", "llama-3.1-8b"),
        ("lama-2-7b", "llama-2-7b"),
        ("someone/qwen2.5-8b", "qwen2.5-7b"),
        ("mistral-7b", "mistral-7b-v0.1"),  # the versions differ in their vocabulary
        ("gemma-3", "gemma-3-1b"),
    ],
)
def test_a_miss_is_never_a_guess_and_names_the_nearest(typed: str, nearest: str):
    with pytest.raises(InputError) as caught:
        find_model(typed)
    (found,) = caught.value.problems
    assert found.field == "model"
    assert len(found.nearest) == 3
    assert nearest in found.nearest
    assert all(find_model(name).id == name for name in found.nearest)


def test_nonsense_is_near_to_nothing():
    with pytest.raises(InputError) as caught:
        find_model("asdfgh")
    assert caught.value.problems[0].nearest == ()
    assert "'asdfgh'; take one such as llama-3.2-1b, or a config.json" in str(caught.value)


@given(st.sampled_from(ROWS), st.data())
def test_case_and_separators_do_not_count(model: Model, data: st.DataObject):
    parts = model.id.split("-")
    typed = "".join(part + data.draw(st.sampled_from(["", " ", "-", "_"])) for part in parts)
    typed = "".join(data.draw(st.sampled_from([letter.upper(), letter])) for letter in typed)
    assert find_model(data.draw(st.sampled_from(["", " ", "someone/"])) + typed) is model


@pytest.mark.parametrize("typed", ["", "---", "/", "16", "🙂", "b\x00", "z" * 1_000_000])
def test_nonsense_is_answered_at_once_and_shown_short(typed: str):
    with pytest.raises(InputError) as caught:
        find_model(typed)
    (found,) = caught.value.problems
    assert len(found.message) < 140
    assert found.message.isprintable()


# Reading a config.json


def test_a_config_is_read_as_a_dict_as_text_as_a_file_and_as_an_object(tmp_path: Path):
    class Config:
        def to_dict(self) -> dict[str, Any]:
            return LLAMA

    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA), encoding="utf-8")
    expected = read_config(LLAMA)
    assert expected.name == "llama"
    for given_as in (json.dumps(LLAMA), str(path), path, Config()):
        assert read_config(given_as) == expected  # type: ignore[arg-type]
    assert read_config({**LLAMA, "_name_or_path": "me/mine"}).name == "me/mine"
    assert read_config(LLAMA, name="mine").id == "mine"


def test_other_names_for_the_same_fields():
    gpt2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "n_ctx": 32, "vocab_size": 100}
    model = read_config(gpt2)
    assert (model.layers, model.hidden, model.heads, model.positions, model.ffn) == (2, 64, 4, 32, 256)
    assert read_config({**gpt2, "n_inner": None}) == model
    assert read_config({**gpt2, "n_inner": 100}).ffn == 100


def test_null_means_what_follows_from_the_other_fields():
    mistral = {**LLAMA, "model_type": "mistral", "num_attention_heads": 8}
    assert read_config(mistral).kv_heads == 8  # the default of the config class
    assert read_config({**mistral, "num_attention_heads": 16, "num_key_value_heads": None}).kv_heads == 16
    assert read_config(mistral).sliding_window == 4096
    assert read_config({**mistral, "sliding_window": None}).sliding_window is None
    assert read_config({**LLAMA, "head_dim": None, "tie_word_embeddings": None}) == read_config(LLAMA)


def test_what_another_family_would_read_is_left_alone():
    assert read_config({**LLAMA, "sliding_window": 7, "num_experts": 4, "layer_types": ["x"]}) == read_config(LLAMA)


def test_a_classifiers_labels_are_counted():
    vit = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit["intermediate_size"] = 16
    two, ten = read_config(vit), read_config({**vit, "id2label": {str(n): str(n) for n in range(10)}})
    assert ten.params - two.params == 8 * (8 + 1)
    assert read_config({**vit, "num_labels": 10}) == ten


def test_a_text_model_within_another_config():
    """As of google/gemma-3-4b-it, which leaves out what equals the default of its class."""
    nested = {
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152},
    }
    model = read_config(nested)
    assert shape(model) == shape(find_model("gemma-3-4b"))
    assert "vision tower" in model.note
    assert "gemma3" in model.note
    del nested["text_config"]["model_type"]  # type: ignore[attr-defined]
    assert read_config(nested) == model


def test_each_missing_field_is_named():
    messages = problems({"model_type": "llama", "hidden_size": 64})
    assert messages == tuple(
        f"lacks {name}, which llama needs"
        for name in (
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "vocab_size",
        )
    )


def test_the_longest_sequence_is_asked_of_a_table_of_positions_alone():
    """Rotary positions have no rows: Transformers' LlamaConfig has a default, on which no parameter depends."""
    unsaid = {name: value for name, value in LLAMA.items() if name != "max_position_embeddings"}
    model = read_config(unsaid)
    assert model.positions == 0
    assert model.params == read_config(LLAMA).params
    assert problems({"model_type": "opt", **{name: unsaid[name] for name in unsaid if name != "model_type"}}) == (
        "lacks max_position_embeddings, which opt needs",
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_reads_an_empty_config(family: str):
    messages = problems({"model_type": family})
    assert len(messages) >= 3
    assert all(message.startswith("lacks ") and f"which {family} needs" in message for message in messages)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden_size", -4096, "hidden_size must be a whole number of at least 1, not -4,096"),
        ("num_hidden_layers", 0, "num_hidden_layers must be a whole number of at least 1, not 0"),
        ("vocab_size", "big", "vocab_size must be a whole number of at least 1, not 'big'"),
        ("vocab_size", 1.5, "vocab_size must be a whole number of at least 1, not '1.5'"),
        ("vocab_size", True, "vocab_size must be a whole number of at least 1, not 'True'"),
        ("vocab_size", float("inf"), "vocab_size must be a whole number of at least 1, not 'inf'"),
        ("vocab_size", 10**200, "vocab_size has too many digits: at most 100 are read"),
        ("num_attention_heads", [8], "num_attention_heads must be a whole number of at least 1, not '[8]'"),
        ("num_attention_heads", 5, "hidden_size 64 is no multiple of num_attention_heads 5"),
        ("num_key_value_heads", 3, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
        ("tie_word_embeddings", "yes", "tie_word_embeddings must be true or false, not 'yes'"),
        ("add_cross_attention", True, "has add_cross_attention, and blocks with cross-attention are not counted"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: object, said: str):
    assert problems({**LLAMA, field: value}) == (said,)


def test_wrong_numbers_of_experts():
    mixtral = {**LLAMA, "model_type": "mixtral", "num_key_value_heads": 4, "num_local_experts": 2}
    assert problems({**mixtral, "num_experts_per_tok": 3}) == ("num_experts_per_tok 3 is more than 2 experts",)
    deepseek = next(row["config"] for row in RANDOM_COUNTS if row["config"]["model_type"] == "deepseek_v3")
    layers = deepseek["num_hidden_layers"]
    found = problems({**deepseek, "first_k_dense_replace": layers + 1})
    assert found == (f"first_k_dense_replace is more than {layers} layers",)


def test_an_unknown_model_type_names_the_known_ones_and_another_way():
    (message,) = problems({**LLAMA, "model_type": "lama"})
    assert "unknown model_type 'lama'" in message
    assert all(family in message for family in FAMILIES)
    assert "can be traced" in message
    with pytest.raises(InputError) as caught:
        read_config({**LLAMA, "model_type": "lama"})
    assert caught.value.problems[0].nearest == ("llama",)
    (message,) = problems({key: value for key, value in LLAMA.items() if key != "model_type"})
    assert message.startswith("has no model_type")
    assert "unknown model_type '7'" in problems({**LLAMA, "model_type": 7})[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no/such/config.json", "cannot be read as a text file: 'no/such/config.json'"),
        ("", "cannot be read as a text file: ''"),
        ("a\0b", "cannot be read as a text file: 'a?b'"),
        ("{", "is no JSON: '{'"),
        ('["{"]', "must be one JSON object, such as a config.json: '[\"{\"]'"),
        ("{" * 2000, "is no JSON"),
        ('{"a": ' * 100_000, "is no JSON"),
        ("{" + " " * 2**20, "is longer than 1048576 characters"),
    ],
)
def test_what_is_no_config(text: str, said: str):
    (message,) = problems(text)
    assert message.startswith(said)
    assert len(message) < 120


def test_a_folder_is_no_config(tmp_path: Path):
    assert problems(str(tmp_path))[0].startswith("cannot be read")


def test_absurd_sizes_are_answered():
    """10^15 parameters and far more: exact, and at once."""
    huge = read_config({**LLAMA, "num_hidden_layers": 10**9, "hidden_size": 2**20})
    assert huge.params > 10**15
    beyond = read_config({**LLAMA, "num_hidden_layers": 10**60, "hidden_size": 10**60, "vocab_size": 10**60})
    assert beyond.params == count_params(beyond) > 10**180
    experts = {**LLAMA, "model_type": "qwen3_moe", "num_key_value_heads": 4, "head_dim": 16}
    assert read_config({**experts, "num_hidden_layers": 10**18, "decoder_sparse_step": 2}).dense_layers == 5 * 10**17


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)
field_names = sorted(
    {name for names in room.NAMES.values() for name in names}
    | {"tie_word_embeddings", "attention_bias", "mlp_only_layers", "decoder_sparse_step", "id2label", "hidden_act"}
    | {"text_config", "model_type", "dropout", "_name_or_path"}
)


@given(
    config=st.sampled_from([row["config"] for row in RANDOM_COUNTS]),
    spoilt=st.dictionaries(st.sampled_from(field_names), json_values),
)
def test_a_spoilt_config_is_read_or_refused_and_nothing_else(config: dict[str, Any], spoilt: dict[str, Any]):
    with contextlib.suppress(InputError):
        model = read_config({**config, **spoilt})
        assert model.params == count_params(model) > 0
