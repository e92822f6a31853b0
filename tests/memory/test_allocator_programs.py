"""Whole programs: the allocator beside a naive transcription of PyTorch's, to the byte, and what always holds."""

from __future__ import annotations

import dataclasses
import random

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from benchmarks.gpu.allocator_programs import parts, random_case
from gradaccum.memory.allocator import Allocator, OutOfMemory
from gradaccum.memory.allocator_settings import Settings
from gradaccum.memory.blocks import FREE, LIVE, UNMAPPED
from tests.memory.naive import Config, Naive, NaiveOutOfMemory

MIB = 2**20
ORDERS = [(ties, addresses) for ties in ("segment", "block", "address") for addresses in ("descending", "ascending")]

sizes = st.one_of(
    st.integers(1, MIB + 1000),
    st.integers(MIB, 10 * MIB + 1000),
    st.integers(10 * MIB, 70 * MIB),
    st.sampled_from([512, MIB, MIB + 1, 2 * MIB, 4 * MIB, 8 * MIB, 10 * MIB, 12 * MIB, 24 * MIB, 40 * MIB]),
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("malloc"), sizes, st.integers(0, 2)),
        st.tuples(st.just("malloc"), st.sampled_from([4 * MIB, 8 * MIB, 12 * MIB, 24 * MIB]), st.just(0)),
        st.tuples(st.just("free"), st.integers(0, 200)),
        st.tuples(st.just("free"), st.integers(0, 200)),
        st.sampled_from([("empty",), ("reset",)]),
    ),
    max_size=120,
)
settings = st.builds(
    Settings,
    expandable_segments=st.booleans(),
    max_split_size_mb=st.sampled_from([None, None, 32, 33, 40]),
    max_non_split_rounding_mb=st.sampled_from([None, 32, 50]),
    large_segment_size_mb=st.sampled_from([20, 20, 11, 32]),
    roundup_power2_divisions=st.sampled_from([(0,) * 16, (4,) * 16, (1, 2, 4, 8) * 4]),
    garbage_collection_threshold=st.sampled_from([0.0, 0.1, 0.6]),
    per_process_memory_fraction=st.sampled_from([1.0, 0.5, 0.9]),
)


class Pair:
    """Both allocators, and the same program for both."""

    def __init__(self, capacity, chosen, ties, addresses):
        self.fast = Allocator(capacity, chosen, addresses, ties)
        config = Config(
            expandable_segments=chosen.expandable_segments,
            max_split_size=chosen.max_split_size,
            max_non_split_rounding_size=chosen.max_non_split_rounding,
            large_segment_size=chosen.large_segment_size,
            roundup_power2_divisions=chosen.roundup_power2_divisions,
            garbage_collection_threshold=chosen.garbage_collection_threshold,
        )
        self.naive = Naive(capacity, config, chosen.per_process_memory_fraction, addresses, ties)
        self.live = {}
        self.requests = 0

    def malloc(self, size, stream=0):
        self.requests += 1
        try:
            block = self.naive.malloc(size, stream)
        except NaiveOutOfMemory:
            with pytest.raises(OutOfMemory):
                self.fast.malloc(size, stream)
            return
        before = self.fast.allocated
        handle = self.fast.malloc(size, stream)
        assert self.fast.allocated - before == block.size
        self.live[self.requests] = handle, block

    def free(self, request):
        if request in self.live:
            handle, block = self.live.pop(request)
            self.fast.free(handle)
            self.naive.free(block)

    def empty(self):
        self.fast.empty_cache()
        self.naive.empty_cache()

    def reset(self):
        self.fast.reset_peaks()
        self.naive.reset_peaks()

    def compare(self):
        names = "allocated reserved peak_allocated peak_reserved num_alloc_retries num_ooms".split()
        assert {name: getattr(self.fast, name) for name in names} == {name: getattr(self.naive, name) for name in names}

    def compare_blocks(self):
        fast = [
            (
                segment["stream"],
                segment["segment_type"] == "small",
                [(block["size"], block["state"] == "active_allocated") for block in segment["blocks"]],
            )
            for segment in self.fast.snapshot()
        ]
        assert sorted(fast) == self.naive.segments()


@pytest.mark.parametrize(("ties", "addresses"), ORDERS)
@hypothesis.given(settings, operations, st.sampled_from([90 * MIB, 200 * MIB + 513, 2000 * MIB]))
def test_any_program_equals_the_transcription(ties, addresses, chosen, program, capacity):
    pair = Pair(capacity, chosen, ties, addresses)
    for name, *given in program:
        if name == "free" and pair.live:
            given = [sorted(pair.live)[given[0] % len(pair.live)]]
        getattr(pair, name)(*given)
        pair.compare()
    pair.compare_blocks()


@pytest.mark.parametrize(("ties", "addresses"), ORDERS)
def test_long_programs_equal_the_transcription(ties, addresses):
    """Where equal blocks abound and memory runs out: the programs that were recorded, and more of their kind."""
    for seed in range(20):
        case = random_case(seed, length=250)
        chosen = dataclasses.replace(Settings.parse(case.settings), per_process_memory_fraction=[1.0, 0.7][seed % 2])
        pair = Pair(case.limit, chosen, ties, addresses)
        for operation in case.operations:
            if operation in ("empty", "reset"):
                getattr(pair, operation)()
            elif operation.startswith("f"):
                pair.free(int(operation[1:]))
            else:
                pair.malloc(*parts(operation))
            pair.compare()
        pair.compare_blocks()


@pytest.mark.parametrize("ties", ["segment", "block", "address"])
@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        # Ages of many cached blocks, with searches of both pools between.
        ("garbage_collection_threshold:0.3", [5000, 12 * MIB, 16 * MIB, 20 * MIB, 24 * MIB]),
        # Pages given back and mapped again, which makes and orders the blocks between them.
        ("expandable_segments:True", [4 * MIB, 8 * MIB, 12 * MIB, 24 * MIB, 36 * MIB]),
    ],
)
def test_few_sizes_many_times(ties, text, sizes):
    rng = random.Random(text)
    for _ in range(15):
        chosen = dataclasses.replace(Settings.parse(text), per_process_memory_fraction=0.8)
        pair = Pair(400 * MIB, chosen, ties, rng.choice(["descending", "ascending"]))
        for _ in range(200):
            chance = rng.random()
            if pair.live and chance < 0.47:
                pair.free(rng.choice(sorted(pair.live)))
            elif chance < 0.5:
                pair.empty()
            else:
                pair.malloc(rng.choice(sizes))
            pair.compare()
        pair.compare_blocks()


# What always holds


def check(allocator):
    """Blocks tile segments, sums agree, keys lead to blocks, and nothing passes a limit."""
    free = [block for pool in allocator._pools.values() for block in pool.blocks.values()]
    unmapped = [block for pool in allocator._pools.values() for block in pool.unmapped]
    live = list(allocator._live.values())
    assert {block.state for block in free} <= {FREE}
    assert {block.state for block in unmapped} <= {UNMAPPED}
    assert {block.state for block in live} <= {LIVE}
    assert sum(block.size for block in live) == allocator.allocated
    assert sum(block.size for block in [*live, *free]) == allocator.reserved
    assert allocator.allocated <= allocator.reserved
    assert allocator.allocated <= allocator.peak_allocated
    assert allocator.reserved <= allocator.peak_reserved
    assert allocator.peak_reserved <= allocator._device.capacity
    # Segments do not overlap, and the blocks of one are linked both ways, end to end, free ones never side by side.
    reached = 0
    end = None
    for head in sorted((b for b in [*live, *free, *unmapped] if b.previous is None), key=lambda b: b.address):
        assert end is None or head.address >= end
        block = head
        while block is not None:
            reached += 1
            assert block.size > 0
            assert block.size % 512 == 0
            assert block.pool is head.pool
            after = block.next
            if after is not None:
                assert after.previous is block
                assert after.address == block.address + block.size
                assert block.state == LIVE or after.state != block.state
            end = block.address + block.size
            block = after
    assert reached == len(live) + len(free) + len(unmapped)
    for pool in allocator._pools.values():
        assert pool.keys == sorted(pool.blocks)
        assert all(block.key == key for key, block in pool.blocks.items())
        assert [block.address for block in pool.unmapped] == sorted(block.address for block in pool.unmapped)


class Lives(RuleBasedStateMachine):
    """Any sequence of calls; the checks of `check` after each."""

    handles = Bundle("handles")

    @hypothesis.stateful.initialize(
        chosen=settings, order=st.sampled_from(ORDERS), capacity=st.sampled_from([90 * MIB, 400 * MIB])
    )
    def begin(self, chosen, order, capacity):
        ties, addresses = order
        self.allocator = Allocator(capacity, chosen, addresses, ties)

    @rule(target=handles, size=sizes, stream=st.integers(0, 1))
    def malloc(self, size, stream):
        before = self.allocator.num_ooms
        try:
            handle = self.allocator.malloc(size, stream)
        except OutOfMemory:
            assert self.allocator.num_ooms == before + 1
            return 0
        assert self.allocator._live[handle].size >= size
        return handle

    @rule(handle=consumes(handles))
    def free(self, handle):
        self.allocator.free(handle)

    @rule()
    def empty_cache(self):
        self.allocator.empty_cache()

    @rule()
    def reset_peaks(self):
        self.allocator.reset_peaks()
        assert self.allocator.peak_allocated == self.allocator.allocated

    @invariant()
    def holds(self):
        check(self.allocator)

    def teardown(self):
        if hasattr(self, "allocator"):
            for handle in list(self.allocator._live):
                self.allocator.free(handle)
            self.allocator.empty_cache()
            assert (self.allocator.allocated, self.allocator.reserved) == (0, 0)
            assert self.allocator.snapshot() == []


Lives.TestCase.settings = hypothesis.settings(stateful_step_count=40)
TestLives = Lives.TestCase
