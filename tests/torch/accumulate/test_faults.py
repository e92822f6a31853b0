"""What goes wrong in a loop: no update is lost or doubled, no rank is left alone, and the error says what to do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gradaccum.torch.accumulate import AccumulationError, Accumulator
from tests.torch.accumulate.lost_rank import TIMEOUT
from tests.torch.accumulate.memory import Limited, NoMemory
from tests.torch.accumulate.training import Run

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
STEPS, GROUPS = 3, 3
DATA = torch.randn(STEPS * GROUPS, 2, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def made(optimizer=torch.optim.SGD, **options):
    torch.manual_seed(1)
    model = nn.Linear(4, 1).double()
    return model, Accumulator(model, optimizer(model.parameters(), lr=0.1), accum_steps=STEPS, **options)


def truth(groups):
    """By hand, one concatenated batch for each of the groups."""
    model, _ = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for group in groups:
        optimizer.zero_grad()
        (model(torch.cat(list(group))) ** 2).mean().backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def is_right(model, groups):
    ours = nn.utils.parameters_to_vector(model.parameters()).detach()
    return torch.allclose(ours, truth(groups), rtol=1e-9, atol=0)


class Faulty:
    """A loop that fails once, at one micro-batch, in one place."""

    def __init__(self, model, where, at):
        self.model, self.where, self.at = model, where, at
        self.failed = False

    def now(self, where, number):
        found = where == self.where and number == self.at and not self.failed
        self.failed = self.failed or found
        return found

    def loader(self, numbers):
        for number in numbers:
            if self.now("loader", number):
                raise OSError("the file is gone")
            yield number

    def loss_of(self, number):
        """Of the micro-batch of this number, and its weight."""
        for where, error in (
            ("forward", torch.OutOfMemoryError),
            ("body", ValueError),
            ("interrupt", KeyboardInterrupt),
        ):
            if self.now(where, number):
                raise error("in the body")
        output = self.model(DATA[number])
        if self.now("backward", number):
            output = Limited("backward", 0)(output)
        return (output**2).sum(), len(output)

    def train(self, accumulator, numbers):
        for group in accumulator.groups(self.loader(numbers)):
            for number in group:
                loss_sum, weight = self.loss_of(number)
                group.backward(loss_sum, weight)
            group.step()


FAULTS = ("loader", "forward", "body", "interrupt", "backward")
ERRORS = (OSError, torch.OutOfMemoryError, ValueError, KeyboardInterrupt)


@pytest.mark.parametrize("at", range(STEPS * GROUPS))
@pytest.mark.parametrize("where", FAULTS)
def test_a_group_that_fails_is_thrown_away_and_repeated_from_its_boundary(where, at):
    model, accumulator = made()
    faulty = Faulty(model, where, at)
    with pytest.raises(ERRORS):
        faulty.train(accumulator, range(STEPS * GROUPS))
    done = accumulator.progress.updates
    assert done == at // STEPS
    assert is_right(model, DATA.split(STEPS)[:done])
    begun = where != "loader" or at % STEPS > 0  # else it failed between two groups
    if begun:
        with pytest.raises(AccumulationError, match=r"accumulator\.discard\(\)"):
            faulty.train(accumulator, range(done * STEPS, STEPS * GROUPS))
    accumulator.discard()
    faulty.train(accumulator, range(done * STEPS, STEPS * GROUPS))
    assert accumulator.progress.updates == GROUPS
    assert is_right(model, DATA.split(STEPS))


@pytest.mark.parametrize("at", [0, 1, 5, 8])
@pytest.mark.parametrize("where", [each for each in FAULTS if each not in ("forward", "backward")])
def test_a_run_that_fails_goes_on_from_its_boundary(where, at):
    """Without discard(); memory that runs out it repeats by itself."""
    model, accumulator = made()
    faulty = Faulty(model, where, at)
    with pytest.raises(ERRORS):
        list(accumulator.run(faulty.loader(range(STEPS * GROUPS)), faulty.loss_of))
    done = accumulator.progress.updates
    assert (done, accumulator.open_micro_batches) == (at // STEPS, 0)
    list(accumulator.run(faulty.loader(range(done * STEPS, STEPS * GROUPS)), faulty.loss_of))
    assert is_right(model, DATA.split(STEPS))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_ran_out_of_memory_may_be_skipped_only_where_it_left_no_gradient(where):
    model, accumulator = made()
    faulty = Faulty(model, where, 1)
    group = next(accumulator.groups(range(STEPS)))
    for number in group:
        try:
            group.backward(*faulty.loss_of(number))
        except torch.OutOfMemoryError:
            if where == "backward":
                for answer in (group.skip, group.step):
                    with pytest.raises(AccumulationError, match="a part of its gradient"):
                        answer()
                return
            group.skip()
    assert group.step().skipped == 1
    assert is_right(model, [DATA[[0, 2]]])


def test_memory_that_runs_out_in_the_step():
    model, accumulator = made(NoMemory)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        Faulty(model, "nowhere", 0).train(accumulator, range(3))
    assert "from the last checkpoint" in caught.value.__notes__[0]
    assert accumulator.progress.updates == 0


# Leaving and going on


@pytest.mark.parametrize("at", range(STEPS))
def test_a_break_before_the_answer_is_an_error_and_after_it_the_end_of_the_group(at):
    model, accumulator = made()
    for answered in (False, True):
        group = next(accumulator.groups(DATA))
        for number, x in enumerate(group):
            if number == at and not answered:
                break
            group.backward((model(x) ** 2).sum(), 2)
            if number == at:
                break
        if answered:
            assert group.step().micro_batches == at + 1
        else:
            with pytest.raises(AccumulationError, match="has no answer yet"):
                group.step()
            accumulator.discard()
    assert is_right(model, [DATA[: at + 1]])


@pytest.mark.parametrize("at", range(STEPS))
def test_a_continue_before_the_answer_is_an_error(at):
    model, accumulator = made()
    group = next(accumulator.groups(DATA))

    def go():
        for number, x in enumerate(group):
            if number == at:
                continue
            group.backward((model(x) ** 2).sum(), 2)
        group.step()

    with pytest.raises(AccumulationError, match="no answer"):
        go()
    accumulator.discard()
    assert is_right(model, [])


@pytest.mark.parametrize("leave", ["continue", "break"])
def test_a_group_that_is_left_before_its_step_is_not_forgotten(leave):
    model, accumulator = made()

    def go():
        for group in accumulator.groups(DATA):
            for x in group:
                group.backward((model(x) ** 2).sum(), 2)
            if accumulator.progress.updates == 1:
                if leave == "continue":
                    continue
                break
            group.step()
        next(accumulator.groups(DATA))

    with pytest.raises(AccumulationError, match=r"left after 3 micro-batches without step"):
        go()
    accumulator.discard()
    assert is_right(model, DATA.split(STEPS)[:1])


def test_a_break_after_a_step_loses_nothing():
    model, accumulator = made()
    batches = iter(DATA)
    for _ in range(GROUPS):
        for group in accumulator.groups(batches):
            for x in group:
                group.backward((model(x) ** 2).sum(), 2)
            group.step()
            break
    assert is_right(model, DATA.split(STEPS))


# Disks and machines


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_save_to_a_full_disk_changes_nothing():
    whole = Run(2, 3)
    whole.train(4)
    run = Run(2, 3)
    failed = []

    def save(seen):
        with pytest.raises((OSError, RuntimeError)):
            torch.save(run.accumulator.state_dict(), "/dev/full")
        failed.append(seen)

    run.train(4, after_each=save)
    assert len(failed) > 8
    assert torch.equal(run.parameters(), whole.parameters())


def mortal(folder, *arguments):
    command = [sys.executable, str(HERE / "mortal.py"), str(folder), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 and file-size limits are those of POSIX")
def test_a_run_that_is_killed_inside_a_group_goes_on_with_the_same_bits(tmp_path):
    """Saved after each micro-batch, of which three make a group: killed after the 8th, and once more after it went on
    for 5, of which the last two found the disk full.
    """
    for arguments, failed in (((8,), 0), ((5, 4), 2)):
        done = mortal(tmp_path, *arguments)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert int(done.stdout) == failed
    done = mortal(tmp_path)
    assert done.returncode == 0, done.stderr
    whole = Run(2, 3)
    whole.train(6)
    assert torch.equal(torch.load(tmp_path / "parameters.pt"), whole.parameters())


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
@pytest.mark.parametrize(("how", "reduce"), [("killed", "last"), ("stopped", "after")])
def test_a_rank_that_goes_away_inside_a_group_leaves_no_other_waiting(how, reduce):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE.parents[2] / "src"),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "lost_rank.py"), str(rank), str(port), how, reduce],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said, error = ranks[0].communicate(timeout=200)
    finally:
        ranks[1].send_signal(signal.SIGKILL)
        ranks[1].communicate()
        ranks[0].kill()
    assert ranks[0].returncode == 1
    assert said.count("step") == 1, said + error  # the update before, and none of that group
    assert "start all of them from the last checkpoint" in error
    waited = float(said.split()[-2])
    assert waited < TIMEOUT + 10, said


def test_the_error_of_a_collective_says_what_to_do(two_ranks, monkeypatch):
    model = nn.Linear(4, 1).double()
    optimizer = torch.optim.SGD(model.parameters())
    accumulator = Accumulator(model, optimizer, accum_steps=3, process_group=dist.group.WORLD)

    def lost(values, group):
        raise dist.DistBackendError("NCCL communicator was aborted")

    monkeypatch.setattr(dist, "all_reduce", lost)
    with pytest.raises(dist.DistBackendError) as caught:
        next(accumulator.groups(DATA))
    assert "another rank has gone" in caught.value.__notes__[0]
