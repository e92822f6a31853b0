"""What a case does: its model, batch, optimizer and step, made alike for a GPU, for a CPU and for a trace.

The loop is the plain one: forward and loss, backward, after `accum_steps` of these the optimizer's step, and gradients
set to None. Model and batch alone live from one micro-step to the next; the output too, where the case keeps it.
"""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from benchmarks.gpu import plain
from gradaccum.torch.trace import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.gpu.cases import Case
    from gradaccum.catalog.models import Model

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}

KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]
"""Operators whose results selective checkpointing keeps; all others are recomputed."""

SCALE = 1024.0
"""GradScaler's first scale, so small that no update is skipped, and with it the birth of the optimizer's states."""

IMAGE = 224
"""Pixels of a side."""


def missing(case: Case) -> list[str]:
    """The packages that the case needs and that are not installed."""
    return [name for name in case.needs if importlib.util.find_spec(name) is None]


def job(case: Case, device: str, at: Callable[[str], object] = lambda phase: None) -> Job:
    """The case, with everything made on `device`: "cuda", "cpu", or "meta" for a trace.

    at: called with "forward", "backward" and "step" where they begin, and with "" where an update ends.
    Raises ValueError where the model has not as many parameters as the case says.
    """
    with torch.device(device):
        module = model(case)
        count = sum(each.numel() for each in module.parameters())
        if count != case.params:
            raise ValueError(f"{case.model} has {case.params:,} parameters, and not {count:,}")
        module.train()
        if case.lora_rank:
            module = with_adapters(module, case)
        optimizer = OPTIMIZERS[case.optimizer]([each for each in module.parameters() if each.requires_grad])
        batch = _batch(case)
    if case.compiled and device != "meta":
        module.compile()
    # CUDA's autocast and scaler are what a trace stands for.
    kind = "cpu" if device == "cpu" else "cuda"
    scaler = torch.amp.GradScaler(kind, init_scale=SCALE, enabled=case.dtype == "amp-fp16")

    kept: list[object] = []

    def step() -> None:
        with attention(case):
            at("forward")
            with autocast(case, kind):
                loss = loss_of(module, batch, kept if case.keeps_output else None) / case.accum_steps
            at("backward")
            scaler.scale(loss).backward()

    def update() -> None:
        at("step")
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        at("")

    return Job(module=module, optimizer=optimizer, step=step, update=update, batch=batch)


def loss_of(module: torch.nn.Module, batch: dict[str, torch.Tensor], kept: list[object] | None) -> torch.Tensor:
    """The loss alone, so that logits live no longer than autograd needs them; or until `kept` holds the next ones."""
    result = module(**batch)
    if kept is not None:
        kept[:] = [result]
    return result if isinstance(result, torch.Tensor) else result.loss


# The model


def model(case: Case) -> torch.nn.Module:
    """With random weights, on the default device, as the case wants its attention and its checkpoints."""
    dtype = DTYPES[case.dtype.removeprefix("amp-")] if not case.dtype.startswith("amp-") else torch.float32
    return _plain(case, dtype) if case.plain else _of_transformers(case, dtype)


def _plain(case: Case, dtype: torch.dtype) -> torch.nn.Module:
    with default_dtype(dtype):
        made = plain.make(case.model, case.attention)
    if case.checkpointing != "none":
        made.recompute = partial(checkpoint, **_checkpointing(case))
    return made


def _of_transformers(case: Case, dtype: torch.dtype) -> torch.nn.Module:
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    shape = case.shape
    config = transformers.AutoConfig.for_model(shape.family, **config_of(shape))
    config.use_cache = False
    attention = "eager" if case.attention == "eager" else "sdpa"
    kind = {"lm": "CausalLM", "masked_lm": "MaskedLM", "classes": "ImageClassification"}[shape.head]
    auto = getattr(transformers, f"AutoModelFor{kind}")
    made: torch.nn.Module = auto.from_config(config, attn_implementation=attention, dtype=dtype)
    if case.checkpointing != "none":
        made.gradient_checkpointing_enable(gradient_checkpointing_kwargs=_checkpointing(case))
    return made


def config_of(shape: Model) -> dict[str, object]:
    """What the catalog knows of a model, in the words of Transformers' config; the rest is the usual there."""
    common: dict[str, object] = {"vocab_size": shape.vocab, "tie_word_embeddings": shape.tied}
    if shape.family == "gpt2":
        sizes = {"n_embd": shape.hidden, "n_layer": shape.layers, "n_head": shape.heads, "n_positions": shape.positions}
        return {**common, **sizes}
    common |= {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
    }
    if shape.family == "vit":
        return {**common, "image_size": IMAGE, "num_labels": shape.classes}
    if shape.family in {"bert", "roberta"}:
        return {**common, "max_position_embeddings": shape.learned_positions, "type_vocab_size": shape.token_types}
    common |= {
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.positions,
    }
    if shape.sliding_window:
        common["sliding_window"] = shape.sliding_window
    if shape.experts:
        common |= {"num_experts_per_tok": shape.experts_per_token, "moe_intermediate_size": shape.expert_ffn}
        common["num_local_experts" if shape.family == "mixtral" else "num_experts"] = shape.experts
    return common


def _checkpointing(case: Case) -> dict[str, Any]:
    found: dict[str, Any] = {"use_reentrant": False}
    if case.checkpointing == "selective":
        found["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT)
    return found


def with_adapters(module: torch.nn.Module, case: Case) -> torch.nn.Module:
    """LoRA on all linear layers but the head, as peft makes it: the adapters in fp32."""
    peft = importlib.import_module("peft")
    config = peft.LoraConfig(r=case.lora_rank, lora_alpha=2 * case.lora_rank, target_modules="all-linear")
    made: torch.nn.Module = peft.get_peft_model(module, config)
    if case.checkpointing != "none":
        made.enable_input_require_grads()
    return made


# The rest of a step


def _eight_bit(parameters: Any) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = importlib.import_module("bitsandbytes").optim.AdamW8bit(parameters, lr=1e-5)
    return made


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, lr=1e-5),
    "adamw-fused": partial(torch.optim.AdamW, lr=1e-5, fused=True),
    "adamw-loop": partial(torch.optim.AdamW, lr=1e-5, foreach=False),
    "adamw-8bit": _eight_bit,
    "sgd": partial(torch.optim.SGD, lr=1e-5),
    "sgd-momentum": partial(torch.optim.SGD, lr=1e-5, momentum=0.9),
}


def _batch(case: Case) -> dict[str, torch.Tensor]:
    """Random words, which are their own labels, or random images, on the default device."""
    if case.sequence_length:
        vocabulary = 4096 if case.plain else case.shape.vocab
        words = torch.randint(0, vocabulary, (case.micro_batch, case.sequence_length))
        return {"input_ids": words, "labels": words}
    images = torch.randn(case.micro_batch, 3, IMAGE, IMAGE, dtype=DTYPES.get(case.dtype, torch.float32))
    return {"pixel_values": images, "labels": torch.randint(0, 1000, (case.micro_batch,))}


@contextmanager
def attention(case: Case) -> Iterator[None]:
    """While entered, `scaled_dot_product_attention` takes the kernel of the case alone, where it names one."""
    with ExitStack() as stack:
        if case.attention in KERNELS:
            stack.enter_context(sdpa_kernel(KERNELS[case.attention]))
        yield


@contextmanager
def autocast(case: Case, kind: str) -> Iterator[None]:
    """Autocast, where the case is mixed."""
    mixed = case.dtype.startswith("amp-")
    with torch.autocast(kind, dtype=DTYPES[case.dtype.removeprefix("amp-")], enabled=mixed):
        yield


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """While entered, floating tensors are of this dtype where nothing else is said."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
