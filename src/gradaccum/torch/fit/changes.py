"""What would bring the peak of a trace down: the same trace replayed without the blocks that a change leaves out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gradaccum.memory.answer import Change
from gradaccum.torch.fit.ledger import alive
from gradaccum.torch.trace import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradaccum.torch.fit.replays import Replays
    from gradaccum.torch.trace import Block, Trace

OF_THE_LOSS = frozenset({"aten._log_softmax_backward_data", "aten.nll_loss_backward"})
"""Operators of the backward pass whose results are as large as the logits."""

LEAST = 1000
"""A change that saves no more than a thousandth of the peak is not told."""


def changes(trace: Trace, replays: Replays) -> tuple[Change, ...]:
    """Most bytes first; those that bring next to nothing are left out."""
    peaks = replays.peaks(trace)
    found = []
    for words, leaves_out in _options(trace, peaks.at.event):
        lighter = without(trace, leaves_out)
        left = replays.peaks(lighter)
        saved = peaks.allocated - left.allocated
        if saved * LEAST > peaks.allocated:
            found.append(Change(words, saved, fits=replays.fits(lighter, left)))
    return tuple(sorted(found, key=lambda change: -change.bytes))


def without(trace: Trace, leaves_out: Callable[[Block], bool]) -> Trace:
    """The same events; blocks that are left out have no bytes."""
    return replace(
        trace, blocks=tuple(block._replace(bytes=0) if leaves_out(block) else block for block in trace.blocks)
    )


def _options(trace: Trace, at: int) -> list[tuple[str, Callable[[Block], bool]]]:
    options: list[tuple[str, Callable[[Block], bool]]] = [
        ("a fused optimizer: no temporary", lambda block: block.phase == ev.OPTIMIZER and block.kind == ev.TEMPORARY),
        (
            "a chunked or fused loss: without what the loss makes of the logits",
            lambda block: (block.phase == ev.LOSS and block.kind == ev.ACTIVATION) or block.op in OF_THE_LOSS,
        ),
    ]
    layers = None if any(mark.phase == ev.RECOMPUTE for mark in trace.marks) else _layers(trace, at)
    if layers:
        prefix, last = layers
        words = f"checkpointing each of {prefix}: about a third more compute"
        options.append((words, lambda block: _inside(block, prefix, last)))
    return options


def _layers(trace: Trace, at: int) -> tuple[str, int] | None:
    """The list of modules that keeps most at the peak, and the number of its last one; None where there is no list."""
    kept: dict[str, int] = {}
    last: dict[str, int] = {}
    for block in alive(trace, at):
        prefix, number = _numbered(block.module)
        if block.kind == ev.ACTIVATION and number >= 0:
            kept[prefix] = kept.get(prefix, 0) + block.bytes
            last[prefix] = max(number, last.get(prefix, 0))
    if not kept:
        return None
    prefix = max(kept, key=lambda each: kept[each])
    return (prefix, last[prefix]) if last[prefix] else None


def _numbered(module: str) -> tuple[str, int]:
    """`model.layers.3.mlp` is (`model.layers`, 3); (``, -1) where no part is a number."""
    parts = module.split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[:place]), int(part)
    return "", -1


def _inside(block: Block, prefix: str, last: int) -> bool:
    """Whether it is kept inside a layer, and not by the last, which is computed again when its backward begins.

    What a layer itself makes, and not a module in it, counts as its result, which is the next one's input.
    """
    if block.kind != ev.ACTIVATION or block.phase != ev.FORWARD or not block.module.startswith(f"{prefix}."):
        return False
    number, _, below = block.module[len(prefix) + 1 :].partition(".")
    return bool(below) and int(number) != last
