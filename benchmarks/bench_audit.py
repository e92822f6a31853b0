"""What it costs to have a training loop watched: in audited updates, and in all others."""

from __future__ import annotations

import copy
import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from benchmarks.common import asked_runs, ratios, spread, table, take_turns, verdict, write_result
from benchmarks.overhead_costs import peak
from gradaccum.torch import watch

if TYPE_CHECKING:
    from collections.abc import Callable

WHAT = "one update of a small language model, watched and audited, watched and counted, beside the same unwatched"
RUNS = 100
STEPS, ROWS, LENGTH, WIDTH, LAYERS, VOCABULARY = 4, 4, 64, 128, 2, 1024
BARE, AUDITED, COUNTED, PROFILED = "unwatched", "audited", "watched, not audited", "torch.profiler"
LIMITS = {AUDITED: 1.05, COUNTED: 1.01}
"""Times the unwatched update, median of pairs."""
TOKEN_BYTES = 16
"""Held beyond the unwatched update, for each token of it."""


class LanguageModel(nn.Module):
    """A decoder with causal attention. Token ids of shape (B, T) to logits (B, T, V)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the token after each."""
        mask = nn.Transformer.generate_square_subsequent_mask(ids.size(1))
        return self.head(self.layers(self.embed(ids), mask=mask, is_causal=True))


def one_update(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[torch.Tensor]) -> None:
    """As people write it by hand, right for rows of unequal numbers of tokens."""
    tokens = sum(int((each[:, 1:] != 0).sum()) for each in batches)
    for ids in batches:
        logits = model(ids[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0, reduction="sum")
        (loss / tokens).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def under(kind: str, model: nn.Module, optimizer: torch.optim.Optimizer, measure: Callable[[], Any]) -> Any:
    """What `measure` says of an update under that kind of watching, after one that is not measured."""
    watched = {
        AUDITED: partial(watch, model, optimizer, updates=None),
        COUNTED: partial(watch, model, optimizer, updates=1),
    }
    with watched.get(kind, nullcontext)() as report:
        measure()
        if kind == PROFILED:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
                found = measure()
        else:
            found = measure()
    if report is not None and (
        report.verdict != "right" or report.facts["audited_updates"] != (2 if kind == AUDITED else 1)
    ):
        raise SystemExit(f"{kind}: the audit did not see what it should: {report}")
    return found


def main() -> None:
    """The bytes once, and then the clock."""
    runs = asked_runs(WHAT, RUNS)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batches = [torch.randint(1, VOCABULARY, (ROWS, LENGTH + 1)) for _ in range(STEPS)]
    for number, ids in enumerate(batches):
        ids[0, LENGTH - 20 * number :] = 0  # padding, so that micro-batches differ
    first = LanguageModel()
    contenders: dict[str, Callable[[], float]] = {}
    held: dict[str, int] = {}
    for kind in (BARE, AUDITED, COUNTED, PROFILED):
        model = copy.deepcopy(first)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        update = partial(one_update, model, optimizer, batches)

        def seconds(update: Callable[[], None] = update) -> float:
            begun = time.perf_counter()
            update()
            return time.perf_counter() - begun

        contenders[kind] = partial(under, kind, model, optimizer, seconds)
        if kind != PROFILED:
            held[kind] = under(kind, model, optimizer, partial(peak, update))
    measured = take_turns(contenders, runs)
    found = {
        kind: {"ratio": spread(ratios(times, measured[BARE])), "ms": spread(times, 1000)}
        for kind, times in measured.items()
    }
    rows = [[kind, f"{one['ratio']['median']:.3f}", f"{one['ms']['median']:.1f}"] for kind, one in found.items()]
    print(table(["update", "ratio", "ms"], rows))
    limits = [
        verdict(f"{kind}: times the update {BARE}", found[kind]["ratio"]["median"], most)
        for kind, most in LIMITS.items()
    ]
    more = (held[AUDITED] - held[BARE]) / (STEPS * ROWS * LENGTH)
    limits.append(verdict("bytes held at the peak beyond it, for each token", round(more, 2), TOKEN_BYTES))
    versions = {"torch": torch.__version__}
    write_result("audit", WHAT, runs, RUNS, versions, limits=limits, measured=found, peak_bytes=held)


if __name__ == "__main__":
    main()
