"""Trials in processes of their own: a fresh interpreter each, so that nothing that happens there can hurt this one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradaccum.errors import InputError, Problem
from gradaccum.torch.probe.answer import Trial
from gradaccum.torch.probe.child import ERROR, PROBLEMS
from gradaccum.torch.probe.errors import ProbeError

INSIDE = "GRADACCUM_IN_A_TRIAL"
"""Set in the environment of a trial's process."""

START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from gradaccum.torch.probe.child import main; main(sys.argv[1])"
)

_TAIL = 4000
"""Characters of what a trial wrote that are kept."""


@dataclass(frozen=True)
class Apart:
    """How to try a micro-batch in another process. build: as `module:function`."""

    build: str
    device: str
    memory_limit: int | None
    optimizer: str
    timeout: float

    def attempt(self, micro_batch: int, timed: bool = True) -> tuple[Trial, str]:
        """The trial, and what limits it. ProbeError where it ended otherwise than well or out of memory; InputError."""
        task = {**vars(self), "micro_batch": micro_batch, "timed": timed}
        with tempfile.TemporaryDirectory(prefix="gradaccum-", ignore_cleanup_errors=True) as folder:
            Path(folder, "task.json").write_text(json.dumps(task), encoding="utf-8")
            output = Path(folder, "output.txt")
            code = _run(folder, output, self.timeout)
            written = output.read_text(encoding="utf-8", errors="replace")[-_TAIL:]
            result = Path(folder, "result.json")
            if result.exists():
                return self._read(json.loads(result.read_text(encoding="utf-8")), micro_batch, written)
        if code is None:
            why = f"not done within {self.timeout:g} s"
            return Trial(micro_batch=micro_batch, ok=False, why=why), ""
        if code == -getattr(signal, "SIGKILL", 9):
            why = "killed from outside, as a system does whose memory runs out"
            return Trial(micro_batch=micro_batch, ok=False, out_of_memory=True, why=why), ""
        if "std::bad_alloc" in written:
            why = "out of memory: std::bad_alloc"
            return Trial(micro_batch=micro_batch, ok=False, out_of_memory=True, why=why), ""
        raise ProbeError(f"micro-batch {micro_batch}: the trial's process {_ended(code)}", micro_batch, (), written)

    def _read(self, result: dict[str, Any], micro_batch: int, written: str) -> tuple[Trial, str]:
        if PROBLEMS in result:
            raise InputError(*[Problem(**problem) for problem in result[PROBLEMS]])
        if ERROR in result:
            raise ProbeError(f"micro-batch {micro_batch}: {result[ERROR]}", micro_batch, (), written)
        return Trial(**result["trial"]), result["limited_by"]


def refuse_inside() -> None:
    """Raise InputError in the process of a trial: its module would start a search within the search."""
    if os.environ.get(INSIDE):
        said = 'importing its module starts this search anew; call it below `if __name__ == "__main__":`'
        raise InputError(Problem("build", said))


def _run(folder: str, output: Path, timeout: float) -> int | None:
    """The exit code; None where the time was up. All processes that the trial started end with it."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", START, folder, json.dumps(sys.path)],
            stdin=subprocess.PIPE,  # closed when this process ends, however it does
            stdout=file,
            stderr=file,
            env=_environment(),
            start_new_session=True,
        )
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if hasattr(os, "killpg"):
                _kill_group(process.pid)
            else:
                process.kill()
            process.wait()
            process.stdin.close()  # type: ignore[union-attr]


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(leader, signal.SIGKILL)


def _environment() -> dict[str, str]:
    """This process' own, in which a trial is alone: a world of one rank."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    kept[INSIDE] = "1"
    if "WORLD_SIZE" in kept:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        kept |= {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return kept


def _ended(code: int) -> str:
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return f"ended with exit code {code} before the trial was done"
