"""`module:function`: found from the working directory, and what it may return."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradaccum.errors import InputError
from gradaccum.torch.build import as_job, by_micro_batch, find_build, loss_of, name_of, num_arguments
from gradaccum.torch.trace import Job, cpu, record

if TYPE_CHECKING:
    from pathlib import Path


def simple(micro_batch: int) -> Any:
    return nn.Linear(8, 2), torch.randn(micro_batch, 8), lambda result: result.square().mean()


class Holder:
    build = staticmethod(simple)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name.startswith("mytrain"):
            del sys.modules[name]


@pytest.mark.parametrize(
    "name", ["mytrain:build", "mytrain.py:build", "{folder}/mytrain.py:build", "mytrain:Tasks.one"]
)
def test_a_function_is_found(tmp_path: Path, name: str):
    (tmp_path / "mytrain_parts.py").write_text("answer = 42\n")
    (tmp_path / "mytrain.py").write_text(
        "def build(micro_batch):\n    import mytrain_parts\n    return mytrain_parts.answer\n\n"
        "class Tasks:\n    one = staticmethod(build)\n"
    )
    assert find_build(name.format(folder=tmp_path))(1) == 42


def test_a_file_is_run_once(tmp_path: Path):
    (tmp_path / "mytrain_once.py").write_text("def build(micro_batch):\n    return 1\n")
    assert find_build("mytrain_once.py:build") is find_build("mytrain_once.py:build")
    assert find_build("mytrain_once.py:build") is find_build("mytrain_once:build")


def test_a_file_knows_itself_while_it_is_run(tmp_path: Path):
    """As an imported module does: what is at its top can be found by name."""
    script = tmp_path / "mytrain_named.py"
    script.write_text(
        "from gradaccum.torch.build import find_build, name_of\n"
        "def build(micro_batch):\n    return 1\n"
        "name = name_of(build)\nfind_build('mytrain_named:nothing')\n"
    )
    with pytest.raises(InputError, match="has no function 'nothing' in the module mytrain_named"):
        find_build("mytrain_named.py:build")
    assert "mytrain_named" not in sys.modules


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mytrain", "names no function: 'mytrain'; write module:function; nearest: mytrain:build"),
        (":build", "names no function"),
        ("mytrian:build", "model: names a module that is not found from here: 'mytrian'; nearest: mytrain"),
        ("mytrain.none:build", "names a module that is not found from here: 'mytrain.none'"),
        ("none.py:build", "names a file that is not there: 'none.py'"),
        ("mytrain:biuld", "has no function 'biuld' in the module mytrain; nearest: mytrain:build"),
        ("mytrain:size", "names a int, no function: 'mytrain:size'"),
        ("mytrain_opens.py:build", "importing mytrain_opens.py raised FileNotFoundError"),
        ("mytrain_opens.py:build", "(mytrain_opens.py, line 1)"),
        ("mytrain_needs:build", "importing mytrain_needs raised ModuleNotFoundError: No module named 'not_installed'"),
        ("mytrain_raises:build", "importing mytrain_raises raised ValueError: at import (mytrain_raises.py, line 2)"),
        ("mytrain_leaves:build", "importing mytrain_leaves raised SystemExit: usage (mytrain_leaves.py, line 1)"),
        ("mytrain_broken.py:build", "importing mytrain_broken.py raised SyntaxError: "),
        ("mytrain_broken.py:build", "(mytrain_broken.py, line 1)"),
    ],
)
def test_what_cannot_be_found_is_said(tmp_path: Path, name: str, said: str):
    (tmp_path / "mytrain.py").write_text("size = 3\ndef build(micro_batch):\n    return 1\n")
    (tmp_path / "mytrain_needs.py").write_text("import not_installed\n")
    (tmp_path / "mytrain_raises.py").write_text("\nraise ValueError('at import')\n")
    (tmp_path / "mytrain_leaves.py").write_text("raise SystemExit('usage')\n")
    (tmp_path / "mytrain_opens.py").write_text("open('no such data')\n")
    (tmp_path / "mytrain_broken.py").write_text("def build(:\n")
    with pytest.raises(InputError) as caught:
        find_build(name)
    assert said in str(caught.value)


def test_a_function_has_a_name_for_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert name_of("train:build") == "train:build"
    assert name_of(find_build) == "gradaccum.torch.build:find_build"
    script = tmp_path / "mytrain_script.py"
    script.write_text("")
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", str(script), raising=False)
    monkeypatch.setattr(main, "simple", simple, raising=False)
    monkeypatch.setattr(simple, "__module__", "__main__")
    assert name_of(simple) == f"{script}:simple"
    monkeypatch.delattr(main, "__file__")
    with pytest.raises(InputError, match="was typed in"):
        name_of(simple)
    with pytest.raises(InputError, match="no function at the top of a module"):
        name_of(lambda micro_batch: micro_batch)


def test_the_three_forms_make_one_job():
    job = as_job(simple(3), torch.optim.SGD)
    assert isinstance(job.optimizer, torch.optim.SGD)
    job.step()
    assert job.module.weight.grad is not None
    assert as_job(job) is job
    assert as_job((job.module, job.optimizer, job.step)) == Job(
        module=job.module, optimizer=job.optimizer, step=job.step
    )
    pair = nn.Bilinear(2, 2, 1)
    for batch in ((torch.ones(1, 2), torch.ones(1, 2)), {"input1": torch.ones(1, 2), "input2": torch.ones(1, 2)}):
        as_job((pair, batch, lambda result: result.sum())).step()
    assert pair.weight.grad.eq(2).all()
    as_job((job.module, (torch.ones(3, 8), torch.zeros(3, 2)), functional.mse_loss)).step()


def test_a_function_takes_the_micro_batch_where_it_can():
    def named(*, name: str = "", micro_batch: int) -> Any:
        return name, micro_batch

    def none(name: str = "") -> Any:
        return name

    for function in (named, lambda size, name="": (name, size), lambda size, /, **how: (how["name"], size)):
        made, sized = by_micro_batch(function, {"name": "a"})
        assert (made(3), sized) == (("a", 3), True)
    made, sized = by_micro_batch(none, {"name": "a"})
    assert (made(3), sized) == ("a", False)
    with pytest.raises(InputError, match=r"length: none\(\) decides this itself, as it has no parameter `length`"):
        by_micro_batch(none, {"length": 2})


def test_a_job_of_the_simple_form_is_traced():
    trace = record(lambda micro_batch: as_job(simple(micro_batch)), 4, device=cpu())
    assert 4 * 8 * 4 in {block.bytes for block in trace.blocks}  # the batch


@pytest.mark.parametrize(
    ("built", "said"),
    [
        (None, "None"),
        (nn.Linear(1, 1), "an object of type Linear"),
        ((nn.Linear(1, 1), 2), "(Linear, int)"),
        ((1, 2, 3), "(int, int, int)"),
        (nn.Linear, "the class Linear"),
        ((nn.Linear(1, 1), torch.ones(1), 3), "(Linear, Tensor, int)"),
    ],
)
def test_all_else_is_an_error(built: object, said: str):
    with pytest.raises(InputError) as caught:
        as_job(built, field="build")
    words = "(model, batch, loss), (model, optimizer, step) or a gradaccum.torch.trace.Job"
    assert str(caught.value) == f"build: must return {words}, not {said}"


def test_a_loss_reads_what_its_arguments_say():
    x, target = torch.ones(2, 3), torch.zeros(2, 3)
    given, evaluate = loss_of((x, target), functional.mse_loss)
    assert given is x
    assert evaluate(x).item() == 1
    given, evaluate = loss_of({"x": x}, lambda result, batch: (result - batch["x"]).sum())
    assert given == {"x": x}
    assert evaluate(x).item() == 0
    given, evaluate = loss_of((x, target), torch.mean)
    assert given == (x, target)
    assert evaluate(x).item() == 1
    assert loss_of(x, None)[1]({"loss": x.sum()}).item() == 6
    assert loss_of(x, None)[1](types.SimpleNamespace(loss=x.sum())).item() == 6


def test_arguments_are_counted():
    assert num_arguments(nn.CrossEntropyLoss()) == 2
    assert num_arguments(lambda y, scale=2: y) == 1
    assert num_arguments(max) == 1
