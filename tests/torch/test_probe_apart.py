"""Trials in processes of their own: whatever happens there, this process learns it and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pytest

from gradaccum.cli import main
from gradaccum.errors import InputError
from gradaccum.torch import find_micro_batch
from gradaccum.torch.probe import ProbeError, Trial, apart, child
from gradaccum.torch.probe.apart import Apart
from tests.torch.cpu_steps import measured, peak
from tests.torch.test_probe import small
from tests.torchrun import torchrun

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

TRAIN = """
    import os, torch
    from torch import nn
    print("a program may print")

    def build(micro_batch):
        model = nn.Sequential(nn.Linear(32, 512), nn.GELU(), nn.Linear(512, 32))
        return model, torch.randn(micro_batch, 16, 32), loss

    def loss(result):
        return result.pow(2).mean()

    def wrong(micro_batch):
        return nn.Linear(2, 2), torch.ones(micro_batch, 3), loss

    def fixed():
        return build(4)
"""


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train_apart.py"
    path.write_text(textwrap.dedent(TRAIN))
    (tmp_path / "train_apart_opens.py").write_text("raise ValueError('num_gpus of my own')\n")
    return path


def tries(**options: Any) -> Apart:
    given = {"build": "train_apart:build", "device": "cpu", "memory_limit": None, "optimizer": "adamw", "timeout": 60.0}
    return Apart(**{**given, **options})


def test_the_command_finds_what_fits_and_prints_each_trial(train: Path, capsys: Any):
    peaks = [peak(*measured(small, m, 2, 2)) for m in (5, 6)]
    flags = ["--model", "train_apart:build", "--probe", "-t", "16", "--memory-limit", str(sum(peaks) // 2)]
    assert main(["fit", *flags, "--pick", "largest", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("micro-batch 4 x 1 GPUs x 4 accumulation steps = 16: the largest\nlargest that fits: 5")
    assert "none of them out of memory" in out
    assert "print" not in out + err
    assert err.startswith("micro-batch 2: ")
    assert 2 <= len(err.splitlines()) <= 3


def test_what_a_step_raises_is_told_with_its_place(train: Path):
    with pytest.raises(ProbeError) as caught:
        find_micro_batch("train_apart:wrong", target_batch=4, device="cpu")
    said = "micro-batch 2: RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 2x2)"
    assert str(caught.value).startswith(said)
    assert caught.value.micro_batch == 2
    assert caught.value.trials == ()
    assert caught.value.details.startswith("a program may print")
    assert "Traceback" in caught.value.details


# How a process may end. None of these imports torch: each is a program of one line in place of the trial's.


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("os._exit(3)", "micro-batch 4: the trial's process ended with exit code 3 before the trial was done"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "micro-batch 4: the trial's process was ended by SIGSEGV"),
        ("os.kill(os.getpid(), 40)", "micro-batch 4: the trial's process was ended by signal 40"),
        ("import ctypes; ctypes.string_at(0)", "micro-batch 4: the trial's process was ended by SIGSEGV"),
    ],
)
def test_a_crash_is_no_lack_of_memory(program: str, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(apart, "START", f"import os, signal; print('so far', flush=True); {program}")
    with pytest.raises(ProbeError) as caught:
        tries().attempt(4)
    assert str(caught.value) == said
    assert caught.value.details == "so far\n"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed from outside, as a system does whose memory runs out"),
        ("print('terminate called: std::bad_alloc', flush=True); os.abort()", "out of memory: std::bad_alloc"),
    ],
)
def test_an_end_that_memory_brings(program: str, why: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(apart, "START", f"import os, signal; {program}")
    assert tries().attempt(4)[0] == Trial(micro_batch=4, ok=False, out_of_memory=True, why=why)


def test_a_trial_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mark = tmp_path / "started"
    program = (
        "import os, subprocess, sys, time; "
        "below = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(mark)!r}, 'w').write(str(below.pid)); time.sleep(60)"
    )
    monkeypatch.setattr(apart, "START", program)
    trial, _ = tries(timeout=2.0).attempt(4)
    assert (trial.ok, trial.out_of_memory, trial.why) == (False, False, "not done within 2 s")
    assert not _runs(int(mark.read_text()))


def test_a_trial_ends_with_the_process_that_asked_for_it(tmp_path: Path):
    """The far side sees its standard input end."""
    read, write = os.pipe()
    program = (
        "import sys; sys.path[:] = eval(sys.argv[1]); import threading, time; "
        "from gradaccum.torch.probe.child import _end_with_parent; "
        "threading.Thread(target=_end_with_parent, daemon=True).start(); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, repr(sys.path)], stdin=read, stdout=subprocess.PIPE
    ) as process:
        os.close(read)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.close(write)
        assert process.wait(30) == 1


def _runs(process: int) -> bool:
    for _ in range(50):
        try:
            with open(f"/proc/{process}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return False
        except FileNotFoundError:
            return False
        time.sleep(0.1)
    return True


# What the far side writes, in this process


@pytest.mark.parametrize(
    ("build", "error", "said"),
    [
        ("train_apart:nothing", InputError, "build: has no function 'nothing' in the module train_apart"),
        ("train_apart:fixed", InputError, "build: train_apart:fixed takes no micro-batch"),
        ("train_apart_opens.py:build", InputError, "raised ValueError: num_gpus of my own"),
        ("train_apart:wrong", ProbeError, "micro-batch 1: RuntimeError: mat1 and mat2 shapes"),
    ],
)
def test_the_far_side_writes_its_result(
    build: str, error: Any, said: str, train: Path, monkeypatch: pytest.MonkeyPatch
):
    def run(folder: str, output: Path, timeout: float) -> int:
        output.write_text("")
        with pytest.raises(SystemExit):
            child.main(folder)
        return 0

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(apart, "_run", run)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(child, "_end_with_parent", lambda: None)
    assert tries(memory_limit=10**9).attempt(1, timed=False)[0].ok
    with pytest.raises(error) as caught:
        tries(build=build).attempt(1)
    assert said in str(caught.value)
    quotes = "raised" in said  # the words of the person's own program, which nobody may rewrite
    assert [each.verbatim for each in getattr(caught.value, "problems", [])] in ([quotes], [])


def test_a_trial_is_a_world_of_its_own(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    found = apart._environment()
    assert (found["WORLD_SIZE"], found["RANK"], found["LOCAL_RANK"]) == ("1", "0", "1")
    assert "TORCHELASTIC_RUN_ID" not in found
    assert int(found["MASTER_PORT"]) > 0


# Ranks


SCRIPT = """
    import sys, time, torch
    from torch import distributed, nn
    from gradaccum.torch import find_micro_batch

    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    file = open(f"{sys.argv[1]}/{rank}.txt", "w")

    def say(line):
        print(line, file=file, flush=True)

    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.Linear(64, 32))
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(micro_batch):
        if micro_batch > 5 + 6 * rank:
            raise torch.OutOfMemoryError("planted")
        wrapped(torch.ones(micro_batch, 32)).sum().backward()

    def fails(micro_batch):
        if rank == 1 and micro_batch > 2:
            raise ValueError("rank 1 alone")
        step(micro_batch)

    def find(step, **options):
        return find_micro_batch(model=wrapped, optimizer=optimizer, step=step, target_batch=64, **options)

    found = find(step, memory_limit="1GiB")
    say(f"{found.max_micro_batch} {found.num_gpus} {found.micro_batch} {found.accum_steps} {found.chosen}")
    trials = [(trial.micro_batch, trial.ok, trial.out_of_memory) for trial in found.trials]
    say(f"{trials}")
    for limit in (10**6, 48_000 + 10**6 * rank):
        found = find(step, memory_limit=limit, pick="largest")
        say(f"{found.max_micro_batch} of {found.capacity_bytes}")
    begun = time.monotonic()
    for wrong, options in ((fails, {}), (step, {"max_micro_batch": 4 + rank})):
        try:
            find(wrong, **options)
        except Exception as error:
            say(f"{type(error).__name__}: {error}")
    wrapped(torch.ones(4, 32)).sum().backward()  # the ranks are still together
    say(f"{model[0].bias.grad.isfinite().all()} {time.monotonic() - begun < 60}")
    distributed.barrier()
    distributed.destroy_process_group()
"""


def test_two_ranks_agree_on_what_both_hold(tmp_path: Path):
    script = tmp_path / "ranks.py"
    script.write_text(textwrap.dedent(SCRIPT))
    torchrun(2, str(script), str(tmp_path), patience=110)
    lines = [(tmp_path / f"{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    assert len(lines[0]) == len(lines[1]) == 7
    for i in (0, 1, 2, 3, 6):
        assert lines[0][i] == lines[1][i]
    assert lines[0][0].startswith("5 2 4 8 Pair(") or lines[0][0].startswith("5 2 2 16 Pair(")
    assert "(32, False, True)" in lines[0][1]
    assert lines[0][2] == "5 of 1000000"
    assert lines[0][3] in {f"{m} of 48000" for m in (2, 3, 4)}
    assert lines[0][4] == "ProbeError: micro-batch 32: rank 1 failed; its own message says why"
    assert lines[1][4] == "ValueError: rank 1 alone"
    assert lines[0][5] == "InputError: max_micro_batch: is not the same on all ranks: 4 here, from 4 to 5"
    assert lines[1][5] == "InputError: max_micro_batch: is not the same on all ranks: 5 here, from 4 to 5"
    assert lines[0][6] == "True True"
