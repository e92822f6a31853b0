"""The closed form against published measurements, and against what must hold of any step."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gradaccum.catalog.models import find_model, models, read_config
from gradaccum.errors import InputError
from gradaccum.memory import layout
from gradaccum.memory.closed_form import END_OF_FORWARD, LAST_LAYER, OPTIMIZER_STEP, instants, peak
from gradaccum.memory.ledger import total
from gradaccum.memory.setup import CHOICES, OPTIMIZERS, Setup

GIB = 2**30


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


@settings(max_examples=200)
@given(st.data())
def test_what_must_hold(data):
    words = {
        name: data.draw(st.sampled_from(choices)) for name, choices in CHOICES.items() if name not in layout.CHOICES
    }
    try:
        setup = Setup(
            model=data.draw(st.sampled_from(models())),
            sequence_length=data.draw(st.integers(1, 4096)),
            micro_batch=data.draw(st.integers(1, 64)),
            lora_rank=data.draw(st.sampled_from([0, 0, 8])),
            **words,
        )
    except InputError:
        assume(False)
    _, ledger = peak(setup)
    found = instants(setup)
    assert total(ledger) == max(total(each) for each in found.values())
    assert all(line.bytes >= 0 for lines in found.values() for line in lines)
    assert all(line.bytes > 0 and line.formula and line.source for line in ledger)
    assert total(peak(setup.with_micro_batch(setup.micro_batch + 1))[1]) >= total(ledger)
    assert total(peak(setup.changed("accum_steps", 1))[1]) <= total(ledger)
    assert total(ledger) >= setup.model.params // 2  # not even four bits have less
    many = setup.changed("strategy", "ddp").changed("num_gpus", data.draw(st.integers(2, 64)))
    assert total(peak(many)[1]) >= total(ledger)


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gemma-2-9b", "deepseek-v3", "gpt2-xl", "mixtral-8x7b"])
def test_each_way_of_checkpointing_keeps_less_than_the_one_before(model):
    kept = []
    for word in ("none", "selective", "full"):
        setup = Setup(model=find_model(model), sequence_length=2048, checkpointing=word)
        names = ("activations", "kept of the layers", "inputs of the layers")
        kept += [line.bytes for line in instants(setup)[END_OF_FORWARD] if line.name in names]
    assert kept[0] > 2 * kept[1] > 2 * kept[2] > 0


def test_the_loss_in_four_forms():
    """By hand, for 8,000 tokens: 14 bytes for each word of the vocabulary, 16 in fp32, 5 in chunks, and none."""
    model = find_model("llama-3.1-8b")
    words, hidden = 8000 * model.vocab, 8000 * model.hidden

    def loss(**options):
        setup = Setup(model=model, sequence_length=8000, checkpointing="full", **options)
        return next(line.bytes for line in instants(setup)[END_OF_FORWARD] if line.name == "logits and loss")

    assert loss() == pytest.approx(14 * words, rel=1e-4)
    assert loss(dtype="fp32") == pytest.approx(16 * words, rel=1e-4)
    # Under autocast the peak is that of the forward pass, since then its cache is there: logits, copy, log-softmax.
    assert loss(dtype="bf16-mixed") == pytest.approx(10 * words, rel=0.01)
    assert loss(loss="chunked") == pytest.approx(5 * words, rel=1e-4)
    assert loss(loss="fused") == pytest.approx(4 * hidden, rel=0.01)


def test_what_an_expert_keeps_is_no_cast():
    """In one type nothing is cast; 4 bytes for each expert say where its rows end, kept once for both products."""
    model = find_model("mixtral-8x7b")
    lines = {line.name: line for line in _lines(Setup(model=model, sequence_length=64), END_OF_FORWARD)}
    assert lines["ends of each expert's rows"].bytes == model.layers * 4 * model.experts
    assert "casts of weights" not in lines
    mixed = _lines(Setup(model=model, sequence_length=64, dtype="bf16-mixed"), END_OF_FORWARD)
    assert "casts of weights, experts' ends" in [line.name for line in mixed]


def test_autocast_keeps_casts_of_weights_for_the_backward_pass():
    """2 bytes for each weight of a linear layer, the head's too, beside 16 for each parameter."""
    model = find_model("llama-3.1-8b")
    setup = Setup(model=model, sequence_length=512, dtype="bf16-mixed")
    lines = {line.name: line.bytes for line in instants(setup)[END_OF_FORWARD]}
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert lines["casts of weights"] == 2 * linear
    assert lines["low-precision copy of the head"] == 2 * 128256 * 4096
    checkpointed = {line.name: line.bytes for line in _lines(setup.changed("checkpointing", "full"), END_OF_FORWARD)}
    # Autocast's cache has them all until the end of the forward pass, although no layer keeps them.
    assert checkpointed["casts of weights"] == 0
    assert checkpointed["autocast's cache"] in (0, 2 * linear)
    short = setup.changed("checkpointing", "full").changed("sequence_length", 8)
    assert {line.name: line.bytes for line in _lines(short, END_OF_FORWARD)}["autocast's cache"] == 2 * linear


def _lines(setup, instant):
    return instants(setup)[instant]


def test_narrow_embeddings_are_projected():
    """OPT-350M: 512 wide, with a projection into the layers and one out of them, which keep what they read."""
    setup = Setup(model=find_model("opt-350m"), sequence_length=1000)
    lines = {line.name: line.bytes for line in instants(setup)[END_OF_FORWARD]}
    assert lines["embedding's norm and dropout"] == 1000 * 2 * 512
    assert lines["last norm, input of the head"] == 1000 * 2 * (1024 + 512)


def test_experts_keep_what_their_tokens_chose():
    """On one GPU the rows of all experts together are tokens x experts per token, whatever the routing."""
    model = find_model("mixtral-8x7b")
    setup = Setup(model=model, sequence_length=1000)
    (kept,) = [line for line in instants(setup)[END_OF_FORWARD] if line.name == "activations"]
    rows = 2 * 1000
    inputs, inner = 2 * 2 * 4096, 2 * 5 * 14336  # read and weighted; gate and up, its activation, the product
    assert kept.bytes >= 32 * rows * (inputs + inner)
    assert kept.bytes == pytest.approx(32 * rows * (inputs + inner), rel=0.5)


def test_an_encoder_and_a_classifier_are_counted_too():
    """BERT's loss is in its logits' type; ViT's has no vocabulary."""
    setup = Setup(model=find_model("bert-base-uncased"), sequence_length=512, micro_batch=4, dtype="fp32")
    (loss,) = [line for line in instants(setup)[END_OF_FORWARD] if line.name == "logits and loss"]
    assert loss.bytes == pytest.approx(16 * 4 * 512 * 30522, rel=1e-4)
    mixed = instants(setup.changed("dtype", "bf16-mixed"))[END_OF_FORWARD]
    (loss,) = [line for line in mixed if line.name == "logits and loss"]
    # Logits and their log-softmax in 16 bits, the cast that nll_loss reads, and its gradient.
    assert loss.bytes == pytest.approx((2 + 2 + 4 + 4) * 4 * 512 * 30522, rel=1e-3)
    image = Setup(model=find_model("vit-b-16"), sequence_length=197, micro_batch=4)
    lines = {line.name: line.bytes for line in instants(image)[END_OF_FORWARD]}
    assert lines["batch"] == 4 * (3 * 224 * 224 * 2 + 8)
    assert lines["logits and loss"] == 0
    with pytest.raises(InputError, match="loss: is full for vit-b-16"):
        image.changed("loss", "fused")


FITCHECK = [
    # model, length, micro-batch, rank, quantization, attention, GiB allocated at the peak
    ("qwen2.5-7b", 1024, 1, 16, "nf4", "eager", 10.3367),
    ("qwen2.5-7b", 1024, 1, 16, "nf4", "efficient", 10.3377),
    ("mistral-7b-v0.3", 1024, 1, 16, "nf4", "eager", 6.0455),
    ("mistral-7b-v0.3", 1024, 1, 16, "nf4", "efficient", 5.9143),
    ("llama-3.2-1b", 1024, 1, 16, "nf4", "efficient", 3.6358),
    ("tinyllama-1.1b", 1024, 12, 32, "nf4", "efficient", 9.1521),
    ("tinyllama-1.1b", 1024, 8, 32, "nf4", "eager", 7.8300),
    ("tinyllama-1.1b", 512, 2, 32, "nf4", "eager", 1.8070),
    ("smollm2-1.7b", 1024, 4, 32, "nf4", "eager", 5.1731),
    ("smollm2-360m", 4096, 1, 32, "nf4", "eager", 5.5539),
    ("smollm2-1.7b", 2048, 1, 32, "none", "eager", 5.5725),
    ("smollm2-360m", 4096, 1, 32, "none", "efficient", 3.6668),
    ("qwen2.5-1.5b", 2048, 1, 32, "none", "efficient", 7.2288),
    ("tinyllama-1.1b", 2048, 2, 32, "none", "eager", 6.4611),
]
"""PyPI fitcheck-llm 0.3.1, data/measurements: LoRA on a Tesla T4, fp16, fp32 adapters, full checkpointing, AdamW."""


@pytest.mark.parametrize(("model", "length", "count", "rank", "quantization", "attention", "measured"), FITCHECK)
def test_lora_takes_what_was_measured_on_a_t4(model, length, count, rank, quantization, attention, measured):
    setup = Setup(
        model=find_model(model),
        sequence_length=length,
        micro_batch=count,
        accum_steps=1,
        dtype="fp16",
        lora_rank=rank,
        lora_targets="attention",
        quantization=quantization,
        attention=attention,
        checkpointing="full",
    )
    assert gib(setup) == pytest.approx(measured, rel=0.015 if quantization == "nf4" else 0.01)


def test_fsdp2_shares_states_and_gathers_layers():
    model = find_model("llama-3.1-8b")
    setup = Setup(model=model, sequence_length=2048, num_gpus=8, strategy="fsdp2")
    lines = {line.name: line.bytes for line in instants(setup)[OPTIMIZER_STEP]}
    assert lines["weights"] == lines["gradients"] == 2 * model.params // 8
    assert lines["optimizer states"] == 4 * model.params // 8
    tables = 2 * 128256 * 4096
    layer = (model.params - tables - 4096) // 32
    lines = {line.name: line.bytes for line in instants(setup)[LAST_LAYER]}
    assert lines["unsharded root group"] == 2 * (tables + 4096)
    assert lines["layer, and the next one's gather"] == 2 * 2 * layer
    assert lines["gradients of one layer"] == lines["a layer's reduce-scatter"] == 2 * layer


def test_hopper_has_larger_workspaces():
    setup = Setup(model=find_model("llama-3.2-1b"), sequence_length=16)
    assert total(peak(setup, 9.0)[1]) - total(peak(setup, 8.0)[1]) == 2 * 32 * 2**20 - 2 * 8519680


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": -1}, "lora_rank: must be at least 0, not -1"),
        ({"model": "olmo-2-7b", "lora_rank": 8}, "lora_targets: must be said: PEFT has no default for olmo2"),
        ({"model": "mixtral-8x7b", "lora_rank": 8, "lora_targets": "all-linear"}, "would adapt experts"),
        ({"quantization": "nf4"}, "lora_rank: is needed: quantised weights are not trained"),
        ({"model": "mixtral-8x7b", "lora_rank": 8, "quantization": "nf4"}, "quantization: of experts is not known"),
        ({"model": "gpt2", "lora_rank": 8, "quantization": "nf4"}, "quantization: of GPT-2's transposed layers"),
        ({"model": "bert-base", "lora_rank": 8, "quantization": "nf4"}, "quantization: of bert-base is not known"),
        ({"model": "opt-350m", "lora_rank": 8, "lora_targets": "all-linear"}, "adapt layers beside the blocks of opt"),
        ({"lora_rank": 8, "quantization": "int8", "dtype": "fp32"}, "dtype: of int8 products is fp16 or bf16"),
        ({"dtype": "bf16-mixed", "strategy": "zero2"}, "dtype: bf16-mixed is autocast's; DeepSpeed keeps fp32 weights"),
        ({"lora_rank": 8, "quantization": "nf4", "strategy": "fsdp2"}, "quantization: nf4 is not known together"),
        ({"dtype": "fp8", "lora_rank": -1}, "dtype: is one of bf16, fp16"),
    ],
)
def test_what_is_not_counted_is_said(options, message):
    options = {"model": "llama-3.2-1b", **options}
    with pytest.raises(InputError, match=message):
        Setup(**{**options, "model": find_model(options["model"])}, sequence_length=8)


def test_absurd_models_are_answered():
    """10^15 parameters and more."""
    huge = read_config(
        {
            "model_type": "llama", "num_hidden_layers": 10**6, "hidden_size": 2**20, "num_attention_heads": 2**10,
            "intermediate_size": 2**22, "vocab_size": 10**6, "max_position_embeddings": 10**6,
        }
    )  # fmt: skip
    assert huge.params > 10**15
    assert gib(Setup(model=huge, sequence_length=10**6, micro_batch=10**6)) > 10**9
