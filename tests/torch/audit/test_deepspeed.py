"""DeepSpeed itself, on two ranks: every stage, in fp32 and in bf16, right and with mistakes that were planted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import deepspeed
from tests.torchrun import torchrun

WORKER = Path(__file__).with_name("deepspeed_worker.py")
TOLD = {"right": set(), "mean": {"GA103"}, "twice": {"GA102"}, "lost": {"GA106"}, "long": {"GA106"}}


@pytest.mark.full
@pytest.mark.timeout(400)
def test_every_stage_is_followed(tmp_path):
    if deepspeed.find() is None:
        pytest.skip(deepspeed.MISSING)
    torchrun(2, str(WORKER), str(deepspeed.find()), str(tmp_path), patience=360)
    for rank in range(2):
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(said) == 33
        assert {name: each["error"] for name, each in said.items() if "error" in each} == {}
        faults = {name: {each["code"] for each in one["findings"]} for name, one in said.items()}
        assert faults == {name: TOLD[name.split()[2]] for name in said}
        assert not any(each["changed"] for each in said.values())
        fixes = {finding["fix"] for name in said if "twice" in name for finding in said[name]["findings"]}
        assert fixes == {"leave out the division: engine.backward divides by gradient_accumulation_steps"}
        for name, each in said.items():
            facts = each["facts"]
            assert each["verdict"] == ("fault" if TOLD[name.split()[2]] else "right")
            assert (facts["framework"], facts["ranks"], facts["clipping"]) == ("deepspeed", 2, "at the boundary")
            assert (facts["updates"], facts["optimizers"]) == (3, ["AdamW"])
            assert facts["wrapped"] == ("plain" if name.startswith("0") else "zero")
            assert facts["effective_batch"] == facts["target_batch"]
