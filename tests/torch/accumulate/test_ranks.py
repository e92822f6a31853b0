"""Two and four ranks on gloo: every rank's parameters against one process that sees the whole batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.torch.accumulate import ranks as lists
from tests.torchrun import torchrun

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parent / "worker.py"


def wrong(folder, ranks, which, patience=240):
    """What each rank found wrong, of those cases where it found something."""
    torchrun(ranks, str(WORKER), str(folder), which, patience=patience)
    cases = [lists.name_of(case) for case in getattr(lists, which)(ranks)]
    assert len(set(cases)) == len(cases)
    found = []
    for rank in range(ranks):
        said = json.loads((folder / f"{rank}.json").read_text())
        assert list(said) == cases
        found += [f"rank {rank}, {case}: {what}" for case, what in said.items() if what]
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rank_has_the_gradient_of_one_batch(tmp_path, ranks):
    assert wrong(tmp_path, ranks, "cases") == []


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_combination(tmp_path, ranks):
    assert wrong(tmp_path, ranks, "all_cases", 1700) == []
