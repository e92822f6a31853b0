"""GPUs: each figure has a source, dense is dense, and a name finds its row however it is written."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradaccum.catalog import gpus as room
from gradaccum.catalog.gpus import FIGURES, USABLE_FROM, Gpu, find_gpu, gpus
from gradaccum.errors import InputError

GIB = 2**30
ROWS = gpus()
BY_ID = {gpu.id: gpu for gpu in ROWS}
FILE = Path(room.__file__).with_name("gpus.json")
FIELD = {"memory": "memory_bytes", "usable": "usable_bytes"}


def figure(gpu: Gpu, name: str) -> Any:
    return getattr(gpu, FIELD.get(name, name))


def problem(name: str | int):
    with pytest.raises(InputError) as caught:
        find_gpu(name)
    (problem,) = caught.value.problems
    return problem


# The rows


def test_every_figure_has_a_source_and_every_source_a_figure():
    for gpu in ROWS:
        named = [name for figures, _, _ in gpu.sources for name in figures.split()]
        assert sorted(named) == sorted(name for name in FIGURES if figure(gpu, name) is not None), gpu.id
        for name in named:
            title, url = gpu.source_of(name) or ("", "")
            assert title
            assert url.startswith("https://"), gpu.id
        assert gpu.checked == "2026-11-24"


def test_a_figure_that_is_not_known_has_no_source():
    gpu = BY_ID["a10g-24gb"]
    assert gpu.fp16 is None
    assert gpu.source_of("fp16") is None


def test_the_file_names_no_source_in_vain():
    content = json.loads(FILE.read_text(encoding="utf-8"))
    used = {key for row in content["gpus"] for key in row["from"] if not key.startswith("tpu:")}
    assert used == set(content["sources"])


def test_ids_are_unique_and_say_the_memory():
    assert len(BY_ID) == len(ROWS)
    for gpu in ROWS:
        assert gpu.id.endswith(f"-{gpu.memory_bytes // GIB}gb")
        assert gpu.id == gpu.id.lower()


def test_no_id_name_or_alias_means_two_rows():
    known = {}
    for gpu in ROWS:
        for spelling in (gpu.id, gpu.name, *gpu.aliases):
            assert known.setdefault(room._plain(spelling), gpu.id) == gpu.id, spelling
            assert find_gpu(spelling) is gpu


def test_usable_memory_is_below_the_nominal_in_gib_and_mostly_above_it_in_gb():
    """The vendors' GB is a GiB: what a driver reports is more than so many 10^9 bytes."""
    above = 0
    for gpu in ROWS:
        assert gpu.memory_unit == "GiB"
        if gpu.usable_bytes is not None:
            assert 0.9 * gpu.memory_bytes < gpu.usable_bytes <= gpu.memory_bytes, gpu.id
            assert gpu.usable_from in USABLE_FROM, gpu.id
            above += gpu.usable_bytes > gpu.memory_bytes // GIB * 10**9
        else:
            assert gpu.usable_from is None
    known = [gpu for gpu in ROWS if gpu.usable_bytes]
    assert len(known) >= 25
    assert above >= len(known) - 3


# 10^12 FLOP/s with 2:4 sparsity as the vendors print them, typed from their pages and not from the file.
SPARSE: dict[str, dict[str, float]] = {
    "a100-sxm-80gb": {"tf32": 312, "fp16": 624, "bf16": 624},
    "a100-pcie-40gb": {"tf32": 312, "fp16": 624, "bf16": 624},
    "a10-24gb": {"fp16": 250, "bf16": 250},
    "a40-48gb": {"bf16": 299.4},
    "l4-24gb": {"tf32": 120, "fp16": 242, "bf16": 242, "fp8": 485},
    "l40s-48gb": {"tf32": 366, "bf16": 733, "fp8": 1466},
    "h100-sxm-80gb": {"tf32": 989, "fp16": 1979, "bf16": 1979, "fp8": 3958},
    "h100-pcie-80gb": {"tf32": 756, "bf16": 1513, "fp8": 3026},
    "h100-nvl-94gb": {"bf16": 1671},
    "h200-sxm-141gb": {"bf16": 1979, "fp8": 3958},
    "b200-180gb": {"tf32": 2250, "bf16": 4500, "fp8": 9000},
    "gb200-186gb": {"tf32": 2500, "bf16": 5000, "fp8": 10000},
    "rtx-a6000-48gb": {"bf16": 309.6},
    "rtx-6000-ada-48gb": {"bf16": 728},
    "rtx-3090-24gb": {"bf16": 142.4},
    "rtx-4090-24gb": {"fp16": 330.4, "bf16": 330.4, "fp8": 660.6},
    "rtx-5090-32gb": {"fp16": 419, "bf16": 419, "fp8": 838},
    "mi300x-192gb": {"bf16": 2614.9, "fp8": 5229.8},
    "mi355x-288gb": {"bf16": 5000, "fp8": 10100},
}


@pytest.mark.parametrize("name", SPARSE)
def test_peaks_are_dense_half_of_what_is_printed_as_sparse(name: str):
    gpu = find_gpu(name)
    for dtype, sparse in SPARSE[name].items():
        assert figure(gpu, dtype) == pytest.approx(sparse * 1e12 / 2, rel=0.015), dtype


def test_peaks_rise_as_the_type_gets_narrower():
    for gpu in ROWS:
        peaks = [peak for peak in (gpu.fp32, gpu.tf32, gpu.bf16 or gpu.fp16, gpu.fp8) if peak]
        assert peaks == sorted(peaks), gpu.id
        if gpu.fp16 and gpu.bf16:
            assert gpu.fp16 == gpu.bf16, gpu.id


# fp16 with FP32 accumulate over fp32, as whitepapers print it for one card of the architecture.
RATIO = {("Turing", "fp16"): 53.8 / 13.45, ("Ampere", "fp16"): 71.2 / 35.6, ("Ada", "fp16"): 165.2 / 82.6}
RATIO |= {("Blackwell", "fp16"): 209.5 / 104.8, ("Ada", "fp8"): 330.3 / 82.6, ("Blackwell", "fp8"): 419 / 104.8}
WORKSTATION = 154.8 / 38.7  # RTX A6000


def test_derived_peaks_follow_from_fp32_by_a_printed_ratio():
    seen = 0
    for gpu in ROWS:
        for dtype in set(gpu.derived) & {"fp16", "bf16", "fp8"}:
            ratio = RATIO[str(gpu.architecture), "fp8" if dtype == "fp8" else "fp16"]
            if gpu.id.startswith("rtx-a"):
                ratio = WORKSTATION
            assert figure(gpu, dtype) == pytest.approx(ratio * (gpu.fp32 or 0), rel=0.002), gpu.id
            seen += 1
    assert seen > 60


# Facts, typed from the publications and not from the file.
PUBLISHED: dict[str, dict[str, Any]] = {
    # NVIDIA A100 datasheet
    "a100-sxm-80gb": {"bandwidth": 2039 * 10**9, "power": 400, "capability": "8.0", "fp32": 195 * 10**11},
    "a100-pcie-80gb": {"bandwidth": 1935 * 10**9, "power": 300, "usable_bytes": 81049 * 2**20},
    # deviceQuery: 40339 MBytes (42298834944 bytes)
    "a100-sxm-40gb": {"usable_bytes": 42_298_834_944, "bandwidth": 1555 * 10**9},
    "h100-sxm-80gb": {"bandwidth": 3350 * 10**9, "power": 700, "form": "SXM", "memory_bytes": 80 * GIB},
    "t4-16gb": {"fp16": 65 * 10**12, "bf16": None, "power": 70, "capability": "7.5"},
    "l4-24gb": {"power": 72, "bandwidth": 300 * 10**9, "fp16": 121 * 10**12},
    # deviceQuery: 32117 MBytes (33677180928 bytes)
    "rtx-5090-32gb": {"usable_bytes": 33_677_180_928, "bandwidth": 1792 * 10**9, "power": 575, "fp16": 2095 * 10**11},
    # "GPU 0; 23.68 GiB total capacity"
    "rtx-4090-24gb": {"usable_bytes": 25_426_206_392, "usable_from": "runtime2", "bf16": 1652 * 10**11, "power": 450},
    "rtx-3060-12gb": {"memory_bytes": 12 * GIB, "bandwidth": 360 * 10**9, "power": 170},
    "gtx-1080-ti-11gb": {"fp16": None, "tf32": None, "capability": "6.1", "memory_bytes": 11 * GIB},
    "mi300x-192gb": {"vendor": "AMD", "capability": None, "form": "OAM", "bandwidth": 5300 * 10**9},
    "mi250x-64gb": {"memory_bytes": 64 * GIB, "bf16": 1915 * 10**11},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_says_what_was_published(name: str):
    gpu = find_gpu(name)
    assert {field: getattr(gpu, field) for field in PUBLISHED[name]} == PUBLISHED[name]


def test_the_file_stays_small():
    content = json.dumps(json.loads(FILE.read_text(encoding="utf-8")), separators=(",", ":"))
    assert len(gzip.compress(content.encode())) < 7500


# The look-up


@pytest.mark.parametrize(
    ("typed", "gpu"),
    [
        # as torch.cuda.get_device_name() prints them
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA H100 NVL", "h100-nvl-94gb"),
        ("NVIDIA H200", "h200-sxm-141gb"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
        ("NVIDIA B200", "b200-180gb"),
        ("Tesla T4", "t4-16gb"),
        ("Tesla V100-SXM2-16GB", "v100-sxm-16gb"),
        ("Tesla P100-PCIE-16GB", "p100-pcie-16gb"),
        ("NVIDIA A10G", "a10g-24gb"),
        ("NVIDIA L40S", "l40s-48gb"),
        ("NVIDIA RTX A6000", "rtx-a6000-48gb"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada-48gb"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000-blackwell-server-96gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090-24gb"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "rtx-4070-ti-super-16gb"),
        ("GeForce GTX 1080 Ti", "gtx-1080-ti-11gb"),
        ("AMD Instinct MI300X", "mi300x-192gb"),
        ("AMD Radeon RX 7900 XTX", "rx-7900-xtx-24gb"),
        # as people write them
        ("A100 80GB SXM", "a100-sxm-80gb"),
        ("a100sxm80gb", "a100-sxm-80gb"),
        ("A100-PCIe-40", "a100-pcie-40gb"),
        ("4090", "rtx-4090-24gb"),
        ("rtx4090", "rtx-4090-24gb"),
        ("RTX 3080 12 GB", "rtx-3080-12gb"),
        ("4060 ti 16gb", "rtx-4060-ti-16gb"),
        ("l40", "l40-48gb"),
        ("h200 nvl", "h200-nvl-141gb"),
        ("mi250x", "mi250x-64gb"),
    ],
)
def test_a_gpu_is_found_however_it_is_spelled(typed: str, gpu: str):
    assert find_gpu(typed).id == gpu


@pytest.mark.parametrize(
    ("typed", "fits"),
    [
        ("a100", ["a100-sxm-40gb", "a100-sxm-80gb", "a100-pcie-40gb", "a100-pcie-80gb"]),
        ("A100 40GB", ["a100-sxm-40gb", "a100-pcie-40gb"]),
        ("A100 PCIe", ["a100-pcie-40gb", "a100-pcie-80gb"]),
        ("h100", ["h100-sxm-80gb", "h100-pcie-80gb", "h100-nvl-94gb"]),
        ("RTX 3080", ["rtx-3080-10gb", "rtx-3080-12gb"]),
        ("NVIDIA GeForce RTX 5060 Ti", ["rtx-5060-ti-8gb", "rtx-5060-ti-16gb"]),
        ("gh200", ["gh200-96gb", "gh200-141gb"]),
    ],
)
def test_where_variants_differ_none_is_chosen_and_all_are_named(typed: str, fits: list[str]):
    found = problem(typed)
    assert found.field == "gpu"
    assert list(found.nearest) == fits
    assert f"fits {len(fits)} GPUs" in found.message


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("b100", "b200-180gb"),
        ("rtx 4095", "rtx-4090-24gb"),
        ("3060 8gb", "rtx-3060-12gb"),
        ("a100-sxm-8gb", "a100-sxm-80gb"),
    ],
)
def test_a_miss_names_the_nearest(typed: str, nearest: str):
    found = problem(typed)
    assert nearest in found.nearest
    assert len(found.nearest) == 3
    assert all(find_gpu(name).id == name for name in found.nearest)


@pytest.mark.parametrize(
    ("typed", "memory"),
    [
        ("24GiB", 24 * GIB),
        ("24 gib", 24 * GIB),
        ("80GB", 80 * 10**9),
        ("24576MiB", 24 * GIB),
        ("25769803776", 24 * GIB),
        ("25769803776 bytes", 24 * GIB),
        (24 * GIB, 24 * GIB),
        ("1.5TB", 1500 * 10**9),
    ],
)
def test_an_amount_of_memory_is_a_gpu_of_which_nothing_else_is_known(typed: str | int, memory: int):
    gpu = find_gpu(typed)
    assert (gpu.memory_bytes, gpu.usable_bytes, gpu.usable_from) == (memory, memory, "given")
    assert [figure(gpu, name) for name in FIGURES[2:]] == [None] * 8
    assert gpu.sources == ()


@pytest.mark.parametrize("typed", [0, -5, 10**40, "0GB", "1e30GB", "80bb", "1..5GB", "24 pounds", 1000])
def test_no_amount_of_memory(typed: str | int):
    found = problem(typed)
    assert found.field == "gpu"
    assert len(found.message) < 120


@pytest.mark.parametrize("typed", ["", "   ", "---", "🙂", "<script>", "b\x00", "5", "z" * 1_000_000])
def test_nonsense_is_answered_at_once_and_shown_short(typed: str):
    found = problem(typed)
    assert found.nearest == ()  # no three names that share hardly a letter with it
    assert len(found.message) < 120
    assert found.message.isprintable()


@given(st.sampled_from(ROWS), st.data())
def test_case_and_separators_do_not_count(gpu: Gpu, data: st.DataObject):
    parts = gpu.id.split("-")
    typed = "".join(part + data.draw(st.sampled_from(["", " ", "-", "_", " - "])) for part in parts)
    typed = "".join(data.draw(st.sampled_from([letter.upper(), letter])) for letter in typed)
    assert find_gpu(data.draw(st.sampled_from(["", "NVIDIA ", "nvidia-", "GeForce ", " "])) + typed) is gpu


@given(st.text(max_size=30))
def test_any_text_is_a_gpu_or_an_input_error(text: str):
    with contextlib.suppress(InputError):
        assert isinstance(find_gpu(text), Gpu)
