"""One layer of each family, as the modelling code of Transformers 5.24 runs it: models/FAMILY/modeling_FAMILY.py."""

from __future__ import annotations

from gradaccum.memory.experts import experts
from gradaccum.memory.mlp import gated_mlp, plain_mlp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gradaccum.memory.modules import Modules
    from gradaccum.memory.tape import Tensor


def run_layer(modules: Modules, x: Tensor, routed: bool = False) -> Tensor:
    """Put one layer on the tape. x: its input; routed: a layer of a mixture of experts. KeyError: no such family."""
    layer = LAYERS[modules.model.family]
    return layer(modules, x, routed)


def run_embedding(m: Modules, x: Tensor) -> None:
    """Put what stands between the embedding table and the first layer on the tape: a projection, a norm, a dropout."""
    m.tape.part = "embedding"
    if m.model.embedding_width != m.model.hidden:
        m.linear(m.tape.new("e", x.width, x.grad), "h", "project_in")
    if m.model.embedding_norm:
        x = m.layer_norm(x)
    if m.model.family in ("bert", "gpt2", "roberta", "vit"):
        m.tape.dropout(x, m.model.hidden_dropout)


# Rotary families: RMSNorm, gated MLP


def _rms(m: Modules, x: Tensor, routed: bool = False) -> Tensor:
    tape, post = m.tape, m.model.norms == 4 or m.model.family == "olmo2"
    pre = m.model.family != "olmo2"
    attended = _rotary_attention(m, _part(m, "norms", m.norm, x) if pre else x)
    x = tape.add(x, _part(m, "norms", m.norm, attended) if post else attended)
    inner = _part(m, "norms", m.norm, x) if pre else x
    inner = experts(m, inner) if routed else gated_mlp(m, inner)
    return tape.add(x, _part(m, "norms", m.norm, inner) if post else inner)


def _part(m: Modules, part: str, module: Callable[..., Tensor], *arguments: object) -> Tensor:
    m.tape.part, before = part, m.tape.part
    found = module(*arguments)
    m.tape.part = before
    return found


def _rotary_attention(m: Modules, x: Tensor) -> Tensor:
    tape, model, bias = m.tape, m.model, m.model.qkv_bias
    tape.part = "attention"
    fused = model.family == "phi3"
    if fused:
        projected = m.linear(x, "q + 2 kv", "qkv_proj")
        q, k, v = tape.view(projected, "q"), tape.view(projected, "kv"), tape.view(projected, "kv")
    else:
        q, k = m.linear(x, "q", "q_proj", bias), m.linear(x, "kv", "k_proj", bias)
        if model.qk_norm:
            groups = ("a", "b") if model.qk_norm == "head" else ("1", "1")
            q, k = (_part(m, "norms of queries and keys", m.norm, each, per) for each, per in zip((q, k), groups))
        v = m.linear(x, "kv", "v_proj", bias)
    # Cosine and sine are cast to the type of the residual stream; OLMo 2 keeps them in fp32.
    width = 4 if model.family == "olmo2" else x.width
    q, k = _rotated(m, q, width), _rotated(m, k, width)
    if model.family == "olmo2":
        q, k = tape.cast(q, x.width), tape.cast(k, x.width)
    if fused:  # a partial rotation by torch.cat, which may turn all
        q, k = tape.join((q,), "q"), tape.join((k,), "kv")
    attended = m.attention(q, k, v)
    attended = m.by_token(attended) if fused else attended
    return m.linear(attended, "h", "o_proj", model.o_bias)


def _rotated(m: Modules, x: Tensor, width: int) -> Tensor:
    """x cos + rotate_half(x) sin; cosine and sine are kept once for all layers."""
    tape = m.tape
    turned = tape.join((x,), x.size)
    straight, turned = tape.weighted(x, width, False), tape.weighted(turned, width, False)
    return tape.add(straight, turned)


# Latent attention


def _latent(m: Modules, x: Tensor, routed: bool = False) -> Tensor:
    tape = m.tape
    x = tape.add(x, _latent_attention(m, _part(m, "norms", m.norm, x)))
    inner = _part(m, "norms", m.norm, x)
    return tape.add(x, experts(m, inner) if routed else gated_mlp(m, inner))


def _latent_attention(m: Modules, x: Tensor) -> Tensor:
    """Multi-head latent attention: queries, keys and values from narrow latents. DeepSeek-V2, arXiv 2405.04434, 2.1."""
    tape, model = m.tape, m.model
    tape.part = "attention"
    rope, nope = str(model.rope_dim), model.head_dim - model.rope_dim
    turned = str(model.heads * model.rope_dim)
    latent, expanded = str(model.kv_rank), str(model.heads * (nope + model.value_dim))
    if model.q_rank:
        narrow = m.linear(x, str(model.q_rank), "q_a_proj", model.qkv_bias)
        q = m.linear(m.norm(narrow), "q", "q_b_proj")
    else:
        q = m.linear(x, "q", "q_proj")
    compressed = m.linear(x, str(model.kv_rank + model.rope_dim), "kv_a_proj_with_mqa", model.qkv_bias)
    latents = m.norm(tape.view(compressed, latent))
    q_turned, k_turned = tape.view(q, turned), tape.view(compressed, rope)
    q_turned, k_turned = _turned(m, q_turned, x.width), _turned(m, k_turned, x.width)
    q = tape.join((tape.view(q, str(model.heads * nope)), q_turned), "q")
    both = m.linear(latents, expanded, "kv_b_proj")
    k = tape.join((tape.view(both, str(model.heads * nope)), k_turned), "q")
    v = tape.view(both, "v")
    attended = m.by_token(m.attention(q, k, v, "v"))
    return m.linear(attended, "h", "o_proj", model.o_bias)


def _turned(m: Modules, x: Tensor, width: int) -> Tensor:
    tape = m.tape
    if m.model.family == "deepseek_v2":  # a complex product in fp32, whose factor is kept once for all layers
        wide = tape.cast(x, 4)
        return tape.cast(tape.weighted(tape.join((wide,), wide.size), 4, False), x.width)
    return tape.weighted(tape.weighted(x, width, False), width, False)


# LayerNorm families


def _classic(m: Modules, x: Tensor, routed: bool = False) -> Tensor:
    tape, model = m.tape, m.model
    attend, mlp = _ATTENTION[model.family], plain_mlp
    drop = model.hidden_dropout
    if model.parallel:
        first = _part(m, "norms", m.norm, x)
        second = first if model.norms == 1 else _part(m, "norms", m.norm, x)
        attended = tape.dropout(attend(m, first), drop)
        return tape.add(tape.add(tape.dropout(mlp(m, second), drop), attended), x)
    if not _norm_first(m):
        x = _part(m, "norms", m.norm, tape.add(tape.dropout(attend(m, x), drop), x))
        return _part(m, "norms", m.norm, tape.add(tape.dropout(mlp(m, x), drop), x))
    x = tape.add(tape.dropout(attend(m, _part(m, "norms", m.norm, x)), drop), x)
    return tape.add(tape.dropout(mlp(m, _part(m, "norms", m.norm, x)), drop), x)


def _norm_first(m: Modules) -> bool:
    return m.model.family not in ("bert", "roberta") and (m.model.family != "opt" or m.model.final_norm)


def _fused_attention(m: Modules, x: Tensor) -> Tensor:
    """Queries, keys and values are views of one projection (GPT-2, BLOOM, GPT-NeoX)."""
    tape, model = m.tape, m.model
    tape.part = "attention"
    into = "c_attn" if model.family == "gpt2" else "query_key_value"
    out = {"gpt2": "attn.c_proj", "bloom": "self_attention.dense", "gpt_neox": "attention.dense"}[model.family]
    projected = m.linear(x, "3 q", into, model.qkv_bias)
    q, k, v = (tape.view(projected, "q") for _ in range(3))
    if model.family == "bloom":
        # Always eager: `baddbmm` of ALiBi's biases, queries and keys.
        return m.linear(m.eager(q, k, v, "q", upcast=True, scaled=False), "h", out, model.o_bias)
    if model.family == "gpt_neox":
        q, k = (tape.join((_rotated(m, each, x.width),), "q") for each in (q, k))
    attended = m.attention(q, k, v, upcast=model.family != "gpt2")
    attended = m.by_token(attended) if model.family == "gpt_neox" else attended
    return m.linear(attended, "h", out, model.o_bias)


def _separate_attention(m: Modules, x: Tensor) -> Tensor:
    """Three projections (OPT, BERT, RoBERTa, ViT, Phi)."""
    tape, model, family = m.tape, m.model, m.model.family
    tape.part = "attention"
    first, second, third, out = _PROJECTIONS.get(family, ("q_proj", "k_proj", "v_proj", "o_proj"))
    q = m.linear(x, "q", first, model.qkv_bias)
    if family == "opt":
        q = tape.scale(q)
    k, v = m.linear(x, "kv", second, model.qkv_bias), m.linear(x, "kv", third, model.qkv_bias)
    if family == "phi":
        if model.qk_norm:
            q, k = m.layer_norm(q, "a"), m.layer_norm(k, "b")
        q, k = tape.join((_rotated(m, q, x.width),), "q"), tape.join((_rotated(m, k, x.width),), "kv")
    attended = m.attention(q, k, v, upcast=family not in ("bert", "roberta"))
    attended = m.by_token(attended) if family == "phi" else attended
    return m.linear(attended, "h", out, model.o_bias)


_BERT = ("query", "key", "value", "attention.output.dense")
_PROJECTIONS = {
    "bert": _BERT,
    "roberta": _BERT,
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "phi": ("q_proj", "k_proj", "v_proj", "self_attn.dense"),
}

_ATTENTION = {
    "gpt2": _fused_attention,
    "bloom": _fused_attention,
    "gpt_neox": _fused_attention,
    "opt": _separate_attention,
    "bert": _separate_attention,
    "roberta": _separate_attention,
    "vit": _separate_attention,
    "phi": _separate_attention,
}

_RMS = "gemma gemma2 gemma3_text llama mistral mixtral olmo2 phi3 qwen2 qwen3 qwen3_moe smollm3".split()

LAYERS: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(_RMS, _rms),
    **dict.fromkeys(_ATTENTION, _classic),
    "deepseek_v2": _latent,
    "deepseek_v3": _latent,
}
"""The layer of each family."""
