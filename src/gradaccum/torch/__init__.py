"""The rooms that import torch. Importing this package imports none of them, and no torch.

trace         what a training step allocates, in order, without a GPU and without a single weight
probe         which micro-batch fits and is fastest, tried on this machine
fit           the largest micro-batch of a step of one's own, by its traces
accumulate    gradient accumulation in a loop of one's own
audit         whether a loop of any framework does what the big batch would
build         a person's own step, by the name of its function
batchnorm     modules that normalise by their whole batch

Public names are fetched when they are first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.torch.accumulate import AccumulationError as AccumulationError
    from gradaccum.torch.accumulate import Accumulator as Accumulator
    from gradaccum.torch.accumulate import Ramp as Ramp
    from gradaccum.torch.accumulate import ResumableBatches as ResumableBatches
    from gradaccum.torch.accumulate import Update as Update
    from gradaccum.torch.audit.verify import verify as verify
    from gradaccum.torch.audit.watch import watch as watch
    from gradaccum.torch.probe import find_micro_batch as find_micro_batch

_HOME = {
    "AccumulationError": "accumulate",
    "Accumulator": "accumulate",
    "Ramp": "accumulate",
    "ResumableBatches": "accumulate",
    "Update": "accumulate",
    "find_micro_batch": "probe",
    "verify": "audit.verify",
    "watch": "audit.watch",
}
"""Where each public name lives."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'gradaccum.torch' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"gradaccum.torch.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
