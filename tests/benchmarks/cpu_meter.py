"""A meter for the CPU: the bytes of all tensors that operators have made and that are alive, from a dispatch mode."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Host(TorchDispatchMode):
    """Stands in for measure.Cuda. limit: bytes beyond which an operator is out of memory; there is no cache."""

    device = "cpu"

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.now = self.top = 0
        self.seen: dict[int, weakref.ref[Any]] = {}

    def open(self, case: Any) -> None:
        self.__enter__()

    def peaks(self) -> dict[str, int]:
        found = {"allocated": self.top, "reserved": self.top, "left": self.now}
        self.top = self.now
        return found

    def environment(self) -> dict[str, object]:
        return {"device": "host", "capability": [9, 0], "total_memory": 2**36, "fraction": 1.0}

    def close(self) -> dict[str, object]:
        self.__exit__(None, None, None)
        return {"context_bytes": {"at_first": 0, "at_last": 0}, "events": "nothing"}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor):
                self.see(each.untyped_storage())
        if self.limit is not None and self.now > self.limit:
            raise torch.OutOfMemoryError(f"more than {self.limit} bytes")
        return out

    def see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return

        def died(reference: Any) -> None:
            self.now -= size
            del self.seen[key]

        self.seen[key] = weakref.ref(storage, died)
        self.now += size
        self.top = max(self.top, self.now)
