"""One case, run for real in this process: peaks of each phase, the context's size, the allocator's own record.

`run` knows a device only through a `Meter`; `Cuda` is the one that measures.
"""

from __future__ import annotations

import base64
import importlib.metadata
import itertools
import json
import os
import platform
import time
import traceback
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu import recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from benchmarks.gpu.cases import Case

UPDATES = 2
"""The first makes the optimizer's states, the second runs beside them."""

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "triton", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12")


class Meter(Protocol):
    """What a device must tell. All amounts in bytes."""

    device: str

    def open(self, case: Case) -> None:
        """Called before anything is made."""

    def peaks(self) -> dict[str, int]:
        """The most that was allocated and reserved since the last call, and what is now; the peaks begin anew."""

    def environment(self) -> dict[str, object]:
        """The device, and what decides over its memory."""

    def close(self) -> dict[str, object]:
        """What is known at the end, for the row; `events` in it goes to a file of its own."""


def run(case: Case, meter: Meter) -> dict[str, object]:
    """The row of a case. status: ok, oom, skipped (a package is missing) or failed, with `why`."""
    row: dict[str, object] = {"case": case.name, "fields": case.to_dict()}
    if lacking := recipe.missing(case):
        return {**row, "status": "skipped", "why": f"not installed: {', '.join(lacking)}"}
    begun = time.perf_counter()
    phases = _Phases(meter)
    job = None
    try:
        meter.open(case)
        row["environment"] = {**versions(), **meter.environment()}
        phases.at("setup")
        job = recipe.job(case, meter.device, phases.at)
        for phases.update in range(UPDATES):
            for phases.micro_step in range(case.accum_steps):
                job.step()
            assert job.update is not None
            job.update()
        row["status"] = "ok"
    except torch.OutOfMemoryError as error:
        row |= {"status": "oom", "why": _first_line(error), "during": phases.begun}
        phases.at("")
    except Exception as error:  # a case that fails is a result, and the next one is run
        tail = traceback.format_exception(error)[-3:]
        row |= {"status": "failed", "why": _first_line(error), "during": phases.begun, "traceback": "".join(tail)}
    row["phases"] = [*phases.rows]
    row["allocated_bytes"] = max((each["allocated"] for each in phases.rows), default=0)
    row["reserved_bytes"] = max((each["reserved"] for each in phases.rows), default=0)
    row["seconds"] = round(time.perf_counter() - begun, 2)
    if row["status"] != "failed":
        row |= meter.close()
    if row["status"] == "ok" and job is not None:
        row["states"] = len(job.optimizer.state)
        if not case.compiled and not case.card_gb:
            row["operators"] = operators_of(job)
    return row


def operators_of(job: Any) -> dict[str, int]:
    """The operators of one more micro-step, without overloads, and how often each was called."""
    seen = _Operators()
    with seen:
        job.step()
    return dict(sorted(seen.counts.items()))


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func).rpartition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


class _Phases:
    """A row for each phase of each micro-step, made when the next one begins."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.rows: list[dict[str, Any]] = []
        self.update = self.micro_step = 0
        self.begun: dict[str, object] = {}

    def at(self, phase: str) -> None:
        found = self.meter.peaks()
        if self.begun.get("phase"):
            self.rows.append({**self.begun, **found})
        self.begun = {"update": self.update, "micro_step": self.micro_step, "phase": phase}


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def versions() -> dict[str, object]:
    """Of Python and of the packages that are there."""
    found: dict[str, object] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "torch": torch.__version__}


class Cuda:
    """CUDA device 0, measured by PyTorch's allocator, and by the driver for what lies outside of it."""

    device = "cuda"

    def open(self, case: Case) -> None:
        """Limit the allocator, and have it write down what it does."""
        self.before = _used()
        torch.cuda.init()
        self.after_init = self._outside()
        self.whole = torch.cuda.get_device_properties(0).total_memory
        limit = case.limit_bytes
        self.fraction = 1.0 if limit is None else limit / self.whole
        if limit is not None:
            torch.cuda.set_per_process_memory_fraction(self.fraction, 0)
        torch.cuda.memory._record_memory_history("all", context=None, stacks="python")

    def peaks(self) -> dict[str, int]:
        """From torch.cuda's statistics."""
        found = {
            "allocated": torch.cuda.max_memory_allocated(0),
            "reserved": torch.cuda.max_memory_reserved(0),
            "left": torch.cuda.memory_allocated(0),
        }
        torch.cuda.reset_peak_memory_stats(0)
        return found

    def environment(self) -> dict[str, object]:
        """The card, its libraries and its settings."""
        return {
            "device": torch.cuda.get_device_name(0),
            "capability": list(torch.cuda.get_device_capability(0)),
            "total_memory": self.whole,
            "fraction": self.fraction,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        }

    def close(self) -> dict[str, object]:
        """The context, the allocator's statistics and segments, and its record."""
        stats = torch.cuda.memory_stats(0)
        outside = self._outside()
        snapshot = torch.cuda.memory._snapshot(0)
        torch.cuda.memory._record_memory_history(None)
        return {
            "context_bytes": {"at_first": self.after_init, "at_last": outside},
            "stats": {name: stats[name] for name in STATS if name in stats},
            "segments": segments(snapshot["segments"]),
            **record_of(snapshot["device_traces"][0]),
        }

    def _outside(self) -> int:
        """What the process holds beside the allocator's segments; all that is used where no driver can be asked."""
        free, total = torch.cuda.mem_get_info(0)
        used = _used()
        mine = total - free if used is None or self.before is None else used - self.before
        return mine - torch.cuda.memory_reserved(0)


SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE")

STATS = (
    "num_alloc_retries",
    "num_ooms",
    "num_device_alloc",
    "num_device_free",
    "inactive_split_bytes.all.peak",
    "requested_bytes.all.peak",
    "allocation.all.allocated",
    "segment.all.peak",
)


def _used() -> int | None:
    """Bytes of the device that are in use by anyone, by the driver's word; None where it can't be asked."""
    try:
        return int(torch.cuda.device_memory_used(0))
    except Exception:  # NVML's bindings are missing, too old or refused: many kinds of error
        return None


def segments(found: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """By kind: how many there are, their bytes, and how many of these are allocated."""
    made: dict[str, dict[str, int]] = {}
    for each in found:
        kind = made.setdefault(each["segment_type"], {"count": 0, "bytes": 0, "allocated": 0})
        kind["count"] += 1
        kind["bytes"] += each["total_size"]
        kind["allocated"] += each["allocated_size"]
    return made


def record_of(trace: Iterable[Mapping[str, Any]]) -> dict[str, object]:
    """The allocator's record, short: which blocks were asked for and freed, and which way the segments' addresses go.

    `events` packs {"sizes": bytes asked for by each block, "events": i is the birth of block i, ~i its death,
    "streams": how many streams there were}.
    """
    sizes: list[int] = []
    events: list[int] = []
    at: dict[int, int] = {}
    streams = set()
    addresses: list[int] = []
    for entry in trace:
        action = entry["action"]
        if action == "alloc":
            at[entry["addr"]] = len(sizes)
            events.append(len(sizes))
            sizes.append(entry["size"])
            streams.add(entry["stream"])
        elif action == "free_completed" and entry["addr"] in at:
            events.append(~at.pop(entry["addr"]))
        elif action == "segment_alloc":
            addresses.append(entry["addr"])
    up = sum(later > earlier for earlier, later in itertools.pairwise(addresses))
    return {
        "segment_addresses": {"up": up, "down": max(0, len(addresses) - 1) - up},
        "events": packed({"sizes": sizes, "events": events, "streams": len(streams)}),
    }


def packed(content: object) -> str:
    """As text, compressed."""
    return base64.b64encode(zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9)).decode()


def unpacked(text: str) -> Any:
    """What `packed` was given."""
    return json.loads(zlib.decompress(base64.b64decode(text)))
