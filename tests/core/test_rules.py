"""Each finding: when it appears, when it does not, and that it holds the person's numbers."""

from __future__ import annotations

import pytest

import gradaccum

BASE = {"micro_batch": 4, "num_gpus": 8, "target_batch": 512}


def found(**inputs):
    plan = gradaccum.plan(**{**BASE, **inputs})
    return {finding.code: finding for finding in plan.findings}


def test_an_exact_plan_says_only_what_accumulation_is():
    assert set(found()) == {"GA005", "GA006"}


def test_drift():
    note = found(target_batch=500)["GA001"]
    assert note.severity == "note"
    assert "500" in note.message
    assert "512" in note.message
    assert "+2.40%" in note.message
    assert "3 x 8 x 21 = 504 (+4)" in note.action
    far = found(micro_batch=64, target_batch=700)["GA001"]  # 512 or 1024: 26.86 % off
    assert far.severity == "warning"
    tokens = found(target_batch=None, target_tokens=1_000_000, sequence_length=2048)["GA001"]
    assert "1,000,000 tokens" in tokens.message
    assert "983,040" in tokens.message  # 480 x 2048


def test_target_below_one_device_batch():
    finding = found(target_batch=10)["GA002"]
    assert finding.severity == "warning"
    assert "4 x 8 = 32" in finding.message
    assert "22 more (+220.00%)" in finding.message
    assert "1 gives 8" in finding.action
    assert "GA003" not in found(target_batch=10)
    assert found(target_batch=5)["GA002"].action == "Use fewer GPUs."
    assert "GA002" not in found(target_batch=10, rounding="exact")
    assert (
        "4 x 8 x 100 = 3,200 tokens"
        in found(target_batch=None, target_tokens=300, sequence_length=100)["GA002"].message
    )


def test_nothing_to_accumulate():
    assert "4 x 8 = 32" in found(target_batch=32)["GA003"].message
    assert "GA005" not in found(target_batch=32)
    assert "GA003" not in found(target_batch=64)


@pytest.mark.parametrize(("target", "severity"), [(31 * 32, None), (32 * 32, "note"), (128 * 32, "warning")])
def test_long_groups_in_bf16_where_the_dtype_is_given(target, severity):
    finding = found(target_batch=target, gradient_dtype="bf16").get("GA004")
    assert (finding and finding.severity) == severity
    assert "GA004" not in found(target_batch=target)
    assert "GA004" not in found(target_batch=target, gradient_dtype="fp32")


def test_what_accumulation_does_not_reproduce_is_said_once():
    plan = gradaccum.plan(**BASE)
    assert [finding.code for finding in plan.findings].count("GA005") == 1
    assert "given a sequence length, the loop does" in found()["GA005"].action
    assert "as the loop for this plan does" in found(sequence_length=2048)["GA005"].action
    text = found()["GA005"].message
    for word in ("tokens of the whole group", "BatchNorm", "in-batch negatives", "MoE"):
        assert word in text


def test_memory():
    assert "one set of gradients is kept" in found()["GA006"].message
    assert "26.1 GiB in fp32 for a whole replica" in found(params="7B")["GA006"].message  # 7e9 x 4 / 2**30 = 26.08
    assert "13 GiB in bf16" in found(params="7B", gradient_dtype="bf16")["GA006"].message


def test_short_last_group_and_what_becomes_of_it():
    step = found(dataset_size=1300, epochs=2)["GA007"]
    assert "276 of 512 samples" in step.message  # 1300 - 2 x 512
    assert "16" in step.action
    drop = found(dataset_size=1300, epochs=2, last_group="drop")["GA007"]
    assert "276 samples fill no group of 512" in drop.message
    carry = found(dataset_size=1300, epochs=2, last_group="carry")["GA007"]
    assert "40 samples" in carry.message  # 2600 - 5 x 512
    assert "GA007" not in found(dataset_size=1024)


def test_supervised_fraction():
    finding = found(sequence_length=2048, supervised_fraction=0.3)["GA008"]
    assert "1,048,576 tokens" in finding.message
    assert "314,572" in finding.message
    assert "GA008" not in found(sequence_length=2048, supervised_fraction=1)


def test_tokens_per_parameter():
    finding = found(sequence_length=2048, token_budget="2T", params="7B")["GA009"]
    assert "285.7 tokens per parameter" in finding.message
    assert "rule of thumb is 20" in finding.message
    assert "from 18 to 59" in finding.message


def test_a_target_of_millions_brings_the_question():
    assert "read as 4,000,000 sequences" in found(target_batch="4M")["GA018"].message
    for target in ("4M tokens", "4k", 4_000_000):
        assert "GA018" not in found(target_batch=target, sequence_length=2048)


def test_no_token_with_loss_is_a_warning():
    assert found(sequence_length=2048, supervised_fraction=0)["GA008"].severity == "warning"


def test_pipeline_bubble():
    inputs = {"num_gpus": 64, "pipeline_parallel": 8, "target_batch": 128}  # 4 micro-batches for 8 stages
    finding = found(**inputs)["GA010"]
    assert "63.64%" in finding.message  # 7 / 11
    assert "from 28 on" in finding.action
    assert "GA010" not in found(**{**inputs, "target_batch": 28 * 32})
    assert "GA010" in found(**{**inputs, "target_batch": 27 * 32})


def test_interleaving():
    finding = found(num_gpus=4, pipeline_parallel=4, virtual_pipeline=2, target_batch=36)["GA011"]
    assert "9 is no multiple of 4" in finding.message
    assert "8 or 12" in finding.action
    assert "GA011" not in found(num_gpus=4, pipeline_parallel=4, virtual_pipeline=2, target_batch=32)


def test_exact():
    assert "20 of 32 samples, at most 3 on a rank" in found(target_batch=500, rounding="exact")["GA012"].message
    idle = found(target_batch=515, rounding="exact")["GA012"].message
    assert "3 of 32 samples; 5 of 8 ranks run one repeated sample with weight 0" in idle
    assert "GA012" not in found(rounding="exact")


def test_a_length_in_thousands_brings_the_question():
    assert "Did you mean 2048?" in found(sequence_length="2k")["GA013"].message
    assert "Did you mean 131072?" in found(sequence_length="128K")["GA013"].message
    for text in ("2000", 2000, "2Ki", "2.5k", "2048"):
        assert "GA013" not in found(sequence_length=text)


def test_an_epoch_shorter_than_an_update():
    assert "300 samples is shorter than one update of 512" in found(dataset_size=300)["GA014"].message
    assert "GA014" not in found(dataset_size=512)


def test_a_budget_without_one_update():
    assert "GA015" in found(sequence_length=2048, token_budget="1M")
    assert "GA015" in found(dataset_size=100, epochs=2, last_group="drop")
    assert "GA015" not in found(sequence_length=2048, token_budget="1.1M")


def test_a_picked_micro_batch():
    finding = found(micro_batch=None, max_micro_batch=7, target_batch=500)["GA016"]
    assert "Micro-batch 7 was picked, of those up to 7" in finding.message  # 7 x 8 x 9 = 504
    assert finding.severity == "note"
    far = found(micro_batch=None, max_micro_batch=24, target_batch=None, target_tokens="0.5M", sequence_length=1024)
    assert far["GA016"].severity == "warning"  # 1 x 8 x 61, where 24 fit
    assert "24 x 8 x 3 = 576 would drift by 17.96%" in far["GA016"].message  # 589,824 tokens
    assert "GA016" not in found(max_micro_batch=7)
    assert "GA016" not in found(micro_batch=None, max_micro_batch=7, accum_steps=16)


def test_a_warm_up_as_long_as_the_run():
    assert "GA017" in found(updates=100, warmup_updates=100)
    assert "GA017" not in found(updates=100, warmup_updates=99)


def test_a_warm_up_of_an_unknown_run():
    assert "3.00%" in found(warmup_fraction="3%")["GA019"].message
    assert "GA019" not in found(warmup_fraction="3%", updates=100)


def test_warnings_come_first():
    plan = gradaccum.plan(**{**BASE, "target_batch": 500}, dataset_size=100, updates=5, warmup_updates=9)
    severities = [finding.severity for finding in plan.findings]
    assert severities == sorted(severities, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [32, 128, 1024])
def test_the_bf16_law_is_what_torch_does(steps):
    """Sum noise in bf16 with torch and compare with float64: within a quarter of 0.0012 x sqrt(k)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(steps, 20_000, generator=generator, dtype=torch.float64).to(torch.bfloat16)
    total = torch.zeros(20_000, dtype=torch.bfloat16)
    for gradient in gradients:
        total += gradient
    truth = gradients.double().sum(0)
    error = ((total.double() - truth).norm() / truth.norm()).item()
    assert error == pytest.approx(0.0012 * steps**0.5, rel=0.25)
