"""`gradaccum fit --probe` from outside, with the trials stood in for; tests/torch runs real ones."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from gradaccum.cli import fit_probe, main
from gradaccum.torch.probe import Found, Pair, Trial, find, find_micro_batch
from gradaccum.torch.probe.ranks import torchrun

PAIRS = (Pair(16, 4, 64, 0, 1234.5), Pair(8, 8, 64, 0, 1300.0), Pair(4, 16, 64, 0))
TRIALS = (
    Trial(micro_batch=2, ok=True, step_bytes=3 * 2**20, update_bytes=2**20, step_seconds=0.5, update_seconds=0.1),
    Trial(micro_batch=32, ok=False, out_of_memory=True, why="out of memory in forward: planted"),
)


def found(**changes: Any) -> Found:
    given: dict[str, Any] = {
        "target_batch": 64, "num_gpus": 1, "capacity_bytes": 2**30, "capacity_from": "memory_limit", "device": "cpu",
        "max_micro_batch": 27, "chosen": PAIRS[1], "pairs": PAIRS, "trials": TRIALS, "prediction": 28,
        "predicted_by": "the line through the first trials", "pick": "throughput",
    }  # fmt: skip
    return Found(**{**given, **changes})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the search is called with; it gives `answer`."""
    called: dict[str, Any] = {"answer": found()}

    def find(build: str, *, on_trial: Any = None, **options: Any) -> Found:
        called.update(options, build=build)
        for trial in called["answer"].trials:
            on_trial(trial)
        return called["answer"]

    monkeypatch.setattr("gradaccum.torch.probe.find_micro_batch", find)
    return called


TEXT = """\
micro-batch 8 x 1 GPUs x 8 accumulation steps = 64: the fastest that was timed
largest that fits: 27, predicted 28; 2 trials, 1 of them out of memory
capacity: 1 GiB, as asked; on cpu

micro-batch  accumulation steps  batch  samples/s
         16                   4     64      1,230
          8                   8     64      1,300
          4                  16     64
"""


def test_the_answer_and_each_trial(capsys: Any, asked: dict[str, Any]):
    flags = "--num-gpus 2 --memory-limit 1GiB --device cpu --max-micro-batch 40 --timeout 9.5 --pick throughput"
    assert main(["fit", "--model", "train:build", "--probe", "-t", "64", *flags.split()]) == 0
    out, err = capsys.readouterr()
    assert out == TEXT
    assert err == ("micro-batch 2: 3 MiB allocated, 4 samples/s\nmicro-batch 32: out of memory in forward: planted\n")
    del asked["answer"]
    assert asked == {
        "build": "train:build", "target_batch": 64, "num_gpus": 2, "memory_limit": 2**30, "device": "cpu",
        "max_micro_batch": 40, "timeout": 9.5, "pick": "throughput",
    }  # fmt: skip


def test_json_and_quiet(capsys: Any, asked: dict[str, Any]):
    flags = ["fit", "--model", "train:build", "--probe", "-t", "64"]
    assert main([*flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(asked["answer"].to_dict()))
    assert main([*flags, "-q"]) == 0
    assert capsys.readouterr().out == "8\n"


def test_nothing_and_only_the_nearest(capsys: Any, asked: dict[str, Any]):
    flags = ["fit", "--model", "train:build", "--probe", "-t", "500", "--pick", "largest"]
    asked["answer"] = found(max_micro_batch=0, chosen=None, pairs=(), prediction=None, notes=("Not even 1.",))
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert out.startswith("nothing fits\nlargest that fits: 0; 2 trials")
    assert out.endswith("\n\nNot even 1.\n")
    assert main([*flags, "-q"]) == 0
    assert capsys.readouterr().out == "0\n"
    near = Pair(9, 7, 504, 4)
    asked["answer"] = found(chosen=near, pairs=(near,), capacity_bytes=None, trials=TRIALS[:1], pick="largest")
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert "= 504: the largest\n" in out
    assert "504 (+4)" in out
    assert "none of them out of memory" in out
    assert "capacity" not in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--probe"], "--model is missing; nearest: --model train:build\n"),
        (["--probe", "--model", "train:build"], "--target-batch is missing; nearest: --target-batch 64\n"),
        (["--probe", "--model", "a:b", "-t", "8", "--gpu", "t4"], "--gpu says nothing to a trial"),
        (["--probe", "--model", "a:b", "-t", "8", "-s", "128"], "--sequence-length says nothing to a trial"),
        (["--probe", "--model", "a:b", "-t", "8", "--memory-limit", "much"], "--memory-limit is no number of bytes"),
        (["--probe", "--model", "a:b", "-t", "8", "--timeout", "soon"], "--timeout is a number of seconds above 0"),
        (["--probe", "--model", "a:b", "-t", "8", "--timeout", "-1"], "--timeout is a number of seconds above 0"),
        (["--probe", "--model", "a:b", "-t", "none"], "is not a number: 'none'"),
        (["--model", "gpt2", "--gpu", "t4", "--pick", "largest"], "--pick belongs to a trial; add --probe"),
    ],
)
def test_what_is_wrong_is_said(capsys: Any, flags: list[str], message: str):
    assert main(["fit", *flags]) == 2
    assert message in capsys.readouterr().err


def test_all_that_is_wrong_is_said_together(capsys: Any):
    assert main(["fit", "--probe", "--gpu", "t4", "-t", "0", "--timeout", "soon"]) == 2
    err = capsys.readouterr().err
    for said in (
        "--gpu says nothing to a trial",
        "--model is missing",
        "--target-batch must be",
        "--timeout is a number",
    ):
        assert said in err


def test_the_words_of_pick_are_the_search_s():
    assert fit_probe.PICKS == find.PICKS


def test_without_torch(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradaccum.torch.probe", None)
    assert main(["fit", "--probe", "--model", "a:b", "-t", "8"]) == 2
    assert "gradaccum fit --probe needs the package torch, which is not installed" in capsys.readouterr().err


def test_the_first_rank_alone_prints(monkeypatch: pytest.MonkeyPatch):
    from torch import distributed

    with torchrun() as first:
        assert first
    assert callable(find_micro_batch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    groups: list[str] = []
    monkeypatch.setattr(distributed, "init_process_group", groups.append)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: groups.append("left"))
    with torchrun() as first:
        assert not first
    assert groups == ["gloo", "left"]
