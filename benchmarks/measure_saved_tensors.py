"""What autograd really saves for one more layer, measured: `python -m benchmarks.measure_saved_tensors FILE`.

Small models of each family are run on a CPU with hooks on saved tensors, with two layers and with three, without a
cache of keys and values; every storage counts once, parameters and buffers not at all. It needs Transformers beside
PyTorch; the tests read what it wrote.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

BATCH, LENGTH = 2, 64
HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 256, 512, 8, 2, 32, 500
WIDE = {
    "hidden_size": HIDDEN, "intermediate_size": FFN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB, "max_position_embeddings": 128,
}  # fmt: skip
CLASSIC = {**WIDE, "intermediate_size": 4 * HIDDEN, "num_key_value_heads": None}
PLAIN = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
GPT2 = {"n_embd": HIDDEN, "n_head": HEADS, "vocab_size": VOCAB, "n_positions": 128}
OPT = {
    "hidden_size": HIDDEN, "ffn_dim": 4 * HIDDEN, "num_attention_heads": HEADS, "vocab_size": VOCAB,
    "max_position_embeddings": 128,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", WIDE),
    "mistral": ("Mistral", WIDE),
    "qwen2": ("Qwen2", WIDE),
    "qwen3": ("Qwen3", {**WIDE, "head_dim": HEAD_DIM}),
    "phi3": ("Phi3", {**WIDE, "pad_token_id": 0}),
    "gemma": ("Gemma", {**WIDE, "head_dim": HEAD_DIM}),
    "olmo2": ("Olmo2", WIDE),
    "smollm3": ("SmolLM3", {**WIDE, "pad_token_id": 0}),
    "gpt2": ("GPT2", {**GPT2, "resid_pdrop": 0, "attn_pdrop": 0, "embd_pdrop": 0}),
    "gpt_neox": ("GPTNeoX", CLASSIC),
    "opt": ("OPT", {**OPT, "word_embed_proj_dim": HIDDEN, "dropout": 0, "attention_dropout": 0}),
    "phi": ("Phi", {**CLASSIC, "num_key_value_heads": HEADS}),
    "bert": ("Bert", {**CLASSIC, **PLAIN}),
}
LAYERS = {"gpt2": "n_layer"}


def main() -> None:
    """Measure every case and write the file."""
    import transformers

    rows = []
    for family, (name, options) in CASES.items():
        for dtype in ("bfloat16", "float32"):
            for attention in ("sdpa", "eager"):
                found = []
                for layers in (2, 3):
                    given = {key: value for key, value in options.items() if value is not None}
                    config = getattr(transformers, f"{name}Config")(
                        **given, **{LAYERS.get(family, "num_hidden_layers"): layers}
                    )
                    config._attn_implementation = attention
                    found.append(_saved(getattr(transformers, f"{name}Model")(config).to(getattr(torch, dtype))))
                per_token, rest = divmod(found[1] - found[0], BATCH * LENGTH)
                assert rest == 0
                kept = {key: value for key, value in options.items() if value is not None}
                rows.append(
                    {"family": family, "config": kept, "dtype": dtype, "attention": attention, "bytes": per_token}
                )
    head = {"torch": torch.__version__, "transformers": transformers.__version__, "sequence_length": LENGTH}
    Path(sys.argv[1]).write_text(
        json.dumps(head)[:-1] + ',\n"rows": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n"
    )


def _saved(model: torch.nn.Module) -> int:
    """Bytes of all storages that a forward pass saves."""
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # so that no address is used twice
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(torch.randint(0, VOCAB, (BATCH, LENGTH)), use_cache=False)
    del output
    return sum(sizes.values())


if __name__ == "__main__":
    main()
