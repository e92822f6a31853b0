"""The memory of a training step, traced on the meta device.

record, trace_module    run a step without data; a Trace: births and deaths of storages, in order
cuda, cpu               what the meta device stands for
replay                  a Trace through an allocator: peaks, and what was alive at them
"""

from __future__ import annotations

from gradaccum.torch.trace.cpu import cpu
from gradaccum.torch.trace.cuda import cuda
from gradaccum.torch.trace.device import Device
from gradaccum.torch.trace.errors import TraceError
from gradaccum.torch.trace.events import Block, Guess, Mark, Trace
from gradaccum.torch.trace.record import Job, record, trace_module
from gradaccum.torch.trace.replay import Counter, Peaks, replay

__all__ = [
    "Block",
    "Counter",
    "Device",
    "Guess",
    "Job",
    "Mark",
    "Peaks",
    "Trace",
    "TraceError",
    "cpu",
    "cuda",
    "record",
    "replay",
    "trace_module",
]
