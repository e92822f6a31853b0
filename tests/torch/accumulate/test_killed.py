"""A rank is killed inside a group, torchrun starts all anew, and the run ends with the bits of one that lived."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.torchrun import torchrun

SCRIPT = Path(__file__).parent / "killed.py"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_that_was_killed_inside_a_group_has_the_bits_of_one_that_was_not(tmp_path):
    ends = []
    for stop in (0, 5):  # in the middle of the second group
        folder = tmp_path / str(stop)
        folder.mkdir()
        torchrun(2, str(SCRIPT), str(folder), str(stop), restarts=1)
        assert (folder / "killed").exists() == bool(stop)
        ends.append([torch.load(folder / f"end {rank}.pt") for rank in range(2)])
    for lived, killed in zip(*ends, strict=True):
        assert all(map(torch.equal, lived, killed))
