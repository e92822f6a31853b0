"""What the settings' text means, and the sizes that follow, each from the source that its test names."""

from __future__ import annotations

import pytest

from gradaccum import InputError
from gradaccum.memory.allocator_settings import (
    UNLIMITED,
    Settings,
    block_limit,
    divisions_at,
    is_small,
    least_remainder,
    next_division,
    round_size,
    segment_size,
)

MIB = 2**20
DEFAULT = Settings()


def wrong(text):
    with pytest.raises(InputError) as caught:
        Settings.parse(text)
    return {problem.field: problem for problem in caught.value.problems}


# Reading


def test_no_text_is_pytorchs_defaults():
    assert Settings.parse("") == DEFAULT
    assert (DEFAULT.max_split_size, DEFAULT.large_segment_size, DEFAULT.max_non_split_rounding) == (
        UNLIMITED,
        20 * MIB,
        20 * MIB,
    )


def test_the_example_of_pytorchs_own_test():
    """c10/test/core/AllocatorConfig_test.cpp, allocator_config_test, with its expectations."""
    settings = Settings.parse(
        "max_split_size_mb:40,max_non_split_rounding_mb:30,garbage_collection_threshold:0.5,"
        "roundup_power2_divisions:[64:8,128:2,256:4,512:2,1024:4,>:1],expandable_segments:True,"
        "pinned_use_background_threads:True"
    )
    assert settings.max_split_size == 40 * MIB
    assert settings.max_non_split_rounding == 30 * MIB
    assert settings.large_segment_size == 20 * MIB
    assert settings.garbage_collection_threshold == 0.5
    assert settings.expandable_segments is True
    expected = {32: 8, 64: 8, 128: 2, 256: 4, 512: 2, 1024: 4, 2048: 1, 4096: 1, 8192: 1}
    assert {size: divisions_at(size * MIB, settings) for size in expected} == expected


def test_white_space_and_a_last_comma_do_not_count():
    assert Settings.parse(" expandable_segments : True ,\tmax_split_size_mb:40, ") == Settings(
        expandable_segments=True, max_split_size_mb=40
    )


def test_one_number_of_divisions_is_for_all_sizes():
    assert Settings.parse("roundup_power2_divisions:4").roundup_power2_divisions == (4,) * 16


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("[]", [0] * 16),
        # An entry holds from its size on up to twice that; sizes that no entry names are not rounded.
        ("[256:1,1024:4]", [1] * 9 + [0, 4] + [0] * 5),
        ("[256:0,512:2,>:8]", [0] * 9 + [2] + [8] * 6),
        # `>` alone leaves the first interval as it is: PyTorch counts from last_index + 1.
        ("[>:8]", [0] + [8] * 15),
        ("[131072:8]", [8] * 16),
    ],
)
def test_a_list_of_divisions(text, table):
    """AllocatorConfig.cpp, parseRoundUpPower2Divisions."""
    assert list(Settings.parse(f"roundup_power2_divisions:{text}").roundup_power2_divisions) == table


def test_the_order_of_options_does_not_matter():
    """AllocatorConfig.cpp, parseArgs: large_segment_size_mb is read first, and is the default of the rounding."""
    settings = Settings.parse("max_split_size_mb:64,large_segment_size_mb:64")
    assert settings.max_non_split_rounding == settings.max_split_size == 64 * MIB


def test_options_without_a_size_are_left_out():
    assert Settings.parse("backend:native,pinned_num_register_threads:8,throw_on_cudamalloc_oom:False") == DEFAULT


@pytest.mark.parametrize(
    ("text", "field", "nearest"),
    [
        ("expandable_segments:true", "expandable_segments", ("True",)),
        ("expandable_segments:1", "expandable_segments", ("True", "False")),
        ("expandable_segment:True", "expandable_segment", ("expandable_segments",)),
        ("foo:1", "foo", ()),
        ("max_split_size_mb:19", "max_split_size_mb", ("20",)),
        ("large_segment_size_mb:32,max_split_size_mb:20", "max_split_size_mb", ("32",)),
        ("max_non_split_rounding_mb:19", "max_non_split_rounding_mb", ("20",)),
        ("max_split_size_mb:40.5", "max_split_size_mb", ()),
        ("large_segment_size_mb:10", "large_segment_size_mb", ("20",)),
        ("garbage_collection_threshold:0", "garbage_collection_threshold", ("0.8",)),
        ("garbage_collection_threshold:1", "garbage_collection_threshold", ("0.8",)),
        ("garbage_collection_threshold:nan", "garbage_collection_threshold", ("0.8",)),
        ("garbage_collection_threshold:high", "garbage_collection_threshold", ()),
        ("per_process_memory_fraction:1.5", "per_process_memory_fraction", ("1.0",)),
        ("roundup_power2_divisions:0", "roundup_power2_divisions", ("1", "2", "4")),
        ("roundup_power2_divisions:6", "roundup_power2_divisions", ("4", "8")),
        ("roundup_power2_divisions:[3:4]", "roundup_power2_divisions", ("2", "4")),
        ("roundup_power2_divisions:[4:1", "roundup_power2_divisions", ("[4:1]",)),
        ("backend:cudaMallocAsync", "backend", ("native",)),
        ("throw_on_cudamalloc_oom:True", "throw_on_cudamalloc_oom", ("False",)),
        ("max_split_size_mb", "", ("expandable_segments:True",)),
        (":5", "", ("expandable_segments:True",)),
        (",expandable_segments:True", "", ("expandable_segments:True",)),
    ],
)
def test_wrong_text_names_the_option_and_what_is_near(text, field, nearest):
    found = wrong(text)
    assert list(found) == [field]
    assert found[field].nearest == nearest


def test_every_wrong_option_is_named():
    assert set(wrong("expandable_segments:yes,foo:1,max_split_size_mb:x")) == {
        "expandable_segments",
        "foo",
        "max_split_size_mb",
    }


def test_fields_given_directly_are_checked_too():
    with pytest.raises(InputError, match="must be 16 powers of two"):
        Settings(roundup_power2_divisions=(3,) * 16)


# Sizes


@pytest.mark.parametrize(
    ("size", "block"),
    [(1, 512), (511, 512), (512, 512), (513, 1024), (MIB, MIB), (MIB + 1, MIB + 512), (3_000_000, 3_000_320)],
)
def test_a_block_is_a_multiple_of_512_bytes(size, block):
    """`round_size`, kMinBlockSize."""
    assert round_size(size, DEFAULT) == block


@pytest.mark.parametrize(
    ("size", "divisions", "rounded"),
    [
        # "the size 1200 lies between 1024 and 2048 and if we do 4 divisions between them, the values are 1024, 1280,
        # 1536, and 1792. So the function will return 1280": the comment at roundup_power2_next_division.
        (1200, 4, 1280),
        (1280, 4, 1280),
        (1281, 4, 1536),
        (1793, 4, 2048),
        (2048, 4, 2048),
        (1025, 1024, 1025),
        (3, 4, 4),
    ],
)
def test_steps_between_powers_of_two(size, divisions, rounded):
    assert next_division(size, divisions) == rounded


def test_divisions_hold_from_512_bytes_times_their_number_on():
    """`round_size`: size > kMinBlockSize * divisions."""
    settings = Settings.parse("roundup_power2_divisions:4")
    assert round_size(1200, settings) == 1536  # the next multiple of 512
    assert round_size(2049, settings) == 2560
    assert round_size(33 * MIB, settings) == 40 * MIB


@pytest.mark.parametrize(
    ("block", "small", "segment"),
    [
        (512, True, 2 * MIB),
        (MIB, True, 2 * MIB),
        (MIB + 512, False, 20 * MIB),
        (10 * MIB - 512, False, 20 * MIB),
        (10 * MIB, False, 10 * MIB),
        (10 * MIB + 512, False, 12 * MIB),
        (101 * MIB, False, 102 * MIB),
    ],
)
def test_pools_and_segments(block, small, segment):
    """`get_pool` and `get_allocation_size`."""
    assert is_small(block) is small
    assert segment_size(block, DEFAULT) == segment


def test_the_large_segment_may_be_set():
    assert segment_size(2 * MIB, Settings(large_segment_size_mb=64)) == 64 * MIB


def test_what_must_be_left_over_for_a_split():
    """`should_split`."""
    limited = Settings(max_split_size_mb=40)
    assert least_remainder(MIB, DEFAULT) == 512
    assert least_remainder(2 * MIB, DEFAULT) == MIB + 1
    assert least_remainder(2 * MIB, Settings(expandable_segments=True)) == 512
    assert least_remainder(40 * MIB - 512, limited) == MIB + 1
    assert least_remainder(40 * MIB, limited) == UNLIMITED


def test_which_blocks_are_too_large_for_a_request():
    """The two oversize rules of `get_free_block`."""
    limited = Settings(max_split_size_mb=40, max_non_split_rounding_mb=30)
    assert block_limit(40 * MIB - 512, limited) == 40 * MIB
    assert block_limit(40 * MIB, limited) == 70 * MIB
    assert block_limit(2**40, DEFAULT) == UNLIMITED
