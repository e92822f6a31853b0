"""PyTorch's CUDA caching allocator without a GPU: requests and frees in, the bytes that PyTorch would report out.

    allocator = Allocator(capacity=15 * 2**30)
    weights = allocator.malloc(1_000_000)
    allocator.free(weights)
    assert (allocator.allocated, allocator.reserved) == (0, 2_097_152)    # the segment stays in the cache

A request is rounded up and served by the smallest free block of its stream and pool that is large enough; what is
left of that block stays free. Where there is none, a new segment is reserved from the device; where that fails, cached
segments are given back first. A freed block merges with its free neighbours and stays in the cache.

**Which of several free blocks of one size is taken** decides fragmentation, and so `reserved`. PyTorch changed it
twice, and `ties` says which rule holds (`ties_of` tells it by the version):

- "segment", PyTorch 2.13 and later: the oldest segment's, and in it the lowest address (pytorch/pytorch#183591).
- "block", PyTorch 2.12: the block that was made first, where a split makes the front part anew (#178362).
- "address", up to 2.11: the lowest address. Here it matters where the driver puts new segments, and `addresses` says
  so: "descending", each below all before it, as on the T4 that was measured, or "ascending". No address is used
  twice: a driver that hands out again what it got back would change the order after segments were given back.

The rules are those of c10/cuda/CUDACachingAllocator.cpp, in class DeviceCachingAllocator unless another is named; a
docstring names the function. They were read as of main in May 2026 (the copy mara-werils/pytorch@20c4398; for older
releases pytorch/pytorch@eb42ad6 and @001074d), and agree to the byte with the compiled allocators of PyTorch 2.6, 2.10,
2.11, 2.12, 2.13 and 2.14 on thousands of random programs (benchmarks/gpu/stand_in). On a device it was not run.

Left out: private pools (CUDA graphs, MemPool, use_on_oom); record_stream and with it every event, so that `active` is
`allocated`; placement at a given address; settings that change during a run; other processes on the device, and what
lies outside the allocator (context, NCCL), which the caller takes off `capacity`; callbacks that free memory shared
between processes; backend:cudaMallocAsync and throw_on_cudamalloc_oom. One thread at a time.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from gradaccum.errors import GradaccumError, InputError, Problem
from gradaccum.memory import expandable
from gradaccum.memory.allocator_settings import (
    SMALL_SEGMENT,
    UNLIMITED,
    Settings,
    block_limit,
    is_small,
    least_remainder,
    round_size,
    segment_size,
)
from gradaccum.memory.blocks import ADDRESS_BITS, FREE, LIVE, UNMAPPED, Block, Device, Pool
from gradaccum.units import show_bytes

PYTORCH_DEFAULTS = Settings()

Request = tuple[Pool, int, int, int, int, int]
"""What a size comes to on a stream: pool, block, least remainder, first key and key limit of its blocks, segment."""


class OutOfMemory(GradaccumError):
    """The device has no room for a segment, even with an empty cache; torch.OutOfMemoryError. All fields in bytes.

    requested: what was asked for. segment: what it made the allocator ask the device for.
    allocated, reserved: at that moment, after the cache was emptied. limit: the device's, or the memory fraction's.
    """

    def __init__(self, requested: int, segment: int, allocated: int, reserved: int, limit: int) -> None:
        super().__init__(
            f"a request of {show_bytes(requested)} needs {show_bytes(segment)} from the device, which has "
            f"{show_bytes(limit - reserved)} of {show_bytes(limit)} left: {show_bytes(allocated)} are allocated and "
            f"{show_bytes(reserved - allocated)} are cached in segments that are partly in use"
        )
        self.requested = requested
        self.segment = segment
        self.allocated = allocated
        self.reserved = reserved
        self.limit = limit


class Allocator:
    """One device's allocator. All amounts are bytes, and count blocks and segments, not requests.

    capacity: what the device can give, less what lies outside the allocator; None is endless.
    addresses: "descending" or "ascending"; ties: "segment", "block" or "address". See the module.
    total_memory: the device's whole memory, of which the memory fraction is a share and the address space of an
        expandable segment nine eighths; by default the capacity.

    allocated, reserved, peak_allocated, peak_reserved: torch.cuda.memory_allocated, memory_reserved,
    max_memory_allocated and max_memory_reserved. num_alloc_retries, num_ooms: as in torch.cuda.memory_stats. All are
    for reading. InputError for an unknown order, and for a memory fraction of an endless device.
    """

    def __init__(
        self,
        capacity: int | None,
        settings: Settings = PYTORCH_DEFAULTS,
        addresses: str = "descending",
        ties: str = "segment",
        total_memory: int | None = None,
    ) -> None:
        total = capacity if total_memory is None else total_memory
        fraction = settings.per_process_memory_fraction
        if fraction < 1 and total is None:
            what = "a fraction of an endless device is no number of bytes: give capacity or total_memory"
            raise InputError(Problem("per_process_memory_fraction", what))
        # `setMemoryFraction`: a fraction of 1 is no limit.
        allowed = None if fraction == 1 or total is None else int(fraction * total)
        self.settings = settings
        self.total_memory = total
        self.allocated = self.peak_allocated = 0
        self.num_alloc_retries = self.num_ooms = 0
        self._device = Device(capacity, allowed, addresses, ties)
        self._by_creation = self._device.by_creation
        # Garbage collection leaves expandable segments alone.
        self._collects = (
            allowed is not None and settings.garbage_collection_threshold > 0 and not settings.expandable_segments
        )
        self._plain = not (self._collects or settings.expandable_segments)
        self._searches = 0
        self._pools: dict[tuple[bool, int], Pool] = {}
        self._requests: dict[int, dict[int, Request]] = {}
        self._live: dict[int, Block] = {}
        self._handle = 0

    @property
    def active(self) -> int:
        """Allocated, and freed but still in use by another stream: here no other stream ever uses a block."""
        return self.allocated

    @property
    def reserved(self) -> int:
        """Bytes in segments, in use or cached."""
        return self._device.reserved

    @property
    def peak_reserved(self) -> int:
        """The most that was ever reserved since the last reset."""
        return self._device.peak_reserved

    def malloc(self, size: int, stream: int = 0) -> int:
        """A handle for `size` bytes, for use on `stream`. 0 bytes take no block, and the handle 0.

        InputError where size or stream is negative; OutOfMemory where there is no room.
        """
        # `malloc`, `get_free_block` and `alloc_found_block` in one piece: a trace calls this a hundred thousand times.
        try:
            pool, rounded, least, first, limit, segment = self._requests[stream][size]
        except KeyError:
            if size == 0:
                return 0
            pool, rounded, least, first, limit, segment = self._request(size, stream)
        keys = pool.keys
        at = bisect_left(keys, first)
        if not self._plain:
            at = self._search(pool, at)
        if at < len(keys) and keys[at] < limit:
            block = pool.blocks.pop(keys.pop(at))
        else:
            block = self._new_block(size, pool, rounded, segment)
        remainder = block.size - rounded
        if remainder >= least:
            front = Block()
            front.pool = pool
            front.size = rounded
            front.address = address = block.address
            front.next = block
            front.previous = previous = block.previous
            if previous is not None:
                previous.next = front
            block.previous = front
            block.address = address = address + rounded
            block.size = remainder
            if self._by_creation:
                front.born = self._device.birth()
                address = block.born
            block.key = key = remainder << ADDRESS_BITS | address
            block.state = FREE
            insort(keys, key)
            pool.blocks[key] = block
            block = front
        block.state = LIVE
        block.requested = size
        self.allocated = allocated = self.allocated + block.size
        if allocated > self.peak_allocated:
            self.peak_allocated = allocated
        self._handle = handle = self._handle + 1
        self._live[handle] = block
        return handle

    def free(self, handle: int) -> None:
        """Give a block back to the cache; nothing for the handle 0. InputError for one that is not live."""
        # `free`, `free_block` and `try_merge_blocks` in one piece, for the same reason.
        try:
            block = self._live.pop(handle)
        except KeyError:
            if handle == 0:
                return
            raise InputError(Problem("handle", f"{handle!r} is not allocated, or already freed")) from None
        pool = block.pool
        keys, blocks = pool.keys, pool.blocks
        size = block.size
        self.allocated -= size
        neighbour = block.previous
        if neighbour is not None and neighbour.state == FREE:
            key = neighbour.key
            del keys[bisect_left(keys, key)], blocks[key]
            block.address = neighbour.address
            size += neighbour.size
            block.previous = neighbour = neighbour.previous
            if neighbour is not None:
                neighbour.next = block
        neighbour = block.next
        if neighbour is not None and neighbour.state == FREE:
            key = neighbour.key
            del keys[bisect_left(keys, key)], blocks[key]
            size += neighbour.size
            block.next = neighbour = neighbour.next
            if neighbour is not None:
                neighbour.previous = block
        block.size = size
        block.key = key = size << ADDRESS_BITS | (block.born if self._by_creation else block.address)
        block.state = FREE
        if self._collects:
            block.since = self._searches
        insort(keys, key)
        blocks[key] = block

    def empty_cache(self) -> None:
        """Give back every segment that is not in use, and the pages of expandable ones. `release_cached_blocks`"""
        for pool in self._pools.values():
            for block in [pool.blocks[key] for key in pool.keys]:
                if self.settings.expandable_segments:
                    expandable.unmap(self._device, block)
                elif not _is_split(block):
                    self._release(block)

    def reset_peaks(self) -> None:
        """The peaks become what is there now. torch.cuda.reset_peak_memory_stats"""
        self.peak_allocated = self.allocated
        self._device.peak_reserved = self._device.reserved

    def snapshot(self) -> list[dict[str, object]]:
        """The segments by address, each with its blocks, as torch.cuda.memory_snapshot names them.

        Of an expandable segment each range with memory behind it is one entry. `requested_size` of a free block is 0.
        """
        blocks = [*self._live.values(), *(block for pool in self._pools.values() for block in pool.blocks.values())]
        heads = [block for block in blocks if block.previous is None or block.previous.state == UNMAPPED]
        return [_segment(head) for head in sorted(heads, key=expandable.by_address)]

    # Once for each size, and where no free block fits

    def _request(self, size: int, stream: int) -> Request:
        """What the settings make of a size, kept for the next time."""
        if size < 0 or stream < 0:
            raise InputError(Problem("size", f"must be at least 0, on a stream from 0 on, not {size} on {stream}"))
        settings = self.settings
        rounded = round_size(size, settings)
        small = is_small(rounded)
        pool = self._pools.get((small, stream))
        if pool is None:
            page = SMALL_SEGMENT if small else settings.large_segment_size
            pool = self._pools[small, stream] = Pool(small, stream, page, self._by_creation)
        least, limit = least_remainder(rounded, settings), block_limit(rounded, settings)
        request = pool, rounded, least, rounded << ADDRESS_BITS, limit << ADDRESS_BITS, segment_size(rounded, settings)
        self._requests.setdefault(stream, {})[size] = request
        return request

    def _search(self, pool: Pool, at: int) -> int:
        """What some settings add to `get_free_block`: a search is counted, or a block that cannot grow is preferred."""
        if self._collects:
            self._searches += not pool.small
            return at
        return expandable.least_expandable(pool, at)

    def _new_block(self, size: int, pool: Pool, rounded: int, segment: int) -> Block:
        """A block of a new segment, after whatever it takes to make room. The second half of `malloc`."""
        if self._collects:
            self._collect_garbage()
        if block := self._reserve(pool, rounded, segment):
            return block
        if self._release_oversize(pool, rounded) and (block := self._reserve(pool, rounded, segment)):
            return block
        self.empty_cache()
        self.num_alloc_retries += 1
        if block := self._reserve(pool, rounded, segment):
            return block
        self.num_ooms += 1
        device = self._device
        limits = [limit for limit in (device.capacity, device.allowed) if limit is not None]
        raise OutOfMemory(size, segment, self.allocated, device.reserved, min(limits))

    def _reserve(self, pool: Pool, rounded: int, segment: int) -> Block | None:
        """A new segment, or more pages of an expandable one; None where the device has no room. `alloc_block`

        Under a memory fraction a whole segment has to be allowed, even where fewer pages would do.
        """
        device = self._device
        if not device.allows(segment):
            return None
        if self.settings.expandable_segments:
            addresses = expandable.address_space(self.total_memory, pool.page)
            return expandable.allocate(device, pool, rounded, addresses)
        if not device.take(segment):
            return None
        return device.new_block(pool, device.place(segment), segment, LIVE)

    def _release(self, block: Block) -> None:
        """Give a whole cached segment back. `release_block`"""
        block.pool.remove(block)
        self._device.give(block.size)

    def _release_oversize(self, pool: Pool, rounded: int) -> bool:
        """Give back oversize segments of this pool until one as large as asked for fits; whether that was enough.

        `release_available_cached_blocks`: the smallest that is large enough alone, else the largest ones. Only with
        max_split_size_mb.
        """
        limit = self.settings.max_split_size
        if limit == UNLIMITED or self.settings.expandable_segments:
            return False
        wanted = max(rounded, limit)
        keys = pool.keys
        at = bisect_left(keys, wanted << ADDRESS_BITS)
        if at < len(keys):
            self._release(pool.blocks[keys[at]])
            return True
        released = 0
        while released < wanted and keys and keys[-1] >= limit << ADDRESS_BITS:
            block = pool.blocks[keys[-1]]
            released += block.size
            self._release(block)
        return released >= wanted

    def _collect_garbage(self) -> None:
        """Give back cached segments that have not been used for long. `garbage_collect_cached_blocks`

        Above the threshold: those at least as old as the average, again and again until enough came back. The age of
        a block is the number of searches since it was freed. Large pools alone.
        """
        device, settings = self._device, self.settings
        assert device.allowed is not None
        threshold = int(settings.garbage_collection_threshold * device.allowed)
        wanted = device.reserved - threshold
        if wanted <= 0:
            return
        old = [
            block
            for (small, _), pool in self._pools.items()
            if not small
            for block in pool.blocks.values()
            if not _is_split(block)
        ]
        reclaimed, freed = 0, True
        age = sum(self._searches - block.since for block in old)
        while reclaimed < wanted and freed and old:
            average = age / len(old)
            freed = False
            for block in list(old):
                if self._searches - block.since >= average:
                    freed = True
                    reclaimed += block.size
                    age -= self._searches - block.since
                    old.remove(block)
                    self._release(block)


def ties_of(torch_version: str) -> str:
    """How a release such as "2.10.0+cu128" chooses between equal blocks; see the module. InputError for no version."""
    numbers = torch_version.split(".")
    if len(numbers) < 2 or not (numbers[0].isdigit() and numbers[1].isdigit()):
        raise InputError(Problem("torch_version", f"{torch_version!r} is no version", ("2.13.0",)))
    release = int(numbers[0]), int(numbers[1])
    return "address" if release < (2, 12) else "block" if release < (2, 13) else "segment"


def _is_split(block: Block) -> bool:
    return block.previous is not None or block.next is not None


def _segment(head: Block) -> dict[str, object]:
    """A segment, or a mapped range of one, from its first block on."""
    blocks: list[Block] = []
    block: Block | None = head
    while block is not None and block.state != UNMAPPED:
        blocks.append(block)
        block = block.next
    return {
        "address": head.address,
        "total_size": sum(block.size for block in blocks),
        "allocated_size": sum(block.size for block in blocks if block.state == LIVE),
        "stream": head.pool.stream,
        "segment_type": "small" if head.pool.small else "large",
        "blocks": [
            {
                "address": block.address,
                "size": block.size,
                "requested_size": block.requested if block.state == LIVE else 0,
                "state": "active_allocated" if block.state == LIVE else "inactive",
            }
            for block in blocks
        ],
    }
