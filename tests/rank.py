"""Runs a script, or `-m` a module, as Python would, and leaves without the end of threads that PyTorch leaves.

gloo's threads may still let go of a tensor then, for which they need the interpreter: where it is already ending, the
process aborts (pytorch/pytorch issue 190489; seen on a busy machine, and each time if those threads are held up).
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    what, *rest = sys.argv[1:]
    if what == "-m":
        sys.argv = rest
        sys.path[0] = os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [what, *rest]
        sys.path[0] = str(Path(what).resolve().parent)
        runpy.run_path(what, run_name="__main__")


def leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        leave(end.code or 0)
    leave(0)
