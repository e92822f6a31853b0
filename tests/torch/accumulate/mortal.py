"""A training that saves after each micro-batch, goes on from what was saved, and may end as a machine does.

mortal.py FOLDER [KILL [FULL]]: kill -9 to itself after KILL micro-batches; from FULL on files may have no more than
1,000 bytes, as on a disk that is full. Prints how many saves failed.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.torch.accumulate.training import Run


def main(folder: Path, kill: int = 0, full: int = 0) -> None:
    run = Run(2, 3)
    saved, failed = folder / "saved.pt", 0
    if saved.exists():
        run.load(saved)

    def save(seen: int) -> None:
        nonlocal failed
        if seen == full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        try:
            (folder / "new.pt").write_bytes(run.saved().getvalue())
            (folder / "new.pt").rename(saved)  # at once, so that what is there is whole
        except OSError:
            failed += 1
        if seen == kill:
            print(failed, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    run.train(6, after_each=save)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    torch.save(run.parameters(), folder / "parameters.pt")
    print(failed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
