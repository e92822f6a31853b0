"""The accuracy benchmark: its measured rows, and that what it last wrote belongs to them and holds."""

from __future__ import annotations

import json

import pytest

from benchmarks.accuracy import CAPACITY, LIMITS, errors, lines, markdown, read_rows
from benchmarks.common import RESULTS


def test_measured_rows_are_plausible():
    rows = read_rows()
    assert len(rows) == 20
    assert len({(row["model"], row["seq_len"], row["micro_batch"], row["attention"]) for row in rows}) == 20
    for row in rows:
        peaks = [int(row[f"{phase}_bytes"]) for phase in ("forward", "backward", "optimizer")]
        assert max(peaks) == int(row["allocated_bytes"]) <= int(row["reserved_bytes"]) < CAPACITY
        assert int(row["reserved_bytes"]) % 2**21 == 0
        assert row["source"].startswith("PyPI fitcheck-llm 0.3.1 sdist:")


def test_errors_are_percent_of_the_measured():
    row = read_rows()[0]
    exact = {name: int(value) for name, value in row.items() if name.endswith("_bytes")}
    prediction = {**exact, "reserved_bytes_by_version": exact["reserved_bytes"], "allocated_bytes": 0}
    found = errors(row, prediction)
    assert found.pop("allocated_bytes") == -100
    assert set(found.values()) == {0}
    (cells,) = lines([row], [prediction])
    assert cells[:4] == ["SmolLM2-1.7B", "2048", "1", "eager"]
    assert markdown([cells]).count("\n") == 3


@pytest.mark.parametrize("quantity", LIMITS)
def test_the_written_result_is_of_these_rows_and_holds(quantity: str):
    result = json.loads((RESULTS / "accuracy.json").read_text(encoding="utf-8"))
    rows = read_rows()
    assert [{name: row[name] for name in rows[0]} for row in result["rows"]] == rows
    for row in result["rows"]:
        assert row["error_percent"] == errors(row, row["predicted"])
        assert abs(row["error_percent"][quantity]) <= LIMITS[quantity]


def test_allocated_is_equal_to_the_byte():
    result = json.loads((RESULTS / "accuracy.json").read_text(encoding="utf-8"))
    for row in result["rows"]:
        for quantity in ("allocated", "forward", "backward", "optimizer"):
            assert row["predicted"][f"{quantity}_bytes"] == int(row[f"{quantity}_bytes"])
