"""What is trained, and in which types: the words for precision, adapters, quantised weights, checkpointing and loss."""

from __future__ import annotations

from gradaccum.errors import Problem
from gradaccum.memory.lora import TARGETS, check_targets
from gradaccum.units import show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from gradaccum.catalog.models import Model

DTYPES = ("bf16", "fp16", "fp32", "bf16-mixed", "fp16-mixed")
GRADIENT_DTYPES = ("auto", "fp32")
QUANTIZATIONS = ("none", "nf4", "nf4-double", "int8")
LOSSES = ("full", "chunked", "fused")
CHECKPOINTING = ("none", "selective", "full")

CHOICES = {
    "dtype": DTYPES,
    "gradient_dtype": GRADIENT_DTYPES,
    "checkpointing": CHECKPOINTING,
    "loss": LOSSES,
    "lora_targets": TARGETS,
    "quantization": QUANTIZATIONS,
}

MEANINGS = {
    "dtype": "bf16, fp16, fp32: weights, gradients, activations and states alike; -mixed: autocast over weights, "
    "gradients and states in fp32, under fsdp2 its own mixed precision. With quantised weights: the type of the "
    "products",
    "gradient_dtype": "auto: that of the weights; fp32: gradients are summed in buffers of their own",
    "checkpointing": "full: each layer keeps its input alone, and is computed again in the backward pass; selective: "
    "and every other product's result, and the attention's",
    "loss": "full: all logits at once; chunked: in 8 chunks; fused: one kernel that keeps none",
    "lora_targets": "default: the layers that PEFT takes; attention: all of its linear layers; all-linear: every one "
    "but the head",
    "quantization": "of the frozen weights of linear layers: nf4 and nf4-double have 4 bits, int8 has 8",
}


def problems(model: Model, values: Mapping[str, Any]) -> Iterator[Problem]:
    """What cannot be trained so. values: of a Setup's fields; its words are looked at elsewhere."""
    rank, targets = values["lora_rank"], values["lora_targets"]
    if rank < 0:
        yield Problem("lora_rank", f"must be at least 0, not {show_count(rank)}", ["0", "16"])
    elif rank and targets == "all-linear" and (model.experts or _has_more_layers(model)):
        what = "experts" if model.experts else "layers beside the blocks"
        message = f"all-linear would adapt {what} of {model.id}, which the closed form does not count"
        yield Problem("lora_targets", message, ["attention"])
    elif rank:
        yield from check_targets(model.family, targets)
    elif targets != "default":
        message = "says which layers get an adapter, and lora_rank is 0, which gives none any"
        yield Problem("lora_targets", message, ["--lora-rank 16"])
    if values["quantization"] != "none":
        yield from _quantised(model, values)
    strategy = values["strategy"]
    if strategy not in ("single", "ddp") and values["quantization"] != "none":
        yield Problem("quantization", f"{values['quantization']} is not known together with {strategy}", ["none"])
    if strategy.startswith("zero") and values["dtype"].endswith("-mixed"):
        own = values["dtype"].partition("-")[0]
        yield Problem("dtype", f"{values['dtype']} is autocast's; DeepSpeed keeps fp32 weights beside {own}", [own])
    if values["loss"] != "full" and model.head != "lm":
        yield Problem("loss", f"is full for {model.id}, which predicts no next token", ["full"])


def _has_more_layers(model: Model) -> bool:
    """Linear layers that are neither in a block nor the head of a language model."""
    return model.head != "lm" or model.embedding_width != model.hidden


def _quantised(model: Model, values: Mapping[str, Any]) -> Iterator[Problem]:
    name = "quantization"
    if not values["lora_rank"]:
        yield Problem("lora_rank", "is needed: quantised weights are not trained", ["16"])
    if model.experts:
        yield Problem(name, "of experts is not known: bitsandbytes leaves their stacked weights as they are", ["none"])
    elif model.family == "gpt2":
        yield Problem(name, "of GPT-2's transposed layers is not known", ["none"])
    elif _has_more_layers(model):
        yield Problem(name, f"of {model.id} is not known, which has linear layers beside its blocks", ["none"])
    if values[name] == "int8" and values["dtype"] == "fp32":
        yield Problem("dtype", "of int8 products is fp16 or bf16", ["bf16"])
