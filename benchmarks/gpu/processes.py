"""Work in processes of their own, one after the other: what one leaves behind, or a crash, is no other's matter.

Starting Python, PyTorch and Transformers takes several times longer than most cases, so processes are forked from one
that has imported them (preload.py) and has not touched CUDA. Where that fails, each starts from nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

PRELOAD = "benchmarks.gpu.preload"


class Processes:
    """fork: whether to fork from a process that has imported what is usual."""

    def __init__(self, fork: bool = True) -> None:
        self.fork = fork
        # With it PyTorch asks NVML how many devices there are. CUDA itself, once asked, is of no use after a fork.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        # The process that forks does not take over sys.path.
        paths = [str(Path(path).resolve()) for path in sys.path if "site-packages" not in path]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
        multiprocessing.get_context("forkserver").set_forkserver_preload([PRELOAD])

    def call(
        self, work: Callable[..., Any], *arguments: Any, seconds: float, environ: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """What `work(*arguments)` returned, or a row with the status timeout, crashed or failed, and why.

        environ: variables that must be there when the process begins; it then starts from nothing.
        """
        here, there = multiprocessing.Pipe(duplex=False)
        kind = multiprocessing.get_context("forkserver" if self.fork and not environ else "spawn")
        process: BaseProcess = kind.Process(target=_answer, args=(there, work, arguments))  # type: ignore[attr-defined]
        before = {name: os.environ.get(name) for name in environ or {}}
        os.environ.update(environ or {})
        try:
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        there.close()
        try:
            if not here.poll(seconds):
                return {"status": "timeout", "why": f"not done after {seconds:.0f} s"}
            answer: dict[str, Any] = here.recv()
            return answer
        except EOFError:
            process.join(10)
            return {"status": "crashed", "why": _ending(process.exitcode)}
        finally:
            if process.is_alive():
                process.join(5)  # it has answered, and is on its way out
            if process.is_alive():
                process.kill()
            process.join()
            here.close()


def _answer(connection: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = work(*arguments)
    except Exception as error:  # what the work itself did not turn into a row
        answer = {"status": "failed", "why": f"{type(error).__name__}: {error}"}
    connection.send(answer)
    connection.close()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with code {code}"
