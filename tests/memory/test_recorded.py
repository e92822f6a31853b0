"""What PyTorch's own allocator said, replayed: every block that a request got, every change of reserved.

recorded/ holds one file for each release. They were made without a device: the compiled allocator of the release ran
on a stand-in for CUDA that hands out addresses and counts bytes (python -m benchmarks.gpu.stand_in.record). What a
device adds, where its driver puts segments, they cannot show; a file from one can be laid beside them
(python -m benchmarks.gpu.allocator_programs).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu.allocator_programs import Case, of_model, told
from gradaccum.memory.allocator import ties_of

FILES = sorted((Path(__file__).parent / "recorded").glob("*.json"))


def replayed(entry, ties):
    case = Case(entry["settings"], 0, tuple(entry["operations"].split()))
    limits = entry["capacity"], entry["total_memory"], entry["fraction"]
    return told(case.operations, list(of_model(case, ties, entry["addresses"], *limits)))


def recorded(entry):
    return {name: entry[name] for name in ("blocks", "reserved", "last")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_program_gives_what_pytorch_said(path):
    run = json.loads(path.read_text())
    assert len(run["cases"]) >= 12
    for number, entry in enumerate(run["cases"]):
        assert replayed(entry, ties_of(run["torch"])) == recorded(entry), f"case {number}: {entry['settings']}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_another_rule_for_equal_blocks_would_be_noticed(path):
    """The programs tell the three rules apart, so that the test above can fail for each of them."""
    run = json.loads(path.read_text())
    for ties in {"segment", "block", "address"} - {ties_of(run["torch"])}:
        assert any(replayed(entry, ties) != recorded(entry) for entry in run["cases"]), ties


def test_the_programs_reach_what_is_rare():
    entries = [entry for path in FILES for entry in json.loads(path.read_text())["cases"]]
    assert len(FILES) >= 3
    assert any(None in entry["blocks"] for entry in entries)  # out of memory
    assert any(entry["last"][4] > entry["last"][5] for entry in entries)  # a retry that helped
    for option in ("expandable_segments", "max_split_size_mb", "roundup_power2", "garbage_collection", "large_segment"):
        assert any(option in entry["settings"] for entry in entries), option
