"""What one model-parallel rank holds, against Megatron's own arithmetic, PyTorch's schedules and measured runs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining.schedules import ScheduleInterleaved1F1B, _ComputationType

from gradaccum.catalog.models import find_model, models, params_by_part, reshaped
from gradaccum.errors import InputError
from gradaccum.memory.closed_form import END_OF_BACKWARD, END_OF_FORWARD, heaviest, highest, instants, peak
from gradaccum.memory.layout import REDUCES, STRATEGIES
from gradaccum.memory.ledger import total
from gradaccum.memory.parallel import micro_batches_in_flight, stages
from gradaccum.memory.setup import Setup

GIB = 2**30
LLAMA = find_model("llama-3.1-8b")
MIXTRAL = find_model("mixtral-8x7b")


def megatron_params(model, tp, pp):
    """The most loaded rank, as megatron/training/theoretical_memory_usage.py adds it up: everything over TP."""
    queries = model.heads * model.head_dim
    attention = 2 * model.hidden * queries * (1 + model.kv_heads / model.heads)
    layer = attention + 2 * model.hidden * (1.5 * model.ffn + 1)
    table = model.hidden * model.vocab
    return (model.layers * layer / pp + model.hidden + table + (table if pp == 1 and not model.tied else 0)) / tp


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.1-70b", "mistral-7b-v0.3", "smollm2-360m"])
@pytest.mark.parametrize("pp", [1, 2, 4])
@pytest.mark.parametrize("tp", [1, 5])
def test_parameters_of_the_most_loaded_rank_are_megatrons(name, tp, pp):
    """Within 0.1%: norms are whole on every rank, and Megatron divides them in its estimate."""
    model = find_model(name)
    if model.heads % tp or model.ffn % tp:
        tp = 1
    setup = Setup(model=model, sequence_length=64, num_gpus=tp * pp, tensor_parallel=tp, pipeline_parallel=pp)
    most = max(stage.setup.model.params for stage in stages(setup))
    assert most == pytest.approx(megatron_params(model, tp, pp), rel=0.001)


def test_all_ranks_together_hold_the_model_once():
    """Of four stages the two outer ones are counted; inner ones have layers alone. Norms are on every rank."""
    parts = params_by_part(LLAMA)
    setup = Setup(model=LLAMA, sequence_length=64, num_gpus=8, tensor_parallel=2, pipeline_parallel=4)
    first, last = stages(setup)
    layers = first.setup.model.params - first.embedding
    norms = 32 * 2 * 4096  # a second copy
    assert 2 * 4 * layers == parts["layers"] + norms
    assert (2 * first.embedding, 2 * last.head) == (parts["embedding"], parts["head"])
    assert last.setup.model.params == layers + last.head + 4096


def test_the_distributed_optimizer_takes_six_bytes_and_twelve_shared():
    """megatron/training/theoretical_memory_usage.py: 18, or 6 + 12 / DP."""
    for ranks in (1, 2, 8):
        setup = Setup(
            model=LLAMA, sequence_length=1, num_gpus=4 * ranks, tensor_parallel=4, strategy="ddp",
            distributed_optimizer=True, optimizer="adamw-fused",
        )  # fmt: skip
        names = ("weights", "gradient buffer", "fp32 weights", "optimizer states")
        held = [line.bytes for line in instants(setup)[END_OF_FORWARD] if line.name in names]
        params = stages(setup)[0].setup.model.params
        assert len(held) == 4
        assert sum(held) == pytest.approx(params * (6 + 12 / ranks), rel=1e-9)


MBRIDGE = reshaped(
    MIXTRAL, layers=4, hidden=2048, embedding_width=2048, heads=16, kv_heads=8, head_dim=128, value_dim=128, ffn=5440,
    expert_ffn=5440,
)  # fmt: skip
"""ISEEKYAN/mbridge, memory_estimator/README.md: shapes that follow from the parameters it prints for each module."""


@pytest.mark.parametrize(
    ("tp", "micro_batch", "model_gib", "real_gib"),
    [(2, 1, 5.3, 6.6), (2, 2, 5.3, 8.0), (1, 1, 8.8, 11.2), (1, 2, 8.8, 13.8)],
)
def test_mbridges_measured_mixtral(tp, micro_batch, model_gib, real_gib):
    """Weights and states within 2% of what was measured. All of it is 11 to 22% too high: the layers and the loss are
    Transformers', whose norms and logits keep more than Megatron's kernels.
    """
    setup = Setup(
        model=MBRIDGE, sequence_length=4096, micro_batch=micro_batch, num_gpus=8, tensor_parallel=tp,
        sequence_parallel=tp > 1, strategy="ddp", distributed_optimizer=True, optimizer="adamw-fused",
    )  # fmt: skip
    _, ledger = peak(setup)
    names = ("weights", "gradient buffer", "fp32 weights", "optimizer states")
    assert sum(line.bytes for line in ledger if line.name in names) / GIB == pytest.approx(model_gib, rel=0.02)
    assert 1 < total(ledger) / GIB / real_gib < 1.25


@pytest.mark.parametrize(("tp", "real_gib"), [(1, 32.07), (2, 20.70)])
def test_torchtitans_measured_llama(tp, real_gib):
    """torchtitan@27aa49077, 8 H100: Llama 3 8B, all layers recomputed. Batch 1 and 8,192 tokens are its default
    configuration, not said in the row. 7.7% too low, and 1%.
    """
    setup = Setup(
        model=LLAMA, sequence_length=8192, accum_steps=1, num_gpus=8, dtype="bf16-mixed", strategy="fsdp2",
        tensor_parallel=tp, sequence_parallel=tp > 1, optimizer="adamw-fused", checkpointing="full",
    )  # fmt: skip
    assert total(peak(setup, 9.0)[1]) / GIB == pytest.approx(real_gib, rel=0.08)


# Pipelines


def most_in_flight(actions):
    """Forward passes without their backward pass yet, at their most."""
    found = most = 0
    for action in actions:
        if action is not None:
            found += {_ComputationType.FORWARD: 1, _ComputationType.FULL_BACKWARD: -1}[action.computation_type]
            most = max(most, found)
    return most


def schedule(kind, stage_count, chunks, micro_batches, rank):
    """PyTorch's order of one rank, without its stages."""
    made = object.__new__(kind)
    made.n_local_stages, made.pp_group_size, made._n_microbatches = chunks, stage_count, micro_batches
    made.number_of_rounds = max(1, micro_batches // stage_count)
    made.microbatches_per_round = micro_batches // made.number_of_rounds
    return made._calculate_single_rank_operations(rank)


@pytest.mark.parametrize("chunks", [2, 3])
@pytest.mark.parametrize("stage_count", [2, 4, 8])
def test_interleaved_micro_batches_wait_as_in_pytorchs_schedule(stage_count, chunks):
    setup = Setup(
        model=reshaped(LLAMA, layers=48), sequence_length=8, num_gpus=stage_count, pipeline_parallel=stage_count,
        virtual_pipeline=chunks,
    )  # fmt: skip
    for rank in range(stage_count):
        ours = micro_batches_in_flight(setup, rank)
        actions = schedule(ScheduleInterleaved1F1B, stage_count, chunks, 8 * stage_count, rank)
        assert ours == most_in_flight(actions)


@pytest.mark.parametrize("stage_count", [1, 2, 5])
def test_one_forward_one_backward_waits_for_the_stages_behind(stage_count):
    """A queue of forward and backward passes, stage after stage, each as soon as it can be, backward first."""
    model = reshaped(LLAMA, layers=10)
    for micro_batches in (1, 3, 12):
        setup = Setup(
            model=model,
            sequence_length=8,
            num_gpus=stage_count,
            pipeline_parallel=stage_count,
            accum_steps=micro_batches,
        )
        assert [micro_batches_in_flight(setup, rank) for rank in range(stage_count)] == one_forward_one_backward(
            stage_count, micro_batches
        )


def one_forward_one_backward(stage_count, micro_batches):
    forward, backward, most = [0] * stage_count, [0] * stage_count, [0] * stage_count
    while min(backward) < micro_batches:
        before = (tuple(forward), tuple(backward))
        for rank in range(stage_count):
            behind = before[1][rank + 1] if rank + 1 < stage_count else before[0][rank]
            came = before[0][rank - 1] if rank else micro_batches
            if backward[rank] < min(behind, before[0][rank]):
                backward[rank] += 1
            elif forward[rank] < came and forward[rank] - backward[rank] < stage_count - rank:
                forward[rank] += 1
                most[rank] = max(most[rank], forward[rank] - backward[rank])
    return most


def test_the_first_stage_waits_and_the_last_one_has_the_loss():
    many = Setup(model=LLAMA, sequence_length=8192, num_gpus=4, pipeline_parallel=4)
    stage, found = heaviest(many)
    assert stage.name == "first of 4 stages"
    names = [line.name for line in found[END_OF_FORWARD]]
    assert "micro-batches in flight" in names
    assert "logits and loss" not in names
    (kept,) = [line.bytes for line in found[END_OF_FORWARD] if line.name == "activations"]
    (waiting,) = [line.bytes for line in found[END_OF_FORWARD] if line.name == "micro-batches in flight"]
    assert waiting == 3 * kept
    assert waiting in [line.bytes for line in found[END_OF_BACKWARD]]
    alone = Setup(model=find_model("gemma-2-2b"), sequence_length=8192, num_gpus=2, pipeline_parallel=2, accum_steps=1)
    assert heaviest(alone)[0].name == "last of 2 stages"


# What must hold


def bytes_of(**how):
    return total(highest(heaviest(Setup(**{"model": LLAMA, "sequence_length": 8192, "micro_batch": 2, **how}))[1])[1])


def test_each_share_takes_less_of_what_it_divides():
    alone = bytes_of()
    assert bytes_of(num_gpus=2, tensor_parallel=2) < 0.75 * alone
    assert bytes_of(num_gpus=2, tensor_parallel=2, sequence_parallel=True) < 0.56 * alone
    assert bytes_of(num_gpus=2, context_parallel=2, strategy="ddp") < alone
    assert bytes_of(num_gpus=2, context_parallel=2, strategy="fsdp2") < 0.6 * alone
    tokens = {"model": MIXTRAL, "num_gpus": 8, "strategy": "zero1"}
    assert bytes_of(**tokens, expert_parallel=8) < 0.7 * bytes_of(**tokens)


def test_sequence_parallel_halves_a_layers_activations():
    """2205.05198, section 4.2.2: with it all of a layer's activations are divided."""

    def kept(**how):
        setup = Setup(model=LLAMA, sequence_length=4096, **how)
        return next(line.bytes for line in instants(setup)[END_OF_FORWARD] if line.name == "activations")

    alone, both = kept(), kept(num_gpus=2, tensor_parallel=2, sequence_parallel=True)
    assert both == pytest.approx(alone / 2, rel=0.001)
    assert both < kept(num_gpus=2, tensor_parallel=2) < alone


def layout(data):
    """A layout, and a model, that may go together."""
    model, strategy = data.draw(st.sampled_from(models())), data.draw(st.sampled_from(STRATEGIES))
    how = {"model": model, "strategy": strategy, "num_gpus": data.draw(st.sampled_from([1, 8, 64, 96]))}
    for name in ("tensor_parallel", "pipeline_parallel", "context_parallel"):
        how[name] = data.draw(st.sampled_from([1, 1, 2, 4]))
    how["virtual_pipeline"] = data.draw(st.sampled_from([1, 2])) if how["pipeline_parallel"] > 1 else 1
    how["expert_parallel"] = data.draw(st.sampled_from([1, 2])) if model.experts else 1
    how["shard_size"] = 2 if strategy == "hsdp" else None
    how["reduce"] = data.draw(st.sampled_from(REDUCES[strategy]))
    how["sequence_parallel"] = how["tensor_parallel"] > 1 and data.draw(st.booleans())
    how["distributed_optimizer"] = strategy == "ddp" and data.draw(st.booleans())
    how["gradient_as_bucket_view"] = strategy == "ddp" and not how["distributed_optimizer"] and data.draw(st.booleans())
    how["reshard_after_forward"] = strategy not in ("fsdp2", "hsdp") or data.draw(st.booleans())
    how["checkpointing"] = data.draw(st.sampled_from(["none", "full"]))
    return how


def made_or_named(how):
    """The Setup, or None and errors that name a field."""
    try:
        return Setup(sequence_length=256, **how)
    except InputError as error:
        nameless = [problem for problem in error.problems if not problem.field]
    assert not nameless
    return None


@settings(max_examples=200)
@given(st.data())
def test_any_layout_is_answered(data):
    """Either an error that names a field, or a ledger that adds up, and grows with the micro-batch."""
    setup = made_or_named(layout(data))
    if setup is None:
        return
    found = instants(setup)
    assert all(line.bytes >= 0 and line.name for lines in found.values() for line in lines)
    assert total(peak(setup.with_micro_batch(2))[1]) >= total(peak(setup)[1])
    assert total(peak(setup.changed("accum_steps", 1))[1]) <= total(peak(setup)[1])
