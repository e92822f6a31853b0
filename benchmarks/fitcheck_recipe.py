"""The training step that was measured in `measured/fitcheck_t4.csv`, on the meta device, traced and replayed.

Runs in an environment of its own, with the transformers and peft of the measured session: they decide how a mask is
made and in which order tensors die. One JSON line for each row number on standard input.
"""

from __future__ import annotations

import inspect
import json
import re
import resource
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import peft
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measured_cases import CAPACITY, RECIPES, read
from gradaccum.memory.allocator import Allocator, OutOfMemory, ties_of
from gradaccum.torch.trace import Job, Peaks, Trace, cuda, record, replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Row = dict[str, str]


FAMILIES = {"Qwen2": "Qwen2Config", "Mistral": "MistralConfig"}
"""The configuration of a model by a part of its name; a Llama's where none is there."""


def base_model(row: Mapping[str, str]) -> torch.nn.Module:
    """The base in fp16, from its sizes alone. ValueError where its parameters are not as many as were measured."""
    kind = getattr(transformers, next((FAMILIES[part] for part in FAMILIES if part in row["model"]), "LlamaConfig"))
    config = kind(
        hidden_size=int(row["hidden"]),
        num_hidden_layers=int(row["layers"]),
        num_attention_heads=int(row["heads"]),
        num_key_value_heads=int(row["kv_heads"]),
        vocab_size=int(row["vocab"]),
        intermediate_size=int(row["ffn"]),
        tie_word_embeddings=row["tied"] == "1",
        max_position_embeddings=8192,
    )
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=row["attention"], dtype=torch.float16
    )
    model.tie_weights()
    found = sum(parameter.numel() for parameter in model.parameters())
    if found != int(row["params"]):
        raise ValueError(f"{row['model']} has {row['params']} parameters, and not {found}")
    model.config.use_cache = False
    return model


def recipe(row: Mapping[str, str]) -> Callable[[int, torch.nn.Module], Job]:
    """What is done with the base once it is on the device."""

    def build(micro_batch: int, base: torch.nn.Module) -> Job:
        rank = int(row["lora_rank"])
        adapters = peft.LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        )
        model = peft.get_peft_model(base, adapters)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if any(parameter.dtype is not torch.float32 for parameter in trained):
            raise ValueError("the adapters of the measured runs are in fp32")
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        words = torch.randint(0, int(row["vocab"]), (micro_batch, int(row["seq_len"])), device="meta")

        def step() -> None:
            optimizer.zero_grad()
            out = model(input_ids=words, labels=words)
            out.loss.backward()
            # The measured loop holds `out`, and with it the logits, until the update is done.
            optimizer.step()

        return Job(module=model, optimizer=optimizer, step=step, batch=words, update=lambda: None)

    return build


@contextmanager
def memory_efficient_alone() -> Iterator[None]:
    """Attention by the memory-efficient kernel, with keys and values repeated first, as in the measured runs."""
    functional = torch.nn.functional
    plain = functional.scaled_dot_product_attention

    def repeated(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        groups = query.shape[-3] // key.shape[-3]
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=-3), value.repeat_interleave(groups, dim=-3)
        return plain(query, key, value, *args, **{**kwargs, "enable_gqa": False})

    functional.scaled_dot_product_attention = repeated
    try:
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            yield
    finally:
        functional.scaled_dot_product_attention = plain


def quantised_recipe(row: Mapping[str, str]) -> Callable[[int, torch.nn.Module], Job]:
    """The same with a base in NF4: how it is loaded and made ready for training is a part of it."""
    from benchmarks import quantised_loading

    with torch.device("meta"):
        skeleton: Any = quantised_loading.skeleton(base_model(row), torch.float16)
    then = recipe(row)

    def build(micro_batch: int, nothing: torch.nn.Module) -> Job:
        quantised_loading.load(skeleton, torch.float16)
        base = peft.prepare_model_for_kbit_training(skeleton, use_gradient_checkpointing=True)
        if "auto_clear_cache" in inspect.signature(peft.prepare_model_for_kbit_training).parameters:
            # It asks for a GPU first, and there is none here.
            torch.cuda.empty_cache()
        return then(micro_batch, base)

    return build


def traced(row: Mapping[str, str]) -> Trace:
    """Two updates of one micro-step, as in the measured run."""
    quantised = row["quantization"] == "nf4"
    with memory_efficient_alone() if row["attention"] == "sdpa" else nullcontext():
        return record(
            quantised_recipe(row) if quantised else recipe(row),
            int(row["micro_batch"]),
            # Of a base in NF4 nothing is there before `build`.
            load=torch.nn.Module if quantised else lambda: base_model(row),
            device=cuda((7, 5)),
            accum_steps=1,
            updates=2,
        )


def predicted(row: Mapping[str, str]) -> dict[str, object]:
    """Peaks in bytes, what was alive at the peak, and what the prediction cost.

    reserved_bytes is None where the card's memory is not enough; allocated_bytes is then of a card without an end.
    """
    begun = time.perf_counter()
    trace = traced(row)
    took = time.perf_counter() - begun
    capacity = CAPACITY - int(row["context_bytes"])
    peaks, reserved = _replayed(trace, capacity, "address")
    phases = peaks.by_phase
    return {
        "allocated_bytes": peaks.allocated,
        "reserved_bytes": reserved,
        "reserved_bytes_by_version": _replayed(trace, capacity, ties_of(re.sub(r"\+.*", "", row["torch"])))[1],
        "forward_bytes": max(phases["forward"], phases["loss"]),
        "backward_bytes": max(phases["backward"], phases["recompute"]),
        "optimizer_bytes": phases["optimizer"],
        "at": asdict(peaks.at),
        "ledger": [asdict(line) for line in peaks.ledger],
        "events": len(trace.events),
        "unknown": trace.unknown_ops(),
        "assumed": [list(guess) for guess in trace.assumed],
        "seconds": round(took, 2),
        "process_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _replayed(trace: Trace, capacity: int, ties: str) -> tuple[Peaks, int | None]:
    """The peaks, and what is reserved at most; None where the card has not so much."""
    try:
        peaks = replay(trace, Allocator(capacity, ties=ties))
    except OutOfMemory:
        return replay(trace, Allocator(None, ties=ties)), None
    return peaks, peaks.reserved


def main() -> None:
    """Answer row numbers."""
    transformers.logging.set_verbosity_error()
    rows = read(RECIPES)
    for line in sys.stdin:
        print(json.dumps(predicted(rows[int(line)])), flush=True)


if __name__ == "__main__":
    main()
