"""What goes wrong in an accumulating loop, said with what to do about it."""

from __future__ import annotations

import torch.distributed as dist

from gradaccum.errors import GradaccumError
from gradaccum.torch.probe.errors import is_out_of_memory

IN_A_PASS = (
    "gradaccum: accumulator.run(loader, loss_of) splits micro-batches that do not fit and begins their group anew; "
    "gradaccum.torch.find_micro_batch finds before training what fits; accumulator.discard() throws this group away"
)
IN_THE_STEP = (
    "gradaccum: step() ran out of memory, and may have changed some parameters and not others: go on from the last "
    "checkpoint, with a smaller micro-batch. gradaccum.torch.find_micro_batch tries the optimizer's step too"
)
ANOTHER_RANK = (
    "gradaccum: another rank has gone, or did not come within the timeout of the process group; its own message says "
    "why. No rank has this group's update: start all of them from the last checkpoint"
)


class AccumulationError(GradaccumError):
    """A loop breaks the rules of its group, or asks for what cannot be right. The message says what to do."""


def advise(error: Exception, out_of_memory: str = IN_A_PASS) -> None:
    """Let an error end with what to do, where memory ran out or another rank went away; its type stays what it is."""
    if is_out_of_memory(error):
        words = out_of_memory
    elif isinstance(error, dist.DistError) or "gloo/transport" in str(error):
        words = ANOTHER_RANK
    else:
        return
    if words not in getattr(error, "__notes__", ()):
        error.add_note(words)
