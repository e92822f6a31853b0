"""The failure cases: what is trained on, and the right gradient of every update, from one concatenated batch.

Most train one weight w with the mean loss w x over the labels that count, so that the gradient is the mean of x and can
be read. The names are those of the developers' list of failure cases; where each was found stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from collections.abc import Callable

IGNORE = -100
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """batches: one after the other, with several ranks in turn to each. groups: which of them make up each update, by
    their numbers, by what is right; or_groups: what is right as well. skipped: those that the loop leaves out.
    leaves_after: micro-batches after which the first epoch is left, and another follows. then: after so many of them an
    update has so many. resumes: a run is saved after 4 updates, and goes on; what counts is its first micro-batch.
    """

    name: str
    what: str
    source: str
    batches: tuple[Batch, ...]
    groups: tuple[tuple[int, ...], ...]
    accum_steps: int = 2
    or_groups: tuple[tuple[int, ...], ...] = ()
    build: Callable[[], nn.Module] | None = None
    clip_norm: float | None = None
    ranks: int = 1
    skipped: tuple[int, ...] = ()
    leaves_after: int | None = None
    divides_twice: bool = False
    sums: bool = False
    ignores_count: bool = False
    static_graph: bool = False
    then: tuple[int, int] | None = None
    resumes: bool = False
    tolerance: float = 1e-9

    def model(self) -> nn.Module:
        """Anew, and each time the same."""
        torch.manual_seed(3)
        return self.build() if self.build is not None else Weights()


class Weights(nn.Module):
    """A loss that is linear in the weights: w x, mean over the labels that count."""

    def __init__(self, width: int = 1, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width, dtype=dtype))

    def forward(self, x: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None) -> Batch:
        """x: (rows, tokens, width). num_items_in_batch: what to divide by, as heads of Transformers take it."""
        values = (x @ self.w)[labels != IGNORE]
        return {"loss": values.mean() if num_items_in_batch is None else values.sum() / num_items_in_batch}


class Logits(nn.Module):
    """The cross-entropy of two classes with logits w x and 0: a mean over no label is NaN, its gradient 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None) -> Batch:
        """As Weights."""
        logits = torch.stack([x @ self.w, 0 * (x @ self.w)], dim=-1).flatten(0, 1)
        if num_items_in_batch is None:
            return {"loss": cross_entropy(logits, labels.flatten())}
        return {"loss": cross_entropy(logits, labels.flatten(), reduction="sum") / num_items_in_batch}


class Towers(nn.Module):
    """InfoNCE over the rows of a batch: every other row is a negative."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys, (rows, 4) each."""
        return self.tower(x[:, 0]), self.tower(x[:, 1])

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Batch:
        """x: (rows, 2, 6). A mean over rows."""
        return {"loss": info_nce(self.encode(x))[0] / len(x)}


def info_nce(pairs: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """The summed loss and its rows."""
    scores = pairs[0] @ pairs[1].T / 0.1
    return cross_entropy(scores, torch.arange(len(scores)), reduction="sum"), len(scores)


def causal_lm() -> nn.Module:
    """A Llama of Transformers, very small."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    found: nn.Module = LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape)).double()
    return found


def batch(*values: float, counted: int | None = None, dtype: torch.dtype = torch.float64) -> Batch:
    """One row with these x, of which the first `counted` have a label that counts."""
    labels = torch.zeros(1, len(values), dtype=torch.long)
    labels[:, len(values) if counted is None else counted :] = IGNORE
    return {"x": torch.tensor(values, dtype=dtype).reshape(1, -1, 1), "labels": labels}


def rows(count: int, *shape: int) -> list[torch.Tensor]:
    """Random ones, always the same."""
    return list(torch.randn(count, *shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64))


def tokens() -> tuple[Batch, ...]:
    """Four sequences of 8 tokens, all of them labels."""
    found = torch.randint(32, (4, 1, 8), generator=torch.Generator().manual_seed(9))
    return tuple({"input_ids": each, "labels": each} for each in found)


POWERS = tuple(batch(10.0**i) for i in range(6))
UNEVEN = (batch(2, 0, 0, counted=1), batch(10, 10, 10))
AXES = tuple(
    {"x": torch.tensor([[each]], dtype=torch.float64), "labels": torch.zeros(1, 1, dtype=torch.long)}
    for each in ((3.0, 0.0), (0.0, 0.1))
)
PAIRS = tuple({"x": torch.stack(rows(8, 2, 6)[2 * i : 2 * i + 2]), "labels": torch.zeros(2).long()} for i in range(4))
COUNTED = tuple(batch(float(i)) for i in range(40))
ONES = tuple(batch(1.0, dtype=torch.bfloat16) for _ in range(1024))

CASES = (
    Case("A1", "mean losses over 1 and over 3 tokens", "transformers#34191", UNEVEN, ((0, 1),)),
    Case("A2", "the same, on a rank each", "transformers#34242", UNEVEN, ((0, 1),), 1, ranks=2),
    Case("A3", "6 micro-batches, 4 in an update", "pytorch-lightning#19987", POWERS, ((0, 1, 2, 3), (4, 5)), 4),
    Case(
        "A4",
        "the first epoch is left after 3 micro-batches, 4 in an update",
        "accelerate#1847",
        POWERS[:4],
        ((0, 1, 2), (0, 1, 2, 3)),
        4,
        ((0, 1, 2, 3),),
        leaves_after=3,
    ),
    Case(
        "A6",
        "a head that takes any keyword and ignores the count",
        "transformers#47688",
        POWERS[:4],
        ((0, 1, 2, 3),),
        4,
        ignores_count=True,
    ),
    Case(
        "A7",
        "a causal LM, 8 tokens of which 7 are targets",
        "transformers, `_loss_shifts_labels`",
        tokens(),
        ((0, 1), (2, 3)),
        build=causal_lm,
        tolerance=1e-6,
    ),
    Case(
        "A8",
        "the caller has divided the mean loss by the micro-batches",
        "accelerate#3533",
        POWERS[:4],
        ((0, 1, 2, 3),),
        4,
        divides_twice=True,
    ),
    Case("A9", "the caller's loss is a sum", "karpathy/nanoGPT#168", UNEVEN, ((0, 1),), sums=True),
    Case(
        "A10",
        "a micro-batch whose labels are all ignored: its mean loss is NaN",
        "PrimeIntellect-ai/prime-rl#1961",
        (batch(4, 4, counted=0), batch(1, 3)),
        ((0, 1),),
        build=Logits,
    ),
    Case(
        "A11",
        "an update without any target",
        "allenai/OLMo-core#657",
        (batch(4, counted=0), batch(4, counted=0), batch(1), batch(3)),
        ((2, 3),),
        build=Logits,
    ),
    Case("A14", "the second of 4 micro-batches is left out", "", POWERS[:4], ((0, 2, 3),), 4, skipped=(1,)),
    Case(
        "A15",
        "a NaN in one update: what the next ones see",
        "optax",
        (batch(1), batch(float("nan")), batch(1), batch(3)),
        ((2, 3),),
    ),
    Case(
        "A16",
        "clipped to 1, micro-batches of (3, 0) and (0, 0.1)",
        "accelerate#641",
        AXES,
        ((0, 1),),
        build=lambda: Weights(2),
        clip_norm=1.0,
        tolerance=1e-6,
    ),
    Case(
        "A18",
        "two ranks, reduced in the last backward pass",
        "karpathy/build-nanogpt#30",
        (batch(1), batch(3), batch(10), batch(30)),
        ((0, 1, 2, 3),),
        ranks=2,
    ),
    Case(
        "A22",
        "1,024 micro-batches with a gradient of 1, in bf16",
        "NVIDIA/Megatron-LM#502",
        ONES,
        (tuple(range(1024)),),
        1024,
        build=lambda: Weights(dtype=torch.bfloat16),
        tolerance=0.01,
    ),
    Case(
        "A27", "InfoNCE over 8 pairs, as 4 x 2", "sentence-transformers#1822", PAIRS, ((0, 1, 2, 3),), 4, build=Towers
    ),
    Case(
        "A31",
        "after 12 micro-batches an update has 5, not 4; x is 1",
        "DeepSpeed, `set_train_batch_size`",
        tuple(batch(1) for _ in range(22)),
        (tuple(range(4)), tuple(range(4, 8)), tuple(range(8, 12)), tuple(range(12, 17)), tuple(range(17, 22))),
        4,
        then=(12, 5),
    ),
    Case(
        "A32",
        "saved after 4 updates of 4, it goes on with 2: the first sample",
        "transformers#43708",
        COUNTED,
        ((16,),),
        2,
        resumes=True,
    ),
    Case(
        "A21",
        "DDP with a static graph",
        "accelerate#3679",
        (batch(1), batch(3), batch(10), batch(30)),
        ((0, 1, 2, 3),),
        ranks=2,
        static_graph=True,
    ),
)


def right(case: Case, groups: tuple[tuple[int, ...], ...] | None = None) -> list[torch.Tensor]:
    """The gradient of each update: the mean loss of its concatenated batch, clipped."""
    found = []
    for group in groups or case.groups:
        model = case.model()
        if case.name == "A22":
            model.double()  # what the sum is without rounding
        whole = {key: [case.batches[each][key] for each in group] for key in case.batches[0]}
        width = max(each.shape[1] for each in whole["labels"]) if whole["labels"][0].dim() > 1 else 0
        filled = {
            key: torch.cat([_filled(each, key, width) for each in values]).to(_dtype(model, values[0]))
            for key, values in whole.items()
        }
        outputs = model(**filled)
        outputs["loss"].backward()
        if case.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), case.clip_norm)
        found.append(gradient(model.parameters()))
    return found


def _filled(values: torch.Tensor, key: str, width: int) -> torch.Tensor:
    """Rows of so many tokens, the added ones without a label."""
    if not width or values.shape[1] == width:
        return values
    more = values.new_full((len(values), width - values.shape[1], *values.shape[2:]), IGNORE if key == "labels" else 0)
    return torch.cat([values, more], dim=1)


def _dtype(model: nn.Module, values: torch.Tensor) -> torch.dtype:
    return next(model.parameters()).dtype if values.is_floating_point() else values.dtype


def gradient(parameters: Any) -> torch.Tensor:
    """All gradients as one vector, in float64."""
    return torch.cat([each.grad.detach().double().flatten() for each in parameters if each.grad is not None])
