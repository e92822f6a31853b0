"""What stands beside an answer: the runs that were measured of its regime, and how far it may be off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradaccum.catalog.models import find_model
from gradaccum.memory import evidence as module
from gradaccum.memory.evidence import FEW, LEAST, UNMEASURED, Evidence, Regime, evidence, measured, regime
from gradaccum.memory.setup import Setup

MODEL = find_model("llama-3.2-1b")


def known(*rows: tuple[str, list[str], int, int]):
    names = ("engine", "regime", "cases", "worst_allocated")
    unmeasured = {"worst_reserved": None, "process_cases": 0, "worst_process": None}
    return tuple({**dict(zip(names, row, strict=True)), **unmeasured} for row in rows)


@pytest.fixture
def two_regimes(monkeypatch: pytest.MonkeyPatch):
    rows = known(
        ("closed form", ["eager", "fp16", "one GPU"], 20, 3),
        ("closed form", ["flash", "bf16", "fsdp2 on several GPUs"], 7, 61),
        ("closed form", ["flash", "fp32", "one GPU"], 1, 2),
        ("trace", ["flash", "bf16", "one GPU"], 9, 0),
    )
    monkeypatch.setattr(module, "measured", lambda: rows)


@pytest.mark.parametrize(
    ("cases", "worst", "margin"),
    [(FEW, 0, LEAST), (FEW, 20, 2), (FEW, 21, 3), (40, 118, 12), (FEW - 1, 0, UNMEASURED), (0, None, UNMEASURED)],
)
def test_the_margin_is_the_worst_error(cases: int, worst: int | None, margin: int):
    """Rounded up, never under the least, and the usual one where few were measured."""
    assert Evidence("fp16", cases, worst).margin == margin


def test_a_measured_regime(two_regimes):
    found = evidence(Setup(model=MODEL, sequence_length=64, dtype="fp16", attention="eager"))
    assert (found.cases, found.worst, found.nearest) == (20, 3, None)
    assert str(found) == "fp16, eager attention, one GPU: 20 measured cases, worst 0.3%, ±2%"
    assert found.to_dict() == {
        "regime": "fp16, eager attention, one GPU",
        "cases": 20,
        "worst_percent": 0.3,
        "margin": 2,
        "words": str(found),
    }


def test_a_regime_of_its_own_has_the_nearest_beside_it(two_regimes):
    """Sharding counts first, then precision."""
    found = evidence(Setup(model=MODEL, sequence_length=64))
    assert (found.cases, found.worst, found.margin) == (0, None, 15)
    assert str(found) == (
        "yours (bf16, flash attention, one GPU): no measured case, ±15%; "
        "nearest fp16, eager attention, one GPU: 20 measured cases, worst 0.3%"
    )
    several = evidence(Setup(model=MODEL, sequence_length=64, dtype="fp16", strategy="fsdp2", num_gpus=4))
    assert several.nearest is not None
    assert (several.nearest.worst, several.nearest.margin) == (61, 7)


def test_of_two_neighbours_the_one_with_a_fused_kernel_and_whole_weights(monkeypatch: pytest.MonkeyPatch):
    names = ["eager", "fp16 LoRA"], ["efficient", "fp16 LoRA"], ["efficient", "fp16 over nf4 LoRA"]
    rows = known(*[("closed form", [*each, "one GPU"], 10, 4) for each in names])
    monkeypatch.setattr(module, "measured", lambda: rows)
    found = evidence(Setup(model=MODEL, sequence_length=64))
    assert found.nearest is not None
    assert found.nearest.regime == "fp16 LoRA, efficient attention, one GPU"


def test_few_cases_are_told_but_not_trusted(two_regimes):
    found = evidence(Setup(model=MODEL, sequence_length=64, dtype="fp32"))
    assert str(found).startswith("yours (fp32, flash attention, one GPU): 1 measured case, worst 0.2%, ±15%; nearest ")


def test_runs_of_which_the_process_alone_was_measured_are_told_apart():
    found = Evidence("bf16", 0, None, None, 7, 68)
    assert str(found) == (
        "bf16: no measured case of what is allocated, 7 measured cases, worst 6.8% of the process alone, ±15%"
    )
    assert (found.margin, found.cases) == (UNMEASURED, 0)
    assert str(Evidence("fp16", 9, 4, None, 1, 68)) == (
        "fp16: 9 measured cases, worst 0.4%, 1 measured case, worst 6.8% of the process alone, ±2%"
    )


def test_what_the_accuracy_page_shows_is_not_denied():
    """Seven runs of Unsloth's are there, of which the process alone was measured."""
    how = {"quantization": "nf4", "lora_rank": 16, "attention": "efficient"}
    found = evidence(Setup(model=MODEL, sequence_length=64, **how))
    assert (found.cases, found.process_cases) == (0, 7)


def test_engines_have_their_own(two_regimes):
    found = evidence(Setup(model=MODEL, sequence_length=64), "trace")
    assert (found.cases, found.margin, found.nearest) == (9, 2, None)
    assert evidence(Setup(model=MODEL, sequence_length=64, dtype="fp16"), "trace").nearest is not None


def test_without_any_there_is_no_nearest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "measured", tuple)
    found = evidence(Setup(model=MODEL, sequence_length=64))
    assert str(found) == "bf16, flash attention, one GPU: no measured case, ±15%"


def test_experts_have_evidence_of_their_own(two_regimes):
    """That of dense models is not theirs."""
    found = evidence(Setup(model=find_model("mixtral-8x7b"), sequence_length=64), "trace")
    assert (found.cases, found.margin) == (0, 15)
    assert found.nearest is not None


def test_a_regime_is_kernel_precision_and_sharding():
    assert regime({}) == Regime("flash", "bf16", "one GPU")
    adapters = {"dtype": "fp16", "quantization": "nf4", "lora_rank": 8, "attention": "eager"}
    assert regime(adapters) == Regime("eager", "fp16 over nf4 LoRA", "one GPU")
    assert regime({"loss": "chunked"}, experts=True) == Regime("flash", "bf16, chunked loss, experts", "one GPU")
    shared = {"num_gpus": 8, "strategy": "zero3", "tensor_parallel": 2, "pipeline_parallel": 1, "quantization": "none"}
    assert regime(shared) == Regime("flash", "bf16", "zero3 + TP on several GPUs")


def test_the_rows_of_the_package_are_read():
    with (Path(module.__file__).parent / "evidence.json").open(encoding="utf-8") as file:
        rows = json.load(file)["regimes"]
    assert list(measured()) == rows
    assert len({(row["engine"], *row["regime"]) for row in rows}) == len(rows)
    assert all(row["cases"] == 0 or row["worst_allocated"] >= 0 for row in rows)
