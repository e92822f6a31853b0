"""What stops a probe, and which errors mean that memory ran out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gradaccum.errors import GradaccumError

if TYPE_CHECKING:
    from gradaccum.torch.probe.answer import Trial

OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "DefaultCPUAllocator: can't allocate memory",  # c10/core/impl/alloc_cpu.cpp
    "DefaultCPUAllocator: not enough memory",  # the same on Windows
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",  # it has no room for its workspace
)
"""What the messages of PyTorch say where memory ran out and the error has no type of its own."""


class ProbeError(GradaccumError):
    """A trial that ended otherwise than well or out of memory: the step raised, crashed, or a rank went away.

    micro_batch: of that trial. trials: all before it. details: what the trial wrote, its traceback last.
    """

    def __init__(self, message: str, micro_batch: int, trials: tuple[Trial, ...] = (), details: str = "") -> None:
        super().__init__(message)
        self.micro_batch = micro_batch
        self.trials = trials
        self.details = details


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: this error says so, or one that it was raised from or while handling."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        if isinstance(each, (torch.OutOfMemoryError, MemoryError)):
            return True
        if isinstance(each, RuntimeError) and any(words in str(each) for words in OUT_OF_MEMORY):
            return True
        each = each.__cause__ or each.__context__
    return False


def first_line(error: BaseException) -> str:
    """`ValueError: what it says`, on one line."""
    said = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
