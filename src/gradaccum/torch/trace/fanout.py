"""Where the autograd engine adds up gradients of one tensor, and whether it does so in place.

The engine adds in place where it holds the last reference to a gradient
(torch/csrc/autograd/input_buffer.cpp:can_accumulate_inplace), but never while a dispatch mode is on, since a mode may
hold what it saw. Under a trace it would therefore allocate a sum that a run does not. So the recorder makes the same
decision itself, from the same counts of references, and adds in place where the engine would have.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_task = torch._C._current_graph_task_id
_node = torch._C._current_autograd_node
_storage_uses = torch._C._storage_Use_Count


def _counts(tensor: torch.Tensor) -> tuple[int, int, int]:
    """References to a tensor, to its storage and to its Python object, as a dispatch mode sees them."""
    return tensor._use_count(), _storage_uses(tensor.untyped_storage()._cdata), sys.getrefcount(tensor)


class _Calibration(TorchDispatchMode):
    """Sees one addition in place as it is known to be: the counts depend on how a version of torch calls a mode."""

    counts: tuple[int, int, int] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.add.Tensor and _task() != -1:
            _Calibration.counts = self.look(args)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def look(args: Any) -> tuple[int, int, int]:
        """The counts of the first argument. A function, as the recorder has one between itself and the counts."""
        return _counts(args[0])


def last_reference() -> tuple[int, int, int]:
    """The counts of a gradient to which the engine holds the last reference."""
    x = torch.empty(2, device="meta", requires_grad=True)
    y = x * 2
    with _Calibration():
        (y.sin() + y.cos()).sum().backward()
    counts = _Calibration.counts
    assert counts is not None
    return counts


def adds_in_place(args: Any, alone: tuple[int, int, int]) -> bool:
    """Whether `aten.add(*args)`, called now, is the engine's sum and would be made in place.

    The engine's first summand is the gradient that was there: it was made by an earlier node than the one that has
    just run, or that node has two edges to one tensor (`x * x`). A sum inside a node's formula has neither.
    """
    if _task() == -1 or torch.is_grad_enabled() or len(args) != 2:
        return False
    # The counts come before any name is given to the tensors, for a name is a reference.
    counts = _counts(args[0])
    old, new = args
    if counts != alone or not isinstance(new, torch.Tensor):
        return False
    return old.shape == new.shape and old.dtype is new.dtype and _dense(old)


def twice_the_same(node: Any) -> bool:
    """Whether two of a node's gradients go to one tensor."""
    edges = [edge for edge in node.next_functions if edge[0] is not None]
    return len(set(edges)) < len(edges)


def _dense(tensor: torch.Tensor) -> bool:
    """TensorImpl::is_non_overlapping_and_dense: the elements fill a block of memory, in some order."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True
