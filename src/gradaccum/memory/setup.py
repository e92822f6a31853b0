"""How a model is trained on one kind of GPU: all that a prediction of its memory asks. `Setup` holds it, checked."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.errors import InputError, Problem, nearest_words
from gradaccum.memory import layout, training
from gradaccum.units import quote, show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from gradaccum.catalog.models import Model

OPTIMIZERS = ("adamw", "adamw-fused", "adamw-loop", "adamw-8bit", "sgd", "sgd-momentum")
ATTENTION = ("flash", "efficient", "eager")

CHOICES = {
    **training.CHOICES,
    "optimizer": OPTIMIZERS,
    "attention": ATTENTION,
    **layout.CHOICES,
}

MEANINGS = {
    **training.MEANINGS,
    "optimizer": "adamw is the foreach form, PyTorch's default on a GPU; -fused has no temporary, -loop the largest "
    "parameter's, -8bit has states of one byte",
    "attention": "flash: a fused kernel, which fp32 with grouped queries has none of; efficient: PyTorch's "
    "memory-efficient kernel, keys and values repeated; eager: the scores of every head are kept",
    **layout.MEANINGS,
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One training run's memory question. Raises InputError, with one Problem for each fault.

    sequence_length: tokens. micro_batch: sequences of one rank. accum_steps: micro-steps per update; None is "two or
    more", since from two on the memory is the same. num_gpus: the world size. lora_rank: of the adapters, 0 where all
    weights are trained. The degrees of parallelism are GPUs; shard_size: ranks of one group that shards, for hsdp. The
    other fields are words of CHOICES, or yes and no.
    """

    model: Model
    sequence_length: int
    micro_batch: int = 1
    accum_steps: int | None = None
    num_gpus: int = 1
    dtype: str = "bf16"
    gradient_dtype: str = "auto"
    lora_rank: int = 0
    lora_targets: str = "default"
    quantization: str = "none"
    loss: str = "full"
    optimizer: str = "adamw"
    checkpointing: str = "none"
    attention: str = "flash"
    strategy: str = "single"
    shard_size: int | None = None
    reduce: str = "auto"
    reduce_dtype: str = "auto"
    reshard_after_forward: bool = True
    gradient_as_bucket_view: bool = False
    tensor_parallel: int = 1
    sequence_parallel: bool = False
    pipeline_parallel: int = 1
    virtual_pipeline: int = 1
    context_parallel: int = 1
    expert_parallel: int = 1
    distributed_optimizer: bool = False

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise InputError(*problems)

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.id

    @property
    def words(self) -> str:
        """How it is trained, for people."""
        how = f"{self.dtype}, {self.optimizer}, {self.attention} attention, checkpointing {self.checkpointing}"
        words = [f"sequences of {show_count(self.sequence_length)} tokens", how]
        if self.lora_rank:
            words.append(f"LoRA of rank {show_count(self.lora_rank)} on {self.lora_targets} layers")
        if self.quantization != "none":
            words.append(f"{self.quantization} weights")
        if self.loss != "full":
            words.append(f"{self.loss} loss")
        return ", ".join(words)

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch."""
        return self.micro_batch * self.sequence_length

    @property
    def width(self) -> int:
        """Bytes of one weight that is trained whole, and of its gradient."""
        return 4 if self.dtype == "fp32" or self.dtype.endswith("-mixed") else 2

    @property
    def data_parallel(self) -> int:
        """Ranks with sequences of their own."""
        return self.num_gpus // (self.tensor_parallel * self.pipeline_parallel * self.context_parallel)

    @property
    def accumulates(self) -> bool:
        """Whether gradients of an earlier micro-step are there while the next one runs."""
        return self.accum_steps is None or self.accum_steps > 1

    def with_micro_batch(self, micro_batch: int) -> Setup:
        """The same with another micro-batch."""
        return self.changed("micro_batch", micro_batch)

    def changed(self, name: str, value: int | str) -> Setup:
        """The same with another value of one field."""
        return self.with_values({name: value})

    def with_values(self, values: Mapping[str, object]) -> Setup:
        """The same with other values of some fields."""
        same = {each: getattr(self, each) for each in (*COUNTS, *CHOICES, *layout.FLAGS, "lora_rank", "model")}
        same.update(values)
        return Setup(**same)


COUNTS = ("sequence_length", "micro_batch", "accum_steps", "num_gpus", *layout.COUNTS)
"""Fields that are at least 1, where they say anything."""


def plain_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with counts and words by themselves, whatever the model. values: fields of a Setup, any of them."""
    for name in COUNTS:
        count = values.get(name)
        if count is not None and count < 1:
            yield Problem(name, f"must be at least 1, not {show_count(count)}", ["1"])
    for name, words in CHOICES.items():
        if name in values and (not isinstance(values[name], str) or values[name] not in words):
            yield _wrong_word(name, values[name], words)
    for name in layout.FLAGS:
        if not isinstance(values.get(name, False), bool):
            yield Problem(name, f"is True or False, not {quote(str(values[name]))}", ["True", "False"])


def _wrong_word(name: str, given: object, words: tuple[str, ...]) -> Problem:
    """A class or an object, such as an optimizer, may have a name that says which word is meant."""
    said = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    shown = quote(given) if isinstance(given, str) else f"{said} itself, which says nothing of a named model"
    return Problem(name, f"is one of {', '.join(words)}, not {shown}", nearest_words(said, words) or list(words))


def _problems(setup: Setup) -> Iterator[Problem]:
    plain = list(plain_problems({name: getattr(setup, name) for name in (*COUNTS, *CHOICES, *layout.FLAGS)}))
    if plain:
        yield from plain
        return
    names = (*training.CHOICES, "lora_rank", "strategy")
    yield from training.problems(setup.model, {name: getattr(setup, name) for name in names})
    names = ("sequence_length", "num_gpus", "attention", *layout.COUNTS, *layout.CHOICES, *layout.FLAGS)
    yield from layout.problems(setup.model, {name: getattr(setup, name) for name in names})
