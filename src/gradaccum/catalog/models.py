"""Published model architectures: what memory needs of them, and their exact parameter counts.

The rows are in models.json beside this file. A row names its family, which is Transformers' `model_type`, and what in
its config differs from the family's traits below. `read_config` reads any config.json of these families.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from gradaccum.catalog.names import nearest_ids, normalise
from gradaccum.errors import InputError, Problem, nearest_words
from gradaccum.units import MAX_DIGITS, quote, show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


@dataclass(frozen=True, kw_only=True)
class Model:
    """One architecture, and what of its block decides over memory. Widths and counts are whole numbers.

    Linear layers: `qkv_bias`, `o_bias`, `mlp_bias` and `head_bias` say which have a bias. A width or count of 0 means
    that the model has no such part: `experts` 0 is a dense model, `learned_positions` 0 one with rotary or ALiBi
    positions, `vocab` 0 one without an embedding table.
    """

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    family: str  # Transformers' model_type, such as llama
    layers: int
    hidden: int  # width of the residual stream
    heads: int  # query heads
    kv_heads: int  # fewer than `heads` is grouped-query attention, 1 is multi-query
    head_dim: int  # width of one head of the queries and keys
    value_dim: int  # width of one head of the values; another than head_dim under multi-head latent attention
    ffn: int  # inner width of the MLP of a dense layer
    vocab: int  # rows of the embedding table
    positions: int  # the longest sequence that the config names, in tokens; 0 where it names none
    tied: bool  # the output head is the embedding table
    gated: bool  # the MLP has a third matrix, as SwiGLU and GeGLU have
    activation: str  # as in the config: silu, gelu, gelu_new, gelu_pytorch_tanh, relu
    norm: str  # rms: a weight; layer: weight and bias; bare: neither
    norms: int  # norms of the residual stream in one layer: 1, 2 or 4
    final_norm: bool
    embedding_norm: bool
    qk_norm: str  # "": none; head: over each head of queries and keys; all: over all their heads together
    parallel: bool  # attention and MLP read the same input, and their outputs are added
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    head_bias: bool
    learned_positions: int  # rows of a learned position table
    token_types: int  # rows of a token type table
    embedding_width: int  # another than `hidden` where two projections stand between
    head: str  # lm: vocabulary; masked_lm: the same behind a dense layer and a norm; classes: `classes` outputs
    hidden_dropout: bool  # above 0 in the config: a mask is kept for the backward pass
    attention_dropout: bool
    sliding_window: int | None  # tokens, where some or all layers attend to so many
    experts: int  # routed experts of one MoE layer
    experts_per_token: int
    expert_ffn: int  # inner width of one expert
    shared_experts: int  # experts that see every token, each as wide as a routed one
    dense_layers: int  # layers of an MoE model that have the plain MLP of width `ffn`
    q_rank: int  # multi-head latent attention: width of the compressed queries; 0: they are not compressed
    kv_rank: int  # and of the compressed keys and values; 0: no latent attention
    rope_dim: int  # and the part of head_dim that carries the position, shared by all heads of the keys
    image: int  # side of a square image in pixels, of one patch, and channels
    patch: int
    channels: int
    classes: int  # outputs of a classifier
    params: int  # every parameter once, a tied table too
    note: str = ""  # what a person should know about the row
    source: str = ""  # URL of the config
    checked: tuple[str, ...] = ()  # how: keys of CHECKS
    day: str = ""  # the day of the check

    @property
    def transformers_class(self) -> str:
        """The class of Transformers whose parameters are counted."""
        return FAMILIES[self.family][0]

    @property
    def image_tokens(self) -> int:
        """Tokens that an image becomes: (image / patch)^2 patches, and the class token. 0 for a model of text."""
        return (self.image // self.patch) ** 2 + 1 if self.image else 0

    @property
    def moe_layers(self) -> int:
        """How many layers route their tokens to experts."""
        return self.layers - self.dense_layers if self.experts else 0


CHECKS = {
    "meta": "params equals the class of Transformers 5.24.0 with these shapes, built on PyTorch's meta device",
    "default": "shapes: the defaults of the config class of Transformers 5.24.0",
    "litgpt": "layers, widths and heads: as in the package litgpt 0.5.13, litgpt/config.py",
    "config": "shapes: as in a stored copy of the model's config.json, or of a fine-tune's that names the model",
    "deepseek": "shapes: as in deepseek-ai/DeepSeek-V3, inference/configs",
    "metaseq": "layers, widths and heads: as in facebookresearch/metaseq, metaseq/launcher/opt_job_constants.py",
    "nanogpt": "layers, width and heads: as in karpathy/nanoGPT, model.py",
    "olmo-core": "layers, widths and heads: as in allenai/OLMo-core, src/olmo_core/nn/transformer/config.py",
    "pythia": "layers, width, heads and positions: as in EleutherAI/pythia, models/*.yml",
    "bytes": "twice params equals total_size in a stored copy of the model's model.safetensors.index.json",
    "count": "params equals, to the digit, a count printed in a stored copy of the model card or of a run's output",
}
"""What the words in `Model.checked` mean. `positions` and `sliding_window` are part of `config`, `default` and `pythia`
alone; in a row without these they are recalled. No parameter depends on them where positions are not learned."""

_BASE: dict[str, Any] = {
    "tied": False,
    "gated": True,
    "activation": "silu",
    "norm": "rms",
    "norms": 2,
    "final_norm": True,
    "embedding_norm": False,
    "qk_norm": "",
    "parallel": False,
    "qkv_bias": False,
    "o_bias": False,
    "mlp_bias": False,
    "head_bias": False,
    "learned_positions": 0,
    "token_types": 0,
    "head": "lm",
    "hidden_dropout": False,
    "attention_dropout": False,
    "sliding_window": None,
    "experts": 0,
    "experts_per_token": 0,
    "expert_ffn": 0,
    "shared_experts": 0,
    "dense_layers": 0,
    "q_rank": 0,
    "kv_rank": 0,
    "rope_dim": 0,
    "image": 0,
    "patch": 0,
    "channels": 0,
    "classes": 0,
    "vocab": 0,
    "aliases": (),
    "checked": (),
}

_OWN = (
    "id name family layers hidden heads kv_heads head_dim value_dim ffn positions embedding_width params note source "
    "day"
).split()


def reshaped(model: Model, **changes: Any) -> Model:
    """The same with other values of some fields, `params` counted anew unless it is given."""
    fields = {name: getattr(model, name) for name in (*_OWN, *_BASE)}
    fields.update(changes)
    made = Model(**fields)
    return made if "params" in changes else reshaped(made, params=count_params(made))


_BIASED = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
_CLASSIC = {"norm": "layer", "gated": False, **_BIASED}
_GEMMA = {"tied": True, "activation": "gelu_pytorch_tanh", "head_dim": 256}
_MASKED = {
    **_CLASSIC,
    "tied": True,
    "activation": "gelu",
    "final_norm": False,
    "embedding_norm": True,
    "head": "masked_lm",
    "head_bias": True,
    "hidden_dropout": True,
    "attention_dropout": True,
    "token_types": 2,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", _MASKED),
    "bloom": ("BloomForCausalLM", {**_CLASSIC, "tied": True, "activation": "gelu", "embedding_norm": True}),
    "deepseek_v2": ("DeepseekV2ForCausalLM", {"kv_rank": 512, "rope_dim": 64, "value_dim": 128}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", {"kv_rank": 512, "rope_dim": 64, "value_dim": 128}),
    "gemma": ("GemmaForCausalLM", {**_GEMMA, "kv_heads": 16}),
    "gemma2": ("Gemma2ForCausalLM", {**_GEMMA, "kv_heads": 4, "norms": 4, "sliding_window": 4096}),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {
            **_GEMMA,
            "heads": 8,
            "kv_heads": 4,
            "vocab": 262_208,
            "positions": 131_072,
            "norms": 4,
            "qk_norm": "head",
            "sliding_window": 4096,
        },
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {**_CLASSIC, "tied": True, "activation": "gelu_new", "hidden_dropout": True, "attention_dropout": True},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", {**_CLASSIC, "activation": "gelu", "parallel": True}),
    "llama": ("LlamaForCausalLM", {}),
    "mistral": ("MistralForCausalLM", {"kv_heads": 8, "sliding_window": 4096}),
    "mixtral": ("MixtralForCausalLM", {"kv_heads": 8, "experts": 8, "experts_per_token": 2}),
    "olmo2": ("Olmo2ForCausalLM", {"qk_norm": "all"}),
    "opt": ("OPTForCausalLM", {**_CLASSIC, "tied": True, "activation": "relu", "hidden_dropout": True}),
    "phi": (
        "PhiForCausalLM",
        {**_CLASSIC, "activation": "gelu_new", "norms": 1, "parallel": True, "head_bias": True},
    ),
    "phi3": ("Phi3ForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {"kv_heads": 32, "qkv_bias": True}),
    "qwen3": ("Qwen3ForCausalLM", {"kv_heads": 32, "head_dim": 128, "qk_norm": "head"}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {"kv_heads": 4, "qk_norm": "head", "experts": 128, "experts_per_token": 8, "expert_ffn": 768},
    ),
    "roberta": ("RobertaForMaskedLM", _MASKED),
    "smollm3": ("SmolLM3ForCausalLM", {"kv_heads": 4, "tied": True}),
    "vit": (
        "ViTForImageClassification",
        {
            **_CLASSIC,
            "activation": "gelu",
            "head": "classes",
            "head_bias": True,
            "image": 224,
            "patch": 16,
            "channels": 3,
            "classes": 2,
        },
    ),
}
"""By model_type: the class of Transformers 5.24.0 that is counted, and what its block and its config class leave
to be said. Where a trait is also a field of the config, it is the default of the config class."""


def count_params(model: Model) -> int:
    """The exact number of parameters of `model.transformers_class` with these shapes; `model.params` is not read.

    A tied output head counts once. Buffers are not counted: GPT-2's causal mask, the routing bias of DeepSeek-V3.
    """
    return sum(params_by_part(model).values())


def params_by_part(model: Model) -> dict[str, int]:
    """The parameters of the embedding, of all layers without their routed experts, of these, and of norm and head."""
    count = model.layers * (_attention(model) + model.norms * _norm(model, model.hidden))
    count += (model.layers - model.moe_layers) * _mlp(model, model.ffn)
    count += model.moe_layers * (model.hidden * model.experts + _shared_experts(model))
    return {
        "embedding": _embeddings(model),
        "layers": count,
        "experts": model.moe_layers * model.experts * _matrices(model, model.expert_ffn),
        "norm": _norm(model, model.hidden) if model.final_norm else 0,
        "head": _head(model),
    }


def active_params(model: Model) -> int:
    """The parameters that one token passes through, embeddings included: all of them but the experts not chosen."""
    unused = max(model.experts - model.experts_per_token, 0)
    return count_params(model) - model.moe_layers * unused * _matrices(model, model.expert_ffn)


def _embeddings(model: Model) -> int:
    tables = model.vocab * model.embedding_width + (model.learned_positions + model.token_types) * model.hidden
    if model.embedding_width != model.hidden:
        tables += 2 * model.embedding_width * model.hidden  # one projection in, one out
    if model.patch:
        tables += model.channels * model.patch**2 * model.hidden + 2 * model.hidden  # with bias, and the class token
    return tables + (_norm(model, model.hidden) if model.embedding_norm else 0)


def _attention(model: Model) -> int:
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    out = model.heads * model.value_dim * model.hidden + (model.hidden if model.o_bias else 0)
    if model.kv_rank:
        return out + _latent(model)
    count = model.hidden * (queries + 2 * keys) + (queries + 2 * keys if model.qkv_bias else 0)
    if model.qk_norm == "head":
        count += 2 * _norm(model, model.head_dim)
    if model.qk_norm == "all":
        count += _norm(model, queries) + _norm(model, keys)
    return count + out


def _latent(model: Model) -> int:
    """Queries, keys and values of multi-head latent attention: compressed, normed, expanded. The bias is on the way in.

    DeepSeek-V2 (arXiv 2405.04434), section 2.1; as in Transformers' DeepseekV2Attention.
    """
    wide = model.heads * model.head_dim
    down = model.kv_rank + model.rope_dim
    expanded = model.kv_rank * model.heads * (model.head_dim - model.rope_dim + model.value_dim)
    count = model.hidden * down + (down if model.qkv_bias else 0) + _norm(model, model.kv_rank) + expanded
    if not model.q_rank:
        return count + model.hidden * wide
    bias = model.q_rank if model.qkv_bias else 0
    return count + model.hidden * model.q_rank + bias + _norm(model, model.q_rank) + model.q_rank * wide


def _mlp(model: Model, width: int) -> int:
    biases = ((2 if model.gated else 1) * width + model.hidden) if model.mlp_bias else 0
    return _matrices(model, width) + biases


def _matrices(model: Model, width: int) -> int:
    return (3 if model.gated else 2) * model.hidden * width


def _shared_experts(model: Model) -> int:
    """One MLP as wide as they are together; routed experts have no biases."""
    return _mlp(model, model.shared_experts * model.expert_ffn) if model.shared_experts else 0


def _norm(model: Model, width: int) -> int:
    return {"layer": 2 * width, "rms": width, "bare": 0}[model.norm]


def _head(model: Model) -> int:
    if model.head == "classes":
        return model.hidden * model.classes + model.classes
    count = 0 if model.tied else model.vocab * model.embedding_width
    count += model.vocab if model.head_bias else 0
    if model.head == "masked_lm":
        count += model.hidden * (model.hidden + 1) + _norm(model, model.hidden)
        count += 0 if model.tied else model.vocab  # the table of its own brings a bias of its own
    return count


# The rows


@functools.cache
def models() -> tuple[Model, ...]:
    """Every row, in the order of the file, which is read once."""
    import json

    beside = __file__[: -len("models.py")]  # this runs where there is no os.path, too
    with open(beside + "models.json", encoding="utf-8") as file:
        content = json.load(file)
    return tuple(_from_row(row, content["checked"]) for row in content["models"])


def _from_row(row: dict[str, Any], day: str) -> Model:
    fields = {**_BASE, **FAMILIES[row["family"]][1], **row, "day": day}
    for name in ("aliases", "checked"):
        fields[name] = tuple(fields[name])
    return Model(**_with_usual(fields))


def _with_usual(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that follow from others where nothing else is said."""
    fields.setdefault("kv_heads", fields["heads"])
    fields.setdefault("head_dim", fields["hidden"] // fields["heads"])
    fields.setdefault("value_dim", fields["head_dim"])
    fields.setdefault("embedding_width", fields["hidden"])
    return fields


def find_model(name: str) -> Model:
    """The model whose id or alias is `name`: `llama-3.1-8b`, `Llama 3.1 8B`, `meta-llama/Llama-3.1-8B`.

    Case, spaces, hyphens and underscores do not count, nor does what stands before a slash, if the rest is known.
    Raises InputError on field `model`, with the nearest ids, where there is no such model.
    """
    wanted = normalise(name)
    ids = _spellings()
    found = ids.get(wanted) or ids.get(wanted.split("/")[-1])
    for model in models():
        if model.id == found:
            return model

    nearest = nearest_ids(wanted.split("/")[-1], ids)
    message = f"names no model of the catalog: {quote(name)}; a config.json of its own is read too"
    if not nearest:
        message = f"names no model of the catalog: {quote(name)}; take one such as llama-3.2-1b, or a config.json"
    raise InputError(Problem("model", message, nearest))


@functools.cache
def _spellings() -> dict[str, str]:
    """Each normalised name to the id of its row; of a hub id the part behind the slash is a name, too."""
    known: dict[str, str] = {}
    for model in models():
        for each in (model.id, model.name, *model.aliases):
            plain = normalise(each)
            behind = plain.split("/")[-1]
            known[plain] = model.id
            if any(letter in "abcdefghijklmnopqrstuvwxyz" for letter in behind):  # ViT-B/16 is not 16
                known.setdefault(behind, model.id)
    return known


# Reading a config.json

_LONGEST_CONFIG = 2**20
"""Characters; a longer text is refused unread."""

NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "ffn": ("intermediate_size", "n_inner", "ffn_dim"),
    "vocab": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"),
    "token_types": ("type_vocab_size",),
    "embedding_width": ("word_embed_proj_dim",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "experts_per_token": ("num_experts_per_tok",),
    "expert_ffn": ("moe_intermediate_size",),
    "shared_experts": ("n_shared_experts",),
    "dense_layers": ("first_k_dense_replace",),
    "q_rank": ("q_lora_rank",),
    "kv_rank": ("kv_lora_rank",),
    "rope_dim": ("qk_rope_head_dim",),
    "value_dim": ("v_head_dim",),
    "nope_dim": ("qk_nope_head_dim",),
    "image": ("image_size",),
    "patch": ("patch_size",),
    "channels": ("num_channels",),
    "classes": ("num_labels",),
    "sliding_window": ("sliding_window",),
}
"""Where a config keeps what a Model has, the usual name first."""

_OWN_FIELDS = {
    "bert": ("token_types",),
    "roberta": ("token_types",),
    "deepseek_v2": (
        "experts experts_per_token expert_ffn shared_experts dense_layers q_rank kv_rank rope_dim value_dim nope_dim"
    ).split(),
    "deepseek_v3": (
        "experts experts_per_token expert_ffn shared_experts dense_layers q_rank kv_rank rope_dim value_dim nope_dim"
    ).split(),
    "gemma2": ("sliding_window",),
    "gemma3_text": ("sliding_window",),
    "mistral": ("sliding_window",),
    "mixtral": ("experts", "experts_per_token", "sliding_window"),
    "opt": ("embedding_width",),
    "phi3": ("sliding_window",),
    "qwen3_moe": ("experts", "experts_per_token", "expert_ffn"),
    "vit": ("image", "patch", "channels", "classes"),
}
"""What only some families read; another family's config may carry the same name without meaning it."""

_SHAPES = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "positions")

_POSITION_TABLE = ("gpt2", "bert", "opt", "roberta")
"""The families with a learned table of positions, whose rows a config has to name."""

_TOO_LARGE = 10**MAX_DIGITS

_MAY_BE_ZERO = ("shared_experts", "dense_layers", "q_rank", "token_types", "sliding_window", "experts_per_token")


def read_config(config: Mapping[str, Any] | str, name: str = "") -> Model:
    """The Model that a Hugging Face config.json describes: a dict, the JSON text, or the path of the file.

    name: what to call it; else `_name_or_path` of the config, else its family. Families are those of FAMILIES, found by
    `model_type`; of a config that nests another in `text_config` the text model is read, and the note says so.
    What the config leaves out has the default of Transformers' config class, where that follows from the architecture.
    Raises InputError on field `config`: every field that is missing, no whole number, or contradicts another.
    """
    content, note = _with_text_config(parse_config(config))
    family = _family(content)
    fields = {**_BASE, **FAMILIES[family][1], "family": family, "note": note}
    problems = _read_shapes(content, fields)
    if problems:
        raise InputError(*problems)
    problems = _read_traits(content, fields)
    if problems:
        raise InputError(*problems)
    path = content.get("_name_or_path")
    fields["id"] = fields["name"] = name or (path if isinstance(path, str) else "") or family
    fields = _with_usual(fields)
    return Model(**{**fields, "params": count_params(Model(**{**fields, "params": 0}))})


def parse_config(config: Mapping[str, Any] | str) -> Mapping[str, Any]:
    """A config as a dict: from one, from JSON text, or from a file's path. InputError for anything else."""
    if isinstance(config, dict):
        return config
    if hasattr(config, "to_dict"):  # a config object of Transformers
        return parse_config(config.to_dict())
    import json

    text = str(config)
    if "{" not in text:
        try:
            with open(text, encoding="utf-8") as file:
                text = file.read(_LONGEST_CONFIG + 1)
        except (OSError, ValueError):  # ValueError: the path holds a null character, or the file is not UTF-8
            raise InputError(Problem("config", f"cannot be read as a text file: {quote(text)}")) from None
    if len(text) > _LONGEST_CONFIG:
        raise InputError(Problem("config", f"is longer than {_LONGEST_CONFIG} characters"))
    try:
        content = json.loads(text)
    except (ValueError, RuntimeError):  # RuntimeError: too deep
        raise InputError(Problem("config", f"is no JSON: {quote(text)}")) from None
    if not isinstance(content, dict):
        raise InputError(Problem("config", f"must be one JSON object, such as a config.json: {quote(text)}"))
    return content


def _with_text_config(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The config of the text model, and a note where it was nested."""
    nested = content.get("text_config")
    outer = content.get("model_type")
    if not isinstance(nested, dict) or (isinstance(outer, str) and outer in FAMILIES):
        return content, ""
    inner = nested if "model_type" in nested else {**nested, "model_type": f"{outer}_text"}
    return inner, f"the text model within a {outer} config; what stands beside it, such as a vision tower, is left out"


def _family(content: Mapping[str, Any]) -> str:

    family = content.get("model_type")
    if isinstance(family, str) and family in FAMILIES:
        return family
    known = sorted(FAMILIES)
    if family is None:
        message = f"has no model_type, which says how the blocks are built; known are {', '.join(known)}"
        raise InputError(Problem("config", message))
    message = f"has the unknown model_type {quote(str(family))}; known are {', '.join(known)}"
    hint = ". Any PyTorch module, this one too, can be traced instead: --model module:function"
    raise InputError(Problem("config", message + hint, nearest_words(str(family)[:40], known)))


def _read_shapes(content: Mapping[str, Any], fields: dict[str, Any]) -> list[Problem]:
    """Put the numbers of the config into `fields`, and say what is wrong with them."""
    family, problems = fields["family"], []
    for field in (*_SHAPES, *_OWN_FIELDS.get(family, ())):
        key = next((each for each in NAMES[field] if content.get(each) is not None), None)
        if key is None:
            if NAMES[field][0] in content:  # null: there is none, or it follows from the other fields
                fields.pop(field, None)
                if field in _BASE:
                    fields[field] = _BASE[field]
            continue
        value = content[key]
        least = 0 if field in _MAY_BE_ZERO else 1
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _TOO_LARGE:
            problems.append(_not_a_count(key, value, least))
        else:
            fields[field] = value
    problems += _missing(content, fields, problems)
    return problems or _contradictions(fields)


def _not_a_count(key: str, value: object, least: int) -> Problem:
    if isinstance(value, bool) or not isinstance(value, int):
        return Problem("config", f"{key} must be a whole number of at least {least}, not {quote(str(value))}")
    if value >= _TOO_LARGE:
        return Problem("config", f"{key} has too many digits: at most {MAX_DIGITS} are read")
    return Problem("config", f"{key} must be a whole number of at least {least}, not {show_count(value)}")


def _missing(content: Mapping[str, Any], fields: dict[str, Any], problems: list[Problem]) -> list[Problem]:
    """What the family needs and neither the config nor the family gives."""
    family = fields["family"]
    if family in ("gpt2", "bloom") and "ffn" not in fields and "hidden" in fields:
        fields["ffn"] = 4 * fields["hidden"]
    if family == "bloom":
        fields.setdefault("positions", 2048)  # ALiBi has no longest; this is what BLOOM was trained with
    if family == "vit":
        side = fields["image"] // fields["patch"]
        fields["learned_positions"] = fields["positions"] = side * side + 1  # as Model.image_tokens
    if family == "mixtral" and "ffn" in fields:
        fields["expert_ffn"] = fields["ffn"]
    needed = ["layers", "hidden", "heads", "ffn"]
    if family in _POSITION_TABLE:
        needed += ["positions"]
    else:
        fields.setdefault("positions", 0)  # no parameter depends on it
    needed += ["vocab"] if family != "vit" else []
    needed += ["experts", "experts_per_token", "expert_ffn"] if family.startswith("deepseek") else []
    needed += ["nope_dim"] if family.startswith("deepseek") else []
    said = " ".join([problem.message for problem in problems])
    return [
        Problem("config", f"lacks {NAMES[field][0]}, which {family} needs")
        for field in needed
        if not fields.get(field) and not any(key in said for key in NAMES[field])
    ]


def _contradictions(fields: dict[str, Any]) -> list[Problem]:
    """Numbers that cannot stand together."""
    found = []
    hidden, heads = fields["hidden"], fields["heads"]
    if "nope_dim" in fields:
        fields["head_dim"] = fields.pop("nope_dim") + fields["rope_dim"]
        fields["kv_heads"] = heads
    if "head_dim" not in fields and hidden % heads:
        message = f"hidden_size {show_count(hidden)} is no multiple of num_attention_heads {show_count(heads)}"
        found.append(Problem("config", message))
    kv_heads, experts, chosen = fields.get("kv_heads", heads), fields["experts"], fields["experts_per_token"]
    if heads % kv_heads:
        message = f"num_attention_heads {show_count(heads)} is no multiple of num_key_value_heads "
        found.append(Problem("config", message + show_count(kv_heads)))
    if experts and chosen > experts:
        message = f"num_experts_per_tok {show_count(chosen)} is more than {show_count(experts)} experts"
        found.append(Problem("config", message))
    if fields["dense_layers"] > fields["layers"]:
        found.append(Problem("config", f"first_k_dense_replace is more than {show_count(fields['layers'])} layers"))
    return found


_DROPOUTS = {
    "hidden_dropout": ("resid_pdrop", "embd_pdrop", "dropout", "hidden_dropout", "hidden_dropout_prob"),
    "attention_dropout": ("attn_pdrop", "attention_dropout", "attention_probs_dropout_prob"),
}

_ATTENTION_BIAS = (
    "deepseek_v2 deepseek_v3 gemma gemma2 gemma3_text gpt_neox llama olmo2 qwen3 qwen3_moe smollm3"
).split()
"""The families whose config class has `attention_bias`: queries, keys, values and output together."""

_MLP_BIAS = ("deepseek_v2", "llama", "smollm3")


def _read_traits(content: Mapping[str, Any], fields: dict[str, Any]) -> list[Problem]:
    """Put what the config says beside its shapes into `fields`; return what no row can hold."""
    family = fields["family"]
    flag = _Flags(content)
    fields["tied"] = flag("tie_word_embeddings", fields["tied"])
    if family in _ATTENTION_BIAS:
        fields["qkv_bias"] = fields["o_bias"] = flag("attention_bias", fields["qkv_bias"])
    if family in _MLP_BIAS:
        fields["mlp_bias"] = flag("mlp_bias", fields["mlp_bias"])
    for field, names in _DROPOUTS.items():
        said = [content[name] for name in names if isinstance(content.get(name), (int, float))]
        fields[field] = any(said) if said else fields[field]
    acts = [content.get(name) for name in ("hidden_act", "activation_function")]
    fields["activation"] = next((each for each in acts if isinstance(each, str)), fields["activation"])
    if family.startswith("gemma"):
        fields["activation"] = "gelu_pytorch_tanh"  # hidden_act of Gemma's config.json says gelu, and is not used
    if family in _POSITION_TABLE:
        _read_positions(family, fields)
    if family == "opt":
        fields["qkv_bias"] = fields["o_bias"] = fields["mlp_bias"] = flag("enable_bias", True)
        fields["norm"] = "layer" if flag("layer_norm_elementwise_affine", True) else "bare"
        fields["final_norm"] = flag("do_layer_norm_before", True) and not flag("_remove_final_layer_norm", False)
    if family == "gpt_neox":
        fields["parallel"] = flag("use_parallel_residual", True)
    if family == "phi" and flag("qk_layernorm", False):
        fields["qk_norm"] = "head"
    if family == "vit":
        fields["qkv_bias"] = flag("qkv_bias", True)
        labels = content.get("id2label")
        fields["classes"] = len(labels) if isinstance(labels, dict) and labels else fields["classes"]
    if family == "qwen3_moe":
        fields["dense_layers"] = _plain_layers(content, fields["layers"])
    if flag("add_cross_attention", False):
        return [Problem("config", "has add_cross_attention, and blocks with cross-attention are not counted")]
    return flag.problems


class _Flags:
    """Reads yes and no out of a config; null is the default, and anything else a problem."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content
        self.problems: list[Problem] = []

    def __call__(self, key: str, default: bool) -> bool:
        value = self.content.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problems.append(Problem("config", f"{key} must be true or false, not {quote(str(value))}"))
        return bool(value)


def _read_positions(family: str, fields: dict[str, Any]) -> None:
    """OPT has two more rows than positions, and RoBERTa counts the two in the config."""
    fields["learned_positions"] = fields["positions"] + (2 if family == "opt" else 0)
    if family == "roberta":
        fields["positions"] = max(fields["positions"] - 2, 1)


def _plain_layers(content: Mapping[str, Any], layers: int) -> int:
    """How many layers of a Qwen3 MoE have the plain MLP: those in mlp_only_layers, and those between the steps."""
    step = content.get("decoder_sparse_step")
    step = step if isinstance(step, int) and step >= 1 else 1
    named = content.get("mlp_only_layers")
    named = named if isinstance(named, list) else []
    routed = {n for n in named if isinstance(n, int) and 0 <= n < layers and (n + 1) % step == 0}
    return layers - layers // step + len(routed)
