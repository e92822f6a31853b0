"""What fits on a device: the allocator that a training step's allocations go through, without a GPU."""

from __future__ import annotations

from gradaccum.memory.allocator import Allocator, OutOfMemory, ties_of
from gradaccum.memory.allocator_settings import Settings

__all__ = ["Allocator", "OutOfMemory", "Settings", "ties_of"]
