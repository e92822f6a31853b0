"""The example runs, its numbers say what its page says, and its picture is of them."""

from __future__ import annotations

import json

import pytest

from tests.torchrun import ROOT, torchrun

SCRIPT = ROOT / "examples" / "language_model.py"
BATCHES = {"big": ("4", "1"), "small": ("1", "4")}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ways_to_make_a_batch_have_the_same_losses(tmp_path):
    found = {}
    for name, (micro_batch, accum_steps) in BATCHES.items():
        out = tmp_path / name
        cut = ["--micro-batch", micro_batch, "--accum-steps", accum_steps]
        torchrun(2, str(SCRIPT), *cut, "--updates", "3", "--out", str(out))
        found[name] = json.loads(out.read_text())
    assert len(found["big"]["training"]) == 3
    assert found["small"]["training"] == pytest.approx(found["big"]["training"], rel=1e-4)
    assert found["small"]["held_out"] == pytest.approx(found["big"]["held_out"], rel=1e-4)


def test_the_committed_curves_lie_on_each_other_and_the_mistakes_does_not():
    losses = json.loads((ROOT / "examples" / "language_model.json").read_text())["losses"]
    big, small, mistake = (each["training"] for each in losses.values())
    assert len(big) == len(small) == len(mistake) == 120
    assert max(abs(one - other) for one, other in zip(big, small, strict=True)) < 1e-3
    assert max(abs(one - other) for one, other in zip(big, mistake, strict=True)) > 0.05


def test_the_picture_is_drawn_from_the_numbers():
    pytest.importorskip("torch")
    from examples.plot_language_model import NUMBERS, PICTURE, drawing

    assert PICTURE.read_text() == drawing(json.loads(NUMBERS.read_text())["losses"])
