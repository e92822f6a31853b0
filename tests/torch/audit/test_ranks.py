"""Two ranks on gloo: one report on both, the same on each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.torch.audit import rank_loops
from tests.torchrun import torchrun

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parent / "worker.py"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What each rank said of each loop."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(2, str(WORKER), str(folder), "ranks")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("loop", rank_loops.LOOPS, ids=lambda loop: loop.name)
def test_what_is_said_of_it(reports, loop):
    first, second = (each[loop.name] for each in reports)
    assert "error" not in first, first["error"]
    assert first == second
    assert tuple(each["code"] for each in first["findings"]) == loop.codes
    assert first["facts"]["reductions_per_update"] == loop.reductions
    assert first["facts"]["effective_batch"] == 2 * rank_loops.MICRO_BATCH * rank_loops.STEPS
    assert first["verdict"] == ("fault" if any(each["severity"] == "error" for each in first["findings"]) else "right")


def test_each_rank_and_micro_batch_has_the_weight_that_arithmetic_gives_it(reports):
    """4 targets on rank 0 and 2 on rank 1, averaged: 1/8 by 4 and by 2 of each rank's half, beside 1/24 of all."""
    (first, *_) = reports[0]["a mean on each rank"]["updates"]
    weights = {(each["rank"], each["index"]): each["weight"] for each in first["micro_batches"]}
    assert [weights[0, index] for index in range(4)] == pytest.approx([24 / (8 * 4)] * 4)
    assert [weights[1, index] for index in range(4)] == pytest.approx([24 / (8 * 2)] * 4)
