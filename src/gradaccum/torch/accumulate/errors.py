"""What goes wrong in an accumulating loop, said with what to do about it."""

from __future__ import annotations

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


class AccumulationError(GradaccumError):
    """A loop breaks the rules of its group, or asks for what cannot be right. The message says what to do."""


def advise(error: Exception, words: str) -> None:
    """Where memory ran out, let the error end with these words; its type stays what a caller expects."""
    if is_out_of_memory(error):
        error.add_note(words)
