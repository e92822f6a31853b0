"""One process, no wrapper: the accumulator against one concatenated batch."""

from __future__ import annotations

import pytest
import torch

from tests.torch.accumulate.cases import WEIGHTS, Case, pairwise
from tests.torch.accumulate.runs import differences

pytestmark = pytest.mark.slow

AXES = {
    "weights": WEIGHTS[:3],
    "clip_norm": (None, 0.05),
    "lengths": ((8,), (6,), (3,), (9,)),
    "partial": ("step", "carry", "drop"),
    "sized": (True, False),
    "optimizer": ("sgd", "sgd fused", "adamw", "adamw fused"),
    "dtype": (torch.float64, torch.float32),
    "epochs": (1, 3),
    "mean": (False, True),
}
CASES = [Case(**row) for row in pairwise(AXES, lambda row: not (row["mean"] and row["weights"] == "zero"))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_equals_one_big_batch(case):
    assert differences(case) == []


@pytest.mark.parametrize("partial", ["step", "carry", "drop"])
@pytest.mark.parametrize("weights", WEIGHTS[:3])
def test_open_ended_groups_end_with_the_micro_batch_that_reaches_the_weight(weights, partial):
    case = Case(accum_steps=None, until_weight=20, lengths=(11,), weights=weights, partial=partial, epochs=2)
    assert differences(case) == []
    assert differences(Case(accum_steps=None, until_weight=1e9, weights=weights, partial=partial)) == []


def test_micro_batches_that_are_left_out_do_not_count():
    assert differences(Case(skipped=(1, 3), lengths=(10,))) == []
