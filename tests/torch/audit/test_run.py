"""A command that runs with us inside: its streams, exit codes and signals, and one report from many records.

No torch in the processes: what they would leave is written by hand.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gradaccum.core.audit import NOT_SEEN, RIGHT
from gradaccum.show.audit_words import headline
from gradaccum.torch.audit import run as runner
from gradaccum.torch.audit.records import OptimizerSeen, Pass, RankSeen, Term, UpdateSeen
from gradaccum.torch.audit.run import Ran, Record, environment, exit_code, latest, missing, report_of

ROOT = Path(__file__).parents[3]


def passed(serial, samples=4, weight=1 / 8):
    """A backward pass of 4 samples; two of them make a mean over 8."""
    units = {"elements": 4.0, "counted": 4.0}
    term = Term("NllLoss", "mean", "NllLoss", weight, 1.0, units, [4 * weight, 0.25], arrived=4 * weight)
    before = [1.0] * 16 if serial % 2 else None
    return Pass("train.py:1", [term], [samples], [], serial, before, [1.0] * 16, [1.0 + serial % 2] * 16)


def seen(rank=0, world=1, updates=3, weight=1 / 8):
    """What a rank saw that made updates of two passes each."""
    made = [
        UpdateSeen(
            0, number, 2, True, [passed(2 * number + index, weight=weight) for index in range(2)], received=[2.0] * 16
        )
        for number in range(updates)
    ]
    return RankSeen(rank=rank, world=world, optimizers=[OptimizerSeen("SGD", False)], updates=made)


def record(rank=0, world=1, began=1.0, stopped=True, enough=True, **more):
    return Record(seen(rank, world, **more), began, enough, stopped, cut=False, ended=True)


def command(code):
    return [sys.executable, "-c", code]


def leaves(*records):
    """Code of a process that leaves these records."""
    data = [vars(each) | {"seen": each.seen.to_dict()} for each in records]
    return (
        "import os, json\nfolder = os.environ['GRADACCUM_AUDIT']\n"
        f"for number, each in enumerate(json.loads({json.dumps(json.dumps(data))})):\n"
        "    json.dump(each, open(f'{folder}/{number}.json', 'w'))\n"
    )


# One report for all


def test_each_rank_s_last_record_counts():
    first, again, other = record(0, 2, began=1.0), record(0, 2, began=5.0), record(1, 2, began=1.0)
    assert latest([again, first, other]) == [again, other]
    assert missing([again, other]) == []
    assert missing([other]) == [0]


def test_of_runs_of_one_process_the_longest_counts_and_the_others_are_named():
    short, long = record(updates=1), record(updates=3)
    assert latest([short, long]) == [long]
    report = report_of(Ran(0, [short, long], []))
    assert report.facts["updates"] == 3
    assert "further runs in processes of their own: 1" in report.not_seen


def test_without_all_ranks_there_is_no_verdict():
    report = report_of(Ran(0, [record(1, 3)], []))
    assert report.verdict == NOT_SEEN
    assert report.findings == ()
    assert any(each.startswith("rank 0, 2: not reached") for each in report.not_seen)


def test_a_run_that_was_stopped_ended_well_whatever_came_after():
    report = report_of(Ran(7, [record()], []))
    assert report.script_exit == 0
    assert "what the command did after it was stopped: it ended with 7" in report.not_seen
    assert report.verdict == RIGHT
    assert exit_code(report) == 0


def test_a_run_that_could_not_be_stopped_says_so():
    report = report_of(Ran(0, [record(stopped=False)], []))
    assert any("could be stopped" in each for each in report.not_seen)


def test_exit_codes():
    assert exit_code(report_of(Ran(3, [record(stopped=False)], []))) == 3
    assert exit_code(report_of(Ran(0, [record(weight=1 / 4)], []))) == 1  # not divided
    assert exit_code(report_of(Ran(3, [record(weight=1 / 4, stopped=False)], []))) == 3
    assert exit_code(report_of(Ran(0, [], []))) == 0


def test_of_a_script_that_fails_early_the_headline_says_so():
    report = report_of(Ran(7, [record(stopped=False, enough=False, updates=1)], []), 3)
    assert headline(report) == (
        "right: in 1 audited update, what one big batch would do; "
        "but the script ended by itself with exit code 7 after 1 of 3 updates"
    )
    report = report_of(Ran(130, [record(stopped=False, enough=False, updates=2, weight=1 / 4)], []), 3)
    assert headline(report).endswith("(GA101); but it was interrupted after 2 of 3 updates")
    assert headline(report_of(Ran(1, [record(stopped=False)], []), 3)).endswith("exit code 1 after 3 updates")
    nothing = report_of(Ran(1, [], []), 3)
    assert headline(nothing).startswith("not seen: ")
    assert headline(nothing).endswith("with exit code 1 after 0 of 3 updates")
    assert set(nothing.facts.values()) == {None}


def test_what_was_never_reached_is_named():
    report = report_of(Ran(0, [], ["the command: it started no Python that could be reached"]))
    assert report.verdict == NOT_SEEN
    assert report.not_seen[:2] == (
        "the command: it started no Python that could be reached",
        "no optimizer step was seen",
    )


# The command itself


def test_the_environment_lets_us_in_and_keeps_what_is_there(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "a:b")
    assert environment("f")["PYTHONPATH"] == f"{runner.ENTER}:a:b"
    monkeypatch.setenv("PYTHONPATH", "")
    assert environment("f")["PYTHONPATH"] == runner.ENTER


def test_records_are_gathered_and_the_folder_is_gone_after():
    code = leaves(record(0, 2), record(1, 2)) + "print(folder, file=open('/dev/stderr', 'w'))"
    ran = runner.run(command(code), {"updates": 3})
    assert [each.seen.rank for each in ran.records] == [0, 1]
    assert ran.records[0] == record(0, 2)
    assert ran.code == 0


@pytest.mark.parametrize(
    ("code", "expected"),
    [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137), ("1 / 0", 1)],
)
def test_the_exit_code_is_its_own(code, expected):
    assert runner.run(command(code), {"updates": 3}).code == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["true"], "the command: it started no Python that could be reached"),
        (command("pass"), "a training: torch was imported in none of its Python processes (1)"),
        (["env", sys.executable, "-I", "-c", "pass"], f"{sys.executable} -I: a Python that is started so cannot be"),
    ],
)
def test_a_command_that_trains_nothing(words, said):
    ran = runner.run(words, {"updates": 3})
    assert any(each.startswith(said) for each in ran.not_seen)
    assert ran.records == []


def test_a_process_that_could_not_be_watched_is_named():
    code = "import os\nopen(os.environ['GRADACCUM_AUDIT'] + '/77.failed', 'w').write('ImportError: no')"
    assert runner.run(command(code), {"updates": 3}).not_seen == [
        "process 77, which the watcher could not enter: ImportError: no"
    ]


def test_from_another_thread_signals_are_left_alone():
    found = []
    thread = threading.Thread(target=lambda: found.append(runner.run(command("pass"), {"updates": 3}).code))
    thread.start()
    thread.join()
    assert found == [0]


def audited(*arguments, code, **more):
    """`gradaccum audit` in a process of its own, which is a group of its own."""
    words = [sys.executable, "-m", "gradaccum", "audit", *arguments, "--", *command(code)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **more
    )


def test_with_json_the_script_s_output_is_moved_and_standard_input_is_its_own(tmp_path):
    code = leaves(record(weight=1 / 4)) + "print('the script says', input())"
    page, text = tmp_path / "audit.html", tmp_path / "audit.txt"
    process = audited("--json", "-o", str(page), "--repro", str(tmp_path / "r"), code=code, stdin=subprocess.PIPE)
    out, err = process.communicate("hello\n", timeout=60)
    assert process.returncode == 1
    assert json.loads(out)["verdict"] == "fault"
    assert "the script says hello" in err
    assert "GA101" in page.read_text()
    assert [each.name for each in (tmp_path / "r").iterdir()] == ["ga101_torch.py"]
    process = audited("-o", str(text), code=leaves(record()) + "print('mine')")
    out, err = process.communicate(timeout=60)
    assert out == "mine\n"
    assert "right: in 3 audited updates" in err
    assert "right: in 3 audited updates" in text.read_text()
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_the_report_comes_after(number):
    code = leaves(record(stopped=False, enough=False, updates=2)) + "print('ready', flush=True)\ninput()"
    process = audited(code=code, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert ("KeyboardInterrupt" in err) == (number == signal.SIGINT)
    assert "right: in 2 audited updates" in err
    assert process.returncode == 128 + number


def test_after_ctrl_c_a_launcher_s_own_code_is_none():
    """torchrun makes 1 of it; a command that ends well in spite of it has its own 0."""
    code = (
        "import signal, sys, time\n"
        "def end(*_): sys.exit(int(sys.stdin.readline()))\n"
        "signal.signal(signal.SIGINT, end)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    for own, expected in ((1, 130), (0, 0)):
        process = audited(code=code, stdin=subprocess.PIPE)
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(f"{own}\n", timeout=60)
        assert process.returncode == expected
        assert ("interrupted after 0 of 3 updates" in err) == (own == 1)
        assert "1 rank" not in err


# An epoch that is cut


def test_the_second_run_has_short_epochs_of_full_groups_and_a_rest(tmp_path):
    kept = tmp_path / "wanted"
    code = (
        leaves(Record(seen(updates=3), 1.0, True, True, True, True))
        + f"open({str(kept)!r}, 'a').write(open(folder + '/wanted.json').read() + chr(10))"
    )
    report = runner.audit(command(code), updates=3, target_batch=8, epoch_end=True)
    first, second = map(json.loads, kept.read_text().splitlines())
    assert first == {"updates": 3, "target_batch": 8}
    assert second == {"updates": 3, "target_batch": 8, "batches": 5}
    assert report.facts["epoch_cut"] == {"groups": 2, "micro_batches": 2, "last_group": 1}


def test_an_epoch_that_nothing_cut_is_not_said_to_be_cut():
    report = runner.audit(command(leaves(record())), epoch_end=True)
    assert "epoch_cut" not in report.facts
    assert any(each.startswith("the end of an epoch") for each in report.not_seen)


def test_an_epoch_that_is_short_as_it_is_needs_no_cut():
    report = runner.audit(command(leaves(Record(seen(), 1.0, True, True, False, True, whole=True))), epoch_end=True)
    assert "epoch_cut" not in report.facts
    assert report.facts["epoch_end"] == "as it is: no DataLoader gave more than 5 batches, so that none was cut"
    assert report.not_seen == ()


def test_groups_of_one_have_no_short_one():
    alone = seen()
    for update in alone.updates:
        update.micro_batches = 1
    report = runner.audit(command(leaves(Record(alone, 1.0, True, True, False, True))), epoch_end=True)
    assert any(each.startswith("a short last group") for each in report.not_seen)


def test_a_run_that_fails_is_not_run_again(tmp_path):
    kept = tmp_path / "runs"
    code = leaves(record(stopped=False)) + f"open({str(kept)!r}, 'a').write('x')\nraise SystemExit(4)"
    report = runner.audit(command(code), epoch_end=True)
    assert report.script_exit == 4
    assert kept.read_text() == "x"
