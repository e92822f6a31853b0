"""What the loop of docs/accumulator.md sends and holds beside the loop by hand, to the byte; and every loop runs."""

from __future__ import annotations

import pytest

from benchmarks.bench_overhead import BASE, MORE_HELD, MORE_SENT, OURS, costs, seconds

pytestmark = pytest.mark.slow


def test_it_sends_what_the_loop_by_hand_sends_and_at_most_64_bytes_more_and_holds_as_much():
    found = costs()
    assert found["apart"] < 1e-6
    updates, hand, own = found["updates"], found["loops"][BASE], found["loops"][OURS]
    assert hand["pass_bytes"] == updates * (found["gradient_bytes"] + 8 + 4)  # the gradients once, tokens, the loss
    assert own["first_pass_bytes"] <= hand["first_pass_bytes"] + updates * MORE_SENT
    assert own["pass_bytes"] <= hand["pass_bytes"] + updates * MORE_SENT
    assert own["pass_bytes"] > updates * found["gradient_bytes"]
    assert hand["peak_bytes"] > found["gradient_bytes"]
    assert own["peak_bytes"] <= hand["peak_bytes"] + MORE_HELD


def test_all_loops_train_the_same_parameters():
    found = seconds(1)
    assert set(found) == {"AdamW", "fused AdamW"}
    for each in found.values():
        assert all(len(times) == 1 and times[0] > 0 for times in each["seconds"].values())
        assert {name for name, apart in each["apart"].items() if apart > 1e-5} == set()
        assert {"Accelerate", "Fabric", "Lightning Trainer", "HF Trainer"} < set(each["apart"])
