"""How much memory a step takes, and where it ends: on a GPU by its allocator, on the host by counting storages.

A meter is entered around a trial. `capacity` is what the trial may take, in bytes, and `limited_by` says what that is.
"""

from __future__ import annotations

import gc
import os
import weakref
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradaccum.errors import InputError, Problem
from gradaccum.units import show_bytes

if TYPE_CHECKING:
    from collections.abc import Callable


class HostMeter(AbstractContextManager["HostMeter"]):
    """The storages on the host that operators make while the meter is entered, and `tensors`, which were there before.

    What an operator allocates for itself alone is not seen. Beyond the capacity an operator raises OutOfMemoryError.
    """

    device = torch.device("cpu")
    keeps_time = False
    """Watching each operator takes time of its own: what is timed is run unwatched."""

    def __init__(self, memory_limit: int | None, tensors: Any = ()) -> None:
        self.capacity, self.limited_by = (memory_limit, "memory_limit") if memory_limit else available()
        self.counter = _Counter(tensors)
        if self.capacity is not None and not memory_limit:
            self.capacity += self.counter.bytes  # what is there already is no longer free
        self.counter.capacity = self.capacity

    def __enter__(self) -> HostMeter:
        self.counter.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.counter.__exit__(*raised)

    def begin_phase(self) -> None:
        """Peaks count from here on."""
        self.counter.peak = self.counter.bytes

    def peak(self) -> int:
        """Bytes at the peak of the phase."""
        return self.counter.peak

    def reserved(self) -> int | None:
        """The host's allocator holds nothing back."""
        return None

    def flushes(self) -> int:
        """How often an allocator had to give back what it held, to find room."""
        return 0

    def wait(self) -> None:
        """Until the device has done its work."""

    def clean(self) -> None:
        """The host's allocator holds nothing back."""


class CudaMeter(AbstractContextManager["CudaMeter"]):
    """The caching allocator of one GPU, in this process. The capacity is of what it reserves."""

    keeps_time = True

    def __init__(self, memory_limit: int | None, device: torch.device) -> None:
        self.device = device
        torch.cuda.set_device(device)
        free, self.total = torch.cuda.mem_get_info(device)
        self.free = free + torch.cuda.memory_reserved(device)
        self.limit = memory_limit
        self.capacity = min(memory_limit or self.free, self.free)
        self.limited_by = "memory_limit" if memory_limit and memory_limit <= self.free else f"free on {device}"

    def __enter__(self) -> CudaMeter:
        if self.limit:
            self._fraction = _fraction(self.device)
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.limit / self.total), self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self._flushes, self._reserved = self._retries(), 0
        return self

    def __exit__(self, *raised: object) -> None:
        if self.limit:
            torch.cuda.set_per_process_memory_fraction(self._fraction, self.device)

    def begin_phase(self) -> None:
        """Peaks count from here on; but that of what is reserved is the trial's."""
        self._reserved = self.reserved()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        """Bytes at the peak of the phase."""
        return int(torch.cuda.max_memory_allocated(self.device))

    def reserved(self) -> int:
        """Bytes that the allocator held at most, since the meter was entered."""
        return max(self._reserved, int(torch.cuda.max_memory_reserved(self.device)))

    def flushes(self) -> int:
        """How often the allocator had to give back what it held, to find room; each time the GPU stands still."""
        return self._retries() - self._flushes

    def wait(self) -> None:
        """Until the device has done its work."""
        torch.cuda.synchronize(self.device)

    def clean(self) -> None:
        """Give back what the allocator holds, and what is held in cycles of garbage."""
        gc.collect()
        torch.cuda.empty_cache()

    def _retries(self) -> int:
        return int(torch.cuda.memory_stats(self.device).get("num_alloc_retries", 0))


def _fraction(device: torch.device) -> float:
    """The share of the GPU that this process may take; PyTorch before 2.8 keeps it to itself."""
    ask = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    return 1.0 if ask is None else float(ask(device))


Meter = HostMeter | CudaMeter


def meter_of(device: str, memory_limit: int | None, tensors: Any = ()) -> Meter:
    """The meter of a device. tensors: those that are there already, for the host's. InputError for another device."""
    try:
        found = torch.device(device)
    except RuntimeError:
        found = torch.device("meta")
    if found.type == "cpu":
        return HostMeter(memory_limit, tensors)
    if found.type != "cuda":
        raise InputError(Problem("device", f"is cpu, cuda or such as cuda:1, not {device!r}", ["cpu", "cuda"]))
    if not torch.cuda.is_available():
        raise InputError(Problem("device", f"is {device}, and PyTorch finds no GPU here", ["cpu"]))
    return CudaMeter(memory_limit, torch.device("cuda", found.index or 0))


def available() -> tuple[int | None, str]:
    """Bytes that this machine and its container have left, and who says so; (None, ...) where neither tells."""
    found = [(left, "left in this container") for left in [_left_in_cgroup(Path("/sys/fs/cgroup"))] if left is not None]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [(int(line.split()[1]) * 1024, "free on this machine") for line in lines if "MemAvailable" in line]
    except OSError:
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            found.append((os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine's memory"))
    return min(found, default=(None, "not known"))


def _left_in_cgroup(folder: Path) -> int | None:
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return max(0, int((folder / limit).read_text()) - int((folder / used).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


class _Birth(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a storage that knows its bytes."""

    __slots__ = ("bytes", "key")
    bytes: int
    key: int


class _Counter(TorchDispatchMode):
    """Bytes of the live storages on the host, and their peak. A weak reference tells when one is gone."""

    def __init__(self, tensors: Any) -> None:
        super().__init__()
        self.capacity: int | None = None
        self.error: Callable[[str], Exception] = torch.OutOfMemoryError
        self.bytes = self.peak = 0
        self.live: dict[int, _Birth] = {}
        self_reference = weakref.ref(self)

        def died(birth: _Birth) -> None:
            counter = self_reference()
            if counter is not None and counter.live.get(birth.key) is birth:
                del counter.live[birth.key]
                counter.bytes -= birth.bytes

        self._died = died
        self.see(tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        changes = getattr(getattr(func, "_schema", None), "is_mutable", True)
        self.see((args, kwargs, out) if changes or not self._all_seen(args) else out)
        if self.capacity is not None and self.bytes > self.capacity:
            raise self.error(
                f"the host is out of memory. {func} brings what is allocated to {show_bytes(self.bytes)}, "
                f"and there are {show_bytes(self.capacity)}."
            )
        return out

    def _all_seen(self, args: Any) -> bool:
        return all(not isinstance(each, torch.Tensor) or self._key(each) in self.live for each in args)

    def see(self, values: Any) -> None:
        """Count what is new in them, and what has grown."""
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor) and self._key(tensor) is not None:
                storage = tensor.untyped_storage()
                size, birth = storage.nbytes(), self.live.get(storage._cdata)
                if birth is None and size:
                    birth = self.live[storage._cdata] = _Birth(storage, self._died)
                    birth.key, birth.bytes = storage._cdata, 0
                if birth is not None:
                    self.bytes += size - birth.bytes
                    birth.bytes = size
        self.peak = max(self.peak, self.bytes)

    def _key(self, tensor: torch.Tensor) -> int | None:
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            return None
        return tensor.untyped_storage()._cdata
