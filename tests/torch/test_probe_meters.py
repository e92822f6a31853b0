"""The GPU's meter against a stand-in of its allocator's counters, and what ranks say to each other."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import distributed, nn

from gradaccum.errors import InputError
from gradaccum.torch import find_micro_batch
from gradaccum.torch.build import as_job
from gradaccum.torch.probe import ProbeError, Trial
from gradaccum.torch.probe.find import _device
from gradaccum.torch.probe.meter import CudaMeter, meter_of
from gradaccum.torch.probe.ranks import UNKNOWN, Ranks, _fields, _numbers, ranks
from gradaccum.torch.probe.trial import run_trial

GIB = 2**30


class Card:
    """What torch.cuda tells of an 80 GiB card; `allocated` and `reserved` are the peaks since the last reset."""

    def __init__(self) -> None:
        self.allocated, self.reserved, self.retries, self.fraction = 0, 0, 0, 0.5
        self.calls: list[str] = []

    def into(self, monkeypatch: pytest.MonkeyPatch) -> Card:
        def reset(device: Any) -> None:
            self.reserved = 0

        stand_in = {
            "is_available": lambda: True,
            "set_device": lambda device: None,
            "mem_get_info": lambda device: (70 * GIB, 80 * GIB),
            "memory_reserved": lambda device: 2 * GIB,
            "get_per_process_memory_fraction": lambda device: self.fraction,
            "set_per_process_memory_fraction": lambda share, device: setattr(self, "fraction", share),
            "reset_peak_memory_stats": reset,
            "max_memory_allocated": lambda device: self.allocated,
            "max_memory_reserved": lambda device: self.reserved,
            "memory_stats": lambda device: {"num_alloc_retries": self.retries},
            "synchronize": lambda device: self.calls.append("synchronize"),
            "empty_cache": lambda: self.calls.append("empty_cache"),
        }
        for name, function in stand_in.items():
            monkeypatch.setattr(torch.cuda, name, function)
        return self


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card().into(monkeypatch)


def test_the_gpu_is_limited_and_set_free_again(card: Card):
    meter = meter_of("cuda:1", 20 * GIB)
    assert isinstance(meter, CudaMeter)
    assert (str(meter.device), meter.capacity, meter.limited_by) == ("cuda:1", 20 * GIB, "memory_limit")
    with meter:
        assert card.fraction == 0.25
    assert card.fraction == 0.5
    free = meter_of("cuda", None)
    assert (free.capacity, free.limited_by) == (72 * GIB, "free on cuda:0")
    with free:
        assert card.fraction == 0.5
    assert meter_of("cuda", 75 * GIB).capacity == 72 * GIB


def trial_on(card: Card, retries: int = 0, fails: bool = False) -> Trial:
    module = nn.Linear(2, 2)
    peaks = itertools.chain([(6, 9), (7, 8), (5, 7), (8, 8)], itertools.repeat((99, 99)))

    def phase() -> None:
        card.allocated, card.reserved = next(peaks)

    def step() -> None:
        phase()
        card.retries += retries
        if fails:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        module(torch.ones(1, 2)).sum().backward()

    return run_trial(
        lambda: as_job((module, torch.optim.SGD(module.parameters()), step)), meter_of("cuda", 10 * GIB), 4
    )


def test_a_trial_on_the_gpu(card: Card, monkeypatch: pytest.MonkeyPatch):
    updates: list[None] = []
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: updates.append(None))
    trial = trial_on(card)
    assert trial.ok
    assert (trial.step_bytes, trial.reserved_bytes, trial.capacity_bytes) == (8, 9, 10 * GIB)
    assert trial.step_seconds is not None
    assert len(updates) >= 3  # two watched ones, of which the second counts, and more until there is enough to time
    assert card.calls[-1] == "empty_cache"


def test_a_trial_that_fits_by_flushing_does_not_fit(card: Card):
    trial = trial_on(card, retries=1)
    assert (trial.ok, trial.out_of_memory, trial.step_seconds) == (False, False, None)
    assert trial.why == "it fits only by giving back cached memory, 4 times in 2 updates, which is slow"


def test_a_trial_that_runs_out_sets_the_gpu_free(card: Card):
    trial = trial_on(card, fails=True)
    assert trial.out_of_memory
    assert trial.why == "out of memory in forward: OutOfMemoryError: CUDA out of memory."
    assert card.fraction == 0.5
    assert card.calls[-1] == "empty_cache"


def test_where_trials_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _device(None) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _device(None) == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert _device(None) == "cuda:3"
    assert _device(nn.Linear(1, 1)) == "cpu"
    assert _device(nn.Identity()) == "cpu"


@pytest.mark.gpu
def test_the_limit_of_a_real_gpu():
    model = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def step(micro_batch: int) -> None:
        model(torch.randn(micro_batch, 256, 1024, device="cuda")).square().mean().backward()

    found = find_micro_batch(model=model, optimizer=optimizer, step=step, target_batch=256, memory_limit="1GiB")
    assert 1 <= found.max_micro_batch < 256
    assert found.ooms <= 1
    for trial in found.trials:
        assert not trial.ok or (trial.reserved_bytes or 0) <= GIB
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Ranks


@pytest.fixture
def alone(tmp_path: Any):
    """A process group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


GOOD = Trial(
    micro_batch=4, ok=True, capacity_bytes=100, kept_bytes=10, step_bytes=50, update_bytes=40, step_seconds=0.5,
    update_seconds=0.25,
)  # fmt: skip
FULL = Trial(micro_batch=4, ok=False, capacity_bytes=100, out_of_memory=True, why="full")
LATE = Trial(micro_batch=4, ok=False, why="late")


def two(monkeypatch: pytest.MonkeyPatch, other: list[int]) -> Ranks:
    """This rank, and another that says the same numbers every time."""
    found = Ranks()
    found.group = "two"
    monkeypatch.setattr(Ranks, "least", lambda self, values, m: list(map(min, values, [*other, *[UNKNOWN] * 9])))
    return found


def fails(micro_batch: int) -> tuple[Trial, str]:
    raise ZeroDivisionError


def test_a_group_of_one_says_what_the_trial_said(alone: None):
    with ranks(30) as found:
        assert (found.world, found.rank) == (1, 0)
        for trial in (GOOD, FULL, LATE):
            agreed, by = found.attempt(lambda m: (trial, "x"), 4)  # noqa: B023
            assert (agreed.ok, agreed.out_of_memory, agreed.why, by) == (trial.ok, trial.out_of_memory, trial.why, "x")
        assert found.attempt(lambda m: (GOOD, ""), 4)[0] == GOOD
        with pytest.raises(ZeroDivisionError):
            found.attempt(fails, 4)
        found.same(a=1, b=2)
    assert distributed.is_initialized()


def test_the_worst_of_the_ranks_counts(monkeypatch: pytest.MonkeyPatch):
    worse = Trial(
        micro_batch=4, ok=True, capacity_bytes=90, kept_bytes=10, step_bytes=60, update_bytes=30, step_seconds=0.25,
        update_seconds=0.5,
    )  # fmt: skip
    agreed, _ = two(monkeypatch, [3 * 2**32 + 1, *_numbers(worse)]).attempt(lambda m: (GOOD, ""), 4)
    assert (agreed.capacity_bytes, agreed.step_bytes, agreed.update_bytes) == (90, 60, 40)
    assert (agreed.step_seconds, agreed.update_seconds) == (0.5, 0.5)
    agreed, _ = two(monkeypatch, [2 * 2**32 + 1, *_numbers(FULL)]).attempt(lambda m: (GOOD, ""), 4)
    assert (agreed.ok, agreed.out_of_memory, agreed.why) == (False, True, "it does not fit on rank 1")
    agreed, _ = two(monkeypatch, [2**32 + 1, *_numbers(LATE)]).attempt(lambda m: (FULL, ""), 4)
    assert (agreed.ok, agreed.out_of_memory, agreed.why) == (False, False, "full")


def test_a_rank_that_fails_tells_the_others(monkeypatch: pytest.MonkeyPatch):
    for own in (GOOD, FULL):
        with pytest.raises(ProbeError, match="micro-batch 4: rank 1 failed; its own message says why"):
            two(monkeypatch, [1]).attempt(lambda m: (own, ""), 4)  # noqa: B023


def test_ranks_that_were_asked_for_different_things(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="target_batch: is not the same on all ranks: 64 here, from 32 to 64"):
        two(monkeypatch, [32, 1, -32, -1]).same(target_batch=64, num_gpus=1)


def test_a_rank_that_goes_away(alone: None, monkeypatch: pytest.MonkeyPatch):
    def gone(*_: Any, **__: Any) -> None:
        raise RuntimeError("Connection closed by peer\nmore")

    with ranks(30) as found:
        monkeypatch.setattr(distributed, "all_reduce", gone)
        with pytest.raises(ProbeError, match=r"micro-batch 7: another rank went away: Connection closed by peer$"):
            found.least([1], 7)


def test_numbers_come_back_as_they_were():
    for trial in (GOOD, FULL, LATE):
        found = _fields(_numbers(trial))
        assert found == {name: getattr(trial, name) for name in found}
