"""What nearly every case imports; imported once, in the process that all others are forked from.

Nothing here may touch CUDA, which does not survive a fork.
"""

from __future__ import annotations

import contextlib
import importlib

from benchmarks.gpu import cases, measure

__all__ = ["measure"]

with contextlib.suppress(ImportError):
    transformers = importlib.import_module("transformers")
    for name in sorted({each.shape.transformers_class for each in cases.CASES if not each.plain}):
        getattr(transformers, name)
with contextlib.suppress(ImportError):
    importlib.import_module("peft")
