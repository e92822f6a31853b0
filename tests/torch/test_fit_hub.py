"""Named models through the trace, with a stand-in for Transformers: its models' face, their shapes, its complaints."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradaccum
from gradaccum.catalog.models import read_config
from gradaccum.errors import InputError, MissingExtraError
from gradaccum.memory.fit import memory_of
from gradaccum.memory.setup import Setup
from gradaccum.torch import fit as fit_package
from gradaccum.torch.fit import largest

SMALL: dict[str, Any] = {"gpu": 2**30, "target_batch": 4}

CONFIG = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1000, "max_position_embeddings": 512,
}  # fmt: skip


class Norm(nn.Module):
    """As Transformers writes it: in fp32, step by step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Any) -> Any:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class Layer(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.second = Norm(width), Norm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Any) -> Any:
        y = self.norm(x)
        q, k, v = (each(y).unflatten(-1, (4, -1)).transpose(1, 2) for each in (self.q, self.k, self.v))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(seen.transpose(1, 2).flatten(2))
        y = self.second(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class LlamaLike(nn.Module):
    """With the shapes of CONFIG, and the face of Transformers' models."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, inner, words = config.hidden_size, config.intermediate_size, config.vocab_size
        self.embedding, self.head = nn.Embedding(words, width), nn.Linear(width, words, bias=False)
        self.layers = nn.ModuleList(Layer(width, inner) for _ in range(config.num_hidden_layers))
        self.norm, self.recomputes = Norm(width), False

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any) -> None:
        self.recomputes = True

    def forward(self, input_ids: Any, labels: Any, use_cache: bool) -> Any:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) if self.recomputes else layer(x)
        logits = self.head(self.norm(x))
        loss = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return types.SimpleNamespace(loss=loss, logits=logits)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """What hub.py asks of Transformers."""

    def from_config(config: Any, attn_implementation: str, dtype: torch.dtype) -> nn.Module:
        if config.hidden_size == 32 and attn_implementation == "sdpa":
            raise ValueError("it has no fused attention. Ask for eager")
        return LlamaLike(config).to(dtype)

    made: Any = types.ModuleType("transformers")
    made.logging = types.SimpleNamespace(set_verbosity_error=lambda: None)
    usual = dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"), 1)
    made.AutoConfig = types.SimpleNamespace(
        for_model=lambda model_type, **given: types.SimpleNamespace(**(given or usual), model_type=model_type)
    )
    made.AutoModelForCausalLM = types.SimpleNamespace(from_config=from_config)
    monkeypatch.setitem(sys.modules, "transformers", made)
    return made


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("model", [CONFIG, read_config(CONFIG)], ids=["config", "catalog"])
def test_two_engines_check_each_other(checkpointing: str, model: Any):
    """Two derivations that share nothing: shapes, and a step that is run."""
    found = gradaccum.fit(model=model, gpu=2**30, engine="both", sequence_length=128, checkpointing=checkpointing)
    trace, closed = found.engines
    assert (found.engine, trace.name, closed.name) == ("trace", "trace", "closed form")
    assert closed.peak_bytes == memory_of(closed_setup(found, model, checkpointing), found.gpu).peak_bytes
    assert abs(closed.peak_bytes - trace.peak_bytes) <= 0.01 * trace.peak_bytes
    data: Any = found.to_dict()
    assert [each["engine"] for each in data["engines"]] == ["trace", "closed form"]
    assert data["disagreement"]["bytes"] == closed.peak_bytes - trace.peak_bytes
    assert found.memory.low_bytes <= closed.peak_bytes <= found.memory.high_bytes


@pytest.mark.usefixtures("library")
def test_with_a_small_vocabulary_the_peak_is_in_a_layer_that_is_run_again():
    """The layer's own temporaries, not the loss, are the most; both engines find them, within 1%."""
    model = read_config({**CONFIG, "vocab_size": 128})
    found = gradaccum.fit(model=model, gpu=2**30, engine="both", sequence_length=128, checkpointing="full")
    trace, closed = found.engines
    assert closed.at == "recomputation"
    assert "layers.1" in trace.at
    assert closed.peak_bytes == pytest.approx(trace.peak_bytes, rel=0.01)


def closed_setup(found: gradaccum.Fit, model: Any, checkpointing: str) -> Any:
    model = model if not isinstance(model, dict) else read_config(model)
    return Setup(model=model, sequence_length=128, checkpointing=checkpointing, micro_batch=found.setup.micro_batch)


@pytest.mark.usefixtures("library")
def test_engines_that_are_far_apart_widen_the_interval(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(largest, "memory_of", lambda setup, gpu: _twice(memory_of(setup, gpu)))
    found = gradaccum.fit(model=CONFIG, gpu=2**30, engine="both", sequence_length=128)
    trace, closed = found.engines
    assert found.memory.high_bytes == closed.peak_bytes > 1.5 * trace.peak_bytes
    finding = next(each for each in found.findings if each.code == "GA028")
    assert "The interval reaches to both" in finding.message
    assert found.surely < found.max_micro_batch


def _twice(memory: Any) -> Any:
    lines = tuple(dataclasses.replace(line, bytes=2 * line.bytes) for line in memory.ledger)
    return dataclasses.replace(memory, ledger=lines)


@pytest.mark.usefixtures("library")
def test_the_trace_alone_says_nothing_of_the_closed_form():
    found = gradaccum.fit(model=CONFIG, gpu=2**30, engine="trace", sequence_length=128, attention="eager")
    assert [each.name for each in found.engines] == ["trace"]
    assert found.disagreement_bytes is None


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("model", "how", "words"),
    [
        (
            CONFIG,
            {"num_gpus": 2, "strategy": "fsdp2"},
            "strategy: is followed by a trace as single or ddp, not as fsdp2",
        ),
        (
            {**CONFIG, "hidden_size": 32},
            {},
            "not built by Transformers this way: it has no fused attention; nearest: --att",
        ),
        ({**CONFIG, "num_key_value_heads": 2}, {}, "parameters, and as Transformers builds it"),
        ("bert-base-uncased", {}, "is no causal language model; give module:function"),
        (CONFIG, {"engine": "both?"}, "engine: is one of closed-form, trace, both, not 'both\\?'"),
        (CONFIG, {"batch": 4}, "batch: goes with a module of your own"),
        (CONFIG, {"engine": "closed-form", "time_limit": 4}, "time_limit: is for a trace alone"),
    ],
)
def test_what_a_named_model_cannot_be_traced_with(model: Any, how: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        gradaccum.fit(model=model, **{**SMALL, "engine": "trace", "sequence_length": 32, **how})


def test_without_transformers_or_torch_it_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"engine: needs Transformers .* pip install transformers"):
        gradaccum.fit(model="gpt2", engine="both", **SMALL)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torch", None)
        with pytest.raises(MissingExtraError, match="a trace needs the package torch"):
            importlib.reload(fit_package)
    importlib.reload(fit_package)
