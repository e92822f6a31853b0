"""Gradient accumulation in a loop of one's own: groups of micro-batches, each one optimizer update.

accumulator    Accumulator: the options, and the groups of a loader
group          Group: one update's micro-batches, its backward passes and its step
recover        the loop in one call, and a group that begins anew where memory runs out
split          a batch cut along its samples
source         where micro-batches come from, and what the ranks know of their number
exact          groups of an exact number of samples
sync           when the ranks' gradients come together, by how the model is wrapped
boundary       normalise, clip and step
buffers        sums in another type than the gradients'
kept           gradients that are there before a group, or change between its passes
aliased        gradients that the next backward pass would overwrite
reduced        a loss that is a mean where a sum was asked for
planned        what a plan asks of the ranks and of the loader
spelling       options by the names that trainers give them
explain        what each way to reduce holds and sends
progress       what was consumed, and batch ramps
checkpoint     what a restart needs; sampler: batches in an order that may be cut anew
"""

from __future__ import annotations

from gradaccum.torch.accumulate.accumulator import Accumulator
from gradaccum.torch.accumulate.errors import AccumulationError
from gradaccum.torch.accumulate.group import Group
from gradaccum.torch.accumulate.progress import Progress, Ramp
from gradaccum.torch.accumulate.sampler import ResumableBatches
from gradaccum.torch.accumulate.update import Update

__all__ = ["AccumulationError", "Accumulator", "Group", "Progress", "Ramp", "ResumableBatches", "Update"]
