"""PyTorch's caching allocator once more: a transcription with plain lists, to compare the fast one with.

Written from c10/cuda/CUDACachingAllocator.cpp function by function, in its order and under its names, and not from
gradaccum.memory: every search is a walk over a list, every order a sort, every address the device's own.
"""

from __future__ import annotations

from dataclasses import dataclass

K_MIN_BLOCK_SIZE = 512
K_SMALL_SIZE = 1048576
K_SMALL_BUFFER = 2097152
K_MIN_LARGE_ALLOC = 10485760
K_ROUND_LARGE = 2097152
NO_LIMIT = 2**64 - 1
BASE = 1 << 62


class NaiveOutOfMemory(Exception):
    pass


@dataclass
class Config:
    """Everything in bytes, as the C++ has it."""

    expandable_segments: bool = False
    max_split_size: int = NO_LIMIT
    max_non_split_rounding_size: int = 20971520
    large_segment_size: int = 20971520
    roundup_power2_divisions: tuple[int, ...] = (0,) * 16
    garbage_collection_threshold: float = 0.0


@dataclass(eq=False)
class Block:
    stream: int
    size: int
    small: bool
    ptr: int
    counter: int
    allocated: bool = False
    mapped: bool = True
    prev: Block | None = None
    next: Block | None = None
    gc_count_base: int = 0
    segment: tuple[int, int] | None = None  # (address, bytes) where expandable

    def is_split(self):
        return self.prev is not None or self.next is not None


class Naive:
    def __init__(self, capacity, config, fraction=1.0, addresses="descending", ties="segment"):
        self.capacity, self.config = capacity, config
        self.total_global_mem = capacity
        self.allowed_memory_maximum = int(fraction * capacity) if fraction < 1.0 else None
        self.addresses, self.ties = addresses, ties
        self.low = self.high = BASE
        self.counter = 0
        self.blocks = {True: [], False: []}
        self.unmapped = {True: [], False: []}
        self.get_free_blocks_call_count = {True: 0, False: 0}
        self.active_blocks = []
        self.total_allocated_memory = 0
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self.num_alloc_retries = self.num_ooms = 0

    # the device

    def place(self, size):
        if self.addresses == "ascending":
            self.high += size
            return self.high - size
        self.low -= size
        return self.low

    def cuda_malloc(self, size):
        """An address, or None. What the device has given is what the allocator counts as its own."""
        return None if self.total_allocated_memory + size > self.capacity else self.place(size)

    # the order of free blocks

    def new_block(self, stream, size, small, ptr, parent=None):
        """The counter: per block in 2.12, per segment from 2.13 on."""
        if parent is not None and self.ties == "segment":
            return Block(stream, size, small, ptr, parent.counter)
        self.counter += 1
        return Block(stream, size, small, ptr, self.counter)

    def comparator(self, block):
        last = {"address": (block.ptr,), "block": (block.counter,), "segment": (block.counter, block.ptr)}[self.ties]
        return (block.stream, block.size, *last)

    def in_order(self, small):
        return sorted(self.blocks[small], key=self.comparator)

    def unmapped_in_order(self, small):
        return sorted(self.unmapped[small], key=lambda block: (block.stream, block.ptr))

    def insert_into_blocks(self, block):
        block.gc_count_base = self.get_free_blocks_call_count[block.small]
        self.blocks[block.small].append(block)

    def gc_count(self, block):
        return self.get_free_blocks_call_count[block.small] - block.gc_count_base

    # sizes

    def roundup_power2_divisions(self, size):
        log_size = size.bit_length() - 1
        index = log_size - 20 if log_size > 20 else 0
        return self.config.roundup_power2_divisions[min(index, 15)]

    @staticmethod
    def roundup_power2_next_division(size, divisions):
        if size & (size - 1) == 0:
            return size
        power2_floor = 1 << (size.bit_length() - 1)
        power2_division = power2_floor >> (divisions.bit_length() - 1)
        if power2_division == 0:
            return power2_floor << 1
        round_size_floor = size & ~(power2_division - 1)
        return size if round_size_floor == size else round_size_floor + power2_division

    def round_size(self, size):
        if size < K_MIN_BLOCK_SIZE:
            return K_MIN_BLOCK_SIZE
        divisions = self.roundup_power2_divisions(size)
        if divisions > 1 and size > K_MIN_BLOCK_SIZE * divisions:
            return self.roundup_power2_next_division(size, divisions)
        return K_MIN_BLOCK_SIZE * ((size + K_MIN_BLOCK_SIZE - 1) // K_MIN_BLOCK_SIZE)

    def get_allocation_size(self, size):
        if size <= K_SMALL_SIZE:
            return K_SMALL_BUFFER
        if size < K_MIN_LARGE_ALLOC:
            return self.config.large_segment_size
        return K_ROUND_LARGE * ((size + K_ROUND_LARGE - 1) // K_ROUND_LARGE)

    def should_split(self, block, size):
        remaining = block.size - size
        if block.small or self.config.expandable_segments:
            return remaining >= K_MIN_BLOCK_SIZE
        return size < self.config.max_split_size and remaining > K_SMALL_SIZE

    # the public calls

    def malloc(self, orig_size, stream=0):
        size = self.round_size(orig_size)
        small = size <= K_SMALL_SIZE
        alloc_size = self.get_allocation_size(size)
        block = self.get_free_block(size, stream, small)
        if block is None:
            if self.allowed_memory_maximum is not None and self.config.garbage_collection_threshold > 0.0:
                self.garbage_collect_cached_blocks()
            block = self.alloc_block(size, stream, small, alloc_size)
            if block is None and self.release_available_cached_blocks(size, stream, small):
                block = self.alloc_block(size, stream, small, alloc_size)
            if block is None:
                self.release_cached_blocks()
                self.num_alloc_retries += 1
                block = self.alloc_block(size, stream, small, alloc_size)
        if block is None:
            self.num_ooms += 1
            raise NaiveOutOfMemory
        return self.alloc_found_block(block, size, self.should_split(block, size))

    def alloc_found_block(self, block, size, split_remainder):
        if split_remainder:
            remaining = block
            block = self.new_block(remaining.stream, size, remaining.small, remaining.ptr, parent=remaining)
            block.segment = remaining.segment
            block.prev = remaining.prev
            if block.prev is not None:
                block.prev.next = block
            block.next = remaining
            remaining.prev = block
            remaining.ptr += size
            remaining.size -= size
            self.insert_into_blocks(remaining)
        block.allocated = True
        self.active_blocks.append(block)
        self.allocated += block.size
        self.peak_allocated = max(self.allocated, self.peak_allocated)
        return block

    def free(self, block):
        block.allocated = False
        self.allocated -= block.size
        for candidate in (block.prev, block.next):
            self.try_merge_blocks(block, candidate)
        self.active_blocks.remove(block)
        self.insert_into_blocks(block)

    def empty_cache(self):
        self.release_cached_blocks()

    def reset_peaks(self):
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    # the private ones

    def get_free_block(self, size, stream, small):
        if self.allowed_memory_maximum is not None and self.config.garbage_collection_threshold > 0.0:
            self.get_free_blocks_call_count[small] += 1
        found = [block for block in self.in_order(small) if block.stream == stream and block.size >= size]
        if not found:
            return None
        at = 0
        if self.config.expandable_segments:

            def expandable_size(block):
                return block.size + (block.next.size if block.next is not None and not block.next.mapped else 0)

            while at + 1 < len(found) and expandable_size(found[at + 1]) < expandable_size(found[at]):
                at += 1
        block = found[at]
        if size < self.config.max_split_size and block.size >= self.config.max_split_size:
            return None
        if size >= self.config.max_split_size and block.size >= size + self.config.max_non_split_rounding_size:
            return None
        self.blocks[small].remove(block)
        return block

    def try_merge_blocks(self, dst, src):
        if src is None or src.allocated or dst.mapped != src.mapped:
            return
        if dst.prev is src:
            dst.ptr = src.ptr
            dst.prev = src.prev
            if dst.prev is not None:
                dst.prev.next = dst
        else:
            dst.next = src.next
            if dst.next is not None:
                dst.next.prev = dst
        dst.size += src.size
        (self.blocks if src.mapped else self.unmapped)[src.small].remove(src)

    def increase_reserved(self, size):
        self.total_allocated_memory += size
        self.reserved += size
        self.peak_reserved = max(self.reserved, self.peak_reserved)

    def alloc_block(self, size, stream, small, alloc_size):
        allowed = self.allowed_memory_maximum
        if allowed is not None and self.total_allocated_memory + alloc_size > allowed:
            return None
        if self.config.expandable_segments:
            return self.try_allocate_expandable_block(size, stream, small)
        ptr = self.cuda_malloc(alloc_size)
        if ptr is None:
            return None
        self.increase_reserved(alloc_size)
        return self.new_block(stream, alloc_size, small, ptr)

    def garbage_collect_cached_blocks(self):
        gc_threshold = int(self.config.garbage_collection_threshold * self.allowed_memory_maximum)
        if self.total_allocated_memory <= gc_threshold:
            return
        target_size = self.total_allocated_memory - gc_threshold
        gc_reclaimed = 0
        freeable = [block for block in self.blocks[False] if not block.is_split()]
        total_age, freeable_block_count = sum(map(self.gc_count, freeable)), len(freeable)
        if freeable_block_count == 0:
            return
        block_freed = True
        while gc_reclaimed < target_size and block_freed and freeable_block_count > 0:
            age_threshold = total_age / freeable_block_count
            block_freed = False
            for block in self.in_order(False):
                if not block.is_split() and block.segment is None and self.gc_count(block) >= age_threshold:
                    block_freed = True
                    gc_reclaimed += block.size
                    total_age -= self.gc_count(block)
                    freeable_block_count -= 1
                    self.release_block(block)

    def release_available_cached_blocks(self, size, stream, small):
        limit = self.config.max_split_size
        if limit == NO_LIMIT:
            return False
        key_size = max(size, limit)
        mine = [block for block in self.in_order(small) if block.stream == stream]
        large_enough = [block for block in mine if block.size >= key_size]
        if large_enough and large_enough[0].segment is None:
            self.release_block(large_enough[0])
            return True
        total_released = 0
        for block in reversed([block for block in mine if block.size < key_size]):
            if not (total_released < key_size and block.size >= limit):
                break
            if block.segment is None:
                total_released += block.size
                self.release_block(block)
        return total_released >= key_size

    def release_cached_blocks(self):
        self.release_blocks(False)
        self.release_blocks(True)

    def release_blocks(self, small):
        to_unmap = []
        for block in self.in_order(small):
            if block.segment is not None:
                to_unmap.append(block)
            elif not block.is_split():
                self.release_block(block)
        for block in to_unmap:
            self.unmap_block(block)
            if block.prev is None and block.next is None:
                self.unmapped[small].remove(block)

    def release_block(self, block):
        self.total_allocated_memory -= block.size
        self.reserved -= block.size
        self.blocks[block.small].remove(block)

    # expandable segments

    def page(self, small):
        return K_SMALL_BUFFER if small else self.config.large_segment_size

    def find_expandable_block(self, size, stream, small):
        def allocatable(block):
            return block is not None and not block.allocated

        def has_available_address_space(block):
            found = 0
            while found < size and allocatable(block):
                found += block.size
                block = block.next
            return found >= size

        for unmapped in self.unmapped_in_order(small):
            if unmapped.stream != stream:
                continue
            block = unmapped.prev if allocatable(unmapped.prev) else unmapped
            if has_available_address_space(block):
                return block
        page = self.page(small)
        total = self.total_global_mem + self.total_global_mem // 8
        address_space = (total + page - 1) // page * page
        ptr = self.place(address_space)
        block = self.new_block(stream, address_space, small, ptr)
        block.mapped, block.segment = False, (ptr, address_space)
        self.unmapped[small].append(block)
        return block

    def map_block(self, to_map, size):
        page = self.page(to_map.small)
        mapped_size = (size + page - 1) // page * page
        if self.total_allocated_memory + mapped_size > self.capacity:
            return False
        self.unmapped[to_map.small].remove(to_map)
        to_map.mapped = True
        if mapped_size < to_map.size:
            remaining = self.new_block(
                to_map.stream, to_map.size - mapped_size, to_map.small, to_map.ptr + mapped_size, parent=to_map
            )
            remaining.mapped, remaining.segment = False, to_map.segment
            self.splice(remaining, to_map, to_map.next)
            self.unmapped[to_map.small].append(remaining)
            to_map.size = mapped_size
        self.try_merge_blocks(to_map, to_map.prev)
        self.try_merge_blocks(to_map, to_map.next)
        self.insert_into_blocks(to_map)
        self.increase_reserved(mapped_size)
        return True

    @staticmethod
    def splice(block, before, after):
        if before is not None:
            before.next = block
        block.prev = before
        if after is not None:
            after.prev = block
        block.next = after

    def try_allocate_expandable_block(self, size, stream, small):
        candidate = self.find_expandable_block(size, stream, small)
        if not candidate.mapped and not self.map_block(candidate, min(candidate.size, size)):
            return None
        while candidate.size < size:
            remaining = size - candidate.size
            new_candidate = candidate.next
            if not self.map_block(new_candidate, min(remaining, candidate.next.size)):
                return None
            candidate = new_candidate
        self.blocks[small].remove(candidate)
        return candidate

    def unmap_block(self, block):
        page, (start, _) = self.page(block.small), block.segment
        begin = (block.ptr - start + page - 1) // page
        end = (block.ptr + block.size - start) // page
        if begin >= end:
            return
        unmapped_ptr, unmapped_size = start + begin * page, (end - begin) * page
        self.blocks[block.small].remove(block)
        before_size = unmapped_ptr - block.ptr
        if before_size > 0:
            before_free = self.new_block(block.stream, before_size, block.small, block.ptr, parent=block)
            before_free.segment = block.segment
            self.splice(before_free, block.prev, block)
            self.insert_into_blocks(before_free)
        after_size = block.size - (before_size + unmapped_size)
        if after_size > 0:
            after_free = self.new_block(
                block.stream, after_size, block.small, unmapped_ptr + unmapped_size, parent=block
            )
            after_free.segment = block.segment
            self.splice(after_free, block, block.next)
            self.insert_into_blocks(after_free)
        block.ptr, block.size, block.mapped = unmapped_ptr, unmapped_size, False
        self.try_merge_blocks(block, block.prev)
        self.try_merge_blocks(block, block.next)
        self.unmapped[block.small].append(block)
        self.total_allocated_memory -= unmapped_size
        self.reserved -= unmapped_size

    # what there is

    def segments(self):
        """(stream, small, [(size, allocated), ...]) of each mapped range, sorted: the same whatever the addresses."""
        blocks = [*self.blocks[True], *self.blocks[False], *self.active_blocks]
        found = []
        for head in blocks:
            if head.prev is not None and head.prev.mapped:
                continue
            ranges, block = [], head
            while block is not None and block.mapped:
                ranges.append((block.size, block.allocated))
                block = block.next
            found.append((head.stream, head.small, ranges))
        return sorted(found)
