"""Two and four ranks on gloo: every rank's parameters against one process that sees the whole batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.torch.accumulate.ranks import cases
from tests.torchrun import torchrun

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parent / "worker.py"


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rank_has_the_gradient_of_one_batch(tmp_path, ranks):
    torchrun(ranks, str(WORKER), str(tmp_path))
    for rank in range(ranks):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert list(found) == [str(case) for case in cases(ranks)]
        wrong = {case: what for case, what in found.items() if what}
        assert not wrong, "\n".join(f"rank {rank}, {case}: {what}" for case, what in list(wrong.items())[:4])
