"""Inside a watched process: when it ends the run, what it waits for, and what it writes down."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from gradaccum.torch.audit import session as sessions
from gradaccum.torch.audit.session import Session, Stop, Wanted


class Ended(Exception):
    """In place of the process' end."""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Starts sessions whose process ends by an exception, and puts everything back."""
    made = []
    process, really_leave = os.getpid(), os._exit

    def leave(code):
        if os.getpid() != process:
            really_leave(code)
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(Session, "_end_late", lambda self: None)

    def start(**wanted):
        session = Session(tmp_path, Wanted(**{"updates": 2, "patience": 0.2, **wanted}))
        session.start()
        made.append(session)
        return session

    yield start
    for each in made:
        each._ends.undo()
        each.watcher.stop()
        each.cut.undo()


def loop(turns, steps=2, data=None):
    """Two micro-batches an update; the batches come from a loader where `data` is one."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    done = []
    for turn, x in enumerate(torch.randn(turns, 4, 3) if data is None else data):
        (model(x).square().mean() / steps).backward()
        if turn % steps == steps - 1:
            optimizer.step()
            optimizer.zero_grad()
        done.append(turn)
    return done


def records(folder):
    return [json.loads(path.read_text()) for path in Path(folder).glob("*.json") if path.stem.isdigit()]


def test_it_stops_before_the_next_backward_pass(started, tmp_path):
    session = started()
    with pytest.raises(Stop) as caught:
        loop(100)
    assert caught.value.code == 0
    assert isinstance(caught.value, SystemExit)
    (record,) = records(tmp_path)
    assert record["stopped"]
    assert [update["micro_batches"] for update in record["seen"]["updates"]] == [2, 2]
    assert record["seen"]["leftover"] == 0
    assert session.stopped


def test_it_stops_before_the_next_batch_is_taken_and_again_where_that_is_caught(started):
    taken = []

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 100

        def __getitem__(self, index):
            taken.append(index)
            return torch.ones(3)

    started()
    loader = DataLoader(Data(), batch_size=4)
    with pytest.raises(Stop):
        loop(100, data=loader)
    assert len(taken) == 4 * 4
    with pytest.raises(Stop):
        next(iter(loader))
    with pytest.raises(Stop):
        torch.ones((), requires_grad=True).backward()


def test_another_thread_is_not_stopped(started):
    started()
    with pytest.raises(Stop):
        loop(100)
    found = []
    thread = threading.Thread(target=lambda: found.extend(DataLoader(range(3))))
    thread.start()
    thread.join()
    assert len(found) == 3


def test_a_shorter_run_is_not_stopped_and_leaves_its_record_at_the_end(started, tmp_path):
    session = started(updates=9)
    assert loop(7) == list(range(7))
    session.end()
    (record,) = records(tmp_path)
    assert (record["enough"], record["stopped"], record["ended"]) == (False, False, True)
    assert len(record["seen"]["updates"]) == 3
    assert record["seen"]["leftover"] == 1


def test_a_process_without_a_step_leaves_nothing(started, tmp_path):
    session = started()
    torch.nn.Linear(3, 2)(torch.ones(1, 3)).sum().backward()
    session.end()
    assert list(tmp_path.iterdir()) == []


def test_every_optimizer_that_steps_has_its_updates(started):
    session = started()
    pair = [torch.nn.Linear(3, 2) for _ in range(2)]
    first, second = (torch.optim.SGD(each.parameters(), lr=0.1) for each in pair)

    def alternate():
        for turn in range(100):
            pair[0](torch.ones(1, 3)).mean().backward()
            first.step()
            if turn % 3 == 0:
                pair[1](torch.ones(1, 3)).mean().backward()
                second.step()

    with pytest.raises(Stop):
        alternate()
    assert sorted(session._counts.values()) == [2, 4]


def test_updates_that_a_scaler_skipped_do_not_count(started, tmp_path):
    started()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10**6)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def scaled():
        for turn in range(100):
            x = torch.full((1, 3), float("inf") if turn < 2 else 1.0)
            scaler.scale(model(x).mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    with pytest.raises(Stop):
        scaled()
    (record,) = records(tmp_path)
    assert [update["skipped"] for update in record["seen"]["updates"]] == [True, True, False, False]


# Ranks


def test_it_waits_for_all_ranks_of_the_machine(started, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    (tmp_path / "3.enough").touch()
    started()
    with pytest.raises(Stop):
        loop(100)
    (record,) = records(tmp_path)
    assert (record["seen"]["rank"], record["seen"]["world"]) == (2, 4)
    assert (tmp_path / "2.stopped").exists()


def test_it_lets_the_run_go_on_where_a_rank_is_not_there(started, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    session = started()
    assert len(loop(20)) == 20
    session.end()
    (record,) = records(tmp_path)
    assert (record["enough"], record["stopped"]) == (True, False)
    audited = [update["audited"] for update in record["seen"]["updates"]]
    assert audited[:2] == [True, True]
    assert not any(audited[3:])


# The end


def test_a_stopped_process_ends_with_0_after_everything_else(started):
    session = started()
    with pytest.raises(Stop):
        loop(100)
    with pytest.raises(Ended) as caught:
        session.end()
    assert caught.value.args == (0,)


def test_what_is_raised_because_of_the_stop_is_not_shown(started, capsys):
    session = started()
    try:
        loop(100)
    except BaseException as stop:
        try:
            raise RuntimeError("training failed") from stop
        except RuntimeError as error:
            sys.excepthook(RuntimeError, error, None)
    assert capsys.readouterr().err == ""
    assert session.stopped


def test_an_error_of_its_own_is_shown(started, capsys):
    session = started()
    session._end_soon()
    sys.excepthook(ValueError, ValueError("its own"), None)
    assert "its own" in capsys.readouterr().err
    assert not session.stopped


def test_an_error_after_another_rank_has_left_is_none(started, tmp_path, capsys):
    session = started()
    session._end_soon()
    (tmp_path / "1.stopped").touch()
    sys.excepthook(RuntimeError, RuntimeError("Connection closed by peer"), None)
    assert capsys.readouterr().err == ""
    assert session.stopped


def test_a_process_that_hangs_is_ended(tmp_path, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    session = Session(tmp_path, Wanted(updates=2, patience=0.2, grace=0.1))
    session.start()
    loop(4)  # enough was seen, and nothing else is ever called
    assert ended.wait(20)
    session._ends.undo()
    session.watcher.stop()
    assert records(tmp_path)[0]["stopped"]


# Forks


def _forked(session, turns):
    session.forked()  # as os.register_at_fork has it called
    loop(turns)


def test_a_fork_leaves_a_record_of_its_own(tmp_path):
    session = Session(tmp_path, Wanted(updates=5))
    session.start()
    before = os.getpid()
    loop(4)
    session._write()
    multiprocessing.util.register_after_fork(session, Session.write_at_end_of_child)
    fork = multiprocessing.get_context("fork")
    quiet, train = (fork.Process(target=_forked, args=(session, turns)) for turns in (0, 4))
    for child in (quiet, train):
        child.start()
        child.join()
        assert child.exitcode == 0
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    session.watcher.stop()
    assert set(found) == {str(before), str(train.pid)}
    assert len(found[str(train.pid)]["seen"]["updates"]) == 2
    assert found[str(train.pid)]["ended"]


# Epochs that are cut


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cut_loader_gives_fewer_batches_and_says_so(started, workers):
    session = started(updates=99, batches=5)
    loader = DataLoader(
        range(100), batch_size=4, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    for _ in range(2):
        assert len(list(loader)) == 5
    assert len(loader) == 5
    assert len(iter(loader)) == 5
    assert session._was_cut
    assert len(list(DataLoader(range(3)))) == 3


def test_a_loader_that_is_shorter_was_not_cut(started):
    session = started(batches=5)
    assert len(list(DataLoader(range(5)))) == 5
    assert not session._was_cut
    assert session._ends_by_itself


def test_what_begins_is_asked_for_in_the_folder(tmp_path, monkeypatch):
    (tmp_path / "wanted.json").write_text('{"updates": 7, "target_batch": 64}')
    monkeypatch.setattr(sessions, "sessions", [])
    monkeypatch.setattr(os, "register_at_fork", lambda **given: None)
    session = sessions.begin(str(tmp_path))
    assert session.wanted == Wanted(updates=7, target_batch=64)
    assert sessions.sessions == [session]
    loop(2)
    sessions.end()
    session.watcher.stop()
    assert records(tmp_path)[0]["seen"]["target_batch"] == 64
