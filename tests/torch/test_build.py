"""`module:function`: found from the working directory, and what it may return."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from gradaccum.errors import InputError
from gradaccum.torch.build import as_job, find_build, name_of
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
    with pytest.raises(InputError, match="mytrain_named has no function 'nothing'"):
        find_build("mytrain_named.py:build")
    assert "mytrain_named" not in sys.modules


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mytrain", "names no function: 'mytrain'; write module:function; nearest: mytrain:build"),
        (":build", "names no function"),
        ("mytrian:build", "there is no module 'mytrian' here or among the packages; nearest: mytrain"),
        ("mytrain.none:build", "there is no module 'mytrain.none' here"),
        ("none.py:build", "there is no file none.py"),
        ("mytrain:biuld", "mytrain has no function 'biuld'; nearest: mytrain:build"),
        ("mytrain:size", "mytrain:size is a int, not a function of the micro-batch"),
        ("mytrain_opens.py:build", "importing mytrain_opens.py failed: FileNotFoundError"),
        ("mytrain_needs:build", "importing mytrain_needs failed: No module named 'not_installed'"),
        ("mytrain_raises:build", "importing mytrain_raises failed: ValueError: at import"),
        ("mytrain_broken.py:build", "importing mytrain_broken.py failed: SyntaxError"),
    ],
)
def test_what_cannot_be_found_is_said(tmp_path: Path, name: str, said: str):
    (tmp_path / "mytrain.py").write_text("size = 3\ndef build(micro_batch):\n    return 1\n")
    (tmp_path / "mytrain_needs.py").write_text("import not_installed\n")
    (tmp_path / "mytrain_raises.py").write_text("raise ValueError('at import')\n")
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
    job = as_job(simple(3), "sgd")
    assert isinstance(job.optimizer, torch.optim.SGD)
    job.step()
    assert job.module.weight.grad is not None
    assert as_job(job) is job
    assert as_job((job.module, job.optimizer, job.step)) == Job(
        module=job.module, optimizer=job.optimizer, step=job.step
    )
    pair = nn.Bilinear(2, 2, 1)
    for batch in ((torch.ones(1, 2), torch.ones(1, 2)), {"input1": torch.ones(1, 2), "input2": torch.ones(1, 2)}):
        as_job((pair, batch, torch.sum)).step()
    assert pair.weight.grad.eq(2).all()


def test_a_job_of_the_simple_form_is_traced():
    trace = record(lambda micro_batch: as_job(simple(micro_batch)), 4, device=cpu())
    assert 4 * 8 * 4 in {block.bytes for block in trace.blocks}  # the batch


@pytest.mark.parametrize(
    ("built", "said"), [(None, "NoneType"), ((nn.Linear(1, 1), 2), "(Linear, int)"), ((1, 2, 3), "(int, int, int)")]
)
def test_all_else_is_an_error(built: object, said: str):
    with pytest.raises(InputError) as caught:
        as_job(built)
    assert f"returned {said}; it returns (model, batch, loss), (model, optimizer, step) or a Job" in str(caught.value)
