"""What a person asks of a fit: read from text or numbers, and every mistake said, together."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

import gradaccum
from gradaccum.errors import InputError
from gradaccum.memory.question import read_question

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 1000,
    "num_attention_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip


def asked(**changes: Any) -> Any:
    given = {"model": "gpt2", "gpu": "t4", "target_batch": None, "engine": None, "how": {}, **changes}
    return read_question(**given)


def test_numbers_may_be_text():
    class Whole:
        """As the whole numbers of other libraries."""

        def __index__(self) -> int:
            return 8

    found = asked(target_batch="64", how={"sequence_length": "1Ki", "num_gpus": Whole(), "lora_rank": "4"})
    assert (found.target_batch, found.setup.num_gpus, found.setup.strategy) == (64, 8, "ddp")
    assert (found.setup.sequence_length, found.setup.lora_rank) == (1024, 4)
    assert asked(gpu=Whole.__index__(Whole()) * 2**30).gpu.memory_bytes == 8 * 2**30
    assert asked(model="llama-3.1-8b", how={"sequence_length": None}).setup.sequence_length == 2048


def test_sequences_are_as_long_as_the_config_allows_up_to_the_usual_length():
    """GPT-2 has 1,024 positions (Radford et al. 2019)."""
    assert asked().setup.sequence_length == 1024
    assert asked(model=CONFIG).setup.sequence_length == 512
    assert asked(model=CONFIG | {"max_position_embeddings": 4096}).setup.sequence_length == 2048
    assert asked(how={"sequence_length": 4096}).setup.sequence_length == 4096


def test_a_target_in_tokens_is_the_nearest_number_of_sequences():
    for target, length, sequences in (("1M tokens", 1024, 977), ("4096 tok", 1024, 4), ("1 tokens", 1024, 1)):
        assert asked(target_batch=target, how={"sequence_length": length}).target_batch == sequences
    assert asked(target_batch="2Ki tokens").target_batch == 2  # of 1,024 each, by default
    own = asked(model=lambda: None, target_batch="1M tokens", how={"sequence_length": 1000})
    assert own.target_batch == 1000


def test_an_image_model_has_the_tokens_that_it_makes_of_an_image():
    """224 x 224 pixels in patches of 16: 14 x 14, and the class token (Dosovitskiy et al. 2021, arXiv 2010.11929)."""
    assert asked(model="vit-b-16").setup.sequence_length == 14 * 14 + 1
    config = {
        "model_type": "vit", "hidden_size": 384, "num_hidden_layers": 2, "num_attention_heads": 6,
        "intermediate_size": 1536, "image_size": 64, "patch_size": 8,
    }  # fmt: skip
    assert asked(model=config).setup.sequence_length == 8 * 8 + 1
    assert asked(model=config, how={"sequence_length": 7}).setup.sequence_length == 7


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": None}, ["model: is missing; nearest: llama-3.2-1b"]),
        ({"model": 3}, ["model: is a name such as llama-3.1-8b, a config.json, or your own code", "not an object"]),
        ({"gpu": None, "model": "lama"}, ["model: names no model", "gpu: is missing; nearest: rtx-4090"]),
        ({"gpu": 2.5}, ["gpu: is a name such as rtx-4090, or bytes, not an object of type float"]),
        ({"gpu": True}, ["gpu: is a name"]),
        ({"engine": 3}, ["engine: is one of closed-form, trace, both, not '3'"]),
        ({"target_batch": 64.0}, ["target_batch: must be a whole number, not '64.0'"]),
        ({"target_batch": "many"}, ["target_batch: is not a number: 'many'"]),
        ({"target_batch": "many tokens"}, ["target_batch: is not a number: 'many'"]),
        ({"target_batch": "1M tokens", "model": len}, ["target_batch: is in tokens, and nothing says how many"]),
        ({"how": {"seq_len": 8}}, ["seq_len: is nothing that a fit is told under this name; nearest: sequence_length"]),
        ({"how": {"sequence_lenght": 8}}, ["sequence_lenght: is nothing that a fit is told; nearest: sequence_length"]),
        ({"how": {"micro_batch": 8}}, ["micro_batch: is what a fit finds: leave it out"]),
        ({"how": {"per_device_train_batch_size": 8}}, ["is what a fit finds: leave it out"]),
        ({"how": {"optimizer": type("AdamW", (), {})()}}, ["optimizer: is one of", "AdamW itself", "nearest: adamw"]),
        ({"how": {"optimizer": type("SGD", (), {})}}, ["optimizer: is one of", "SGD itself", "nearest: sgd"]),
        ({"how": {"sequence_parallel": "yes"}}, ["sequence_parallel: is True or False, not 'yes'"]),
        ({"how": {"time_limit": 0}}, ["time_limit: is a number of seconds above 0, not 0; nearest: 60"]),
        ({"how": {"loss": len, "dtype": "fp8"}}, ["loss: goes with a module of your own", "dtype: is one of bf16"]),
        (
            {"model": "lama", "gpu": "rtx 409", "target_batch": 0, "how": {"num_gpus": -1, "dtype": "fp8", "x": 1}},
            ["model: ", "gpu: ", "target_batch: ", "x: ", "num_gpus: must be at least 1", "dtype: "],
        ),
    ],
)
def test_every_mistake_is_said(changes: dict[str, Any], said: list[str]):
    with pytest.raises(InputError) as caught:
        asked(**changes)
    assert [words for words in said if words not in str(caught.value)] == []
    fields = [problem.field for problem in caught.value.problems]
    assert len(fields) == len(set(fields))


def test_python_says_the_same():
    with pytest.raises(InputError, match=r"seq_len: .*; nearest: sequence_length"):
        gradaccum.fit(model="gpt2", gpu="t4", seq_len=1024)
    assert gradaccum.fit(model="gpt2", gpu="t4", target_batch="64").plan.target_batch == 64


# Where a model is read from


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_its_config(here: Path):
    (here / "out" / "gpt2").mkdir(parents=True)
    (here / "out" / "gpt2" / "config.json").write_text(json.dumps(CONFIG))
    for folder in ("out/gpt2", f"{here}/out/gpt2", here / "out" / "gpt2"):
        found = asked(model=folder)
        assert found.setup.model.family == "llama"
        assert os.fspath(found.config).endswith("config.json")
    os.rename("out/gpt2", "gpt2")
    assert asked(model="gpt2").setup.model.family == "gpt2"  # a bare name is the catalog's
    assert asked(model="./gpt2").setup.model.family == "llama"
    os.rename("gpt2", "mymodel")
    assert asked(model="mymodel").setup.model.family == "llama"
    assert asked(model=json.dumps(CONFIG)).setup.model.hidden == 64


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "mine.py",
            "is a Python file, in which a function has to be named: 'mine.py'; write module:function; nearest: ",
        ),
        ("mine.py", "nearest: mine.py:build or mine.py:make"),
        ("mine", "nearest: mine:build or mine:make"),
        ("broken.py", "nearest: broken.py:build"),
        ("there_is_none.py", "is a file that is not there: 'there_is_none.py'"),
        ("empty", "is a folder without a config.json: 'empty'"),
    ],
)
def test_a_place_that_is_no_model_is_said(here: Path, model: str, said: str):
    (here / "mine.py").write_text("import os\ndef build(micro_batch): ...\ndef _own(): ...\ndef make(): ...\n")
    (here / "broken.py").write_text("def build(:\n")
    (here / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        asked(model=model)
    assert f"model: {said}" in str(caught.value) or said in str(caught.value)
