"""What a person may hand over: modules, functions, names, samples, losses, optimizers; and what is said of mistakes."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradaccum
from gradaccum.errors import InputError
from gradaccum.memory.engines import names_function
from gradaccum.torch.fit.optimizers import OPTIMIZERS, make_optimizer
from gradaccum.torch.fit.step import Sample, from_function
from gradaccum.torch.trace import Job, record
from gradaccum.torch.trace.unseen import most

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SMALL: dict[str, Any] = {"gpu": 2**30, "target_batch": 4}


def tiny() -> nn.Module:
    return nn.Linear(4, 3)


def fitted(function: Callable[..., Any], **how: Any) -> gradaccum.Fit:
    return gradaccum.fit(model=function, **{**SMALL, **how})


# What a function returns


def test_a_function_may_return_each_of_three_things():
    def parts(micro_batch: int) -> Any:
        return tiny(), torch.zeros(micro_batch, 4), lambda y: y.mean()

    def triple(micro_batch: int) -> Any:
        module, x = tiny(), torch.zeros(micro_batch, 4)
        return module, torch.optim.AdamW(module.parameters()), lambda: module(x).mean().backward()

    def job(micro_batch: int) -> Any:
        module, optimizer, step = triple(micro_batch)
        return Job(module=module, optimizer=optimizer, step=step, batch=torch.zeros(micro_batch, 4))

    peaks = [fitted(each).memory.ledger[0] for each in (parts, triple, job)]
    assert peaks[0] == peaks[1] == peaks[2]
    assert peaks[0].bytes == (4 * 3 + 3) * 4


def test_another_result_is_named():
    with pytest.raises(InputError, match=r"model: must return .* or a gradaccum\.torch\.trace\.Job, not None"):
        fitted(lambda micro_batch: None)


def test_a_step_without_a_gradient_is_no_training():
    def forward_only(micro_batch: int, update: Any = None) -> Job:
        module, x = tiny(), torch.zeros(micro_batch, 4)
        optimizer = torch.optim.AdamW(module.parameters())
        return Job(module=module, optimizer=optimizer, step=lambda: module(x).mean(), update=update)

    def by_hand(micro_batch: int) -> Job:
        """An optimizer of its own, which no hook of torch's sees."""
        job = forward_only(micro_batch)
        module, x = job.module, torch.zeros(micro_batch, 4)

        def update() -> None:
            for each in module.parameters():
                each.data.sub_(each.grad)
                each.grad = None

        return dataclasses.replace(job, step=lambda: module(x).mean().backward(), update=update)

    for function in (forward_only, lambda micro_batch: forward_only(micro_batch, update=lambda: None)):
        with pytest.raises(InputError, match=r"step: leaves no parameter of the optimizer a gradient.*backward\(\)"):
            fitted(function)
    assert fitted(by_hand).max_micro_batch > 4


def test_a_function_is_handed_the_options_that_it_takes():
    seen: list[Any] = []

    def build(micro_batch: int, *, sequence_length: int, **how: Any) -> Any:
        seen.append((micro_batch, sequence_length, how))
        return tiny(), torch.zeros(micro_batch, sequence_length, 4), lambda y: y.mean()

    found = fitted(build, sequence_length=6, dtype="bf16")
    assert seen[0] == (2, 6, {"dtype": "bf16"})
    assert found.plan is not None
    assert found.plan.tokens_per_step == 4 * 6

    def fixed(size: int, dtype: str = "fp32") -> Any:
        return tiny(), torch.zeros(size, 4), lambda y: y.mean()

    assert fitted(fixed, dtype="fp16").max_micro_batch > 4
    with pytest.raises(InputError, match=r"sequence_length: fixed\(\) decides this itself"):
        fitted(fixed, sequence_length=6)
    with pytest.raises(InputError, match="lora_rank: is nothing that a trace of your own step is told"):
        fitted(fixed, lora_rank=4)


def test_a_length_that_a_function_needs_is_the_usual_one_where_nothing_is_said():
    def needs(micro_batch: int, sequence_length: int) -> Any:
        return tiny(), torch.zeros(micro_batch, sequence_length, 4), lambda y: y.mean()

    def has_its_own(micro_batch: int, sequence_length: int = 16) -> Any:
        return needs(micro_batch, sequence_length)

    def peak(function: Any, **how: Any) -> tuple[int, int | None]:
        found = fitted(function, **how)
        assert found.plan is not None
        return found.memory.peak_bytes, found.plan.sequence_length

    assert peak(needs) == peak(needs, sequence_length=2048)
    assert peak(needs)[1] == 2048
    assert peak(has_its_own)[0] == peak(needs, sequence_length="16")[0] < peak(needs)[0]


def test_a_function_without_a_micro_batch_gives_a_sample():
    def build() -> Any:
        return tiny(), (torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64)), nn.CrossEntropyLoss()

    found = fitted(build)
    assert found.max_micro_batch > 5
    assert "GA029" in [finding.code for finding in found.findings]
    made, doubts = from_function(build, "sgd", {})
    assert [tuple(each.shape) for each in made(7).batch] == [(7, 4), (7,)]  # type: ignore[attr-defined]
    assert len(doubts) == 1


def test_a_module_with_data_on_the_host_is_taken_without_it():
    with torch.device("cpu"):
        module, batch = tiny(), torch.randn(3, 4)
    build, doubts = from_function(lambda micro_batch: (module, batch, lambda y: y.mean()), "adamw", {})
    made = build(3)
    assert doubts == ()
    assert {each.device.type for each in (*made.module.parameters(), made.batch)} == {"meta"}  # type: ignore[misc]
    assert next(module.parameters()).device.type == "cpu"


def test_an_error_of_ours_in_a_function_keeps_its_own_words():
    def build(micro_batch: int) -> Any:
        return gradaccum.plan(micro_batch=0, num_gpus=1, target_batch=4)

    with pytest.raises(InputError, match=r"^micro_batch: must be at least 1, not 0"):
        fitted(build)


# A live module


def test_a_live_module_is_left_as_it_is():
    module, batch = tiny(), torch.randn(3, 4)
    before = {name: each.clone() for name, each in module.state_dict().items()}
    found = gradaccum.fit(model=module, batch=(batch,), loss=lambda y: y.mean(), **SMALL)
    assert found.setup.name == "Linear"
    assert all(torch.equal(each, before[name]) for name, each in module.state_dict().items())
    assert all(each.grad is None for each in module.parameters())


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({}, "batch: is missing"),
        ({"batch": torch.zeros(())}, "batch: holds no tensor with a first dimension"),
        ({"batch": torch.zeros(2, 4), "dtype": "bf16"}, "dtype: is decided by the module itself"),
        (
            {"batch": torch.zeros(2, 4), "loss": 3},
            "loss: is a function of the model's result, not an object of type int",
        ),
        (
            {"batch": torch.zeros(2, 4)},
            "loss: is missing, and the model's result is no loss but an object of type Tensor",
        ),
        ({"batch": torch.zeros(2, 4), "engine": "both"}, "engine: the closed form knows named models"),
        ({"batch": torch.zeros(2, 4), "num_gpus": 0}, "num_gpus: must be at least 1"),
        (
            {"batch": torch.zeros(2, 4), "num_gpus": 4, "strategy": "fsdp2"},
            "strategy: is followed by a trace as single",
        ),
        (
            {"batch": torch.zeros(2, 4), "loss": torch.mean, "optimizer": torch.optim.SGD(tiny().parameters())},
            "optimizer: is a name, or a function that makes one of the parameters, not an object of type SGD; .*: sgd",
        ),
        ({"batch": (torch.zeros(2, 4), torch.zeros(2))}, "loss: is missing: the batch is a pair, and Linear takes one"),
        ({"batch": torch.zeros(2, 4), "seq_len": 3}, "seq_len: .*; nearest: sequence_length"),
        ({"batch": torch.zeros(2, 4), "time_limit": "soon"}, "time_limit: is a number of seconds above 0, not 'soon'"),
        ({"batch": torch.zeros(2, 4), "allocator": 3}, "allocator: is text, .*, not an object of type int"),
        ({"batch": torch.zeros(2, 4), "optimizer": "adamv"}, "optimizer: is one of adamw, .*; nearest: adamw"),
    ],
)
def test_what_is_missing_or_wrong_is_said(how: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        gradaccum.fit(model=tiny(), **{**SMALL, **how})


def test_a_model_that_trains_nothing_is_an_error():
    with pytest.raises(InputError, match="no parameter that is trained"):
        gradaccum.fit(model=tiny().requires_grad_(False), batch=torch.zeros(2, 4), loss=lambda y: y.mean(), **SMALL)


def test_a_function_brings_its_own_batch():
    with pytest.raises(InputError, match="batch: and loss are what the function returns"):
        fitted(lambda micro_batch: None, batch=torch.zeros(2, 4))


# Samples and losses


def test_a_sample_is_resized_where_its_first_dimension_is_the_samples():
    mask = torch.zeros(6, 6)
    sample = Sample({"x": torch.zeros(3, 6, dtype=torch.int64), "mask": mask, "scale": torch.tensor(2.0), "n": 5})
    made = sample.resized(8)
    assert {name: tuple(each.shape) for name, each in made.items() if name != "n"} == {
        "x": (8, 6), "mask": (6, 6), "scale": (),
    }  # fmt: skip
    assert (made["n"], made["x"].dtype, made["x"].device.type) == (5, torch.int64, "meta")
    assert sample.doubts == ("A tensor of shape (6, 6), () stays as it is: its first dimension is not 3.",)
    assert Sample(torch.zeros(3, 6)).doubts == ()
    assert "along its first dimension alone" in Sample((torch.zeros(3, 6), torch.zeros(3, 3))).doubts[0]
    assert "a sample of 2 or more would tell" in Sample((torch.zeros(1, 6), torch.zeros(1, 1))).doubts[-1]
    same = torch.zeros(3)
    once, twice = Sample((same, same)).resized(4)
    assert once is twice


# Optimizers


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_name_is_an_optimizer(name: str):
    build, _ = from_function(lambda m: (tiny(), torch.zeros(m, 4), lambda y: y.mean()), name, {})
    trace = record(build, 2, updates=1)
    assert trace.marks[-1].phase == "optimizer"


def test_the_states_of_8_bits_by_hand():
    """Two bytes for each number, and 4 for each block of 256 and state; a bias of 128 numbers stays in fp32."""
    module = nn.Linear(64, 128)
    optimizer = make_optimizer("adamw-8bit", list(module.parameters()))
    module(torch.zeros(2, 64)).sum().backward()
    optimizer.step()
    optimizer.step()
    sizes = [sum(each.nbytes for each in state.values()) for state in optimizer.state.values()]
    assert sizes == [2 * 64 * 128 + 2 * 4 * (64 * 128 // 256), 2 * 4 * 128]
    frozen = make_optimizer("adamw-8bit", [nn.Parameter(torch.zeros(2))])
    frozen.step()
    assert not any(frozen.state.values())


def test_an_optimizer_may_be_a_function():
    found = gradaccum.fit(
        model=tiny(), batch=torch.zeros(2, 4), loss=lambda y: y.mean(), optimizer=torch.optim.SGD, **SMALL
    )
    assert "optimizer states" not in [line.name for line in found.memory.ledger]


# What may be there and is not counted


def test_the_bounds_by_hand():
    image, weight = torch.zeros(2, 3, 8, 8), torch.zeros(5, 3, 3, 3)
    result = functional.conv2d(image, weight)
    args = (image, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    assert most("aten.convolution", args, {}, result) == 2 * 36 * 3 * 9 * 4
    backward = (result, image, weight, [0], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, True])
    assert most("aten.convolution_backward", backward, {}, (image, weight, None)) == 2 * 36 * 3 * 9 * 4
    wide = functional.conv_transpose2d(result, weight)
    args = (result, weight, None, [1, 1], [0, 0], [1, 1], True, [0, 0], 1)
    assert wide.shape == image.shape
    assert most("aten.convolution", args, {}, wide) == 2 * 36 * 3 * 9 * 4
    backward = (wide, result, weight, [0], [1, 1], [0, 0], [1, 1], True, [0, 0], 1, [True, True, True])
    assert most("aten.convolution_backward", backward, {}, (result, weight, None)) == 2 * 36 * 3 * 9 * 4
    # A convolution of 1 x 1 unfolds to the image itself; copies of all three are more.
    small = torch.zeros(5, 3, 1, 1)
    args = (image, small, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    assert most("aten.convolution", args, {}, torch.zeros(2, 5, 8, 8)) == (2 * 3 * 64 + 15 + 2 * 5 * 64) * 4
    keys = torch.zeros(100)
    assert most("aten.sort", (keys,), {}, (keys, keys)) == 100 * (8 + 32)
    index = torch.zeros(10, dtype=torch.int64)
    assert most("aten.index_put_", (torch.zeros(50, 4), [None, index], torch.zeros(10)), {}, None) == 480 + 40
    assert most("aten.anything", (keys,), {}, keys) == 800


# module:function


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("train:build", True),
        ("a.b.c:D.make", True),
        ("llama-3.1-8b", False),
        ("C:config.json", True),
        ("a:", False),
        ("../runs/train.py:build", True),
        ("../runs/config.json", False),
    ],
)
def test_a_function_is_told_by_its_colon(text: str, is_one: bool):
    assert names_function(text) is is_one


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


STEP = """\
import torch

class Makers:
    @staticmethod
    def build(micro_batch):
        return torch.nn.Linear(4, 4), torch.zeros(micro_batch, 4), lambda y: y.sum()

build = Makers.build
LIMIT = 3

def fails(micro_batch):
    raise KeyError("no data")

def leaves(micro_batch):
    raise SystemExit("usage: train.py DATA")

def on_cuda(micro_batch):
    return torch.nn.Linear(4, 4).cuda()

def grows(micro_batch):
    raise MemoryError if micro_batch > 2 else ValueError()
"""


def test_a_function_is_found_from_the_working_directory(here: Path):
    (here / "steps.py").write_text(STEP)
    found = gradaccum.fit(model="steps:build", **SMALL)
    assert found.setup.name == "steps:build"
    assert found.max_micro_batch > 4
    assert gradaccum.fit(model=f"{here}/steps.py:build", **SMALL).max_micro_batch == found.max_micro_batch


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps:buld", "model: has no function 'buld' in the module steps; nearest: steps:build"),
        ("steps:fails", r"model: fails\(\) raised KeyError: 'no data' \(steps.py, line 12\)"),
        ("steps:leaves", r"leaves\(\) raised SystemExit: usage: train.py DATA \(steps.py, line 15\)"),
        ("steps:on_cuda", r"on_cuda\(\) raised .*CUDA.*; there is no GPU here: name no device"),
    ],
)
def test_what_is_wrong_with_a_function_is_said_with_the_line(here: Path, text: str, words: str):
    (here / "steps.py").write_text(STEP)
    with pytest.raises(InputError, match=words):
        gradaccum.fit(model=text, **SMALL)
