"""Starts `gradaccum audit` on scripts that a test writes, as from a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[3]
PYTHON = Path(sys.executable)
BESIDE = PYTHON.parent

LOOP = """
    import torch

    def train(model, steps=4, turns=40, divisor=None, **how):
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(model.parameters())
        step = how.pop("around", lambda call: call)(optimizer.step)
        data = torch.utils.data.TensorDataset(torch.randn(4 * turns, 8), torch.randint(0, 3, (4 * turns,)))
        for turn, (x, y) in enumerate(torch.utils.data.DataLoader(data, batch_size=4, **how), 1):
            (torch.nn.functional.cross_entropy(model(x), y) / (divisor or steps)).backward()
            if turn % steps == 0:
                step()
                optimizer.zero_grad()
                print("update", turn // steps, flush=True)

    def digest(model):
        return sum(each.double().sum() for each in model.parameters()).item().hex()
"""


def environment(**more):
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }


def write(folder, **files):
    for name, text in {"loop": LOOP, **files}.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))


def start(folder, *words, **more):
    return subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=400
    )


def audit(folder, *words, **more):
    """The process, and the report that it printed as JSON."""
    done = start(folder, PYTHON, "-m", "gradaccum", "audit", "--json", *words, **more)
    assert done.stdout, done.stderr
    return done, json.loads(done.stdout)


def stopped_after(report, updates=3):
    """The run was right, and ended after so many updates."""
    assert (report["verdict"], report["script_exit"]) == ("right", 0), report
    assert report["facts"]["updates"] == updates
    return True


def ended_cleanly(done):
    """Nothing after the stop was said, and nothing of it shows."""
    assert "never printed" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 0
