"""What goes between ranks, and what tensors hold: counted as PyTorch runs it, without a clock."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Traffic(TorchDispatchMode):
    """Collectives while it is on: the name of each, and the bytes that it was handed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            self.calls.append((func.__name__, sum(_size(each) for each in tree_leaves(args[:1]))))
        return func(*args, **(kwargs or {}))

    def of(self, name: str) -> list[int]:
        """The bytes of each collective of this name."""
        return [size for called, size in self.calls if name in called]


class Held(TorchDispatchMode):
    """Bytes of the storages that were made while it is on and are there still; most: the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._note((args, kwargs), counted=False)  # made before
        found = func(*args, **(kwargs or {}))
        self._note(found, counted=True)
        self.most = max(self.most, self.now)
        return found

    def _note(self, tensors, counted: bool) -> None:
        for each in tree_leaves(tensors):
            if isinstance(each, torch.Tensor) and each.untyped_storage()._cdata not in self._seen:
                storage = each.untyped_storage()
                size = counted * storage.nbytes()
                self._seen.add(storage._cdata)
                self.now += size
                weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _size(each) -> int:
    return each.numel() * each.element_size() if isinstance(each, torch.Tensor) else 0
