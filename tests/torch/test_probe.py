"""Trials in this process: what they measure, where memory runs out, and what is then said."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import gradaccum
from gradaccum.errors import InputError
from gradaccum.torch import find_micro_batch
from gradaccum.torch.probe import Found, Trial
from gradaccum.torch.probe.apart import INSIDE, Apart
from gradaccum.torch.probe.child import do
from gradaccum.torch.probe.errors import is_out_of_memory
from gradaccum.torch.probe.meter import HostMeter, _left_in_cgroup, available, meter_of
from gradaccum.torch.probe.trial import run_trial
from gradaccum.torch.trace import Job
from tests.torch.cpu_steps import WIDTH, Gated, Language, dense, measured, peak, words

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SCALARS = 64
"""Bytes by which a count of tensors and the profiler may differ: scalars that no operator shows."""


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 512), nn.GELU(), nn.Linear(512, WIDTH))


small = dense(mlp)
language = words(lambda: Language(tied=True))
heavy_update = dense(lambda: nn.Sequential(nn.Linear(WIDTH, 1024), nn.Linear(1024, WIDTH)))


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials apart, but in this process."""

    def attempt(self: Apart, micro_batch: int, timed: bool = True) -> tuple[Trial, str]:
        found = do({**vars(self), "micro_batch": micro_batch, "timed": timed})
        return Trial(**found["trial"]), found["limited_by"]

    monkeypatch.setattr(Apart, "attempt", attempt)


def named(name: str) -> str:
    return f"{__file__}:{name}"


def find(name: str, target_batch: Any = 64, **options: Any) -> Found:
    return find_micro_batch(named(name), target_batch=target_batch, **{"pick": "largest", "device": "cpu", **options})


# What is measured


@pytest.mark.parametrize(
    "build",
    [small, language, dense(Gated, optimizer=torch.optim.SGD), words(lambda: Language("eager", keep="checkpoint"))],
    ids=["mlp", "language model", "gated", "checkpointed"],
)
@pytest.mark.parametrize("micro_batch", [1, 5])
def test_a_trial_measures_what_the_profiler_sees(build: Callable[[int], Job], micro_batch: int):
    trial = run_trial(lambda: build(micro_batch), HostMeter(10**9), micro_batch, timed=False)
    assert trial.allocated_bytes == pytest.approx(peak(*measured(build, micro_batch, 2, 2)), abs=SCALARS)
    assert trial.ok
    assert trial.step_seconds is None


def test_what_is_kept_and_the_peaks_of_both_phases():
    trial = run_trial(lambda: heavy_update(1), HostMeter(10**9), 1)
    parameters = sum(each.numel() for each in heavy_update(1).module.parameters())
    steps = 4 * 4  # AdamW counts its steps in one float for each parameter
    assert trial.kept_bytes == 4 * 4 * parameters + steps  # weights, gradients and two states, in fp32
    assert trial.update_bytes is not None
    assert trial.step_bytes is not None
    assert trial.update_bytes > trial.step_bytes > trial.kept_bytes
    assert trial.step_seconds is not None
    assert trial.samples_per_second == 1 / trial.step_seconds


def test_storages_that_grow_and_go_are_followed():
    with HostMeter(10**6) as meter:
        a = torch.empty(100)
        a.resize_(1000)
        assert meter.peak() == 4000
        torch.add(torch.ones(500), 1, out=torch.empty(0))
        meter.begin_phase()
        assert meter.peak() == 4000
        meter.clean()
        with pytest.raises(torch.OutOfMemoryError, match=r"brings what is allocated to 980 KiB, and there are 977 KiB"):
            torch.empty(250_000)
        assert meter.flushes() == 0
        assert meter.reserved() is None


@pytest.mark.parametrize("name", ["small", "language", "heavy_update"])
@pytest.mark.usefixtures("inside")
def test_the_largest_is_that_of_trying_all(name: str):
    build = globals()[name]
    peaks = {m: peak(*measured(build, m, 2, 2)) for m in range(1, 17)}
    for limit_at in (1, 7, 15):
        limit = (peaks[limit_at] + peaks[limit_at + 1]) // 2
        if limit < peaks[limit_at + 1]:  # where the update is the peak, more samples may cost nothing
            found = find(name, 16, memory_limit=limit)
            assert found.max_micro_batch == limit_at
            assert limit_at == 1 or abs((found.prediction or 0) - limit_at) <= 1
            assert found.ooms == (limit_at == 1)
            assert len(found.trials) <= 3
            assert (found.capacity_bytes, found.capacity_from) == (limit, "memory_limit")
    assert find(name, 16, memory_limit=10**9).max_micro_batch == 16


@pytest.mark.usefixtures("inside")
def test_nothing_fits():
    found = find("small", memory_limit=50_000)
    assert (found.max_micro_batch, found.chosen, found.micro_batch, found.pairs) == (0, None, None, ())
    assert found.notes[0].startswith("Not even a micro-batch of 1 fits: out of memory while building: OutOfMemoryError")
    assert not found.keeps_target
    assert found.to_dict()["effective_batch"] is None


# Where memory runs out


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(_: Any, grad: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Planted.")


def planted(where: str, error: Callable[[], Exception] = lambda: torch.OutOfMemoryError("planted")) -> Any:
    """A build whose trials run out of memory from micro-batch 6 on."""

    def build(micro_batch: int) -> Job:
        made = small(micro_batch)

        def fail() -> None:
            if micro_batch > 5:
                raise error()

        def step() -> None:
            if where == "in forward":
                fail()
            if where == "in backward" and micro_batch > 5:
                Fails.apply(torch.ones(2, requires_grad=True)).sum().backward()
            made.step()

        def update() -> None:
            made.optimizer.step()
            if where == "in the optimizer's update":
                fail()
            made.optimizer.zero_grad()

        if where == "while building":
            fail()
        return Job(module=made.module, optimizer=made.optimizer, step=step, update=update, batch=made.batch)

    return build


def wrapped() -> Exception:
    try:
        raise MemoryError
    except MemoryError as error:
        found = ValueError("while handling")
        found.__context__ = error
        return found


building, forward, backward = planted("while building"), planted("in forward"), planted("in backward")
updating = planted("in the optimizer's update")
other_words = planted("in forward", lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
hidden = planted("in forward", wrapped)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("building", "while building"),
        ("forward", "in forward"),
        ("backward", "in backward"),
        ("updating", "in the optimizer's update"),
        ("other_words", "in forward"),
        ("hidden", "in forward"),
    ],
)
@pytest.mark.usefixtures("inside")
def test_a_planted_error_is_found_and_its_place_said(name: str, where: str):
    found = find(name, 8)
    assert found.max_micro_batch == 5
    assert (found.micro_batch, found.accum_steps, found.effective_batch, found.keeps_target) == (4, 2, 8, True)
    failed = [trial for trial in found.trials if not trial.ok]
    assert found.ooms == len(failed) > 0
    for trial in failed:
        assert trial.why.startswith(f"out of memory {where}: ")
        assert trial.allocated_bytes is None


def test_nothing_of_a_failed_trial_stays():
    import weakref

    alive = []

    def make() -> Job:
        made = planted("in forward")(6)
        alive.append(weakref.ref(made.module))
        return made

    assert not run_trial(make, HostMeter(None), 6).ok
    assert alive[0]() is None


def test_which_errors_mean_memory():
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**50)
    assert is_out_of_memory(real.value)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("CUDA out of memory"))


# All else that goes wrong


def wrong_shapes(micro_batch: int) -> Any:
    return nn.Linear(4, 4), torch.ones(micro_batch, 5), torch.sum


def elsewhere(micro_batch: int) -> Any:
    return nn.Linear(4, 4, device="meta"), torch.ones(micro_batch, 4), torch.sum


@pytest.mark.usefixtures("inside")
def test_what_a_step_raises_is_raised():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        find("wrong_shapes")
    with pytest.raises(ValueError, match="build puts parameters on meta, and the trial is on cpu"):
        find("elsewhere")


def stepping(step: Callable[[nn.Module], object]) -> Job:
    module = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return Job(module=module, optimizer=optimizer, step=lambda: step(module), update=lambda: None)


def test_a_step_without_a_gradient_is_no_training():
    x = torch.ones(2, 4)
    for step in (lambda module: module(x).sum(), lambda module: (x * x).requires_grad_().sum().backward()):
        with pytest.raises(InputError, match=r"step: leaves no parameter of the optimizer a gradient.*backward\(\)"):
            run_trial(lambda step=step: stepping(step), HostMeter(10**9), 2, timed=False)

    def in_backward(module: nn.Module) -> None:
        """As an optimizer does that steps within the backward pass: no gradient is left behind."""
        module(x).sum().backward()
        module.zero_grad()

    def by_hand(module: nn.Module) -> None:
        module.weight.grad = torch.autograd.grad(module(x).sum(), module.weight)[0]

    for step in (in_backward, by_hand):
        assert run_trial(lambda step=step: stepping(step), HostMeter(10**9), 2, timed=False).ok


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_batch": 0}, "target_batch: must be at least 1, not 0"),
        ({"target_batch": 6.5}, "target_batch: must be a whole number, not 6.5"),
        ({"timeout": 0}, "timeout: is a number of seconds above 0, not 0"),
        ({"timeout": "60"}, "timeout: is a number of seconds above 0, not '60'"),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())},
            "optimizer: is a name where a build is tried: SGD",
        ),
        ({"build": None, "model": 3, "step": print}, "optimizer: is the model's own"),
        (
            {"build": None, "model": 3, "step": print, "optimizer": 3},
            "model: is a torch.nn.Module, not an object of type",
        ),
        (
            {"build": None, "model": nn.Linear(1, 1), "step": print, "optimizer": torch.optim.SGD},
            "optimizer: is a torch.optim.Optimizer, not the class SGD",
        ),
        ({"pick": "smallest"}, "pick: is throughput or largest, not 'smallest'; nearest: throughput or largest"),
        ({"memory_limit": 0}, "memory_limit: must be at least 1, not 0"),
        ({"memory_limit": "much"}, "memory_limit: is no number of bytes"),
        ({"max_micro_batch": 0}, "max_micro_batch: must be at least 1, not 0"),
        ({"num_gpus": -1}, "num_gpus: must be at least 1, not -1"),
        ({"num_gpus": 0}, "num_gpus: must be at least 1, not 0"),
        ({"device": "abacus"}, "device: is cpu, cuda or such as cuda:1, not 'abacus'"),
        ({"optimizer": "adamx"}, "optimizer: is unknown: 'adamx'"),
        ({"model": nn.Linear(1, 1)}, "build: is given, and so is a live model; leave one out"),
        ({"build": None}, "model: is missing, and so is build; give one\nstep: is missing"),
        ({"build": None, "model": nn.Linear(1, 1), "step": print}, "optimizer: is the model's own"),
        ({"build": lambda micro_batch: None}, "is no function at the top of a module"),
        ({"prediction": "many"}, "prediction: is a micro-batch"),
    ],
)
@pytest.mark.usefixtures("inside")
def test_input_that_makes_no_sense(options: dict[str, Any], said: str):
    given = {"build": named("small"), "target_batch": 8, "device": "cpu", **options}
    with pytest.raises(InputError) as caught:
        find_micro_batch(given.pop("build"), **given)
    assert said in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(InputError, match="device: is cuda:0, and PyTorch finds no GPU here; nearest: cpu"):
        meter_of("cuda:0", None)


def test_a_module_that_searches_while_it_is_imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(INSIDE, "1")
    with pytest.raises(InputError, match="starts this search anew; call it below `if __name__ == "):
        find("small")


def test_torchrun_without_a_process_group(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match=r"WORLD_SIZE is 2; .* call torch.distributed.init_process_group\(\) first"):
        find("small")


# Predictions


@pytest.mark.usefixtures("inside")
def test_a_prediction_saves_trials():
    peaks = {m: peak(*measured(small, m, 2, 2)) for m in (1, 11, 20, 21, 30)}
    limit = (peaks[20] + peaks[21]) // 2
    slope, fixed = (peaks[21] - peaks[11]) // 10, peaks[21] - 21 * ((peaks[21] - peaks[11]) // 10)
    tried = {
        "exact": find("small", memory_limit=limit, prediction=20),
        "line": find("small", memory_limit=limit, prediction=lambda m: fixed + slope * m),
        "low": find("small", memory_limit=limit, prediction=17),
        "high": find("small", memory_limit=limit, prediction=24),
        "none fits": find("small", memory_limit=limit, prediction=0),
    }
    assert {name: found.max_micro_batch for name, found in tried.items()} == dict.fromkeys(tried, 20)
    assert [trial.micro_batch for trial in tried["exact"].trials] == [20]
    assert [trial.micro_batch for trial in tried["line"].trials] == [20]
    assert len(tried["low"].trials) <= 3
    assert len(tried["high"].trials) <= 4
    assert [found.ooms for found in tried.values()] == [0, 0, 0, 1, 0]
    assert (tried["line"].prediction, tried["line"].predicted_by) == (20, "what was given")


@pytest.mark.usefixtures("inside")
def test_a_prediction_in_bytes_without_a_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gradaccum.torch.probe.meter.available", lambda: (2**20, "a test"))
    found = find("small", prediction=lambda m: 2**20 * m // 7)
    assert [trial.micro_batch for trial in found.trials][:2] == [2, 7]
    assert (found.prediction, found.capacity_from) == (7, "a test")


@pytest.mark.usefixtures("inside")
def test_the_answer_of_fit_is_a_prediction():
    expected = gradaccum.fit(model="gpt2", gpu="rtx-3060-12gb", target_batch=64)
    found = find("small", prediction=expected, memory_limit="1GiB")
    assert found.trials[0].micro_batch == expected.max_micro_batch == found.prediction


# The pair that is chosen


def test_the_fastest_pair_is_chosen_not_the_largest(monkeypatch: pytest.MonkeyPatch):
    def attempt(self: Apart, m: int, timed: bool = True) -> tuple[Trial, str]:
        """Ten bytes a sample. Least seconds per sample at 8, and an update as long as ten samples."""
        seconds: Any = {"step_seconds": 0.1 * m * max(1, m / 8) + 0.2, "update_seconds": 1.0} if timed else {}
        return Trial(
            micro_batch=m, ok=True, capacity_bytes=10**6, kept_bytes=0, step_bytes=10 * m, update_bytes=0, **seconds
        ), "a test"

    monkeypatch.setattr(Apart, "attempt", attempt)
    ended: list[int] = []
    found = find("small", pick="throughput", on_trial=lambda trial: ended.append(trial.micro_batch))
    assert found.max_micro_batch == 64
    assert found.chosen is not None
    assert (found.micro_batch, found.accum_steps, found.effective_batch) == (8, 8, 64)
    assert found.chosen.samples_per_second == pytest.approx(64 / (8 * (0.8 + 0.2) + 1))
    rates = {pair.micro_batch: pair.samples_per_second for pair in found.pairs}
    assert list(rates) == [64, 32, 16, 8, 4, 2, 1]
    assert {m for m, rate in rates.items() if rate is None} == {1}  # 2 was the first trial, and 4 is slower than 8
    assert ended == [trial.micro_batch for trial in found.trials] == [2, 64, 32, 16, 8, 4]
    largest = find("small")
    assert largest.micro_batch == 64
    assert {pair.samples_per_second for pair in largest.pairs} == {None}


@pytest.mark.parametrize("fails", [{"why": "not done within 9 s"}, {"why": "out of memory", "out_of_memory": True}])
def test_a_pair_that_fails_while_it_is_timed_is_left_out(monkeypatch: pytest.MonkeyPatch, fails: dict[str, Any]):
    def attempt(self: Apart, m: int, timed: bool = True) -> tuple[Trial, str]:
        seconds = {"kept_bytes": 0, "step_bytes": 10 * m, "update_bytes": 0, "step_seconds": 1.0, "update_seconds": 1.0}
        return Trial(micro_batch=m, ok=m != 32, capacity_bytes=10**6, **(fails if m == 32 else seconds)), "a test"

    monkeypatch.setattr(Apart, "attempt", attempt)
    assert [pair.micro_batch for pair in find("small", pick="throughput").pairs] == [64, 16, 8, 4, 2, 1]


@pytest.mark.usefixtures("inside")
def test_the_pair_keeps_the_batch_or_comes_nearest_and_says_so():
    found = find("small", 500, num_gpus=8, max_micro_batch=9)
    assert (found.max_micro_batch, found.micro_batch, found.accum_steps, found.effective_batch) == (9, 9, 7, 504)
    assert found.notes == ("No micro-batch that fits makes 500 on 8 GPUs: 504 is nearest.",)
    assert not found.keeps_target
    few = find("small", 61, max_micro_batch=9)
    assert (few.micro_batch, few.accum_steps, few.keeps_target) == (1, 61, True)
    assert few.notes == ("9 would fit, and none above 1 makes 61. Nearest is 6 x 1 GPUs x 10 = 60.",)
    assert find("small", "60", num_gpus=2, max_micro_batch=9).notes == ()


def test_the_answer_as_data():
    import json

    found = Found(
        target_batch=4, num_gpus=1, capacity_bytes=10, capacity_from="x", device="cpu", max_micro_batch=0, chosen=None,
        pairs=(), trials=(Trial(micro_batch=1, ok=False, out_of_memory=True, why="y"),), prediction=None,
        predicted_by="z", pick="largest",
    )  # fmt: skip
    data = json.loads(json.dumps(found.to_dict()))
    assert data["ooms"] == 1
    assert data["trials"][0]["why"] == "y"
    assert set(data) >= {
        "micro_batch",
        "accum_steps",
        "effective_batch",
        "pairs",
        "prediction",
        "keeps_target",
        "notes",
    }


# What there is


def test_the_room_left_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left, by = available()
    assert left is not None
    assert 0 < left <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert by
    assert _left_in_cgroup(tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("300\n")
    assert _left_in_cgroup(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert _left_in_cgroup(tmp_path) == 700
    (tmp_path / "memory.max").write_text("2000\n")
    assert _left_in_cgroup(tmp_path) == 1995


def test_what_is_there_already_is_no_longer_free(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gradaccum.torch.probe.meter.available", lambda: (1000, "a test"))
    assert HostMeter(None, [torch.ones(10)]).capacity == 1040
    assert HostMeter(500, [torch.ones(10)]).capacity == 500
