"""Writes tests/catalog/model_counts.json: parameter counts from Transformers itself, which the catalog is held against.

Needs torch and transformers, which the project does not depend on:

    pip install torch==2.13.0 transformers==5.24.0
    PYTHONPATH=src python docs/make_model_counts.py

Each model is built on PyTorch's meta device, so that even the largest takes no memory.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING

from gradaccum.catalog.models import FAMILIES, Model, models

COUNTS = Path(__file__).parent.parent / "tests" / "catalog" / "model_counts.json"
RANDOM_CONFIGS = 6
"""Of each family: small configs in which every trait varies that the class has."""


def count(config: dict[str, Any]) -> int:
    """The parameters of the class that the catalog names, built from this config."""
    family = config["model_type"]
    rest = {key: value for key, value in config.items() if key != "model_type"}
    cls = getattr(transformers, FAMILIES[family][0])
    with torch.device("meta"):
        model = cls(CONFIG_MAPPING[family](**rest, pad_token_id=0))  # a default lies beyond a small vocabulary
    return sum(parameter.numel() for parameter in model.parameters())


def config_of(model: Model) -> dict[str, Any]:
    """The row in the words of its family's config."""
    family = model.family
    short = family in ("gpt2", "bloom")
    config: dict[str, Any] = {
        "model_type": family,
        "n_layer" if short else "num_hidden_layers": model.layers,
        "n_embd" if family == "gpt2" else "hidden_size": model.hidden,
        "n_head" if short else "num_attention_heads": model.heads,
    }
    if family != "vit":
        config["vocab_size"] = model.vocab
        config["tie_word_embeddings"] = model.tied
    if family not in ("bloom", "vit"):
        longest = model.learned_positions if family == "roberta" else model.positions
        config["n_positions" if family == "gpt2" else "max_position_embeddings"] = longest
    if not short:
        config["ffn_dim" if family == "opt" else "intermediate_size"] = model.ffn
    if model.kv_heads != model.heads or "kv_heads" in FAMILIES[family][1]:
        config["num_key_value_heads"] = model.kv_heads
    if not model.kv_rank and model.head_dim * model.heads != model.hidden:
        config["head_dim"] = model.head_dim
    if family in ("bert", "roberta"):
        config["type_vocab_size"] = model.token_types
    if family == "opt":
        config["word_embed_proj_dim"] = model.embedding_width
        config["do_layer_norm_before"] = model.final_norm
    if family == "vit":
        config.update(image_size=model.image, patch_size=model.patch, num_channels=model.channels)
        config["num_labels"] = model.classes
    if "sliding_window" in CONFIG_MAPPING[family]().to_dict() and not family.startswith("qwen"):
        config["sliding_window"] = model.sliding_window
    if family == "phi":
        config["resid_pdrop"] = 0.1 if model.hidden_dropout else 0.0
    return config | _experts_of(model) | _latent_of(model)


def _experts_of(model: Model) -> dict[str, Any]:
    if not model.experts:
        return {}
    config: dict[str, Any] = {"num_experts_per_tok": model.experts_per_token}
    if model.family == "mixtral":
        return config | {"num_local_experts": model.experts}
    config["moe_intermediate_size"] = model.expert_ffn
    if model.family == "qwen3_moe":
        return config | {"num_experts": model.experts}
    config.update(n_routed_experts=model.experts, n_shared_experts=model.shared_experts)
    return config | {"first_k_dense_replace": model.dense_layers}


def _latent_of(model: Model) -> dict[str, Any]:
    if not model.kv_rank:
        return {}
    return {
        "q_lora_rank": model.q_rank or None,
        "kv_lora_rank": model.kv_rank,
        "qk_nope_head_dim": model.head_dim - model.rope_dim,
        "qk_rope_head_dim": model.rope_dim,
        "v_head_dim": model.value_dim,
    }


def random_config(family: str, seed: int) -> dict[str, Any]:
    """A small config of the family; each trait that its config class has is set, or left to its default."""
    pick = random.Random(f"{family} {seed}")
    known = CONFIG_MAPPING[family]().to_dict()
    kv_heads, group, head_dim = pick.randint(1, 3), pick.randint(1, 3), 2 * pick.randint(2, 5)
    heads = kv_heads * group
    layers = pick.randint(1, 5)
    spare = head_dim in (4, 8) and "head_dim" in known and "kv_lora_rank" not in known
    traits: dict[str, Any] = {
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": pick.random() < 0.5,
        "attention_bias": pick.random() < 0.5,
        "mlp_bias": pick.random() < 0.5,
        "qkv_bias": pick.random() < 0.5,
        "enable_bias": pick.random() < 0.5,
        "layer_norm_elementwise_affine": pick.random() < 0.5,
        "do_layer_norm_before": pick.random() < 0.5,
        "use_parallel_residual": pick.random() < 0.5,
        "qk_layernorm": pick.random() < 0.5,
        "word_embed_proj_dim": pick.choice([4, heads * head_dim]),
        "type_vocab_size": pick.randint(1, 3),
        "image_size": 4 * pick.randint(2, 5) + pick.randint(0, 3),
        "patch_size": 4,
        "num_channels": pick.randint(1, 4),
        "num_experts_per_tok": 2,
        "moe_intermediate_size": pick.randint(3, 9),
        "n_routed_experts": 4,
        "n_shared_experts": pick.randint(1, 2),
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": pick.randint(0, layers),
        "q_lora_rank": pick.choice([None, 6]),
        "kv_lora_rank": 5,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 2,
        "v_head_dim": 3,
        "decoder_sparse_step": pick.randint(1, 2),
        "mlp_only_layers": pick.choice([[], [0], [1, 2]]),
    }
    config: dict[str, Any] = {"model_type": family}
    short = family in ("gpt2", "bloom")
    config["n_layer" if short else "num_hidden_layers"] = layers
    config["n_head" if short else "num_attention_heads"] = heads
    config["n_embd" if family == "gpt2" else "hidden_size"] = heads * head_dim if not spare else heads * 6
    if "head_dim" in known and "kv_lora_rank" not in known:
        config["head_dim"] = head_dim
    if family in ("gpt2", "opt") or "intermediate_size" in known:
        config[{"gpt2": "n_inner", "opt": "ffn_dim"}.get(family, "intermediate_size")] = pick.randint(5, 40)
    if family != "vit":
        config["vocab_size"] = pick.randint(11, 99)
    if family not in ("bloom", "vit"):
        config["n_positions" if family == "gpt2" else "max_position_embeddings"] = pick.randint(8, 64)
    if family == "vit":
        config["num_labels"] = pick.randint(2, 9)
    if family in ("mixtral", "qwen3_moe"):
        config["num_local_experts" if family == "mixtral" else "num_experts"] = pick.randint(2, 5)
    config.update({key: value for key, value in traits.items() if key in known})
    return config


def main() -> None:
    """Write the file: one line for each config, the rows of the catalog first."""
    rows = [{"id": model.id, "config": config_of(model)} for model in models()]
    rows += [{"config": random_config(family, seed)} for family in sorted(FAMILIES) for seed in range(RANDOM_CONFIGS)]
    lines = []
    for row in rows:
        row["params"] = count(row["config"])
        lines.append(json.dumps(row))
    head = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    text = json.dumps(head)[:-1] + ',\n "counts": [\n  ' + ",\n  ".join(lines) + "\n]}\n"
    COUNTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
