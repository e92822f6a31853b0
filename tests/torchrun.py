"""Starts a script of the tests on several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RANK = Path(__file__).with_name("rank.py")


def torchrun(processes: int, *arguments: str, folder: Path = ROOT, patience: int = 240, restarts: int = 0) -> None:
    """Runs a script, or `-m` a module, on gloo over loopback; a failure or a hang fails the test with what was said."""
    launch = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "--standalone", "--local-addr=127.0.0.1"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
        # A store for each start: the launcher's own still holds the addresses of ranks that it has restarted.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *launch, str(RANK), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience,
    )
    assert done.returncode == 0, done.stdout + done.stderr
