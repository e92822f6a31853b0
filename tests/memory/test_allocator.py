"""The allocator's rules, one by one, each from the function of CUDACachingAllocator.cpp that its test names."""

from __future__ import annotations

import pytest

from gradaccum import GradaccumError, InputError
from gradaccum.memory.allocator import Allocator, OutOfMemory, ties_of
from gradaccum.memory.allocator_settings import Settings

MIB = 2**20
GIB = 2**30


def address(allocator, handle):
    return allocator._live[handle].address


def sizes(allocator):
    """The blocks of each segment, free ones negative; segments by address."""
    return [
        [block["size"] if block["state"] == "active_allocated" else -block["size"] for block in segment["blocks"]]
        for segment in allocator.snapshot()
    ]


def in_mib(allocator):
    return [[size / MIB for size in blocks] for blocks in sizes(allocator)]


# Requests, blocks, segments


def test_the_example_of_the_module():
    allocator = Allocator(capacity=15 * GIB)
    weights = allocator.malloc(1_000_000)
    allocator.free(weights)
    assert (allocator.allocated, allocator.reserved) == (0, 2_097_152)
    assert (allocator.peak_allocated, allocator.peak_reserved) == (1_000_448, 2_097_152)


def test_a_small_segment_is_shared():
    """`get_allocation_size`, `alloc_found_block`: 2 MiB segments, split down to 512 bytes."""
    allocator = Allocator(None)
    for size in (1, 1000, MIB):
        allocator.malloc(size)
    assert sizes(allocator) == [[512, 1024, MIB, -(MIB - 1536)]]
    assert allocator.allocated == MIB + 1536
    assert allocator.reserved == 2 * MIB


def test_two_live_tensors_of_1_mib_and_their_temporaries_take_4_mib():
    """test/test_xpu.py, test_1mb_allocation_uses_small_block: the same sizes and rules, with PyTorch's expectation."""
    allocator = Allocator(None)
    allocator.malloc(MIB)  # a
    b = allocator.malloc(MIB)  # a.clone()
    for _ in range(5):  # b = b.clone() + 1
        clone = allocator.malloc(MIB)
        total = allocator.malloc(MIB)
        allocator.free(clone)
        allocator.free(b)
        b = total
    assert (allocator.allocated, allocator.reserved) == (2 * MIB, 4 * MIB)


def test_a_large_segment_of_20_mib_is_shared_below_10_mib():
    allocator = Allocator(None)
    allocator.malloc(MIB + 1)
    allocator.malloc(9 * MIB)
    assert sizes(allocator) == [[MIB + 512, 9 * MIB, -(10 * MIB - 512)]]


def test_from_10_mib_on_a_request_has_a_segment_of_its_own():
    allocator = Allocator(None)
    allocator.malloc(10 * MIB)
    allocator.malloc(11 * MIB)
    assert in_mib(allocator) == [[10], [12]]  # 12 - 11 is not more than 1 MiB, so nothing is split off


def test_what_is_not_split_off_counts_as_allocated():
    """`should_split`: in the large pool a rest of 1 MiB stays with the block, and with `allocated`."""
    allocator = Allocator(None)
    allocator.malloc(11 * MIB)
    assert allocator.allocated == allocator.active == 12 * MIB
    allocator.malloc(11 * MIB - 512)
    assert in_mib(allocator)[1] == [11 - 512 / MIB, -(1 + 512 / MIB)]


def test_nothing_is_asked_for_zero_bytes():
    """`NativeCachingAllocator::allocate`."""
    allocator = Allocator(None)
    assert allocator.malloc(0) == 0
    allocator.free(0)
    assert allocator.snapshot() == []


# Which block


def test_the_smallest_block_that_is_large_enough():
    """`get_free_block`: lower_bound of the size."""
    allocator = Allocator(None)
    handles = [allocator.malloc(size * MIB) for size in (40, 20, 30)]
    for handle in handles:
        allocator.free(handle)
    allocator.malloc(19 * MIB + 512)
    assert in_mib(allocator) == [[-40], [20], [-30]]


@pytest.mark.parametrize(
    ("ties", "addresses", "taken"),
    [
        ("segment", "descending", "first"),
        ("segment", "ascending", "first"),
        ("block", "descending", "first"),
        ("address", "descending", "second"),
        ("address", "ascending", "first"),
    ],
)
def test_equal_blocks_of_two_segments(ties, addresses, taken):
    """`BlockComparatorSize` up to 2.11, the counters of 178362 and 183591 after it."""
    allocator = Allocator(None, addresses=addresses, ties=ties)
    handles = {"first": allocator.malloc(30 * MIB), "second": allocator.malloc(30 * MIB)}
    places = {address(allocator, handle): name for name, handle in handles.items()}
    for handle in handles.values():
        allocator.free(handle)
    assert places[address(allocator, allocator.malloc(30 * MIB))] == taken


@pytest.mark.parametrize(("ties", "taken"), [("segment", "older segment"), ("block", "older block")])
def test_age_of_segments_and_age_of_blocks(ties, taken):
    """The block of the older segment was made later, when that segment was split. As run on 2.12.1 and 2.13.0."""
    allocator = Allocator(None, ties=ties)
    whole = allocator.malloc(24 * MIB)
    newer = allocator.malloc(12 * MIB)
    allocator.free(whole)
    front = allocator.malloc(12 * MIB)
    allocator.malloc(12 * MIB)  # the rest of the older segment
    places = {address(allocator, front): "older segment", address(allocator, newer): "older block"}
    allocator.free(newer)
    allocator.free(front)
    assert places[address(allocator, allocator.malloc(12 * MIB))] == taken


@pytest.mark.parametrize(
    ("version", "ties"),
    [
        ("2.6.0", "address"),
        ("2.10.0+cu128", "address"),
        ("2.11.0", "address"),
        ("2.12.1", "block"),
        ("2.13.0", "segment"),
        ("2.14.1+cu130", "segment"),
        ("3.0", "segment"),
    ],
)
def test_the_rule_of_a_release(version, ties):
    assert ties_of(version) == ties


@pytest.mark.parametrize(
    ("ties", "addresses", "reserved"),
    [("segment", "descending", 36), ("address", "ascending", 36), ("address", "descending", 60)],
)
def test_the_choice_between_equal_blocks_decides_fragmentation(ties, addresses, reserved):
    """12 MiB could come from a segment of 12, or from the half of one of 24 that is then missing as a whole."""
    allocator = Allocator(None, ties=ties, addresses=addresses)
    small, large = allocator.malloc(12 * MIB), allocator.malloc(24 * MIB)
    allocator.free(large)
    half = allocator.malloc(12 * MIB)
    allocator.free(small)
    allocator.malloc(12 * MIB)
    allocator.free(half)
    allocator.malloc(24 * MIB)
    assert allocator.reserved == reserved * MIB


def test_each_stream_has_blocks_of_its_own():
    allocator = Allocator(None)
    allocator.free(allocator.malloc(30 * MIB, stream=1))
    allocator.malloc(30 * MIB, stream=2)
    assert allocator.reserved == 60 * MIB
    allocator.malloc(30 * MIB, stream=1)
    assert allocator.reserved == 60 * MIB
    assert sorted(segment["stream"] for segment in allocator.snapshot()) == [1, 2]


def test_small_requests_never_take_large_blocks():
    allocator = Allocator(None)
    allocator.free(allocator.malloc(2 * MIB))
    allocator.malloc(1000)
    assert allocator.reserved == 22 * MIB
    assert [segment["segment_type"] for segment in allocator.snapshot()] == ["large", "small"]


# Freeing


def test_free_neighbours_merge():
    """`free_block`, `try_merge_blocks`: on both sides, and never across segments."""
    allocator = Allocator(None)
    first, middle, last = (allocator.malloc(5 * MIB) for _ in range(3))
    allocator.free(first)
    allocator.free(last)
    assert in_mib(allocator) == [[-5, 5, -10]]
    allocator.free(middle)
    assert in_mib(allocator) == [[-20]]


def test_a_handle_is_freed_once():
    allocator = Allocator(None)
    handle = allocator.malloc(512)
    allocator.free(handle)
    with pytest.raises(InputError, match="not allocated, or already freed"):
        allocator.free(handle)


@pytest.mark.parametrize(("size", "stream"), [(-1, 0), (512, -1)])
def test_no_request_is_negative(size, stream):
    with pytest.raises(InputError, match="at least 0"):
        Allocator(None).malloc(size, stream)


def test_empty_cache_gives_back_what_is_not_in_use():
    """`release_cached_blocks`, `release_blocks`: segments of which no part is live."""
    allocator = Allocator(None)
    small, large, whole = allocator.malloc(512), allocator.malloc(5 * MIB), allocator.malloc(50 * MIB)
    allocator.free(whole)
    allocator.empty_cache()
    assert allocator.reserved == 22 * MIB
    allocator.free(small)
    allocator.free(large)
    allocator.empty_cache()
    assert (allocator.reserved, allocator.peak_reserved, allocator.snapshot()) == (0, 72 * MIB, [])


def test_peaks_are_of_what_was_at_one_time():
    allocator = Allocator(None)
    allocator.free(allocator.malloc(30 * MIB))
    allocator.malloc(20 * MIB)
    assert (allocator.peak_allocated, allocator.peak_reserved) == (30 * MIB, 30 * MIB)
    allocator.reset_peaks()
    assert (allocator.peak_allocated, allocator.peak_reserved) == (20 * MIB, 30 * MIB)


# Where there is no room


def test_the_cache_is_emptied_before_memory_is_out():
    """`malloc`: release_cached_blocks and one retry."""
    allocator = Allocator(100 * MIB)
    allocator.free(allocator.malloc(40 * MIB))
    allocator.free(allocator.malloc(50 * MIB))
    allocator.malloc(60 * MIB)
    assert (allocator.reserved, allocator.peak_reserved) == (60 * MIB, 90 * MIB)
    assert (allocator.num_alloc_retries, allocator.num_ooms) == (1, 0)


def test_half_of_the_memory_twice():
    """test/test_cuda.py, test_out_of_memory_retry: the second half fails while the first is live, then fits."""
    total = 14_912 * MIB
    allocator = Allocator(total - 141 * MIB)  # the context is not the allocator's
    first = allocator.malloc(total // 2)
    with pytest.raises(OutOfMemory):
        allocator.malloc(total // 2)
    allocator.free(first)
    allocator.malloc(total // 2)
    assert (allocator.num_alloc_retries, allocator.num_ooms) == (1, 1)


def test_out_of_memory_says_what_was_missing():
    allocator = Allocator(100 * MIB)
    allocator.malloc(5 * MIB)
    allocator.free(allocator.malloc(16 * MIB))  # given back before memory is out
    allocator.malloc(50 * MIB)
    with pytest.raises(OutOfMemory) as caught:
        allocator.malloc(39 * MIB)
    error = caught.value
    assert isinstance(error, GradaccumError)
    assert (error.requested, error.segment, error.limit) == (39 * MIB, 40 * MIB, 100 * MIB)
    assert (error.allocated, error.reserved) == (55 * MIB, 70 * MIB)
    assert str(error) == (
        "a request of 39 MiB needs 40 MiB from the device, which has 30 MiB of 100 MiB left: 55 MiB are allocated and "
        "15 MiB are cached in segments that are partly in use"
    )


def test_segments_that_are_partly_in_use_cannot_be_given_back():
    """The fragmentation that empty_cache does not help against: 20 MiB held by 2."""
    allocator = Allocator(40 * MIB)
    fill = [allocator.malloc(2 * MIB) for _ in range(20)]
    for handle in fill[1:10] + fill[11:]:
        allocator.free(handle)
    assert (allocator.allocated, allocator.reserved) == (4 * MIB, 40 * MIB)
    with pytest.raises(OutOfMemory):
        allocator.malloc(20 * MIB)


def test_a_memory_fraction_is_a_limit_of_segments():
    """test/test_cuda.py, test_set_per_process_memory_fraction: 0.499 of the memory fits, 0.5 with a tensor does not."""
    total = 16 * GIB
    allocator = Allocator(total, Settings(per_process_memory_fraction=0.5))
    tensor = allocator.malloc(4096)
    allocator.empty_cache()
    allocator.free(allocator.malloc(int(total * 0.499) - allocator.peak_reserved))
    allocator.empty_cache()
    with pytest.raises(OutOfMemory) as caught:
        allocator.malloc(total // 2)
    assert caught.value.limit == total // 2
    allocator.free(tensor)


def test_a_fraction_needs_a_whole():
    with pytest.raises(InputError, match="endless device"):
        Allocator(None, Settings(per_process_memory_fraction=0.5))
    allocator = Allocator(None, Settings(per_process_memory_fraction=0.5), total_memory=4 * GIB)
    allocator.malloc(2 * GIB)
    with pytest.raises(OutOfMemory):
        allocator.malloc(512)


@pytest.mark.parametrize("given", [{"addresses": "upwards"}, {"ties": "size"}])
def test_an_unknown_order_is_refused(given):
    with pytest.raises(InputError, match="no order of blocks"):
        Allocator(None, **given)


@pytest.mark.parametrize("version", ["", "two", "2", "2.x"])
def test_a_version_that_is_none(version):
    with pytest.raises(InputError, match="no version"):
        ties_of(version)


# max_split_size_mb


def test_oversize_blocks_are_neither_split_nor_given_to_small_requests():
    """`should_split` and the first oversize rule of `get_free_block`."""
    allocator = Allocator(None, Settings(max_split_size_mb=40))
    allocator.free(allocator.malloc(50 * MIB))
    allocator.malloc(30 * MIB)
    assert in_mib(allocator) == [[-50], [30]]
    allocator.malloc(45 * MIB)
    assert in_mib(allocator) == [[50], [30]]


def test_an_oversize_request_wastes_no_more_than_the_rounding():
    """The second oversize rule: less than max_non_split_rounding_mb more than asked for."""
    allocator = Allocator(None, Settings(max_split_size_mb=40, max_non_split_rounding_mb=30))
    allocator.free(allocator.malloc(80 * MIB))
    allocator.malloc(50 * MIB)
    assert in_mib(allocator) == [[-80], [50]]
    allocator.malloc(50 * MIB + 512)
    assert in_mib(allocator) == [[80], [50]]


def test_one_oversize_segment_is_given_back_before_all_are():
    """`release_available_cached_blocks`: the smallest that is large enough, and no retry is counted."""
    allocator = Allocator(300 * MIB, Settings(max_split_size_mb=40))
    for handle in [allocator.malloc(size * MIB) for size in (50, 90, 100, 30)]:
        allocator.free(handle)
    allocator.malloc(52 * MIB)
    assert in_mib(allocator) == [[-50], [-100], [-30], [52]]
    assert allocator.num_alloc_retries == 0


def test_several_oversize_segments_are_given_back_largest_first():
    allocator = Allocator(300 * MIB, Settings(max_split_size_mb=40))
    for handle in [allocator.malloc(size * MIB) for size in (80, 90, 100, 30)]:
        allocator.free(handle)
    allocator.malloc(180 * MIB)
    assert in_mib(allocator) == [[-80], [-30], [180]]
    assert allocator.num_alloc_retries == 0


def test_oversize_segments_smaller_than_the_request_count_as_not_enough():
    """They are given back, and then the whole cache and a retry, though the device now has room."""
    allocator = Allocator(300 * MIB, Settings(max_split_size_mb=40))
    allocator.malloc(90 * MIB)
    for handle in [allocator.malloc(size * MIB) for size in (60, 50, 30)]:
        allocator.free(handle)
    allocator.malloc(170 * MIB)
    assert in_mib(allocator) == [[90], [170]]
    assert allocator.num_alloc_retries == 1


# garbage_collection_threshold


def test_garbage_is_what_was_not_used_for_long():
    """`garbage_collect_cached_blocks`: at least the average age, in searches of the large pool since it was freed."""
    settings = Settings(garbage_collection_threshold=0.56, per_process_memory_fraction=0.5)
    allocator = Allocator(400 * MIB, settings)

    def search():  # one that every block grows older by, whatever its stream
        allocator.free(allocator.malloc(20 * MIB, stream=1))

    allocator.malloc(512)
    old, middle, new = (allocator.malloc(size * MIB) for size in (30, 40, 50))
    search()
    allocator.free(old)
    search()
    for _ in range(20):
        allocator.malloc(512)  # a search of the small pool, which does not count
    allocator.free(middle)
    search()
    allocator.free(new)
    assert in_mib(allocator)[1:] == [[-30], [-40], [-50], [-20]]
    # Of 142 MiB reserved 112 may stay. The ages are 3, 2, 1 and 1, on average 1.75, so that the first two go.
    allocator.malloc(60 * MIB)
    assert in_mib(allocator)[1:] == [[-50], [-20], [60]]
    assert allocator.num_alloc_retries == 0


def test_garbage_is_collected_above_the_threshold_and_under_a_fraction_alone():
    for fraction, threshold in ((0.5, 0.9), (1.0, 0.1)):
        settings = Settings(garbage_collection_threshold=threshold, per_process_memory_fraction=fraction)
        allocator = Allocator(400 * MIB, settings)
        allocator.free(allocator.malloc(60 * MIB))
        allocator.malloc(80 * MIB)
        assert allocator.reserved == 140 * MIB


# Expandable segments


def test_pages_are_mapped_as_they_are_needed():
    """`map_block`: 20 MiB at a time in the large pool, 2 MiB in the small one; any rest is split off."""
    allocator = Allocator(10 * GIB, Settings(expandable_segments=True))
    allocator.malloc(30 * MIB)
    assert in_mib(allocator) == [[30, -10]]
    allocator.malloc(15 * MIB)
    allocator.malloc(5000)
    assert sorted(in_mib(allocator)) == [[5120 / MIB, -2 + 5120 / MIB], [30, 15, -15]]
    assert allocator.reserved == 62 * MIB


def test_one_segment_grows_where_several_would_be_left_in_pieces():
    """`Note [Expandable Segments]`: sizes that grow from step to step."""
    reserved = {}
    for expandable in (False, True):
        allocator = Allocator(10 * GIB, Settings(expandable_segments=expandable))
        for step in range(8):
            handles = [allocator.malloc((40 + 3 * step) * MIB) for _ in range(4)]
            for handle in handles:
                allocator.free(handle)
        reserved[expandable] = allocator.reserved // MIB
    assert reserved == {False: 4 * sum(range(40, 64, 3)) + 4 * 4, True: 260}


def test_pages_in_the_middle_can_be_given_back():
    """`unmap_block`: whole pages; what shares a page with a live block stays."""
    allocator = Allocator(10 * GIB, Settings(expandable_segments=True))
    first, middle, last = (allocator.malloc(size * MIB) for size in (30, 60, 30))
    allocator.free(middle)
    allocator.empty_cache()
    assert in_mib(allocator) == [[30, -10], [-10, 30]]
    assert allocator.reserved == 80 * MIB
    allocator.malloc(60 * MIB)  # into the same gap
    assert in_mib(allocator) == [[30, 60, 30]]
    allocator.free(first)
    allocator.free(last)


def test_a_gap_and_the_free_block_behind_it_serve_one_request():
    """`try_allocate_expandable_block`: the gap is mapped, and no more than it; the free block merges in."""
    allocator = Allocator(10 * GIB, Settings(expandable_segments=True))
    handles = [allocator.malloc(size * MIB) for size in (20, 40, 40, 20)]
    allocator.free(handles[1])
    allocator.empty_cache()
    allocator.free(handles[2])
    assert in_mib(allocator) == [[20], [-40, 20]]
    allocator.malloc(60 * MIB)
    assert in_mib(allocator) == [[20, 60, -20, 20]]


def test_a_segment_without_pages_is_given_up():
    """`release_expandable_segment`."""
    allocator = Allocator(10 * GIB, Settings(expandable_segments=True))
    allocator.free(allocator.malloc(30 * MIB))
    allocator.empty_cache()
    assert (allocator.reserved, allocator.snapshot()) == (0, [])
    allocator.malloc(30 * MIB)
    assert in_mib(allocator) == [[30, -10]]


def test_a_block_that_cannot_grow_is_used_first():
    """`get_free_block`: the block before unmapped addresses counts as large as it could grow."""
    allocator = Allocator(10 * GIB, Settings(expandable_segments=True))
    first = allocator.malloc(30 * MIB)
    allocator.malloc(25 * MIB)
    last = allocator.malloc(25 * MIB)
    allocator.free(first)
    allocator.free(last)
    assert in_mib(allocator) == [[-30, 25, -25]]
    allocator.malloc(20 * MIB)
    assert in_mib(allocator) == [[20, -10, 25, -25]]


def test_pages_that_were_mapped_before_one_failed_stay():
    """`try_allocate_expandable_block`, and release_cached_blocks before the retry."""
    allocator = Allocator(100 * MIB, Settings(expandable_segments=True))
    allocator.malloc(50 * MIB)
    with pytest.raises(OutOfMemory):
        allocator.malloc(60 * MIB)
    assert in_mib(allocator) == [[50, -10]]
    allocator.malloc(50 * MIB)
    assert allocator.reserved == 100 * MIB
    assert (allocator.num_alloc_retries, allocator.num_ooms) == (1, 1)


# What there is


def test_a_snapshot_names_things_as_torch_does():
    allocator = Allocator(None)
    kept = allocator.malloc(1000, stream=3)
    (segment,) = allocator.snapshot()
    start = address(allocator, kept)
    assert segment == {
        "address": start,
        "total_size": 2 * MIB,
        "allocated_size": 1024,
        "stream": 3,
        "segment_type": "small",
        "blocks": [
            {"address": start, "size": 1024, "requested_size": 1000, "state": "active_allocated"},
            {"address": start + 1024, "size": 2 * MIB - 1024, "requested_size": 0, "state": "inactive"},
        ],
    }
