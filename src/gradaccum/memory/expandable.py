"""Expandable segments: a range of addresses, larger than the device, behind which memory is put page by page.

`Note [Expandable Segments]` and `struct ExpandableSegment` in c10/cuda/CUDACachingAllocator.cpp. There is one segment
for each stream and pool, a second one only where the first has no addresses left. Its pages are 2 MiB in the small
pool and large_segment_size_mb in the large one. What has no memory behind it is one UNMAPPED block between others.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from operator import attrgetter

from gradaccum.memory.blocks import FREE, LIVE, UNMAPPED, Block, Device, Pool, merge, put_after

ENDLESS = 2**50
"""The addresses of a segment on a device without a capacity, bytes."""

by_address = attrgetter("address")


def address_space(total_memory: int | None, page: int) -> int:
    """How many bytes of addresses a segment has: nine eighths of the device's memory, in whole pages.

    The constructor of `ExpandableSegment`: pages that were unmapped in the middle can be put at the end.
    """
    return ENDLESS if total_memory is None else -(-(total_memory + total_memory // 8) // page) * page


def least_expandable(pool: Pool, at: int) -> int:
    """The place of the free block to take, from the first large enough on. The middle of `get_free_block`

    A block that could grow into addresses without memory counts as large as it could grow, so that the others are
    used up first.
    """
    keys, blocks = pool.keys, pool.blocks
    while at + 1 < len(keys) and _room(blocks[keys[at + 1]]) < _room(blocks[keys[at]]):
        at += 1
    return at


def _room(block: Block) -> int:
    after = block.next
    return block.size + (after.size if after is not None and after.state == UNMAPPED else 0)


def allocate(device: Device, pool: Pool, size: int, addresses: int) -> Block | None:
    """A block of at least `size` bytes, for which pages were mapped; None where the device has too few.

    `try_allocate_expandable_block`. Pages that were mapped before one failed stay, in a free block.
    addresses: bytes of a new segment.
    """
    block = _find(device, pool, size, addresses)
    if block.state == UNMAPPED and not _map(device, block, min(block.size, size)):
        return None
    while block.size < size:
        unmapped = block.next
        assert unmapped is not None
        if not _map(device, unmapped, min(size - block.size, unmapped.size)):
            return None
        block = unmapped  # with the free block before it merged in
    pool.remove(block)
    return block


def _find(device: Device, pool: Pool, size: int, addresses: int) -> Block:
    """The lowest place where `size` bytes are free or can be mapped. `find_expandable_block`"""
    places = pool.unmapped
    if device.newest_lowest and len(pool.bases) > 1:
        places = sorted(places, key=lambda block: (-bisect_right(pool.bases, block.address), block.address))
    for unmapped in places:
        before = unmapped.previous
        block = before if before is not None and before.state != LIVE else unmapped
        if _has_addresses(block, size):
            return block
    segment = device.new_block(pool, device.place(addresses), addresses, UNMAPPED)
    insort(pool.bases, segment.address)
    insort(pool.unmapped, segment, key=by_address)
    return segment


def _has_addresses(block: Block, size: int) -> bool:
    here: Block | None = block
    found = 0
    while found < size and here is not None and here.state != LIVE:
        found += here.size
        here = here.next
    return found >= size


def _map(device: Device, block: Block, size: int) -> bool:
    """Put pages behind the first `size` bytes of an UNMAPPED block, which becomes FREE. `map_block`"""
    pool = block.pool
    mapped = -(-size // pool.page) * pool.page
    if not device.take(mapped):
        return False
    pool.unmapped.remove(block)
    if mapped < block.size:
        rest = device.new_block(pool, block.address + mapped, block.size - mapped, UNMAPPED)
        put_after(block, rest)
        insort(pool.unmapped, rest, key=by_address)
        block.size = mapped
    for neighbour in (block.previous, block.next):
        if neighbour is not None and neighbour.state == FREE:
            pool.remove(neighbour)
            merge(block, neighbour)
    pool.insert(block)
    return True


def unmap(device: Device, block: Block) -> None:
    """Give back the whole pages of a FREE block; what is left at its ends stays free. `unmap_block`"""
    pool = block.pool
    base = pool.bases[bisect_right(pool.bases, block.address) - 1]
    first = base - (base - block.address) // pool.page * pool.page  # the first page that begins in the block
    last = base + (block.address + block.size - base) // pool.page * pool.page
    if first >= last:
        return
    pool.remove(block)
    if before := first - block.address:
        left = device.new_block(pool, block.address, before, FREE)
        assert block.previous is not None  # the first block of a segment begins with a page
        put_after(block.previous, left)
        pool.insert(left)
    if after := block.address + block.size - last:
        right = device.new_block(pool, last, after, FREE)
        put_after(block, right)
        pool.insert(right)
    block.address, block.size, block.state = first, last - first, UNMAPPED
    device.give(block.size)
    for neighbour in (block.previous, block.next):
        if neighbour is not None and neighbour.state == UNMAPPED:
            pool.unmapped.remove(neighbour)
            merge(block, neighbour)
    if block.previous is None and block.next is None:  # `release_expandable_segment`
        pool.bases.remove(block.address)
    else:
        insort(pool.unmapped, block, key=by_address)
