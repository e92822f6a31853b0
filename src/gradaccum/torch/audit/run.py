"""Run a command with the watcher inside its Python processes, and report on what all of them saw. Needs no torch here.

The command finds `enter/sitecustomize.py` first on its path, and the audit's folder in its environment; its processes
leave their records there. The command itself, its arguments and its streams are its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradaccum.core.audit import FAULT, NOT_SEEN, AuditReport
from gradaccum.torch.audit.command import shut_out
from gradaccum.torch.audit.judge import judge
from gradaccum.torch.audit.records import RankSeen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ENTER = str(Path(__file__).parent / "enter")

LATE = 5.0
"""Seconds that the last records may take once the command has ended."""


@dataclass(frozen=True)
class Record:
    """What one process left. began: seconds since the epoch. enough: it saw all updates; stopped: it was ended then;
    cut: a loader's epoch was cut in it; whole: one was short enough as it is; ended: the record is its last.
    """

    seen: RankSeen
    began: float
    enough: bool
    stopped: bool
    cut: bool
    ended: bool
    whole: bool = False


@dataclass(frozen=True)
class Ran:
    """One run of the command. code: as a shell has it, 128 and the signal's number where one ended it; also where
    Ctrl-C did, and a launcher says 1.
    """

    code: int
    records: list[Record]
    not_seen: list[str]

    @property
    def stopped(self) -> bool:
        """Whether the run was ended once enough was seen."""
        return any(each.stopped for each in self.records)


def audit(
    command: Sequence[str],
    *,
    updates: int = 3,
    target_batch: int | None = None,
    epoch_end: bool = False,
    stdout: Any = None,
    **waits: float,
) -> AuditReport:
    """Run it until `updates` updates were seen, and judge them.

    target_batch: the samples that an update is meant to see. epoch_end: run it twice, the second time with epochs cut
    to full groups and a short one. stdout: where the command's own goes, as subprocess takes it. waits: see Wanted.
    """
    wanted = {"updates": updates, "target_batch": target_batch, **waits}
    ran = run(command, wanted, stdout)
    if not epoch_end or not ran.records or (ran.code and not ran.stopped):
        return report_of(ran, updates)
    steps = max(update.micro_batches for record in ran.records for update in record.seen.updates)
    if steps < 2:
        one = "a short last group: an update is one micro-batch"
        return report_of(replace(ran, not_seen=[*ran.not_seen, one]), updates)
    groups, rest = updates - 1, (steps + 1) // 2
    batches = groups * steps + rest
    ran = run(command, {**wanted, "batches": batches}, stdout)
    if any(each.cut for each in ran.records):
        about: dict[str, object] = {"epoch_cut": {"groups": groups, "micro_batches": steps, "last_group": rest}}
    elif any(each.whole for each in ran.records):
        about = {"epoch_end": f"as it is: no DataLoader gave more than {batches} batches, so that none was cut"}
    else:
        about = {}
        ran.not_seen.append("the end of an epoch: no DataLoader of PyTorch gave the batches, so that none could be cut")
    report = report_of(ran, updates)
    return replace(report, facts={**report.facts, **about})


def run(command: Sequence[str], wanted: dict[str, Any], stdout: Any = None) -> Ran:
    """Run it to its end with the watcher inside, and gather what its processes left."""
    with tempfile.TemporaryDirectory(prefix="gradaccum-audit-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "wanted.json").write_text(json.dumps(wanted), encoding="utf-8")
        process = subprocess.Popen(command, env=environment(name), stdout=stdout)
        with _signals_are_its_own(process) as interrupts:
            code = process.wait()
            records = _gathered(folder)
        not_seen = _not_reached(command, folder, records)
    if code and interrupts:
        code = -signal.SIGINT  # of which a launcher makes a code of its own
    return Ran(code if code >= 0 else 128 - code, records, not_seen)


def environment(folder: str) -> dict[str, str]:
    """This process' own, and what lets us in."""
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "GRADACCUM_AUDIT": folder, "PYTHONPATH": os.pathsep.join([ENTER, path]) if path else ENTER}


@contextlib.contextmanager
def _signals_are_its_own(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Ctrl-C reaches the command too: it ends as it wants to, and the report comes after. To end us is to end it.

    Gives a list into which each Ctrl-C is put.
    """
    interrupts: list[int] = []

    def wait(number: int, _: object) -> None:
        interrupts.append(number)

    def hand_on(number: int, _: object) -> None:
        process.send_signal(number)

    try:
        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, wait),
            signal.SIGTERM: signal.signal(signal.SIGTERM, hand_on),
        }
    except ValueError:  # signals belong to another thread of ours
        before = {}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# What the processes left


def _gathered(folder: Path) -> list[Record]:
    """The records; a process that is about to end is waited for."""
    last = time.monotonic() + LATE
    while True:
        records = []
        for path in sorted(folder.glob("*.json")):
            if path.stem.isdigit():
                data = json.loads(path.read_text(encoding="utf-8"))
                records.append(Record(**{**data, "seen": RankSeen.from_dict(data["seen"])}))
        whole = bool(records) and not missing(latest(records)) and all(each.ended for each in records)
        if whole or time.monotonic() > last or not _someone_is_left(folder):
            return records
        time.sleep(0.05)


def _someone_is_left(folder: Path) -> bool:
    if os.name != "posix":
        return False
    for path in folder.glob("*.torch"):
        with contextlib.suppress(OSError):
            os.kill(int(path.stem), 0)
            return True
    return False


def latest(records: Sequence[Record]) -> list[Record]:
    """One record for each rank of the largest run among them: the last to begin, where ranks were started anew."""
    if not records:
        return []
    world = max(each.seen.world for each in records)
    if world == 1:  # several: each a run of its own
        return [max(records, key=lambda each: (len(each.seen.updates), each.began))]
    by_rank: dict[int, Record] = {}
    for each in sorted(records, key=lambda each: each.began):
        if each.seen.world == world:
            by_rank[each.seen.rank] = each
    return [by_rank[rank] for rank in sorted(by_rank)]


def missing(ranks: Sequence[Record]) -> list[int]:
    """Ranks that left none."""
    there = {each.seen.rank for each in ranks}
    return [rank for rank in range(ranks[0].seen.world) if rank not in there] if ranks else []


def _not_reached(command: Sequence[str], folder: Path, records: Sequence[Record]) -> list[str]:
    """What nobody could look into, in words."""
    found = []
    entered, torch = list(folder.glob("*.entered")), list(folder.glob("*.torch"))
    for path in sorted(folder.glob("*.failed")):
        found.append(f"process {path.stem}, which the watcher could not enter: {path.read_text(errors='replace')}")
    if shut := shut_out(command):
        found.append(f"{' '.join(shut)}: a Python that is started so cannot be reached")
    if not records and not found:
        if not entered and not torch:
            found.append("the command: it started no Python that could be reached")
        elif not torch:
            found.append(f"a training: torch was imported in none of its Python processes ({len(entered)})")
    return found


def report_of(ran: Ran, wanted: int | None = None) -> AuditReport:
    """One report for all ranks, and what the command made of itself. wanted: updates that were asked for."""
    code = 0 if ran.stopped else ran.code
    ranks = latest(ran.records)
    report = replace(judge([each.seen for each in ranks] or [RankSeen()], code), updates_wanted=wanted)
    if not ranks:
        report = replace(report, facts=dict.fromkeys(report.facts))
    also = list(ran.not_seen)
    if ran.stopped and ran.code:
        also.append(f"what the command did after it was stopped: it ended with {ran.code}")
    others = sum(each.seen.world == 1 for each in ran.records) - 1 if ranks and ranks[0].seen.world == 1 else 0
    if others > 0:
        also.append(f"further runs in processes of their own: {others}")
    if gone := missing(ranks):
        where = ", ".join(map(str, gone))
        also.append(f"rank {where}: not reached, or ended before a step; without all ranks there is no verdict")
        report = replace(report, verdict=NOT_SEEN, findings=(), updates=())
    if ranks and all(each.enough for each in ranks) and not ran.stopped:
        also.append("the rest of the run: not all of its ranks could be stopped, so that it went on to its end")
    return replace(report, not_seen=(*also, *report.not_seen))


def exit_code(report: AuditReport) -> int:
    """The command's own if it failed by itself, 1 on a fault, else 0."""
    return report.script_exit or int(report.verdict == FAULT)
