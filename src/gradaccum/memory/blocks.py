"""Blocks, the pools that hold the free ones, and the device that segments come from.

A segment is a list of blocks, linked in the order of their addresses. Only free blocks are in a pool.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from gradaccum.errors import InputError, Problem

LIVE, FREE, UNMAPPED = range(3)
"""What a block is: handed out, cached, or a range of an expandable segment without memory behind it."""

ADDRESS_BITS = 64
"""A free block's key is its size and, below that, what decides between equal sizes."""

ADDRESSES = ("descending", "ascending")
TIES = ("segment", "block", "address")


class Block:
    """A range of one segment. `struct Block`; a plain record, because one is made for every split.

    size, address, requested: bytes. key: its place in the pool while it is FREE. born: how many blocks were made
    before it. since: how often the large pools had been searched when it was freed (gc_count_base), where garbage is
    collected; of a block that is a whole segment alone, since only those are garbage.
    """

    __slots__ = ("address", "born", "key", "next", "pool", "previous", "requested", "since", "size", "state")

    size: int
    address: int
    state: int
    requested: int
    born: int
    key: int
    since: int
    pool: Pool
    previous: Block | None
    next: Block | None


class Pool:
    """The free blocks of one stream and one kind, small or large. `struct BlockPool`, which holds all streams.

    keys: sorted; blocks: by key. `BlockComparatorSize` and its successors: size first, then by_creation or address.
    page: of an expandable segment, bytes. unmapped: the UNMAPPED blocks by address. bases: where the segments begin.
    """

    __slots__ = ("bases", "blocks", "by_creation", "keys", "page", "small", "stream", "unmapped")

    def __init__(self, small: bool, stream: int, page: int, by_creation: bool) -> None:
        self.small = small
        self.stream = stream
        self.page = page
        self.by_creation = by_creation
        self.keys: list[int] = []
        self.blocks: dict[int, Block] = {}
        self.unmapped: list[Block] = []
        self.bases: list[int] = []

    def insert(self, block: Block) -> None:
        """Take in a block, which thereby is FREE. `insert_into_blocks`"""
        key = block.size << ADDRESS_BITS | (block.born if self.by_creation else block.address)
        block.key = key
        block.state = FREE
        self.blocks[key] = block
        insort(self.keys, key)

    def remove(self, block: Block) -> None:
        """Take out a FREE block; its state is the caller's."""
        keys, key = self.keys, block.key
        del keys[bisect_left(keys, key)]
        del self.blocks[key]


class Device:
    """What cudaMalloc and cuMemCreate ask: how much memory there is, and where the next segment goes.

    capacity: bytes, or None for endless. allowed: the limit that a memory fraction sets, or None.
    reserved, peak_reserved: bytes in segments (total_allocated_memory, stats.reserved_bytes).
    """

    def __init__(self, capacity: int | None, allowed: int | None, addresses: str, ties: str) -> None:
        for field, value, known in (("addresses", addresses, ADDRESSES), ("ties", ties, TIES)):
            if value not in known:
                raise InputError(Problem(field, f"{value!r} is no order of blocks", known))
        self.capacity = capacity
        self.allowed = allowed
        self.reserved = self.peak_reserved = 0
        self.by_creation = ties == "block"
        # Segments by age are segments by address where each new one lies above all others. So that is how they are
        # numbered here; where the device's own addresses go down instead, `newest_lowest` remembers it.
        self._upwards = ties == "segment" or addresses == "ascending"
        self.newest_lowest = ties == "segment" and addresses == "descending"
        # Far from 0 on both sides, so that no sum of segments reaches the ends of the keys.
        self._lowest = self._highest = 1 << (ADDRESS_BITS - 2)
        self._born = 0

    def allows(self, size: int) -> bool:
        """Whether a memory fraction leaves room for a segment. The first check of `alloc_block`."""
        return self.allowed is None or self.reserved + size <= self.allowed

    def take(self, size: int) -> bool:
        """cudaMalloc, or cuMemCreate for each page: all of it or nothing."""
        if self.capacity is not None and self.reserved + size > self.capacity:
            return False
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return True

    def give(self, size: int) -> None:
        """cudaFree, or cuMemRelease."""
        self.reserved -= size

    def place(self, size: int) -> int:
        """The address of a new segment. No address is used twice."""
        if self._upwards:
            self._highest += size
            return self._highest - size
        self._lowest -= size
        return self._lowest

    def new_block(self, pool: Pool, address: int, size: int, state: int) -> Block:
        """A block without neighbours, in no pool yet. `Block::Block`"""
        block = Block()
        block.pool = pool
        block.address = address
        block.size = size
        block.state = state
        block.requested = 0
        block.previous = block.next = None
        block.born = self.birth()
        return block

    def birth(self) -> int:
        """The next number for a block (registration_counter)."""
        self._born += 1
        return self._born


def put_after(block: Block, following: Block) -> None:
    """Link `following` in behind `block`. `Block::splice`"""
    following.previous, following.next = block, block.next
    if block.next is not None:
        block.next.previous = following
    block.next = following


def merge(block: Block, neighbour: Block) -> None:
    """Swallow a neighbour. `try_merge_blocks`: both are without memory, or the neighbour is FREE and `block` was LIVE.

    `block` keeps its age, and neither is in a pool.
    """
    if block.previous is neighbour:
        block.address = neighbour.address
        block.previous = before = neighbour.previous
        if before is not None:
            before.next = block
    else:
        block.next = after = neighbour.next
        if after is not None:
            after.previous = block
    block.size += neighbour.size
