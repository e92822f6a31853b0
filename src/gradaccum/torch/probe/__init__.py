"""The micro-batch that fits and is fastest, tried on this machine.

find_micro_batch    the search: trials, their timing, the pair to train with
Found, Pair, Trial  its answer
ProbeError          a trial that failed otherwise than by memory
"""

from __future__ import annotations

from gradaccum.torch.probe.answer import Found, Pair, Trial
from gradaccum.torch.probe.errors import ProbeError
from gradaccum.torch.probe.find import find_micro_batch

__all__ = ["Found", "Pair", "ProbeError", "Trial", "find_micro_batch"]
