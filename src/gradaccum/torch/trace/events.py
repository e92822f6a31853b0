"""What a trace holds: the blocks of memory of a training step, and the order in which they come and go.

A block is one storage: the bytes that a tensor and all its views share, and what the caching allocator is asked for.
Everything here is plain data (numbers and text), so a trace can be written to a file and replayed where no torch is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SETUP, FORWARD, LOSS, BACKWARD, RECOMPUTE, OPTIMIZER = "setup forward loss backward recompute optimizer".split()
PHASES = (SETUP, FORWARD, LOSS, BACKWARD, RECOMPUTE, OPTIMIZER)

WEIGHT, BUFFER, BATCH, OTHER = "weight", "buffer", "batch", "other"
GRADIENT, STATE = "gradient", "optimizer state"
ACTIVATION, TEMPORARY, KERNEL, WORKSPACE = "activation", "temporary", "kernel buffer", "workspace"
KINDS = (WEIGHT, BUFFER, BATCH, OTHER, GRADIENT, STATE, ACTIVATION, TEMPORARY, KERNEL, WORKSPACE)
"""The kinds of block, in the order of a ledger.

weight, buffer, batch   alive before the first step: of the module, of it without gradient, handed to it
other                   alive before the first step, and none of these
gradient                was some parameter's `.grad` when an optimizer step began
optimizer state         was in the optimizer's state when a step ended
activation              born in forward, loss or recompute
temporary               born in backward or in the optimizer step, and neither gradient nor state
kernel buffer           lives inside one operator alone, and no tensor of the program shows it
workspace               of a library (cuBLAS), asked for once and kept
"""


class Block(NamedTuple):
    """One storage. `bytes` are those asked for, before any rounding of an allocator."""

    bytes: int
    kind: str
    phase: str
    """In which it was born."""
    op: str
    """The operator that made it, such as `aten.mm`; empty for what was there before the first step."""
    module: str
    """The path of the module it was born in, such as `model.layers.0.mlp`; empty where none is known."""
    name: str
    """The name of a parameter, its gradient or state; empty for others."""


class Mark(NamedTuple):
    """From event number `at` on, the step is in this phase. Micro-steps and updates count from 0."""

    at: int
    phase: str
    update: int
    micro_step: int


class Guess(NamedTuple):
    """Something that the trace could not see, and what was assumed instead."""

    op: str
    module: str
    what: str
    most: int = 0
    """Bytes that it may allocate beyond what was counted, in its largest call (unseen.py)."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The births and deaths of the blocks of a training step.

    events: `i` is the birth of block `i`, `~i` (that is -1 - i) its death. The first `num_setup` events come before the
    first step: the births of weights, buffers and batch in the order in which they are loaded.
    unknown: what makes the trace a bound or an estimate, with the operator's name. assumed: values that the program
    read from a tensor, which a trace does not hold, and the constants that were answered.
    emptied: numbers of events; before each of them the program called `torch.cuda.empty_cache()`.
    """

    device: str
    accum_steps: int
    updates: int
    num_setup: int
    blocks: tuple[Block, ...]
    events: tuple[int, ...]
    marks: tuple[Mark, ...]
    unknown: tuple[Guess, ...] = ()
    assumed: tuple[Guess, ...] = ()
    emptied: tuple[int, ...] = ()

    @property
    def persistent(self) -> tuple[Block, ...]:
        """What was alive before the first step, in load order."""
        setup = self.events[: self.num_setup]
        gone = {~event for event in setup if event < 0}
        return tuple(self.blocks[event] for event in setup if event >= 0 and event not in gone)

    def phases(self) -> Iterator[tuple[Mark, range]]:
        """Each mark with the numbers of the events up to the next one."""
        for place, mark in enumerate(self.marks):
            after = self.marks[place + 1].at if place + 1 < len(self.marks) else len(self.events)
            yield mark, range(mark.at, after)

    def to_dict(self) -> dict[str, object]:
        """For JSON. Text that many blocks share is written once, and named by its number."""
        words: dict[str, int] = {}
        blocks = [
            [block.bytes, *(words.setdefault(text, len(words)) for text in block[1:])]  # a name lives once
            for block in self.blocks
        ]
        return {
            "schema_version": 1,
            "device": self.device,
            "accum_steps": self.accum_steps,
            "updates": self.updates,
            "num_setup": self.num_setup,
            "words": list(words),
            "blocks": blocks,
            "events": list(self.events),
            "marks": [list(mark) for mark in self.marks],
            "unknown": [list(guess) for guess in self.unknown],
            "assumed": [list(guess) for guess in self.assumed],
            "emptied": list(self.emptied),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Trace:
        """The trace that `to_dict` wrote. ValueError where it is of another version."""
        fields: dict[str, object] = dict(data)
        version, words = fields.pop("schema_version", None), fields.pop("words", None)
        if version != 1 or not isinstance(words, list):
            raise ValueError(f"a trace of schema version 1 was expected, not {version}")
        made: dict[str, object] = {
            "blocks": tuple(Block(row[0], *(words[each] for each in row[1:])) for row in _rows(fields.pop("blocks"))),
            "events": tuple(_rows(fields.pop("events"))),
            "marks": tuple(Mark(*row) for row in _rows(fields.pop("marks"))),
            "unknown": tuple(Guess(*row) for row in _rows(fields.pop("unknown"))),
            "assumed": tuple(Guess(*row) for row in _rows(fields.pop("assumed"))),
            "emptied": tuple(_rows(fields.pop("emptied"))),
        }
        return cls(**fields, **made)  # type: ignore[arg-type]

    def unknown_ops(self) -> dict[str, int]:
        """How often each operator that the trace could not follow was met."""
        return dict(Counter(guess.op for guess in self.unknown))


def _rows(value: object) -> list:  # type: ignore[type-arg]
    assert isinstance(value, list | tuple)
    return list(value)
