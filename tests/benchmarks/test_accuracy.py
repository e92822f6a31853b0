"""The accuracy benchmark: its measured runs, its verdicts, and that all it last wrote follows from what it measured."""

from __future__ import annotations

import csv
import importlib.metadata
import json
from pathlib import Path

import pytest

from benchmarks import accuracy_page
from benchmarks.accuracy import (
    EVIDENCE,
    LIMITS,
    RESULT,
    bare,
    closed,
    errors,
    evidence_text,
    judged,
    limits,
    of_process,
    regimes,
)
from benchmarks.measured_cases import CAPACITY, NOT_USED, RECIPES, cases, own_cases, read
from benchmarks.memory_peers import FORMULAS, question
from gradaccum.memory.evidence import CLOSED_FORM, TRACE

CASES = cases()
WRITTEN = json.loads(RESULT.read_text(encoding="utf-8"))


# What was measured


def test_whole_recipes_are_plausible():
    rows = read(RECIPES)
    assert [sum(row["quantization"] == kind for row in rows) for kind in ("none", "nf4")] == [20, 63]
    for row in rows:
        assert row["source"].startswith("PyPI fitcheck-llm 0.3.1 sdist:")
        peaks = [int(row[f"{phase}_bytes"]) for phase in ("forward", "backward", "optimizer") if row[f"{phase}_bytes"]]
        if row["allocated_bytes"]:
            allocated, reserved = int(row["allocated_bytes"]), int(row["reserved_bytes"])
            assert max(peaks, default=allocated) == allocated <= reserved < CAPACITY
            assert reserved % 2**21 == 0
        elif row["outcome"] == "ran":
            assert (int(row["process_bytes"]) - int(row["context_bytes"])) % 2**21 == 0


def test_every_case_says_what_happened():
    for case in CASES:
        assert case.measured or not case.ran or case.source.startswith("arXiv"), case.words
        assert all(bytes_ <= case.capacity for bytes_ in case.measured.values()), case.words
    assert sum(not case.ran for case in CASES) == 4 + 3 + 2 + 1
    assert sum(case.row is None for case in CASES) == 40


def test_rows_that_are_not_used_have_a_reason():
    with NOT_USED.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(int(row["rows"]) > 0 and row["why"] for row in rows)
    assert any("an estimate" in row["why"] for row in rows if "LLaMA-Factory" in row["source"])


def test_our_own_runs_are_taken_in(tmp_path: Path):
    environment = {"device": "NVIDIA L4", "capability": [8, 9], "total_memory": 22 * 2**30}
    figures = {"allocated_bytes": 8 * 2**30, "reserved_bytes": 9 * 2**30}
    row = {"environment": environment, "status": "ok", "context_bytes": 2**28, "predicted": {"status": "ok", **figures}}
    fields = {"model": "llama-3.2-1b:2", "micro_batch": 2, "dtype": "amp-bf16", "attention": "sdpa", "lora_rank": 8}
    out_of_memory = {"status": "oom", "allocated_bytes": 1, "reserved_bytes": 2}
    rows = [
        {**row, **figures, "fields": fields},
        {**row, **out_of_memory, "fields": {**fields, "card_gb": 8}, "predicted": out_of_memory},
        {**row, **figures, "fields": fields, "predicted": {"status": "failed", "why": "an operator"}},
        {**row, **figures, "fields": {**fields, "compiled": True}},
        {**row, **figures, "fields": {**fields, "model": "plain-gpt-13m"}},
    ]
    path = tmp_path / "compare.json"
    path.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    ran, stopped, failed = own_cases(path)
    assert (ran.words, ran.capacity) == (
        "llama-3.2-1b, 2 x 1024, bf16-mixed LoRA, flash attention, one GPU",
        22 * 2**30,
    )
    assert of_process(ran, dict(ran.traced or {}))["process_bytes"] == 9 * 2**30 + 2**28
    assert (stopped.ran, stopped.measured, stopped.capacity) == (False, {}, 8 * 2**30)
    assert judged(stopped, of_process(stopped, dict(stopped.traced or {}))) == "right"
    assert of_process(failed, dict(failed.traced or {})) == {"why": "an operator"}
    assert own_cases(tmp_path / "none.json") == []


# How predictions are judged


def case(capacity: int = 100, ran: bool = True):
    import dataclasses

    gpu = dataclasses.replace(CASES[0].gpu, usable_bytes=capacity)
    return dataclasses.replace(CASES[0], gpu=gpu, ran=ran, measured={"allocated": 80, "reserved": 90})


def test_errors_are_percent_of_the_measured():
    assert errors(case(), {"allocated_bytes": 84, "reserved_bytes": 81, "process_bytes": 1}) == {
        "allocated": 5.0,
        "reserved": -10.0,
    }
    assert errors(case(), {"why": "not known"}) == {}


@pytest.mark.parametrize(
    ("low", "expected", "high", "ran", "out_of_memory"),
    [
        (80, 90, 100, "right", "wrong"),
        (90, 95, 101, "right", "open"),
        (95, 101, 110, "open", "right"),
        (101, 105, 110, "wrong", "right"),
    ],
)
def test_a_verdict_is_wrong_beyond_its_interval(low: int, expected: int, high: int, ran: str, out_of_memory: str):
    said = {"low_bytes": low, "process_bytes": expected, "high_bytes": high}
    assert (judged(case(), said), judged(case(ran=False), said)) == (ran, out_of_memory)


def test_a_prediction_without_an_interval_has_a_margin():
    assert [judged(case(), {"process_bytes": 102}, margin) for margin in (0, 1, 3)] == ["wrong", "wrong", "open"]
    assert [judged(case(ran=False), {"process_bytes": 98}, margin) for margin in (1, 3)] == ["wrong", "open"]
    assert (judged(case(), {}), judged(case(ran=False), {})) == ("wrong", "right")  # more than the card has
    assert judged(case(), {"why": "not known"}) == ""


def test_regimes_have_the_worst_error_rounded_up():
    def record(error: float, engine: str = TRACE):
        said = {CLOSED_FORM: {}, TRACE: {}, engine: {"error_percent": {"allocated": error, "process": 50.0}}}
        return {"regime": ["eager", "fp16", "one GPU"], **said}

    alone = {**record(0.0), TRACE: {"error_percent": {"process": -6.75}}}
    assert regimes([record(0.11), record(-0.2), record(0.0), alone]) == [
        {
            "engine": TRACE,
            "regime": ["eager", "fp16", "one GPU"],
            "cases": 3,
            "worst_allocated": 2,
            "worst_reserved": None,
            "process_cases": 1,
            "worst_process": 68,
        }
    ]
    assert regimes([record(0.2001)])[0]["worst_allocated"] == 3
    assert [row["engine"] for row in regimes([record(1, CLOSED_FORM), record(2)])] == [CLOSED_FORM, TRACE]


# What was written last


def test_the_written_result_is_of_these_runs():
    assert len(WRITTEN["cases"]) == len(CASES)
    for case, record in zip(CASES, WRITTEN["cases"], strict=True):
        assert (record["source"], record["model"], record["row"]) == (case.source, case.model.id, case.row)
        assert (record["how"], record["measured"], record["ran"]) == (dict(case.how), dict(case.measured), case.ran)


def test_the_closed_form_still_says_so():
    """All rows, at once: it takes no time."""
    for case, record in zip(CASES, WRITTEN["cases"], strict=True):
        said = closed(case)
        assert {name: record[CLOSED_FORM][name] for name in said} == said, case.words
        assert record[CLOSED_FORM]["error_percent"] == (errors(case, said) if case.ran else {})
        assert record[CLOSED_FORM]["verdict"] == judged(case, said)


def test_the_limits_hold():
    assert [each["holds"] for each in WRITTEN["limits"]] == [True] * len(LIMITS)
    assert limits(WRITTEN["cases"]) == WRITTEN["limits"]


def test_no_fit_is_promised_that_is_none():
    """Nor is a run refused that ran, beyond the interval that is stated."""
    for record in WRITTEN["cases"]:
        assert "wrong" not in (record[CLOSED_FORM]["verdict"], record[TRACE]["verdict"]), record["how"]


def test_fp16_is_allocated_to_the_byte():
    rows = read(RECIPES)
    for record in WRITTEN["cases"][:20]:
        for quantity in ("allocated", "forward", "backward", "optimizer"):
            assert record[TRACE][f"{quantity}_bytes"] == int(rows[record["row"]][f"{quantity}_bytes"])


def test_the_evidence_of_the_package_is_what_was_measured():
    assert regimes(WRITTEN["cases"]) == WRITTEN["regimes"]
    assert EVIDENCE.read_text(encoding="utf-8") == evidence_text(WRITTEN["regimes"])


def test_the_page_and_the_picture_are_what_was_measured():
    assert accuracy_page.PAGE.read_text(encoding="utf-8") == accuracy_page.page(WRITTEN)
    assert accuracy_page.PICTURE.read_text(encoding="utf-8") == accuracy_page.drawing(WRITTEN["cases"])


def test_the_guide_quotes_what_was_measured():
    text = accuracy_page.GUIDE.read_text(encoding="utf-8")
    assert accuracy_page.guide(text, WRITTEN) == text
    assert accuracy_page.headline(WRITTEN) in text


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [6, 13, 37])
def test_a_row_is_traced_as_it_was(number: int):
    """By the Transformers and the PEFT that the row names, which the tests' environment holds."""
    import subprocess
    import sys

    from benchmarks.common import ROOT
    from benchmarks.environments import source_environ

    for library in ("transformers", "peft"):
        assert importlib.metadata.version(library) == read(RECIPES)[number][library]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fitcheck_recipe"],
        input=f"{number}\n",
        env=source_environ(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found, written = json.loads(done.stdout), bare(WRITTEN["cases"][number][TRACE])
    for name in ("allocated_bytes", "reserved_bytes", "forward_bytes", "backward_bytes", "optimizer_bytes"):
        assert found[name] == written[name]


# Peers


def test_deepspeed_is_what_its_documentation_prints():
    """memory.rst: 2,851 million parameters on 8 GPUs without offloading: 15.93 GB under ZeRO-2."""
    asked = {"params": 2_851_000_000, "num_gpus": 8, "strategy": "zero2", "lora_rank": 0}
    assert round(FORMULAS["DeepSpeed's formulas"](asked) / 2**30, 1) == 15.9


def test_peers_say_what_they_cannot_say():
    asked = question(CASES[0].model, CASES[0].how)
    said = {name: ask(asked) for name, ask in FORMULAS.items()}
    assert said.pop("torch's MemTracker") == "hooks every parameter, and refuses those that are frozen"
    assert set(said.values()) == {"knows no adapters and no quantised weights"}
    full = next(each for each in CASES if "lora_rank" not in each.how and each.how["num_gpus"] == 1)
    asked = question(full.model, full.how)
    assert FORMULAS["accelerate estimate-memory"](asked) == 8 * full.model.params
    assert FORMULAS["EleutherAI's calculator"](asked) > FORMULAS["DeepSpeed's formulas"](asked) > 0


def test_torch_s_tracker_refuses_frozen_parameters():
    import torch
    from torch.distributed._tools.mem_tracker import MemTracker

    module = torch.nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    refused = pytest.raises(RuntimeError, match="doesn't require gradient")
    with MemTracker(), pytest.warns(UserWarning, match="raised an exception"), refused:
        module(torch.ones(1, 2))
