"""What was alive at the peak of a trace, as the lines of a ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradaccum.memory.closed_form import END_OF_BACKWARD, END_OF_FORWARD, OPTIMIZER_STEP, RECOMPUTATION
from gradaccum.memory.ledger import Line
from gradaccum.torch.trace import events as ev

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gradaccum.torch.trace import Block, Peaks, Trace

SOURCE = "its trace"
MODULES = 8
"""At most so many lines of activations; those of other modules are one line more."""

NAMES = {
    ev.WEIGHT: "weights",
    ev.BUFFER: "buffers of the module",
    ev.BATCH: "batch",
    ev.OTHER: "other tensors from before the step",
    ev.GRADIENT: "gradients",
    ev.STATE: "optimizer states",
    ev.KERNEL: "buffers inside kernels",
    ev.WORKSPACE: "cuBLAS workspaces",
}
LOSS = "logits and loss"
OTHERS = "activations of other modules"


def alive(trace: Trace, at: int) -> list[Block]:
    """The blocks that are there after event number `at`, oldest first."""
    found: dict[int, None] = {}
    for event in trace.events[: at + 1]:
        if event >= 0:
            found[event] = None
        else:
            del found[~event]
    return [trace.blocks[each] for each in found]


def lines(trace: Trace, peaks: Peaks) -> tuple[Line, ...]:
    """The ledger of the peak; it sums to `peaks.allocated`."""
    groups: dict[str, list[Block]] = {}
    for block in alive(trace, peaks.at.event):
        groups.setdefault(_name(block), []).append(block)
    modules = sorted(
        (name for name in groups if name.startswith("activations of ")), key=lambda each: -_sum(groups[each])
    )
    rest = [block for name in modules[MODULES:] for block in groups.pop(name)]
    if rest:
        groups[OTHERS] = rest
    order = [*NAMES.values(), *modules[:MODULES], OTHERS, LOSS]
    names = sorted(groups, key=lambda name: order.index(name) if name in order else len(order))
    found = [Line(name, _sum(groups[name]), _made_by(groups[name]), SOURCE) for name in names]
    rounding = peaks.allocated - sum(line.bytes for line in found)
    if rounding:
        found.append(
            Line("rounding", rounding, "to the allocator's blocks, and what is left of blocks not split", SOURCE)
        )
    return tuple(found)


def _name(block: Block) -> str:
    if block.kind in NAMES:
        return NAMES[block.kind]
    if block.kind == ev.TEMPORARY:
        return "optimizer's temporary" if block.phase == ev.OPTIMIZER else "temporaries of the backward pass"
    if block.phase == ev.LOSS:
        return LOSS
    recomputed = " (recomputed)" if block.phase == ev.RECOMPUTE else ""
    return f"activations of {place(block.module) or 'the model itself'}{recomputed}"


def place(module: str) -> str:
    """Where a module stands, numbers left open: `model.layers.3.mlp.up_proj` is `model.layers.*.mlp`."""
    parts = module.split(".")
    numbered = next((at for at, part in enumerate(parts) if part.isdigit()), None)
    kept = parts[:2] if numbered is None else parts[: numbered + 2]
    return ".".join("*" if part.isdigit() else part for part in kept)


def _sum(blocks: Iterable[Block]) -> int:
    return sum(block.bytes for block in blocks)


def _made_by(blocks: Sequence[Block]) -> str:
    """How many tensors, and the operators that made most of their bytes."""
    by_op: dict[str, int] = {}
    for block in blocks:
        if block.op:
            by_op[block.op] = by_op.get(block.op, 0) + block.bytes
    ops = sorted(by_op, key=lambda op: -by_op[op])
    made = f", most by {', '.join(ops[:2])}" if ops else ""
    return f"{len(blocks):,} tensor{'s' if len(blocks) > 1 else ''}{made}"


def instant(trace: Trace, peaks: Peaks) -> str:
    """Which of the closed form's instants the peak is.

    A peak in the backward pass is at the end of forward while most of what forward kept is still there: the gradient
    of the logits is made then.
    """
    phase = peaks.at.phase
    if phase == ev.RECOMPUTE:
        return RECOMPUTATION
    if phase == ev.OPTIMIZER:
        return OPTIMIZER_STEP
    if phase != ev.BACKWARD:
        return END_OF_FORWARD
    begun = max(mark.at for mark in trace.marks if mark.at <= peaks.at.event and mark.phase in (ev.FORWARD, ev.LOSS))
    ended = next(mark.at for mark in trace.marks if mark.at > begun and mark.phase in (ev.BACKWARD, ev.RECOMPUTE))
    kept, left = (
        sum(block.bytes for block in alive(trace, at) if block.kind == ev.ACTIVATION)
        for at in (ended - 1, peaks.at.event)
    )
    return END_OF_FORWARD if 2 * left >= kept else END_OF_BACKWARD
