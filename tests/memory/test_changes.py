"""What would make it fit: each change applied, and asked anew."""

from __future__ import annotations

from typing import Any

import pytest

import gradaccum
from gradaccum.memory.changes import GPUS

TOO_LARGE: list[dict[str, Any]] = [
    {"model": "llama-3.1-8b", "gpu": "rtx-4090", "sequence_length": 2048},
    {"model": "gpt2-xl", "gpu": "8GiB", "sequence_length": 1024, "dtype": "bf16-mixed"},
    {"model": "llama-3.1-70b", "gpu": "h100-sxm-80gb", "num_gpus": 8, "strategy": "fsdp2"},
    {"model": "llama-3.1-70b", "gpu": "t4"},
    {"model": "qwen2.5-7b", "gpu": "rtx-3060-12gb", "quantization": "int8", "lora_rank": 8, "sequence_length": 8192},
    {"model": "qwen3-30b-a3b", "gpu": "a100-sxm-80gb"},
    {"model": "llama-3.2-1b", "gpu": "rtx-3060-12gb", "sequence_length": 1024, "optimizer": "adamw"},
]


@pytest.mark.parametrize("how", TOO_LARGE, ids=lambda how: f"{how['model']} on {how['gpu']}")
def test_every_change_is_what_it_says(how: dict[str, Any]):
    found = gradaccum.fit(**how)
    assert found.max_micro_batch == 0
    for change in found.changes:
        changed = gradaccum.fit(**{**how, **dict(change.values)})
        assert (changed.max_micro_batch > 0) == change.fits, change
        at_one = next(memory for micro_batch, memory in changed.curve if micro_batch == 1)
        assert found.memory.peak_bytes - at_one.peak_bytes == change.bytes > 0


@pytest.mark.parametrize("how", TOO_LARGE, ids=lambda how: f"{how['model']} on {how['gpu']}")
def test_fewer_gpus_would_not_do(how: dict[str, Any]):
    mine = how.get("num_gpus", 1)
    for change in gradaccum.fit(**how).changes:
        gpus = int(str(dict(change.values).get("num_gpus", 0)))
        if change.fits and gpus > mine * GPUS[0]:
            assert gradaccum.fit(**{**how, **dict(change.values), "num_gpus": gpus // 2}).max_micro_batch == 0


def words(**how: Any) -> list[str]:
    return [change.words for change in gradaccum.fit(**how).changes if change.fits]


def test_the_smallest_change_of_the_result_comes_first():
    """One that leaves the result alone, then adapters, then quantised weights; pairs, since none suffices alone."""
    found = words(**TOO_LARGE[0])
    kinds = ["fsdp2", "8-bit", "LoRA of rank 16", "nf4 weights"]
    places = [min(place for place, each in enumerate(found) if kind in each) for kind in kinds]
    assert places == sorted(places)
    assert "full checkpointing, and LoRA of rank 16" in found
    assert "full checkpointing, and nf4 weights with LoRA of rank 16" in found


def test_no_pairs_where_one_change_suffices_on_the_same_gpus():
    needs_little = {"model": "llama-3.2-1b", "gpu": "10 GiB", "sequence_length": 2048}
    found = gradaccum.fit(**needs_little)
    assert found.max_micro_batch == 0
    assert [change for change in found.changes if change.fits]
    assert not [change for change in found.changes if ", and " in change.words]


def test_where_something_fits_nothing_of_the_result_is_proposed():
    found = gradaccum.fit(model="llama-3.2-1b", gpu="rtx-4090", sequence_length=1024)
    assert found.changes
    assert all(change.fits for change in found.changes)
    assert not [change for change in found.changes if "LoRA" in change.words or "num_gpus" in dict(change.values)]


def test_nothing_suffices_is_said():
    found = gradaccum.fit(model="llama-3.1-70b", gpu="t4")
    assert not any(change.fits for change in found.changes)
    assert found.findings[0].action.startswith(
        "Most would bring, and not suffice, full checkpointing, and fsdp2 over 128"
    )
