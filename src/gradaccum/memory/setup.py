"""How a model is trained on one kind of GPU: all that a prediction of its memory asks. `Setup` holds it, checked."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.errors import InputError, Problem, nearest_words
from gradaccum.memory import training
from gradaccum.units import quote, show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradaccum.catalog.models import Model

OPTIMIZERS = ("adamw", "adamw-fused", "adamw-loop", "adamw-8bit", "sgd", "sgd-momentum")
ATTENTION = ("flash", "efficient", "eager")
STRATEGIES = ("single", "ddp", "fsdp2")

CHOICES = {
    **training.CHOICES,
    "optimizer": OPTIMIZERS,
    "attention": ATTENTION,
    "strategy": STRATEGIES,
}

MEANINGS = {
    **training.MEANINGS,
    "optimizer": "adamw is the foreach form, PyTorch's default on a GPU; -fused has no temporary, -loop the largest "
    "parameter's, -8bit has states of one byte",
    "attention": "flash: a fused kernel, which fp32 with grouped queries has none of; efficient: PyTorch's "
    "memory-efficient kernel, keys and values repeated; eager: the scores of every head are kept",
    "strategy": "single: one GPU; ddp: every rank holds all; fsdp2: the ranks share weights, gradients and states",
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One training run's memory question. Raises InputError, with one Problem for each fault.

    sequence_length: tokens. micro_batch: sequences of one rank. accum_steps: micro-steps per update; None is "two or
    more", since from two on the memory is the same. num_gpus: data-parallel ranks. lora_rank: of the adapters, 0
    where all weights are trained. The other fields are words of CHOICES.
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
        return f"sequences of {show_count(self.sequence_length)} tokens, {how}"

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch."""
        return self.micro_batch * self.sequence_length

    @property
    def width(self) -> int:
        """Bytes of one weight that is trained whole, and of its gradient."""
        return 4 if self.dtype == "fp32" or self.dtype.endswith("-mixed") else 2

    @property
    def accumulates(self) -> bool:
        """Whether gradients of an earlier micro-step are there while the next one runs."""
        return self.accum_steps is None or self.accum_steps > 1

    def with_micro_batch(self, micro_batch: int) -> Setup:
        """The same with another micro-batch."""
        return self.changed("micro_batch", micro_batch)

    def changed(self, name: str, value: int | str) -> Setup:
        """The same with another value of one field."""
        values = {each: getattr(self, each) for each in (*_COUNTS, *CHOICES, "lora_rank", "model")}
        values[name] = value
        return Setup(**values)


_COUNTS = ("sequence_length", "micro_batch", "accum_steps", "num_gpus")


def _problems(setup: Setup) -> Iterator[Problem]:
    for name in _COUNTS:
        count = getattr(setup, name)
        if count is not None and count < 1:
            yield Problem(name, f"must be at least 1, not {show_count(count)}", ["1"])
    for name, words in CHOICES.items():
        word = getattr(setup, name)
        if word not in words:
            near = nearest_words(word, words) or list(words)
            yield Problem(name, f"is one of {', '.join(words)}, not {quote(word)}", near)
    if all(getattr(setup, name) in words for name, words in CHOICES.items()):
        names = (*training.CHOICES, "lora_rank", "strategy")
        yield from training.problems(setup.model, {name: getattr(setup, name) for name in names})
    if setup.strategy == "single" and setup.num_gpus > 1:
        message = f"is single, which is one GPU, not {show_count(setup.num_gpus)}"
        yield Problem("strategy", message, ["ddp", "fsdp2"])
