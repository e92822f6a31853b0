"""Random allocation programs on a CUDA device, and the model of its allocator beside it: to the byte.

    python -m benchmarks.gpu.allocator_programs [--cases 40]

It needs torch and a CUDA device with 6 GiB free; without them it says so and ends. Each program runs in a process of
its own, because PyTorch reads its allocator settings once. A memory fraction limits what the allocator may reserve,
so the programs run out of memory too, and leave the rest of the device alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks import common
from gradaccum.memory.allocator import Allocator, OutOfMemory, ties_of
from gradaccum.memory.allocator_settings import Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MIB = 2**20
USUAL = 40
ORDERS = [(ties, addresses) for ties in ("segment", "block", "address") for addresses in ("descending", "ascending")]


@dataclass(frozen=True)
class Case:
    """One program and what it runs under.

    settings: PYTORCH_ALLOC_CONF. limit: bytes that the allocator may reserve.
    operations: `m4096` asks for 4096 bytes on stream 0, `m4096@2` on stream 2; `f3` frees the third request, and
        nothing where that ran out of memory; `empty` empties the cache, `reset` the peaks.
    """

    settings: str
    limit: int
    operations: tuple[str, ...]


class Numbers(NamedTuple):
    """What torch.cuda.memory_stats says after an operation, in bytes and counts."""

    allocated: int
    reserved: int
    peak_allocated: int
    peak_reserved: int
    num_alloc_retries: int
    num_ooms: int


# Programs


def random_case(seed: int, length: int = 400, large_segments: bool = True) -> Case:
    """The same case for the same seed. large_segments: whether large_segment_size_mb may be set (PyTorch 2.11)."""
    rng = random.Random(seed)
    limit = rng.choice([100, 300, 1000, 3000]) * MIB + rng.choice([0, 513, 1_234_567])
    return Case(_settings(rng, large_segments), limit, tuple(_operations(rng, length)))


def _settings(rng: random.Random, large_segments: bool) -> str:
    large = rng.choice([11, 16, 32]) if large_segments and rng.random() < 0.2 else 20
    options = [] if large == 20 else [f"large_segment_size_mb:{large}"]
    if rng.random() < 0.4:
        options.append("expandable_segments:True")
    if rng.random() < 0.3:
        options.append(f"max_split_size_mb:{rng.choice([large + 1, 40, 128])}")
    if rng.random() < 0.2:
        options.append(f"max_non_split_rounding_mb:{rng.choice([large + 1, 100])}")
    if rng.random() < 0.3:
        options.append(f"roundup_power2_divisions:{rng.choice(['1', '4', '16', '[1:4,2:8,16:2,>:0]', '[8:0,16:4]'])}")
    if rng.random() < 0.3:
        options.append(f"garbage_collection_threshold:{rng.choice([0.1, 0.6, 0.9])}")
    return ",".join(options)


def _operations(rng: random.Random, length: int) -> Iterator[str]:
    kinds: list[Callable[[], int]] = [
        lambda: rng.randrange(1, MIB + 2000),
        lambda: rng.randrange(MIB, 10 * MIB + 5000),
        lambda: rng.randrange(10 * MIB, 64 * MIB),
        lambda: MIB * rng.randrange(1, 70),
        lambda: rng.choice([1, 512, 513, MIB, MIB + 1, 10 * MIB - 1, 10 * MIB, 20 * MIB]),
    ]
    weights = [rng.random() ** 2 for _ in kinds]
    # A trace repeats its sizes, and then equal blocks are free at once. Where they are also multiples of each other,
    # which of those is taken decides what fits later.
    sizes = [rng.choices(kinds, weights)[0]() for _ in range(rng.choice([3, 10, 40]))]
    repeats = rng.choice([0.8, 1])
    if rng.random() < 0.5:
        sizes, repeats = [unit * rng.choice([64 * 1024, 2 * MIB]) for unit in (1, 1, 2, 2, 3, 4, 6, 8)], 1
    streams = rng.choice([["", ""], ["", "@1"], ["", "@1", "@2"]])
    grow = rng.uniform(0.45, 0.65)
    live: list[int] = []
    requests = 0
    for _ in range(length):
        if (chance := rng.random()) < 0.01:
            yield "empty" if chance < 0.005 else "reset"
        elif live and rng.random() > grow:
            yield f"f{live.pop(rng.randrange(len(live)))}"
        else:
            size = rng.choice(sizes) if rng.random() < repeats else rng.choices(kinds, weights)[0]()
            requests += 1
            live.append(requests)
            yield f"m{size}{rng.choice(streams)}"


def parts(operation: str) -> tuple[int, int]:
    """(bytes, stream) of `m4096@2`."""
    size, _, stream = operation[1:].partition("@")
    return int(size), int(stream or 0)


# The two sides


def of_model(
    case: Case, ties: str, addresses: str, capacity: int | None, total: int, fraction: float
) -> Iterator[Numbers]:
    """After each operation, by gradaccum.memory. total: the device's memory, of which fraction is allowed."""
    settings = dataclasses.replace(Settings.parse(case.settings), per_process_memory_fraction=fraction)
    allocator = Allocator(capacity, settings, addresses, ties, total)
    handles: list[int] = []
    for operation in case.operations:
        if operation == "empty":
            allocator.empty_cache()
        elif operation == "reset":
            allocator.reset_peaks()
        elif operation.startswith("f"):
            allocator.free(handles[int(operation[1:]) - 1])
        else:
            try:
                handles.append(allocator.malloc(*parts(operation)))
            except OutOfMemory:
                handles.append(0)  # which frees nothing
        yield Numbers(
            allocator.allocated,
            allocator.reserved,
            allocator.peak_allocated,
            allocator.peak_reserved,
            allocator.num_alloc_retries,
            allocator.num_ooms,
        )


def of_device(case: Case, fraction: float) -> Iterator[Numbers]:
    """After each operation, by torch on CUDA device 0; PYTORCH_ALLOC_CONF must have been set when the process began."""
    import torch

    torch.cuda.init()
    torch.cuda.set_per_process_memory_fraction(fraction, 0)
    side = [torch.cuda.Stream(device=0) for _ in range(2)]
    streams = [0, *(stream.cuda_stream for stream in side)]
    pointers: list[int] = []
    for operation in case.operations:
        if operation == "empty":
            torch.cuda.empty_cache()
        elif operation == "reset":
            torch.cuda.reset_peak_memory_stats(0)
        elif operation.startswith("f"):
            if pointer := pointers[int(operation[1:]) - 1]:
                torch.cuda.caching_allocator_delete(pointer)
        else:
            size, stream = parts(operation)
            try:
                pointers.append(torch.cuda.caching_allocator_alloc(size, 0, streams[stream]))
            except torch.OutOfMemoryError:
                pointers.append(0)
        stats = torch.cuda.memory_stats(0)
        yield Numbers(
            stats["allocated_bytes.all.current"],
            stats["reserved_bytes.all.current"],
            stats["allocated_bytes.all.peak"],
            stats["reserved_bytes.all.peak"],
            stats["num_alloc_retries"],
            stats["num_ooms"],
        )


def in_a_process(case: Case, fraction: float) -> list[Numbers]:
    """After each operation, by torch on CUDA device 0 under the settings of the case, in a process of its own."""
    environment = {**os.environ, "PYTORCH_ALLOC_CONF": case.settings, "PYTORCH_CUDA_ALLOC_CONF": case.settings}
    if not case.settings:  # an empty value is not the same as none
        del environment["PYTORCH_ALLOC_CONF"], environment["PYTORCH_CUDA_ALLOC_CONF"]
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.allocator_programs", "--child", repr(fraction)],
        input=" ".join(case.operations),
        env=environment,
        cwd=common.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise SystemExit(f"the process of a case failed:\n{child.stderr}")
    return [Numbers(*each) for each in json.loads(child.stdout)]


def told(operations: Sequence[str], numbers: Sequence[Numbers]) -> dict[str, object]:
    """What happened, short: the block that each request got (null: none), each change of reserved, the last numbers."""
    blocks: list[int | None] = []
    reserved: list[list[int]] = []
    before = Numbers(0, 0, 0, 0, 0, 0)
    for at, (operation, now) in enumerate(zip(operations, numbers, strict=True)):
        if operation.startswith("m"):
            blocks.append(None if now.num_ooms > before.num_ooms else now.allocated - before.allocated)
        if now.reserved != before.reserved:
            reserved.append([at, now.reserved])
        before = now
    return {"blocks": blocks, "reserved": reserved, "last": list(before)}


# The comparison


def beside_the_model(seed: int, version: str, whole: int) -> tuple[dict[str, object], list[tuple[str, str]]]:
    """What a device with `whole` bytes did with a random program, and the orders under which the model does the same.

    version: of PyTorch.
    """
    large_segments = tuple(int(part) for part in version.split(".")[:2]) >= (2, 11)
    case = random_case(seed, large_segments=large_segments)
    fraction = case.limit / whole
    measured = in_a_process(case, fraction)
    fits = [order for order in ORDERS if measured == list(of_model(case, *order, None, whole, fraction))]
    setting = {"settings": case.settings, "capacity": None, "total_memory": whole, "fraction": fraction}
    return {**setting, "operations": " ".join(case.operations), **told(case.operations, measured)}, fits


def main() -> None:
    """Run as many cases as asked for, compare each with the model under every order, and write what came out."""
    parser = argparse.ArgumentParser(description="The model of the CUDA caching allocator beside a CUDA device.")
    parser.add_argument("--cases", type=int, default=USUAL, help=f"programs to run (default {USUAL})")
    parser.add_argument("--child", type=float, metavar="FRACTION", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child is not None:
        case = Case("", 0, tuple(sys.stdin.read().split()))
        print(json.dumps(list(of_device(case, asked.child))))
        return
    try:
        import torch
    except ImportError:
        print("torch is not installed, so nothing is measured.")
        return
    if not torch.cuda.is_available():
        print("No CUDA device, so nothing is measured.")
        return
    free, _ = torch.cuda.mem_get_info(0)
    if free < 6 * 2**30:
        print(f"Only {free:,} bytes of the device are free, so nothing is measured; 6 GiB are needed.")
        return
    ties = ties_of(torch.__version__)
    whole = torch.cuda.get_device_properties(0).total_memory
    recorded: list[dict[str, object]] = []
    equal = dict.fromkeys(ORDERS, 0)
    for seed in range(asked.cases):
        record, fits = beside_the_model(seed, torch.__version__, whole)
        for order in fits:
            equal[order] += 1
        print(f"case {seed}: {'equal' if any(each == ties for each, _ in fits) else 'NOT EQUAL'}  {record['settings']}")
        recorded.append(record)
    rows = [[f"{each} ties, {addresses}", f"{count} of {asked.cases}"] for (each, addresses), count in equal.items()]
    print(common.table(["the model with", "equal"], rows))
    common.write_result(
        "allocator_programs",
        "the model of the CUDA caching allocator beside a CUDA device, random programs, to the byte",
        asked.cases,
        USUAL,
        {"torch": torch.__version__, "cuda": str(torch.version.cuda)},
        device=torch.cuda.get_device_name(0),
        ties=ties,
        equal={f"{ties}, {addresses}": count for (ties, addresses), count in equal.items()},
        cases=recorded,
    )


if __name__ == "__main__":
    main()
