"""What autograd really saves in one layer, measured: `python -m benchmarks.measure_saved_tensors FILE`.

Small models of each family are run on a CPU with hooks on saved tensors around the first layer and around the second,
without a cache of keys and values. Every storage counts once; parameters and buffers, and what both layers save (cosine
and sine), not at all. It needs Transformers, PEFT and bitsandbytes beside PyTorch; the tests read what it wrote.

Autocast is that of the CPU, which casts the same products, with the operators added that CUDA's runs in fp32. What
bitsandbytes' 8-bit product keeps is no saved tensor but an attribute; it is counted all the same. Under autocast that
product is another one on a CPU than on a GPU, and is not measured.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch.utils import checkpoint as checkpointing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BATCH, LENGTH = 2, 64
HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, RANK = 256, 512, 8, 2, 32, 500, 8
WIDE = {
    "hidden_size": HIDDEN, "intermediate_size": FFN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB, "max_position_embeddings": 128,
}  # fmt: skip
CLASSIC = {**WIDE, "intermediate_size": 4 * HIDDEN, "num_key_value_heads": None}
PLAIN = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
GPT2 = {"n_embd": HIDDEN, "n_head": HEADS, "vocab_size": VOCAB, "n_positions": 128}
NO_DROPOUT = {"resid_pdrop": 0, "attn_pdrop": 0, "embd_pdrop": 0}
OPT = {
    "hidden_size": HIDDEN, "ffn_dim": 4 * HIDDEN, "num_attention_heads": HEADS, "vocab_size": VOCAB,
    "max_position_embeddings": 128, "word_embed_proj_dim": HIDDEN, "attention_dropout": 0,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
LATENT = {
    **WIDE, "num_key_value_heads": HEADS, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96,
    "n_shared_experts": 2, "kv_lora_rank": 48, "qk_rope_head_dim": 16, "qk_nope_head_dim": 24, "v_head_dim": 40,
    "pad_token_id": 0,
}  # fmt: skip
VIT = {
    "hidden_size": HIDDEN, "intermediate_size": 4 * HIDDEN, "num_attention_heads": HEADS, "image_size": 112,
    "patch_size": 16, **PLAIN,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", WIDE),
    "mistral": ("Mistral", WIDE),
    "qwen2": ("Qwen2", WIDE),
    "qwen3": ("Qwen3", {**WIDE, "head_dim": HEAD_DIM}),
    "phi3": ("Phi3", {**WIDE, "pad_token_id": 0}),
    "gemma": ("Gemma", {**WIDE, "head_dim": HEAD_DIM}),
    "gemma2": ("Gemma2", {**WIDE, "head_dim": HEAD_DIM}),
    "gemma3_text": ("Gemma3Text", {**WIDE, "head_dim": HEAD_DIM}),
    "olmo2": ("Olmo2", WIDE),
    "smollm3": ("SmolLM3", {**WIDE, "pad_token_id": 0}),
    "gpt2": ("GPT2", {**GPT2, **NO_DROPOUT}),
    "bloom": ("Bloom", {"hidden_size": HIDDEN, "n_head": HEADS, "vocab_size": VOCAB}),
    "gpt_neox": ("GPTNeoX", CLASSIC),
    "opt": ("OPT", {**OPT, "dropout": 0}),
    "opt with post-norm": ("OPT", {**OPT, "dropout": 0, "do_layer_norm_before": False}),
    "phi": ("Phi", {**CLASSIC, "num_key_value_heads": HEADS}),
    "bert": ("Bert", {**CLASSIC, **PLAIN}),
    "roberta": ("Roberta", {**CLASSIC, **PLAIN}),
    "vit": ("ViT", VIT),
    "mixtral": ("Mixtral", {**WIDE, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3Moe", {**WIDE, "head_dim": HEAD_DIM, **EXPERTS, "norm_topk_prob": True}),
    "deepseek_v2": ("DeepseekV2", {**LATENT, "q_lora_rank": None, "first_k_dense_replace": 1, "n_group": 1}),
    "deepseek_v3": ("DeepseekV3", {**LATENT, "q_lora_rank": 64, "first_k_dense_replace": 1, "n_routed_experts": 16}),
}
LAYERS = {"gpt2": "n_layer", "bloom": "n_layer"}
EAGER_ALONE = ("gemma2", "bloom")
"""What has no fused attention of PyTorch's: soft caps of the scores, ALiBi."""
MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3")
NOT_QUANTISED = (*MIXTURES, "gpt2")

PRECISIONS = {"bf16": (torch.bfloat16, False), "fp32": (torch.float32, False), "bf16-mixed": (torch.float32, True)}

Case = dict[str, Any]


def cases() -> Iterator[Case]:
    """Every combination that is measured, without its bytes."""
    for name in CASES:
        for precision in PRECISIONS:
            for attention in ("eager",) if name in EAGER_ALONE else ("sdpa", "eager"):
                plain = {"case": name, "precision": precision, "attention": attention}
                yield {**plain, "targets": None, "quantization": "none"}
                if attention == "sdpa" or name in EAGER_ALONE:
                    yield from _adapted(name, plain)


def _adapted(name: str, plain: Case) -> Iterator[Case]:
    for targets in ("attention",) if name in MIXTURES else ("attention", "all-linear"):
        yield {**plain, "targets": targets, "quantization": "none"}
    if plain["precision"] != "fp32" and name not in NOT_QUANTISED:
        for quantization in ("nf4", "int8") if plain["precision"] == "bf16" else ("nf4",):
            yield {**plain, "targets": "attention", "quantization": quantization}


TARGETS = {
    "gpt2": "c_attn attn.c_proj",
    "bloom": "query_key_value self_attention.dense",
    "gpt_neox": "query_key_value attention.dense",
    "opt": "q_proj k_proj v_proj out_proj",
    "phi": "q_proj k_proj v_proj self_attn.dense",
    "phi3": "qkv_proj o_proj",
    "bert": "query key value attention.output.dense",
    "roberta": "query key value attention.output.dense",
    "deepseek_v2": "q_proj kv_a_proj_with_mqa kv_b_proj o_proj",
    "deepseek_v3": "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj",
}
"""The linear layers of the attention, where they are not q_proj, k_proj, v_proj and o_proj."""


def build(case: Case) -> torch.nn.Module:
    """The base model of three layers, with adapters and quantised weights where the case has them."""
    import peft
    import transformers

    name, options = CASES[case["case"]]
    family = case["case"].split()[0]
    given = {key: value for key, value in options.items() if value is not None or key == "q_lora_rank"}
    config = getattr(transformers, f"{name}Config")(**given, **{LAYERS.get(family, "num_hidden_layers"): 3})
    config._attn_implementation = case["attention"]
    dtype = PRECISIONS[case["precision"]][0]
    model = getattr(transformers, f"{name}Model")(config)
    if case["quantization"] != "none":
        model = _quantised(model.to(torch.bfloat16), case["quantization"])
    else:
        model = model.to(dtype)
    if case["targets"]:
        named = TARGETS.get(family, "q_proj k_proj v_proj o_proj").split()
        targets = named if case["targets"] == "attention" else "all-linear"
        model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, target_modules=targets, lora_dropout=0.0))
    return model


def _quantised(model: torch.nn.Module, quantization: str) -> torch.nn.Module:
    import bitsandbytes
    import peft

    four = quantization == "nf4"
    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear:
            continue
        shape, bias = (module.in_features, module.out_features), module.bias is not None
        if four:
            new = bitsandbytes.nn.Linear4bit(
                *shape, bias=bias, compute_dtype=torch.bfloat16, compress_statistics=False, quant_type="nf4"
            )
            new.weight = bitsandbytes.nn.Params4bit(
                module.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=False
            )
        else:
            new = bitsandbytes.nn.Linear8bitLt(*shape, bias=bias, has_fp16_weights=False)
            new.weight = bitsandbytes.nn.Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
        if bias:
            new.bias = module.bias
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, new.to("cpu"))
    if four:
        model.is_loaded_in_4bit = True
    else:
        model.is_loaded_in_8bit = True
    return peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def main() -> None:
    """Measure every case and write the file."""
    import bitsandbytes
    import peft
    import transformers

    torch.set_num_threads(1)
    with torch.library._scoped_library("aten", "IMPL") as library:
        _as_on_cuda(library)
        rows = []
        for case in cases():
            torch.manual_seed(0)
            first, inner = _saved(build(case), PRECISIONS[case["precision"]][1])
            rows.append({**case, "first": first, "inner": inner})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    selective = [
        {"case": case["case"], "precision": case["precision"], "bytes": _cached(build(case))}
        for case in cases()
        if case["attention"] == "sdpa" and not case["targets"] and case["precision"] != "bf16-mixed"
        if case["case"] != "vit"
    ]
    configs = {name: {"model_type": name.split()[0], **options} for name, (_, options) in CASES.items()}
    head = {module.__name__: module.__version__ for module in (torch, transformers, peft, bitsandbytes)}
    head.update(batch=BATCH, sequence_length=LENGTH, rank=RANK, configs=configs, selective=selective)
    Path(sys.argv[1]).write_text(
        json.dumps(head)[:-1] + ',\n"rows": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n"
    )


FULL = "layer_norm pow.Tensor_Scalar rsqrt".split()
FULL_BY_DTYPE = "softmax.int sum cumsum".split()


def _as_on_cuda(library: torch.library.Library) -> None:
    """The operators of layers that CUDA's autocast runs in fp32, and the CPU's does not."""

    def redispatch(name: str, change: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
        packet, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.aten, packet), overload or "default")

        def kernel(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
                args, kwargs = change(operator, args, kwargs)
                return operator(*args, **kwargs)

        return kernel

    def upcast(_: Any, args: Any, kwargs: Any) -> Any:
        return [each.float() if _is_low(each) else each for each in args], kwargs

    def by_dtype(operator: Any, args: Any, kwargs: Any) -> Any:
        place = [argument.name for argument in operator._schema.arguments].index("dtype")
        given = args[place] if place < len(args) else kwargs.get("dtype")
        return (
            (args[:place], {**kwargs, "dtype": torch.float32}) if given is None and _is_low(args[0]) else (args, kwargs)
        )

    for names, change in ((FULL, upcast), (FULL_BY_DTYPE, by_dtype)):
        for name in names:
            library.impl(name, redispatch(name, change), "AutocastCPU")


def _is_low(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)


def _saved(model: torch.nn.Module, mixed: bool) -> tuple[int, int]:
    """Bytes of all storages that the first layer saves, and of those that the second does."""
    own: set[int] = set()
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 3)
    sizes: list[dict[int, int]] = [{}, {}]
    kept = []

    def around(layer: torch.nn.Module, found: dict[int, int]) -> None:
        forward = layer.forward

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
                kept.append(tensor)  # so that no address is used twice
            return tensor

        def hooked(*args: Any, **kwargs: Any) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _eight_bit_inputs(keep):
                return forward(*args, **kwargs)

        layer.forward = hooked

    def run() -> None:
        if model.config.model_type == "vit":
            model(torch.randn(BATCH, 3, 112, 112, dtype=next(model.parameters()).dtype))
        else:
            model(torch.randint(0, VOCAB, (BATCH, LENGTH)), use_cache=False)

    model.train()
    # PEFT asks for the autocast of CUDA.
    with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext(), _autocast_of_any_device():
        run()  # quantised weights may be laid out anew
        own.update(each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers()))
        for layer, found in zip(layers, sizes, strict=False):
            around(layer, found)
        run()
    shared = sizes[0].keys() & sizes[1].keys()
    first, inner = (sum(size for address, size in found.items() if address not in shared) for found in sizes)
    return first, inner


def _cached(model: torch.nn.Module) -> int:
    """Bytes that selective checkpointing of the second layer keeps: its input, and results by torchtitan's policy."""
    aten = torch.ops.aten
    kept = (aten.mm.default, aten._scaled_dot_product_flash_attention_for_cpu.default)
    products = {False: 0, True: 0}
    storages: list[Any] = []

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> checkpointing.CheckpointPolicy:
        """Every second product is computed again (torchtitan/distributed/activation_checkpoint.py)."""
        if operator is aten.mm.default:
            products[context.is_recompute] += 1
            if products[context.is_recompute] % 2 == 0:
                return checkpointing.CheckpointPolicy.PREFER_RECOMPUTE
        wanted = operator in kept
        return checkpointing.CheckpointPolicy.MUST_SAVE if wanted else checkpointing.CheckpointPolicy.PREFER_RECOMPUTE

    def contexts() -> Any:
        pair = checkpointing.create_selective_checkpoint_contexts(policy)
        storages.append(pair[0].storage)
        return pair

    layer = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)[1]
    forward = layer.forward

    def checkpointed(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        storages.append(x)
        return checkpointing.checkpoint(forward, x, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    layer.forward = checkpointed
    model.train()
    output = model(torch.randint(0, VOCAB, (BATCH, LENGTH)), use_cache=False)
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}
    found = {each.data_ptr(): each.nbytes() for each in _storages(storages)}
    del output
    return sum(size for address, size in found.items() if address not in own)


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    if isinstance(value, torch.Tensor):
        yield value.untyped_storage()
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _storages(each)
    elif isinstance(value, dict):
        yield from _storages(list(value.values()))
    elif hasattr(value, "val"):  # torch.utils.checkpoint._VersionWrapper
        yield from _storages(value.val)


@contextmanager
def _autocast_of_any_device() -> Iterator[None]:
    asked = torch.is_autocast_enabled
    with mock.patch("torch.is_autocast_enabled", lambda device="cpu": asked(device)):
        yield


@contextmanager
def _eight_bit_inputs(keep: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """bitsandbytes/autograd/_functions.py: MatMul8bitLt and MatMul8bitFp hold their input for the backward pass."""
    import bitsandbytes

    product = bitsandbytes.matmul

    def called(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if x.requires_grad:
            keep(x)
        return product(x, *args, **kwargs)

    with mock.patch("bitsandbytes.matmul", called):
        yield


if __name__ == "__main__":
    main()
