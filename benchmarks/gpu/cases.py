"""The training steps whose memory is measured on a GPU: what they are, as data, and in which order they are run.

A `Case` is one training run of two updates. A `Boundary` is a smaller card, emulated by a limit on the allocator, on
which the largest micro-batch that completes is looked for; each of its trials is a case with another micro-batch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from gradaccum.catalog.models import count_params, find_model

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gradaccum.catalog.models import Model

PLAIN = {
    "plain-gpt-13m": 12_805_120,
    "plain-gpt-110m": 110_418_432,
    "plain-llama-196m": 196_371_456,
    "plain-vit-87m": 86_566_120,
    "plain-resnet-50": 25_557_032,
    "plain-resnet-152": 60_192_808,
    "plain-moe-92m": 92_472_320,
}
"""The models of plain.py, which need PyTorch alone, and their parameters."""

OUTSIDE = 768 * 2**20
"""Bytes of a smaller card that are left to the CUDA context and to a display; the allocator may have the rest."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training run.

    model: an id of the catalog, built from its shapes by Transformers with random weights, perhaps cut to a number of
        layers (`mixtral-8x7b:2`); or a name of PLAIN.
    dtype: of weights, gradients and activations; `amp-bf16` and `amp-fp16` are fp32 weights under autocast.
    micro_batch: sequences or images of a micro-step. sequence_length: tokens of each; 0 for images.
    attention: `eager`, or PyTorch's `sdpa`, perhaps held to one kernel: `flash`, `efficient`, `cudnn`, `math`.
    checkpointing: `full` recomputes each layer; `selective` keeps the results of matrix products and of attention.
    keeps_output: whether the loop's variable holds the model's output, and with it the logits, until the next one is
        there, as in `out = model(...); out.loss.backward()`; otherwise it goes when the loss is there, as in
        `model(...).loss.backward()` and in Transformers' Trainer.
    lora_rank: of adapters on all linear layers, by peft; 0 trains all weights.
    settings: PYTORCH_ALLOC_CONF. card_gb: the nominal memory of the card that is emulated; 0 is the card itself.
    """

    model: str
    micro_batch: int
    sequence_length: int = 1024
    dtype: str = "bf16"
    optimizer: str = "adamw"
    checkpointing: str = "none"
    attention: str = "sdpa"
    accum_steps: int = 2
    lora_rank: int = 0
    compiled: bool = False
    keeps_output: bool = False
    settings: str = ""
    card_gb: int = 0

    @property
    def name(self) -> str:
        """The model, its micro-batch, its length, and whatever is not usual; no two cases share it."""
        words = [self.model, f"m{self.micro_batch}"]
        words += [f"s{self.sequence_length}"] if self.sequence_length else []
        words.append(self.dtype)
        for field in ("optimizer", "checkpointing", "attention"):
            value = getattr(self, field)
            words += [] if value == USUAL[field] else [value]
        words += [] if self.accum_steps == USUAL["accum_steps"] else [f"accum{self.accum_steps}"]
        words += [f"lora{self.lora_rank}"] if self.lora_rank else []
        words += ["compiled"] if self.compiled else []
        words += ["output kept"] if self.keeps_output else []
        words += [self.settings] if self.settings else []
        words += [f"on {self.card_gb} GB"] if self.card_gb else []
        return " ".join(words)

    @property
    def plain(self) -> bool:
        """Whether PyTorch alone is enough."""
        return self.model in PLAIN

    @property
    def shape(self) -> Model:
        """The row of the catalog, with as many layers as are asked for. InputError where there is none."""
        name, _, layers = self.model.partition(":")
        found = find_model(name)
        if not layers:
            return found
        cut = dataclasses.replace(found, layers=int(layers))
        return dataclasses.replace(cut, params=count_params(cut))

    @property
    def family(self) -> str:
        """Transformers' `model_type`, or `plain-gpt` and the like."""
        return self.model.rpartition("-")[0] if self.plain else self.shape.family

    @property
    def params(self) -> int:
        """Parameters, without those of adapters."""
        return PLAIN[self.model] if self.plain else self.shape.params

    @property
    def needs(self) -> tuple[str, ...]:
        """The packages beside PyTorch that it takes."""
        return (
            *(() if self.plain else ("transformers",)),
            *(("peft",) if self.lora_rank else ()),
            *(("bitsandbytes",) if self.optimizer == "adamw-8bit" else ()),
            *(("triton",) if self.compiled else ()),
        )

    @property
    def limit_bytes(self) -> int | None:
        """What the allocator may reserve; None without a limit."""
        return self.card_gb * 2**30 - OUTSIDE if self.card_gb else None

    def to_dict(self) -> dict[str, object]:
        """For JSON: what is not usual."""
        return {name: value for name, value in dataclasses.asdict(self).items() if USUAL.get(name) != value}


USUAL = {field.name: field.default for field in dataclasses.fields(Case) if field.default is not dataclasses.MISSING}


@dataclass(frozen=True)
class Boundary:
    """The largest micro-batch of a case that a card holds. first: the micro-batch of the first trial, a small one."""

    case: Case
    first: int = 1

    def trial(self, micro_batch: int) -> Case:
        """The case with this micro-batch."""
        return dataclasses.replace(self.case, micro_batch=micro_batch)


def next_trial(fits: Mapping[int, bool], first: int) -> int | None:
    """The micro-batch to try next, given what is known of others; None where the largest that fits is known.

    Doubled until one does not fit, and halved between; where `first` does not fit, halved towards 1.
    """
    below = max((each for each, fit in fits.items() if fit), default=0)
    above = min((each for each, fit in fits.items() if not fit and each > below), default=0)
    if not fits:
        return first
    if not above:
        return 2 * below
    return (below + above) // 2 if above - below > 1 else None


def case(model: str, micro_batch: int, *words: str, **values: int | str) -> Case:
    """A case in few words: each is a value of the field that knows it, a flag, or `lora16`, `accum8`, `s512`."""
    found: dict[str, object] = dict(values)
    if find_plain(model) in {"plain-vit", "plain-resnet"} or model.startswith("vit"):
        found["sequence_length"] = 0
    for word in words:
        known = [name for name, choices in AXES.items() if word in choices]
        if known:
            found[known[0]] = word
        elif word in FLAGS:
            found[word] = True
        else:
            name, count = next((name, word[len(short) :]) for short, name in SHORT.items() if word.startswith(short))
            found[name] = int(count)
    return Case(model=model, micro_batch=micro_batch, **found)  # type: ignore[arg-type]


def find_plain(model: str) -> str:
    """The kind of a plain model, such as `plain-vit`; else empty."""
    return model.rpartition("-")[0] if model in PLAIN else ""


FLAGS = ("compiled", "keeps_output")
SHORT = {"lora": "lora_rank", "accum": "accum_steps", "s": "sequence_length"}

AXES = {
    "dtype": ("bf16", "fp16", "fp32", "amp-bf16", "amp-fp16"),
    "optimizer": ("adamw", "adamw-fused", "adamw-loop", "adamw-8bit", "sgd", "sgd-momentum"),
    "checkpointing": ("none", "selective", "full"),
    "attention": ("sdpa", "eager", "flash", "efficient", "cudnn", "math"),
}
"""What a word of `case` may be."""

EXPANDABLE = "expandable_segments:True"

CASES: tuple[Case, ...] = (
    case("gpt2", 8),
    case("gpt2", 8, "accum1"),
    case("gpt2", 8, "accum8"),
    case("gpt2", 8, "amp-bf16"),
    case("gpt2", 8, "amp-fp16", "adamw-fused"),
    case("gpt2", 4, "fp32"),
    case("gpt2", 4, "fp16", "eager"),
    case("gpt2", 8, "full"),
    case("gpt2", 8, "keeps_output", "accum1"),
    case("gpt2", 8, "compiled"),
    case("gpt2-medium", 8, "amp-bf16", "adamw-fused"),
    case("gpt2-medium", 4, "selective"),
    case("gpt2-large", 8, "full", "amp-bf16"),
    case("gpt2-xl", 4, "full"),
    case("gpt2-xl", 2, "sgd"),
    case("llama-3.2-1b", 4),
    case("llama-3.2-1b", 4, "accum1"),
    case("llama-3.2-1b", 2, "accum8"),
    case("llama-3.2-1b", 4, "full"),
    case("llama-3.2-1b", 4, "selective"),
    case("llama-3.2-1b", 4, "keeps_output"),
    case("llama-3.2-1b", 2, "eager"),
    case("llama-3.2-1b", 4, "flash"),
    case("smollm2-1.7b", 2, "efficient"),
    case("llama-3.2-1b", 4, "cudnn"),
    case("llama-3.2-1b", 2, "math"),
    case("llama-3.2-1b", 2, "fp32"),
    case("llama-3.2-1b", 2, "fp16"),
    case("llama-3.2-1b", 2, "amp-bf16"),
    case("llama-3.2-1b", 2, "amp-fp16", "full"),
    case("llama-3.2-1b", 4, "adamw-fused"),
    case("llama-3.2-1b", 4, "adamw-loop"),
    case("llama-3.2-1b", 4, "adamw-8bit"),
    case("llama-3.2-1b", 4, "sgd"),
    case("llama-3.2-1b", 4, "sgd-momentum"),
    case("llama-3.2-1b", 4, "compiled"),
    case("llama-3.2-1b", 4, settings=EXPANDABLE),
    case("llama-3.2-1b", 4, "lora16"),
    case("llama-3.2-1b", 8, "lora16", "full", "fp16"),
    case("llama-3.2-3b", 2, "s4096", "accum1"),
    case("llama-3.2-3b", 4, "full", "s2048"),
    case("llama-3.1-8b", 1, "lora16", "s2048"),
    case("llama-3.1-8b", 4, "lora16", "full", "s2048"),
    case("llama-3.1-8b", 1, "sgd", "full", "s4096"),
    case("llama-3.1-8b:4", 2, "s2048"),
    case("llama-3.1-8b", 2, "lora64", "full", "s4096", settings=EXPANDABLE),
    case("tinyllama-1.1b", 4, "s2048", "full", "adamw-fused"),
    case("smollm2-135m", 16, "fp32"),
    case("smollm2-135m", 16, "amp-bf16", "compiled", "adamw-fused"),
    case("qwen2.5-0.5b", 4, "s2048"),
    case("qwen2.5-0.5b", 4, "amp-bf16"),
    case("qwen2.5-0.5b", 8, "fp16", "lora16", "full"),
    case("qwen2.5-1.5b", 2, "fp16", "lora16", "full", "eager", "s2048"),
    case("qwen2.5-1.5b", 4, "full", "s2048", "accum8"),
    case("qwen2.5-7b", 2, "lora16", "full", "s2048"),
    case("qwen3-0.6b", 4, "s2048", "selective"),
    case("qwen3-4b", 1, "full", "s2048"),
    case("mistral-7b-v0.1:4", 2, "s2048", "eager"),
    case("mistral-7b-v0.3", 2, "lora16", "full", "s2048"),
    case("mistral-7b-v0.3:8", 1, "s2048", "adamw-fused", "accum1"),
    case("gemma-2b", 1, "full", "s2048"),
    case("gemma-2-2b", 2, "eager", "lora16", "full"),
    case("gemma-3-1b", 2, "s2048"),
    case("gemma-3-1b", 2, "amp-bf16", "full"),
    case("bert-base", 32, "amp-fp16", "s512"),
    case("bert-base", 32, "s512", "full"),
    case("bert-base", 16, "fp32", "s512", "eager", "accum1"),
    case("bert-large", 16, "s512", "adamw-fused"),
    case("roberta-base", 16, "amp-bf16", "s512", "accum8"),
    case("vit-b-16", 64),
    case("vit-b-16", 64, "amp-fp16", "accum8"),
    case("vit-l-16", 64, "full", "amp-bf16"),
    case("mixtral-8x7b:1", 2),
    case("mixtral-8x7b:2", 2, "lora16", "full"),
    case("qwen3-30b-a3b:2", 2, "full"),
    case("plain-gpt-13m", 64, "s256"),
    case("plain-gpt-13m", 64, "s256", "fp32", "accum1"),
    case("plain-gpt-110m", 8, "selective", "amp-bf16"),
    case("plain-gpt-110m", 8, "compiled", "full"),
    case("plain-llama-196m", 8),
    case("plain-llama-196m", 8, "full", "fp32", "sgd-momentum"),
    case("plain-llama-196m", 8, "selective", "efficient", "accum8"),
    case("plain-vit-87m", 64, "amp-bf16"),
    case("plain-resnet-50", 64, "fp32", "sgd-momentum"),
    case("plain-resnet-50", 64, "amp-fp16", "sgd-momentum"),
    case("plain-resnet-152", 32, "amp-bf16", "full"),
    case("plain-moe-92m", 8),
    case("plain-moe-92m", 8, "amp-bf16", "full", "accum8"),
)

BOUNDARIES: tuple[Boundary, ...] = (
    Boundary(case("gpt2", 0, card_gb=8), 8),
    Boundary(case("gpt2", 0, "amp-fp16", card_gb=12), 8),
    Boundary(case("gpt2-medium", 0, "full", "amp-bf16", card_gb=16), 16),
    Boundary(case("llama-3.2-1b", 0, "full", "adamw-fused", card_gb=24), 8),
    Boundary(case("llama-3.2-1b", 0, "full", "adamw-fused", card_gb=24, settings=EXPANDABLE), 8),
    Boundary(case("llama-3.2-1b", 0, "lora16", "full", card_gb=8), 4),
    Boundary(case("qwen2.5-0.5b", 0, "fp16", "lora16", "full", card_gb=12), 4),
    Boundary(case("qwen2.5-0.5b", 0, card_gb=24), 4),
    Boundary(case("llama-3.1-8b", 0, "lora16", "full", "s2048", card_gb=24), 1),
    Boundary(case("mistral-7b-v0.3", 0, "lora16", "full", card_gb=16), 1),
    Boundary(case("bert-base", 0, "amp-fp16", "s512", card_gb=8), 16),
    Boundary(case("vit-b-16", 0, "amp-bf16", card_gb=12), 64),
    Boundary(case("plain-llama-196m", 0, "eager", card_gb=16), 4),
    Boundary(case("plain-resnet-50", 0, "amp-fp16", "sgd-momentum", card_gb=8), 64),
    Boundary(case("plain-gpt-110m", 0, "selective", card_gb=16, settings=EXPANDABLE), 8),
)


def by_value(cases: Sequence[Case]) -> list[Case]:
    """The cases so that the first ones show the most: each adds as many values as it can that no earlier one has."""
    seen: set[tuple[str, object]] = set()
    left = list(cases)
    ordered: list[Case] = []
    while left:
        chosen = max(left, key=lambda each: len(set(values_of(each)) - seen))
        left.remove(chosen)
        ordered.append(chosen)
        seen.update(values_of(chosen))
    return ordered


def values_of(case: Case) -> Iterator[tuple[str, object]]:
    """What a case shows: each field with its value, its family, its order of size, and pairs that work together."""
    for name in ("dtype", "optimizer", "checkpointing", "attention", "accum_steps", "settings", *FLAGS):
        yield name, getattr(case, name)
    yield "lora", case.lora_rank > 0
    yield "family", case.family
    yield "size", len(str(case.params))
    yield "dtype and attention", (case.dtype, case.attention)
    yield "checkpointing and dtype", (case.checkpointing, case.dtype)
    yield "checkpointing and lora", (case.checkpointing, case.lora_rank > 0)


def names(cases: Iterable[Case]) -> list[str]:
    """Their names."""
    return [each.name for each in cases]
