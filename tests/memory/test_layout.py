"""Which layouts go together, what is said about the others, and what changing one would bring."""

from __future__ import annotations

import pytest

from gradaccum import fit
from gradaccum.catalog.gpus import find_gpu
from gradaccum.catalog.models import find_model
from gradaccum.errors import InputError
from gradaccum.memory.fit import memory_of
from gradaccum.memory.layout import near_divisors, with_default_strategy
from gradaccum.memory.ranks import layout_words, sharing_ranks
from gradaccum.memory.setup import Setup

LLAMA = find_model("llama-3.1-8b")


def setup(**how):
    return Setup(**{"model": LLAMA, "sequence_length": 1024, **how})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"num_gpus": 2}, "strategy: is single, which is one data-parallel rank, not 2; nearest: ddp or fsdp2"),
        ({"num_gpus": 12, "tensor_parallel": 8, "strategy": "ddp"}, r"num_gpus: is 12, but .*\(tensor 8\).*8 or 16"),
        ({"virtual_pipeline": 2}, "virtual_pipeline: interleaves pipeline stages, but pipeline_parallel is 1"),
        ({"num_gpus": 3, "tensor_parallel": 3}, "tensor_parallel: is 3, which .* heads of 32.* 2 or 4"),
        (
            {"num_gpus": 5, "pipeline_parallel": 5},
            "pipeline_parallel: is 5, which .* 32 layers.* 4 or 8",
        ),
        (
            {"num_gpus": 4, "pipeline_parallel": 4, "virtual_pipeline": 3},
            "pipeline_parallel: is 4 x 3 virtual stages, which does not divide the model's 32 layers",
        ),
        (
            {"num_gpus": 4, "context_parallel": 4, "strategy": "fsdp2", "sequence_length": 1001},
            "sequence_length: is 1,001; context parallelism cuts it into 8 equal parts; nearest: 1000 or 1008",
        ),
        (
            {"num_gpus": 2, "context_parallel": 2, "strategy": "ddp", "attention": "eager"},
            "attention: is eager, and context parallelism needs a fused kernel",
        ),
        ({"num_gpus": 2, "strategy": "ddp", "expert_parallel": 2}, "expert_parallel: is 2, and .* has no experts"),
        (
            {"model": find_model("mixtral-8x7b"), "num_gpus": 12, "strategy": "ddp", "expert_parallel": 3},
            "expert_parallel: is 3, which must divide 8 experts and 12 ranks; nearest: 2 or 4",
        ),
        ({"sequence_parallel": True}, "sequence_parallel: .* tensor_parallel is 1"),
        ({"num_gpus": 8, "strategy": "hsdp"}, "shard_size: is needed beside hsdp.*nearest: 8"),
        ({"num_gpus": 12, "strategy": "hsdp", "shard_size": 8}, "shard_size: is 8, which does not divide 12.* 6 or 12"),
        ({"num_gpus": 8, "strategy": "ddp", "shard_size": 8}, "shard_size: belongs to hsdp; ddp has no groups"),
        (
            {"num_gpus": 8, "strategy": "zero2", "reduce": "last"},
            "reduce: is last, which zero2 cannot do",
        ),
        ({"num_gpus": 8, "strategy": "zero1", "reduce": "every"}, "reduce: is every, which zero1 cannot do"),
        (
            {"num_gpus": 8, "strategy": "fsdp2", "distributed_optimizer": True},
            "distributed_optimizer: shares",
        ),
        ({"num_gpus": 8, "strategy": "fsdp2", "gradient_as_bucket_view": True}, "gradient_as_bucket_view: belongs to"),
        ({"num_gpus": 8, "strategy": "ddp", "reshard_after_forward": False}, "reshard_after_forward: belongs to fsdp2"),
        ({"tensor_parallel": 0}, "tensor_parallel: must be at least 1, not 0"),
        ({"strategy": "zero"}, "strategy: is one of single, ddp, zero1, .*nearest: zero1 or zero2 or zero3"),
    ],
)
def test_what_does_not_go_together(how, message):
    with pytest.raises(InputError, match=message):
        setup(**how)


def test_the_ranks_that_share():
    """Data and context-parallel ranks together (torchtitan's parallel_dims.py), under HSDP those of a group."""
    assert sharing_ranks(setup(num_gpus=32, tensor_parallel=2, context_parallel=4, strategy="fsdp2")) == 16
    assert sharing_ranks(setup(num_gpus=32, strategy="hsdp", shard_size=8)) == 8
    assert setup(num_gpus=32, tensor_parallel=2, context_parallel=4, strategy="fsdp2").data_parallel == 4


def test_every_group_of_ranks_has_a_communicator():
    def nccl(**how):
        memory = memory_of(setup(**how), find_gpu("h100-sxm-80gb"))
        return [each.expected // 2**20 for each in memory.outside if each.name == "NCCL"]

    assert nccl() == []
    assert nccl(num_gpus=8, strategy="fsdp2") == nccl(num_gpus=8, tensor_parallel=8) == [620]
    assert (
        nccl(num_gpus=8, strategy="hsdp", shard_size=4) == nccl(num_gpus=8, tensor_parallel=2, strategy="ddp") == [1240]
    )
    assert nccl(num_gpus=16, tensor_parallel=2, pipeline_parallel=4, strategy="zero1") == [3 * 620]


def test_several_ranks_are_ddp_if_nothing_is_said():
    assert with_default_strategy({"num_gpus": 8})["strategy"] == "ddp"
    assert "strategy" not in with_default_strategy({"num_gpus": 8, "tensor_parallel": 8})
    assert with_default_strategy({"num_gpus": 8, "strategy": "zero3"})["strategy"] == "zero3"
    assert "strategy" not in with_default_strategy({"num_gpus": "many"})


def test_the_divisors_next_to_a_number():
    for count in range(1, 60):
        for wanted in range(1, 80):
            divisors = [each for each in range(1, count + 1) if count % each == 0]
            below, above = [d for d in divisors if d <= wanted], [d for d in divisors if d > wanted]
            assert near_divisors(count, wanted) == [str(each) for each in (*below[-1:], *above[:1])]
    assert near_divisors(10**40 + 1, 10**20) == []


def test_the_layout_in_words():
    assert layout_words(setup()) == []
    assert layout_words(setup(num_gpus=16, strategy="hsdp", shard_size=8, reshard_after_forward=False)) == [
        "hsdp in groups of 8", "not resharded after forward",
    ]  # fmt: skip
    both = setup(
        num_gpus=16, strategy="fsdp2", tensor_parallel=2, sequence_parallel=True, reduce="last", reduce_dtype="fp32"
    )
    assert layout_words(both) == [
        "fsdp2 over 8 ranks", "tensor parallel 2", "sequence parallel", "gradients reduced at the last micro-step",
        "in fp32",
    ]  # fmt: skip


def changes(**how):
    found = fit(model="llama-3.2-1b", gpu="h100-sxm-80gb", sequence_length=1024, num_gpus=8, **how)
    return {change.words.partition(":")[0]: change.bytes for change in found.changes}, found


def test_what_another_layout_would_bring():
    brought, found = changes(optimizer="sgd-momentum", checkpointing="full", loss="fused")
    assert brought["FSDP2"] > 0
    every = "gradient_as_bucket_view, and gradients reduced at every micro-step"
    changed = found.setup.with_values({"gradient_as_bucket_view": True, "reduce": "every"})
    assert brought[every] == found.memory.peak_bytes - memory_of(changed, found.gpu).peak_bytes > 2 * 10**9
    assert "ZeRO-3 instead of 2" in changes(strategy="zero2")[0]
    assert "reshard after forward" in changes(strategy="fsdp2", reshard_after_forward=False)[0]
    assert "gradients reduced at every micro-step" in changes(strategy="fsdp2", reduce="last")[0]
    assert "FSDP2 over all ranks instead of groups" in changes(strategy="hsdp", shard_size=2)[0]
    brought, _ = changes(tensor_parallel=2)
    assert {"sequence parallel", "Megatron's distributed optimizer"} <= set(brought)


def remark(**how):
    found = fit(model="llama-3.2-1b", gpu="h100-sxm-80gb", sequence_length=1024, num_gpus=8, strategy="fsdp2", **how)
    return next(each for each in found.findings if each.code == "GA022"), found


def test_both_sides_of_a_reduction_are_said():
    """1,235,814,400 parameters in bf16 on 8 ranks: 2.3 GiB whole, an eighth as a shard, seven eighths sent."""
    every, _ = remark()
    assert every.message.startswith("Accumulation costs 295 MiB here")
    assert "they would be 2.3 GiB, and every rank would send 2.01 GiB less" in every.action
    last, found = remark(reduce="last")
    assert "Accumulation costs 2.3 GiB here: with no reduction before the last micro-step" in last.message
    assert "its shard of them is 295 MiB" in last.message
    assert "every rank sends 2.01 GiB more in each micro-step but the last" in last.action
    assert "unsharded gradients" in [line.name for line in found.memory.ledger]


def test_zero3_keeps_gradients_whether_it_accumulates_or_not():
    found = fit(model="llama-3.2-1b", gpu="h100-sxm-80gb", sequence_length=1024, num_gpus=8, strategy="zero3")
    assert "GA022" not in [finding.code for finding in found.findings]


def test_the_plan_divides_the_world():
    found = fit(
        model="llama-3.1-8b", gpu="h100-sxm-80gb", sequence_length=4096, num_gpus=32, tensor_parallel=2,
        pipeline_parallel=2, strategy="zero1", target_batch=256,
    )  # fmt: skip
    assert (found.plan.data_parallel, found.plan.effective_batch) == (8, 256)
    assert found.to_dict()["memory"]["stage"] == "first of 2 stages"
    assert fit(model="gpt2", gpu="t4", sequence_length=64).to_dict()["memory"]["stage"] is None
