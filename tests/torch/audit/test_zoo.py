"""The zoo: every planted mistake is found with its cause, and no right loop is blamed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradaccum.core.audit import ERROR
from tests.torchrun import torchrun

WORKER = Path(__file__).parent / "worker.py"
SLOW = ("accelerate", "fabric", "lightning", "transformers", "trl")


def disagreement(loop, report):
    """What an audit says that it should not, or does not say; None where it is as it should be."""
    if "error" in report:
        return report["error"]
    said = {each["code"] for each in report["findings"]}
    missing = loop.faults - said
    alarms = {each["code"] for each in report["findings"] if each["severity"] == ERROR} - loop.faults - loop.notes
    if missing or alarms:
        return {"missing": sorted(missing), "alarms": sorted(alarms), "said": report["findings"]}
    if not loop.faults and report["verdict"] != "right":
        return {"verdict": report["verdict"], "not seen": report["not_seen"]}
    return None


def of_framework(framework, world):
    from tests.torch.audit import zoo

    found = [each for each in zoo.loops() if each.framework == framework and each.world == world]
    assert found
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("framework", ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_each_loop_on_one_process(framework):
    from tests.torch.audit.worker import unknown

    found = {}
    for loop in of_framework(framework, 1):
        found[loop.name] = disagreement(loop, unknown(loop, loop.target_batch).to_dict())
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("framework", ["ddp", "fsdp2", "accelerate", "fabric", "lightning", "transformers"])
def test_each_loop_on_two_ranks(framework, tmp_path):
    loops = of_framework(framework, 2)
    torchrun(2, str(WORKER), str(tmp_path), framework)
    for rank in range(2):
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        found = {loop.name: disagreement(loop, said[loop.name]) for loop in loops}
        assert {name: what for name, what in found.items() if what} == {}
