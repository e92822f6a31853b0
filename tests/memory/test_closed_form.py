"""The closed form against published measurements, and against what must hold of any step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradaccum.catalog.models import find_model, models
from gradaccum.errors import InputError
from gradaccum.memory.activations import KNOWN
from gradaccum.memory.closed_form import END_OF_FORWARD, OPTIMIZER_STEP, instants, peak
from gradaccum.memory.ledger import total
from gradaccum.memory.setup import ATTENTION, CHECKPOINTING, DTYPES, OPTIMIZERS, Setup

GIB = 2**30
CAUSAL = [model for model in models() if model.family in KNOWN and model.head == "lm"]


def gib(setup, instant=None):
    _, ledger = peak(setup)
    return total(instants(setup)[instant] if instant else ledger) / GIB


def test_llama_3_2_3b_takes_what_torchtune_measured():
    """60.0 GiB: bf16, AdamW, 2 sequences of 4,096 tokens, no checkpointing, one step at a time (torchtune's README)."""
    setup = Setup(model=find_model("llama-3.2-3b"), sequence_length=4096, micro_batch=2, accum_steps=1)
    assert gib(setup) == pytest.approx(60.0, rel=0.005)
    assert peak(setup)[0] == END_OF_FORWARD


def test_adamw_in_four_forms():
    """16 bytes for each of P parameters are four copies in fp32, of bf16 eight: states by hand."""
    model = find_model("llama-3.1-8b")
    step = {
        optimizer: total(instants(Setup(model=model, sequence_length=1, optimizer=optimizer))[OPTIMIZER_STEP])
        for optimizer in OPTIMIZERS
    }
    params, largest = model.params, model.vocab * model.hidden
    base = step["sgd"] - 4 * params  # weights and gradients are 2 bytes each
    assert step["adamw"] - base == 10 * params
    assert step["adamw-fused"] - base == 8 * params
    assert step["adamw-loop"] - base == 8 * params + 4 * largest
    assert step["adamw-8bit"] - base == 6 * params + params // 32
    assert step["sgd-momentum"] - base == 6 * params


def test_accumulation_costs_one_gradient_set_at_the_peak_of_activations():
    model = find_model("llama-3.2-1b")
    once = Setup(model=model, sequence_length=1024, micro_batch=4, accum_steps=1)
    assert round((gib(once.changed("accum_steps", 2)) - gib(once)) * GIB) == 2 * model.params
    assert gib(once.changed("accum_steps", 8)) == gib(once.changed("accum_steps", 2))


def test_checkpointing_keeps_the_inputs_alone():
    model = find_model("llama-3.2-1b")
    setup = Setup(model=model, sequence_length=1024, micro_batch=4, accum_steps=1, checkpointing="full")
    (kept,) = [line for line in instants(setup)[END_OF_FORWARD] if line.name == "inputs of the layers"]
    assert kept.bytes == 4096 * 16 * 2048 * 2


@given(
    st.sampled_from(CAUSAL),
    st.integers(1, 4096),
    st.integers(1, 64),
    st.sampled_from(DTYPES),
    st.sampled_from(OPTIMIZERS),
    st.sampled_from(CHECKPOINTING),
    st.sampled_from(ATTENTION),
    st.integers(2, 64),
)
def test_what_must_hold(model, length, micro_batch, dtype, optimizer, checkpointing, attention, gpus):
    words = {"dtype": dtype, "optimizer": optimizer, "checkpointing": checkpointing, "attention": attention}
    setup = Setup(model=model, sequence_length=length, micro_batch=micro_batch, **words)
    _, ledger = peak(setup)
    assert total(ledger) == max(total(each) for each in instants(setup).values())
    assert all(line.bytes > 0 and line.formula and line.source for line in ledger)
    assert total(peak(setup.with_micro_batch(micro_batch + 1))[1]) >= total(ledger)
    assert total(peak(setup.changed("accum_steps", 1))[1]) <= total(ledger)
    assert total(ledger) >= setup.width * model.params * 2 or optimizer.startswith("sgd")
    many = Setup(model=model, sequence_length=length, micro_batch=micro_batch, num_gpus=gpus, strategy="ddp", **words)
    assert total(peak(many)[1]) >= total(ledger)


def test_fsdp2_shares_states_and_gathers_layers():
    model = find_model("llama-3.1-8b")
    setup = Setup(model=model, sequence_length=2048, num_gpus=8, strategy="fsdp2")
    lines = {line.name: line.bytes for line in instants(setup)[OPTIMIZER_STEP]}
    assert lines["weights"] == lines["gradients"] == 2 * model.params // 8
    assert lines["optimizer states"] == 4 * model.params // 8
    tables = 2 * 128256 * 4096
    assert lines["unsharded embedding and head"] == 2 * tables
    assert lines["unsharded layers in flight"] == 8 * ((model.params - tables) // 32)


def test_hopper_has_larger_workspaces():
    setup = Setup(model=find_model("llama-3.2-1b"), sequence_length=16)
    assert total(peak(setup, 9.0)[1]) - total(peak(setup, 8.0)[1]) == 2 * 32 * 2**20 - 2 * 8519680


def test_a_model_that_predicts_no_next_token_is_refused():
    with pytest.raises(InputError, match="no causal language model"):
        instants(Setup(model=find_model("bert-base-uncased"), sequence_length=128))
