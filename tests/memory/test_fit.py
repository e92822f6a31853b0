"""The search against every micro-batch tried, and the answer's own arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradaccum.catalog.gpus import find_gpu, gpus
from gradaccum.catalog.models import find_model
from gradaccum.errors import InputError
from gradaccum.memory.fit import fit, memory_of
from gradaccum.memory.ledger import total
from gradaccum.memory.setup import Setup

SMALL = find_model("llama-3.2-1b")


@settings(max_examples=40)
@given(st.sampled_from(gpus()), st.sampled_from([1024, 4096]), st.sampled_from(["none", "full"]))
def test_the_largest_is_the_largest(gpu, length, checkpointing):
    setup = Setup(model=SMALL, sequence_length=length, checkpointing=checkpointing)
    found = fit(setup, gpu)
    memories = [memory_of(setup.with_micro_batch(each), gpu) for each in range(1, 200)]
    for largest, needed in (
        (found.max_micro_batch, "process_bytes"),
        (found.surely, "process_high_bytes"),
        (found.at_best, "process_low_bytes"),
    ):
        fitting = [each for each, memory in enumerate(memories, 1) if getattr(memory, needed) <= memory.capacity_bytes]
        assert largest == max(fitting, default=0) or largest >= 199
    assert found.surely <= found.max_micro_batch <= found.at_best


def test_the_plan_keeps_the_target():
    """8 where 9 fit and 64 is wanted."""
    setup = Setup(model=SMALL, sequence_length=1024)
    capacity = memory_of(setup.with_micro_batch(9), find_gpu("24GiB")).process_bytes
    found = fit(setup, find_gpu(f"{capacity} bytes"), 64)
    assert found.max_micro_batch == 9
    assert (found.setup.micro_batch, found.plan.accum_steps, found.plan.effective_batch) == (8, 8, 64)
    assert found.memory == memory_of(setup.with_micro_batch(8), found.gpu)


@pytest.mark.parametrize(
    ("target", "how", "plan"),
    [
        (1, {}, (1, 1, 1)),
        (3, {}, (3, 1, 3)),
        (13, {"num_gpus": 4, "strategy": "fsdp2"}, (3, 1, 12)),
        (16, {"num_gpus": 8, "strategy": "ddp", "tensor_parallel": 2}, (4, 1, 16)),
        (1, {"num_gpus": 8, "strategy": "ddp"}, (1, 1, 8)),
    ],
)
def test_a_target_far_below_what_fits_is_not_passed(target, how, plan):
    """Checked by trying all: no plan of these GPUs comes nearer to the target."""
    found = fit(Setup(model=SMALL, sequence_length=128, **how), find_gpu("b200-180gb"), target)
    assert found.max_micro_batch > 100
    made = found.plan
    assert (made.micro_batch, made.accum_steps, made.effective_batch) == plan
    ranks = made.data_parallel
    gaps = [abs(size * ranks * steps - target) for size in range(1, 101) for steps in range(1, 101)]
    assert abs(made.effective_batch - target) == min(gaps)


def test_the_json_adds_up():
    found = fit(Setup(model=SMALL, sequence_length=1024), find_gpu("rtx-4090"), 64).to_dict()
    memory = found["memory"]
    assert sum(line["bytes"] for line in memory["ledger"]) == memory["peak_bytes"]
    assert memory["peak_bytes"] + sum(each["bytes"] for each in memory["outside"]) == memory["process_bytes"]
    assert memory["low_bytes"] < memory["peak_bytes"] < memory["high_bytes"]
    assert memory["process_low_bytes"] < memory["process_bytes"] < memory["process_high_bytes"]
    (point,) = [each for each in found["curve"] if each["micro_batch"] == found["max_micro_batch"]]
    assert point["process_bytes"] <= memory["capacity_bytes"]
    assert found["engine"] == "closed form"
    assert found["evidence"]["regime"] == "bf16, flash attention, one GPU"
    assert sorted(found["evidence"]) == ["cases", "margin", "regime", "words", "worst_percent"]
    assert found["plan"]["effective_batch"] == 64


def test_nothing_fits():
    found = fit(Setup(model=find_model("llama-3.1-70b"), sequence_length=2048), find_gpu("t4"), 64)
    assert (found.max_micro_batch, found.plan, found.to_dict()["micro_batch"]) == (0, None, None)
    assert found.memory.verdict == "does not fit"
    assert found.findings[0].code == "GA020"
    assert "less" in found.findings[0].action


def test_a_verdict_that_its_own_margin_does_not_bear_is_marginal():
    setup = Setup(model=SMALL, sequence_length=1024, micro_batch=2)
    memory = memory_of(setup, find_gpu("24GiB"))
    for capacity, verdict in (
        (memory.process_high_bytes, "fits"),
        (memory.process_high_bytes - 1, "marginal"),
        (memory.process_bytes, "marginal"),
        (memory.process_bytes - 1, "does not fit"),
    ):
        assert memory_of(setup, find_gpu(f"{capacity} bytes")).verdict == verdict
    found = fit(setup, find_gpu(f"{memory.process_bytes} bytes"))
    assert "GA021" in [finding.code for finding in found.findings]


def test_what_would_buy_most_comes_first_and_is_true():
    setup = Setup(model=SMALL, sequence_length=2048, num_gpus=8, strategy="ddp", attention="eager")
    found = fit(setup, find_gpu("a100-sxm-80gb"))
    saved = [change.bytes for change in found.changes]
    assert saved == sorted(saved, reverse=True)
    assert saved[-1] > 0
    by_words = {change.words.partition(":")[0]: change.bytes for change in found.changes}
    checkpointed = memory_of(found.setup.changed("checkpointing", "full"), found.gpu)
    assert by_words["full checkpointing"] == found.memory.peak_bytes - checkpointed.peak_bytes
    assert "FSDP2" in by_words


def test_a_card_whose_usable_memory_is_not_known_is_said():
    unknown = next(gpu for gpu in gpus() if gpu.usable_bytes is None)
    found = fit(Setup(model=SMALL, sequence_length=128, checkpointing="full"), unknown)
    assert found.memory.capacity_bytes == unknown.memory_bytes
    assert "GA023" in [finding.code for finding in found.findings]


def test_experts_are_told_how_tokens_are_spread():
    setup = Setup(model=find_model("qwen3-30b-a3b"), sequence_length=512, checkpointing="full")
    (finding,) = [each for each in fit(setup, find_gpu("h200")).findings if each.code == "GA030"]
    assert "8 of 128 experts" in finding.message
    assert "GA030" not in [each.code for each in fit(Setup(model=SMALL, sequence_length=8), find_gpu("t4")).findings]


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_accumulation_costs_in_every_instant_of_the_backward_pass(checkpointing):
    """Long sequences and eager attention: the peak is in a layer, and the earlier gradients are there as well."""
    setup = Setup(model=SMALL, sequence_length=8192, attention="eager", checkpointing=checkpointing)
    found = fit(setup, find_gpu("h200"))
    assert found.memory.peak_at in ("backward of the last layer", "recomputation")
    (finding,) = [each for each in found.findings if each.code == "GA022"]
    assert "2.3 GiB" in finding.message


def test_what_would_buy_has_every_kind_of_change():
    """Each with the bytes by which the peak at this micro-batch falls."""
    setup = Setup(model=SMALL, sequence_length=1024, gradient_dtype="fp32", attention="eager")
    found = fit(setup, find_gpu("a100-sxm-80gb"))
    words = " ".join(change.words for change in found.changes)
    for each in ("full checkpointing", "selective", "8-bit", "chunks", "Liger", "fused attention", "weights' type"):
        assert each in words
    fused = next(change for change in found.changes if "Liger" in change.words)
    with_it = memory_of(found.setup.changed("loss", "fused"), found.gpu)
    assert fused.bytes == found.memory.peak_bytes - with_it.peak_bytes


def test_absurd_sizes_are_answered():
    found = fit(Setup(model=SMALL, sequence_length=10**15), find_gpu("b200"))
    assert found.max_micro_batch == 0
    for name, value in (("sequence_length", 0), ("micro_batch", -1), ("dtype", "bf8"), ("optimizer", "adam")):
        with pytest.raises(InputError, match=name):
            Setup(**{"model": SMALL, "sequence_length": 8, name: value})
    with pytest.raises(InputError, match="strategy: is single"):
        Setup(model=SMALL, sequence_length=8, num_gpus=2)


def test_a_ledger_is_the_sum_of_its_lines():
    memory = memory_of(Setup(model=SMALL, sequence_length=64), find_gpu("t4"))
    assert memory.peak_bytes == total(memory.ledger) == sum(line.bytes for line in memory.ledger)
    assert memory.reserved_bytes == memory.peak_bytes + memory.peak_bytes * 6 // 100


@pytest.mark.parametrize(
    ("dtype", "gpu", "math"), [("fp32", "h200", True), ("bf16", "h200", False), ("fp16", "t4", True)]
)
def test_a_kernel_that_there_is_none_of_is_said(dtype, gpu, math):
    """Grouped queries in fp32, or on an old card: the scores of every head are kept in fp32, and it is told."""
    setup = Setup(model=SMALL, sequence_length=512, dtype=dtype)
    found = fit(setup, find_gpu(gpu))
    assert ("GA031" in [finding.code for finding in found.findings]) is math
    kept, efficient = (
        next(line.bytes for line in memory_of(each, found.gpu).ledger if line.name == "activations")
        for each in (setup.with_micro_batch(4), setup.changed("attention", "efficient").with_micro_batch(4))
    )
    scores = 16 * 4 * 512 * 4 * 32 * 512
    assert (kept > efficient + 0.9 * scores) is math


def test_queries_that_are_not_grouped_have_a_kernel_everywhere():
    setup = Setup(model=find_model("gpt2"), sequence_length=512, dtype="fp32")
    assert "GA031" not in [finding.code for finding in fit(setup, find_gpu("t4")).findings]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_number_of_micro_steps_that_is_given_is_the_plans(steps):
    found = fit(Setup(model=SMALL, sequence_length=256, accum_steps=steps), find_gpu("a100-sxm-80gb"), 16)
    assert (found.plan.accum_steps, found.plan.micro_batch, found.setup.micro_batch) == (
        steps,
        16 // steps,
        16 // steps,
    )
    codes = [finding.code for finding in found.findings]
    assert ("GA022" in codes) == ("gradients" in [line.name for line in found.memory.ledger]) == (steps > 1)


def test_micro_steps_whose_share_does_not_fit_are_refused_with_the_fewest_that_do():
    setup, gpu = Setup(model=SMALL, sequence_length=1024), find_gpu("24GiB")
    with pytest.raises(
        InputError, match="accum_steps: is 1, with which 64 sequences need a micro-batch of 64"
    ) as raised:
        fit(setup.changed("accum_steps", 1), gpu, 64)
    (nearest,) = (int(each) for each in raised.value.problems[0].nearest)
    assert fit(setup.changed("accum_steps", nearest), gpu, 64).plan.accum_steps == nearest
    with pytest.raises(InputError, match="accum_steps"):
        fit(setup.changed("accum_steps", nearest // 2), gpu, 64)


def test_one_micro_step_is_taken_where_all_of_the_target_fits_in_it():
    """4 fit where no gradient of an earlier micro-step is there, and 3 where one is."""
    setup, gpu = Setup(model=SMALL, sequence_length=1024), find_gpu("24GiB")
    assert fit(setup, gpu).max_micro_batch == 3
    found = fit(setup, gpu, 4)
    assert (found.plan.micro_batch, found.plan.accum_steps, found.max_micro_batch) == (4, 1, 4)
    assert found.memory == memory_of(setup.with_values({"accum_steps": 1, "micro_batch": 4}), gpu)
    assert not found.setup.accumulates
    assert "GA022" not in [finding.code for finding in found.findings]
    assert fit(setup, gpu, 8).setup.accumulates


@pytest.mark.parametrize(
    ("name", "length", "words"),
    [
        ("gpt2", 4096, "longer than the 1,024 that GPT-2 124M's config names, and it has no position beyond"),
        ("llama-2-7b", 8192, "longer than the 4,096"),
        ("vit-b-16", 2048, "makes 197 tokens of an image"),
        ("gpt2", 1024, None),
        ("vit-b-16", 197, None),
    ],
)
def test_a_sequence_that_the_model_does_not_reach_is_said(name, length, words):
    found = fit(Setup(model=find_model(name), sequence_length=length), find_gpu("h200"))
    said = [each.message for each in found.findings if each.code == "GA032"]
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


@pytest.mark.parametrize(
    ("values", "words"),
    [({"lora_targets": "attention"}, "lora_rank is 0"), ({"reduce_dtype": "fp32"}, "belongs to fsdp2 and hsdp")],
)
def test_an_option_without_what_it_belongs_to_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        Setup(model=find_model("gpt2"), sequence_length=1024, **values)
