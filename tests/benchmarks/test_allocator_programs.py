"""The programs for a CUDA device: the same for the same seed, told shortly, and nothing without a device."""

from __future__ import annotations

import sys

import pytest

from benchmarks.gpu import allocator_programs
from benchmarks.gpu.allocator_programs import Case, in_a_process, of_model, parts, random_case, told
from gradaccum.memory.allocator import ties_of
from gradaccum.memory.allocator_settings import Settings

MIB = 2**20


def test_a_seed_is_a_case():
    assert random_case(3) == random_case(3)
    assert random_case(3) != random_case(4)


def test_every_case_can_be_run():
    for seed in range(30):
        case = random_case(seed, length=100, large_segments=seed % 2 == 0)
        Settings.parse(case.settings)
        requests = [operation for operation in case.operations if operation.startswith("m")]
        freed = [int(operation[1:]) for operation in case.operations if operation.startswith("f")]
        assert len(set(freed)) == len(freed)
        assert not freed or max(freed) <= len(requests)
        assert all(size > 0 and stream in (0, 1, 2) for size, stream in map(parts, requests))


def test_what_happened_is_told_shortly():
    operations = ("m1000", "m3145728@1", "f1", "empty", "m99999999", "reset")
    case = Case("", 0, operations)
    numbers = list(of_model(case, "segment", "descending", 30 * MIB, 30 * MIB, 1.0))
    assert told(operations, numbers) == {
        "blocks": [1024, 3 * MIB, None],
        "reserved": [[0, 2 * MIB], [1, 22 * MIB], [3, 20 * MIB]],
        "last": [3 * MIB, 20 * MIB, 3 * MIB, 20 * MIB, 1, 1],
    }


@pytest.mark.parametrize("given", [[], ["--cases", "2"]])
def test_without_a_device_it_says_so_and_ends_well(monkeypatch, capsys, given):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["allocator_programs", *given])
    allocator_programs.main()
    assert capsys.readouterr().out == "No CUDA device, so nothing is measured.\n"


def test_without_torch_too(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(sys, "argv", ["allocator_programs"])
    allocator_programs.main()
    assert capsys.readouterr().out == "torch is not installed, so nothing is measured.\n"


@pytest.mark.gpu
@pytest.mark.slow
def test_a_device_says_what_the_model_says():
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    for seed in range(4):
        case = random_case(seed, large_segments=False)
        fraction = case.limit / total
        models = [
            list(of_model(case, ties_of(torch.__version__), addresses, None, total, fraction))
            for addresses in ("descending", "ascending")
        ]
        assert in_a_process(case, fraction) in models, case.settings
