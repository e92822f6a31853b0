"""What ranks share, and what sharing takes on top, against PyTorch and against what others publish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradaccum.catalog.gpus import find_gpu
from gradaccum.catalog.models import find_model, reshaped
from gradaccum.memory import sharding
from gradaccum.memory.fit import memory_of
from gradaccum.memory.ledger import total
from gradaccum.memory.parallel import stages
from gradaccum.memory.setup import Setup
from gradaccum.memory.states import states, temporary

DEEPSPEED = json.loads((Path(__file__).parent / "deepspeed_steps.json").read_text())
MEASURED = json.loads((Path(__file__).parent / "sharded_steps.json").read_text())


def toy():
    """The model of benchmarks/measure_sharding.py: two matrices a layer, a table and a head."""
    hidden = MEASURED["hidden"]
    return reshaped(
        find_model("gpt2"), hidden=hidden, embedding_width=hidden, layers=MEASURED["layers"], heads=0, kv_heads=0,
        ffn=4 * hidden, vocab=MEASURED["vocab"], norm="bare", tied=False, learned_positions=0, qkv_bias=False,
        o_bias=False, mlp_bias=False,
    )  # fmt: skip


def words(row):
    return ", ".join(str(row[name]) for name in row if name not in ("held", "phases"))


def stage_of(row):
    """The rank of a measured row."""
    mixed = row["stored"] != row.get("computed", row["stored"])
    setup = Setup(
        model=toy(),
        sequence_length=1,
        dtype="bf16-mixed" if mixed else row["stored"],
        reduce_dtype=row.get("reduced", "auto"),
        num_gpus=row["world"],
        strategy=row["strategy"],
        shard_size=row.get("shard_size") if row["strategy"] == "hsdp" else None,
        reduce=row["reduce"],
        reshard_after_forward=row.get("reshard_after_forward", True),
        gradient_as_bucket_view=row.get("gradient_as_bucket_view", False),
    )
    (found,) = stages(setup)
    return found


def close(measured, predicted):
    """Within what two tokens' activations are."""
    return predicted == pytest.approx(measured, rel=0.01, abs=2**16)


@pytest.mark.parametrize("row", MEASURED["rows"], ids=words)
def test_weights_states_and_gradients_of_a_rank(row):
    stage, phases = stage_of(row), row["phases"]
    weights, kept = states(stage)
    assert (weights.bytes, kept.bytes) == (row["held"]["weights"], row["held"]["states"])
    assert close(phases["forward 2"]["start"], total(sharding.gradients(stage)))
    assert close(phases["optimizer step"]["start"], total(sharding.gradients(stage, stepping=True)))
    assert close(phases["optimizer step"]["peak"], total(sharding.at_step(stage, temporary(stage))))


@pytest.mark.parametrize("row", [row for row in MEASURED["rows"] if row["strategy"] != "ddp"], ids=words)
def test_gathers_and_reductions_of_fsdp2(row):
    stage, phases = stage_of(row), row["phases"]
    groups, earlier = sharding.fully_sharded(stage), total(sharding.gradients(stage))
    if row["reshard_after_forward"]:
        assert close(phases["forward 2"]["peak"], earlier + total(groups.at_start()))
    root, layers = groups.at_forward_end()
    gathered_before = 0 if row["reshard_after_forward"] else layers.bytes  # else when the backward pass has begun
    assert close(phases["backward 2"]["start"], earlier + root.bytes + gathered_before)
    backward = max(total(groups.in_backward()), total(groups.at_backward_end()))
    reduction = total((*sharding.gradients(stage, stepping=True), *groups.at_reduction()))
    assert close(phases["backward 2"]["peak"], max(earlier + backward, reduction))


@pytest.mark.parametrize("row", [row for row in MEASURED["rows"] if row["strategy"] == "ddp"], ids=words)
def test_the_largest_gradient_beside_ddps(row):
    stage, grown = stage_of(row), sharding.gradients(stage_of(row))
    assert close(row["phases"]["backward 2"]["peak"], total([*grown, *sharding.last_gradient(stage)]))


@pytest.mark.parametrize("row", DEEPSPEED["rows"], ids=words)
def test_zero_as_deepspeed_runs_it(row, monkeypatch):
    """Within 9%: which parameters lie across the border of two shards is not followed."""
    monkeypatch.setattr(sharding, "REDUCE_BUCKET", row["bucket"])
    setup = Setup(model=toy(), sequence_length=1, num_gpus=row["world"], strategy=row["strategy"])
    (stage,) = stages(setup)
    phases, grown, in_step = row["phases"], sharding.gradients(stage), sharding.in_step(stage)
    kept = total((*grown, *in_step)) if row["strategy"] == "zero1" else total(grown)  # its bucket stays
    assert close(phases["forward 2"]["start"], kept)
    backward = total((*grown, *in_step, *sharding.at_backward_end(stage), *sharding.last_gradient(stage)))
    assert backward == pytest.approx(phases["backward 2"]["peak"], rel=0.09)
    step = total(sharding.at_step(stage, temporary(stage)))
    assert close(phases["optimizer step"]["peak"], step)


def deepspeed_states(strategy, model, ranks):
    """What the optimizer's step holds beside activations: weights, states, and gradients in 16 bits and in fp32."""
    setup = Setup(model=model, sequence_length=1, num_gpus=ranks, strategy=strategy, optimizer="adamw-fused")
    (stage,) = stages(setup)
    kept = [line for line in sharding.held(stage) if line.name != "reduce bucket"]
    in_fp32 = 4 * -(-model.params // ranks)
    return total([*states(stage), *kept, *sharding.gradients(stage, stepping=True)]) + in_fp32


@pytest.mark.parametrize("name", ["llama-3.1-8b", "mixtral-8x7b", "gpt2-xl"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_deepspeeds_own_estimates(name, ranks):
    """estimate_zero2_model_states_mem_needs: 2 P + 18 P / N; estimate_zero3_...: 18 P / N beside the layer gathered.

    The latter leaves out the gradients in 16 bits, for which stage3.py has a buffer (grad_partitions_flat_buffer).
    """
    model = find_model(name)
    params = model.params
    assert deepspeed_states("zero2", model, ranks) == pytest.approx(2 * params + 18 * params / ranks, rel=1e-6)
    assert deepspeed_states("zero3", model, ranks) == pytest.approx((18 + 2) * params / ranks, rel=1e-6)


@pytest.mark.parametrize(("length", "on_both"), [(256, 139.2), (512, 148.0), (1024, 162.0)])
def test_qwens_measured_full_finetuning(length, on_both):
    """QwenLM/Qwen README: Qwen-7B, full-parameter, on 2 A100; "G" of both, of a tool that is not said, read as 1e9.

    finetune/finetune_ds.sh: bf16, batch 1, checkpointing, ds_config_zero3.json. Within 10%, with context and NCCL:
    9.5% too high at 256 tokens, 3.1% at 512, 5.6% too low at 1,024. Taken for a Llama with Qwen's shapes.
    """
    qwen = reshaped(find_model("llama-2-7b"), vocab=151936, ffn=11008, qkv_bias=True)
    setup = Setup(model=qwen, sequence_length=length, num_gpus=2, strategy="zero3", checkpointing="full")
    memory = memory_of(setup, find_gpu("a100-sxm-80gb"))
    assert memory.process_bytes / 1e9 == pytest.approx(on_both / 2, rel=0.1)
    assert memory.process_low_bytes / 1e9 < on_both / 2 < memory.process_high_bytes / 1e9
