"""What one layer keeps for its backward pass, in bytes per token: the sum over the tensors that autograd saves.

The families are those of Transformers, in whose modelling code each term is found; h hidden, f MLP width, a heads,
q = a x head_dim, kv = kv_heads x head_dim, w bytes of the dtype, S sequence length. Saved once where several
operations save the same storage; without a cache of keys and values (use_cache=False), as training has no use for one.
Dropout masks are one byte for each element; on a GPU the fused attention keeps none of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.errors import InputError, Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.catalog.models import Model

RMS = ("gemma", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
CLASSIC = ("bert", "gpt2", "gpt_neox", "opt", "phi", "roberta")
KNOWN = tuple(sorted(RMS + CLASSIC))

AUTOGRAD = "the tensors that autograd saves in Transformers' modelling code"


@dataclass(frozen=True)
class Part:
    """Some of the saved tensors. per_token: bytes. formula: of per_token, with the letters above."""

    name: str
    per_token: int
    formula: str


def layer_parts(model: Model, width: int, attention: str, sequence_length: int) -> tuple[Part, ...]:
    """What one layer saves. width: bytes of the dtype; attention: flash or eager.

    Raises InputError for a family whose layer is not known here.
    """
    if model.family not in KNOWN:
        raise InputError(
            Problem(
                "model",
                f"is of the family {model.family}, whose layer the closed form does not know",
                [each for each in KNOWN if each[:3] == model.family[:3]],
            )
        )
    return (*_norms(model, width), *_attention(model, width, attention, sequence_length), *_mlp(model, width))


def layer_bytes(model: Model, width: int, attention: str, sequence_length: int) -> int:
    """The sum of layer_parts, in bytes per token."""
    return sum(part.per_token for part in layer_parts(model, width, attention, sequence_length))


def norm_bytes(model: Model, width: int, size: int, groups: int = 1) -> int:
    """What one norm over `size` features saves, its output apart where a linear layer keeps that anyway.

    An RMSNorm computes in fp32: it saves that copy of its input, and what it multiplies with its weight: in the
    model's dtype (Llama), or in fp32 (OLMo 2, Gemma); and one or more fp32 numbers for each group. LayerNorm is one
    kernel, which saves its input, and mean and 1/deviation in fp32.
    """
    if model.norm == "layer":
        return width * size + 8 * groups
    if model.family == "gemma":
        return 8 * size + 12 * groups
    if model.family == "olmo2":
        return 8 * size + 4 * groups
    return (4 + width) * size + 4 * groups


def _norms(model: Model, width: int) -> list[Part]:
    h = model.hidden
    # Post-norms of BERT save what the next layer reads anyway: counted with the linear layers' inputs.
    count = model.norms * norm_bytes(model, width, h)
    formulas = {"layer": "w h + 8", "gemma": "8 h + 12", "olmo2": "8 h + 4"}
    formula = formulas.get("layer" if model.norm == "layer" else model.family, "(4 + w) h + 4")
    parts = [Part("norms", count, f"{model.norms} x ({formula})")]
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    if model.qk_norm:
        per_head = model.qk_norm == "head"
        saved = norm_bytes(model, width, queries, model.heads if per_head else 1)
        saved += norm_bytes(model, width, keys, model.kv_heads if per_head else 1)
        parts.append(Part("norms of queries and keys", saved, "the same over q and over kv"))
    return parts


def _attention(model: Model, width: int, attention: str, sequence_length: int) -> list[Part]:
    h, a = model.hidden, model.heads
    queries, keys = a * model.head_dim, model.kv_heads * model.head_dim
    parts = [Part("input of the projections", width * h, "w h")]
    if attention == "flash":
        parts.append(Part("queries, keys, values, output", width * (2 * queries + 2 * keys), "w (2 q + 2 kv)"))
        parts.append(Part("log-sum-exp", 4 * a, "4 a"))
        # Values are a view of a fused projection, so its queries and keys stay, beside those that were rotated.
        if model.family in ("phi3", "gpt_neox"):
            own = queries if model.family == "phi3" else 0
            parts.append(
                Part("the fused projection", width * (queries + keys + own), "w (q + kv)" + " + w q" * (own > 0))
            )
        if model.family == "phi":
            parts.append(Part("output in the order of the heads", width * queries, "w q"))
    else:
        copies = 3 if model.family == "gpt_neox" else 4
        upcast = 0 if width == 4 or model.family in ("bert", "gpt2", "roberta") else 4
        words = "(4 + w) a S: softmax in fp32, and in the dtype" if upcast else "w a S"
        parts.append(
            Part("queries, keys, values, output", width * copies * queries, f"{copies} w q, keys and values repeated")
        )
        parts.append(Part("scores", (upcast + width) * a * sequence_length, words))
    if model.hidden_dropout:
        parts.append(Part("dropout masks", 2 * h, "2 h"))
    return parts


def _mlp(model: Model, width: int) -> list[Part]:
    h, f = model.hidden, model.ffn
    inputs = [] if model.parallel and model.norms == 1 else [Part("input of the MLP", width * h, "w h")]
    if model.gated:
        return [*inputs, Part("MLP: gate, its activation, up, product", 4 * width * f, "4 w f")]
    # GELU as Transformers' NewGELUActivation writes it keeps four steps besides its input; a fused one its input alone.
    kept = {"gelu_new": 5, "relu": 1}.get(model.activation, 2)
    return [*inputs, Part("MLP: inner activations", kept * width * f, f"{kept} w f")]
