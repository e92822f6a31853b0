"""What PYTORCH_ALLOC_CONF says, and the sizes that follow from it: a request, its block, its segment.

The rules are those of PyTorch: c10/core/AllocatorConfig.cpp (the settings; lines of main in spring 2026) and
c10/cuda/CUDACachingAllocator.cpp (the sizes; by function). All sizes are bytes, fields that end in `_mb` MiB.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from gradaccum.errors import InputError, Problem, nearest_words
from gradaccum.units import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 2**20
MIN_BLOCK = 512
"""Every block is a multiple of this (kMinBlockSize)."""
MAX_SMALL = 1 * MIB
"""The largest block of the small pool (kSmallSize)."""
SMALL_SEGMENT = 2 * MIB
"""What the small pool asks the device for (kSmallBuffer)."""
MIN_OWN_SEGMENT = 10 * MIB
"""From this size on a request gets a segment of its own (kMinLargeAlloc) ..."""
SEGMENT_STEP = 2 * MIB
"""... of a multiple of this (kRoundLarge)."""
UNLIMITED = 2**64 - 1
"""std::numeric_limits<size_t>::max(): no block is that large."""

INTERVALS = 16
"""roundup_power2_divisions has a number for sizes up to 2 MiB, 4, 8, ... and one for all from 32 GiB on."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that decide sizes and reuse; the defaults are PyTorch's. InputError names every wrong one.

    max_split_size_mb: no block of this size or more is split; None is no limit.
    max_non_split_rounding_mb: how much larger such a block may be than the request that takes it; None is
        large_segment_size_mb.
    large_segment_size_mb: the segment of a request over 1 MiB and below 10 MiB, and the page of an expandable
        segment in the large pool (since PyTorch 2.11; 20 before).
    roundup_power2_divisions: one number for each interval of sizes; 0 and 1 round to 512 bytes as usual.
    garbage_collection_threshold: a share of the allowed memory, 0 to 1; 0 is off. Without a memory fraction below 1
        it does nothing.
    per_process_memory_fraction: as torch.cuda.set_per_process_memory_fraction; a share of the device's memory.
    """

    expandable_segments: bool = False
    max_split_size_mb: int | None = None
    max_non_split_rounding_mb: int | None = None
    large_segment_size_mb: int = 20
    roundup_power2_divisions: tuple[int, ...] = (0,) * INTERVALS
    garbage_collection_threshold: float = 0.0
    per_process_memory_fraction: float = 1.0

    def __post_init__(self) -> None:
        if wrong := [*_out_of_range(self)]:
            raise InputError(*wrong)

    @classmethod
    def parse(cls, text: str) -> Settings:
        """The settings of `expandable_segments:True,max_split_size_mb:128`: the syntax of PYTORCH_ALLOC_CONF.

        Options of pinned host memory and of locks are left out unread: no size depends on them. InputError where
        PyTorch refuses the text, where it would read only the first digits of a number, and for what would need
        another model of the allocator.
        """
        given: dict[str, object] = {}
        wrong: list[Problem] = []
        for option in _options(text):
            try:
                name, value = _pair(option)
                if read := _READERS.get(name):
                    given[name] = read(name, value)
                elif name not in _IGNORED:
                    raise InputError(_unknown(name))
            except InputError as error:
                wrong += error.problems
        if wrong:
            raise InputError(*wrong)
        fields = {field.name for field in dataclasses.fields(cls)}
        # Each reader gives what its field holds.
        return cls(**{name: value for name, value in given.items() if name in fields})  # type: ignore[arg-type]

    @property
    def max_split_size(self) -> int:
        """Bytes; UNLIMITED where no limit is set."""
        return UNLIMITED if self.max_split_size_mb is None else self.max_split_size_mb * MIB

    @property
    def max_non_split_rounding(self) -> int:
        """Bytes. AllocatorConfig.cpp 263: its default is the large segment."""
        rounding = self.max_non_split_rounding_mb
        return self.large_segment_size if rounding is None else rounding * MIB

    @property
    def large_segment_size(self) -> int:
        """Bytes."""
        return self.large_segment_size_mb * MIB


# The sizes


def round_size(size: int, settings: Settings) -> int:
    """The block that a request needs: a multiple of 512 bytes, or a step between powers of two. `round_size`"""
    if size < MIN_BLOCK:
        return MIN_BLOCK
    divisions = divisions_at(size, settings)
    if divisions > 1 and size > MIN_BLOCK * divisions:
        return next_division(size, divisions)
    return -(-size // MIN_BLOCK) * MIN_BLOCK


def divisions_at(size: int, settings: Settings) -> int:
    """Into how many steps the powers of two around a size are divided (AllocatorConfig.cpp 65-81)."""
    interval = size.bit_length() - 1 - 20  # 2**20: the first interval is everything below 2 MiB
    return settings.roundup_power2_divisions[min(max(interval, 0), INTERVALS - 1)]


def next_division(size: int, divisions: int) -> int:
    """A size rounded up to a step between powers of two (`roundup_power2_next_division`).

    With 4 divisions the steps after 1024 are 1280, 1536, 1792: 1200 becomes 1280.
    """
    power = 1 << (size.bit_length() - 1)
    step = power >> (divisions.bit_length() - 1)
    return -(-size // step) * step if step else power << 1


def is_small(block: int) -> bool:
    """Whether a block of this size lives in the small pool (`get_pool`)."""
    return block <= MAX_SMALL


def segment_size(block: int, settings: Settings) -> int:
    """What the device is asked for where no free block fits (`get_allocation_size`): 2 MiB, 20 MiB, or its own size."""
    if is_small(block):
        return SMALL_SEGMENT
    if block < MIN_OWN_SEGMENT:
        return settings.large_segment_size
    return -(-block // SEGMENT_STEP) * SEGMENT_STEP


def least_remainder(block: int, settings: Settings) -> int:
    """How much has to be left over for a block to be split (`should_split`); otherwise all of it counts as allocated.

    512 bytes in the small pool and in expandable segments, more than 1 MiB in the large pool; an oversize request
    never splits.
    """
    if is_small(block) or settings.expandable_segments:
        return MIN_BLOCK
    return MAX_SMALL + 1 if block < settings.max_split_size else UNLIMITED


def block_limit(block: int, settings: Settings) -> int:
    """Only free blocks smaller than this serve a request (the end of `get_free_block`).

    An oversize block serves no request below max_split_size, and a larger one only where little of it is wasted.
    """
    limit = settings.max_split_size
    return limit if block < limit else block + settings.max_non_split_rounding


# Reading the text


def _options(text: str) -> list[str]:
    """The text at its commas; white space counts nowhere, and a list in brackets stays whole. `ConfigTokenizer`"""
    options = re.split(r",(?![^\[]*\])", re.sub(r"\s", "", text))
    return options[:-1] if options[-1] == "" else options


def _pair(option: str) -> tuple[str, str]:
    name, _, value = option.partition(":")
    if not (name and value):
        example = ("expandable_segments:True",)
        raise InputError(Problem("", f"{quote(option)} is no option: one is written name:value", example))
    return name, value


def _number(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise InputError(Problem(name, f"must be a whole number of MiB, not {quote(value)}"))
    return int(value)


def _real(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(Problem(name, f"must be a number between 0 and 1, not {quote(value)}")) from None


def _threshold(name: str, value: str) -> float:
    if (share := _real(name, value)) == 0:
        raise InputError(Problem(name, "must be more than 0; leave it out for none", ("0.8",)))
    return share


def _truth(name: str, value: str) -> bool:
    if value not in ("True", "False"):
        near = [word for word in ("True", "False") if word.lower() == value.lower()] or ["True", "False"]
        raise InputError(Problem(name, f"PyTorch reads True or False here, with a capital, not {quote(value)}", near))
    return value == "True"


def _divisions(name: str, value: str) -> tuple[int, ...]:
    """AllocatorConfig.cpp 155-221. One number for all sizes, or a list such as [256:1,512:2,1024:4,>:8].

    An entry of a list is for sizes from its MiB on up to twice that; what lies before the first entry gets that
    entry's number, what lies between two entries none, and `>` is everything after the last one (and, in PyTorch 2.6,
    the last one too).
    """
    if not value.startswith("["):
        return (_power(name, value, "the number of divisions"),) * INTERVALS
    if not value.endswith("]"):
        raise InputError(Problem(name, f"the list {quote(value)} has no end", (value + "]",)))
    table = [0] * INTERVALS
    last = -1
    for entry in filter(None, value[1:-1].split(",")):
        bound, _, count = entry.partition(":")
        divisions = 0 if count == "0" else _power(name, count, "the number of divisions, or 0,")
        if bound == ">":
            first = max(last, 0) + 1  # PyTorch's own last_index starts at 0
            table[first:] = [divisions] * (INTERVALS - first)
            continue
        at = min(_power(name, bound, "the size in MiB").bit_length() - 1, INTERVALS - 1)
        if last < 0:
            table[:at] = [divisions] * at
        table[at] = divisions
        last = at
    return tuple(table)


def _power(name: str, value: str, what: str) -> int:
    number = int(value) if re.fullmatch(r"[0-9]{1,18}", value) else 0
    if number < 1 or number & (number - 1):
        below = 1 << max(number.bit_length() - 1, 0)
        near = (str(below), str(2 * below)) if number else ("1", "2", "4")
        raise InputError(Problem(name, f"{what} must be a power of two, not {quote(value)}", near))
    return number


def _backend(name: str, value: str) -> str:
    if value != "native":
        raise InputError(Problem(name, f"only PyTorch's own allocator is modelled, not {quote(value)}", ("native",)))
    return value


def _no_rejection(name: str, value: str) -> bool:
    if _truth(name, value):
        raise InputError(Problem(name, "requests refused before the cache is emptied are not modelled", ("False",)))
    return False


_READERS: dict[str, Callable[[str, str], object]] = {
    "expandable_segments": _truth,
    "max_split_size_mb": _number,
    "max_non_split_rounding_mb": _number,
    "large_segment_size_mb": _number,
    "roundup_power2_divisions": _divisions,
    "garbage_collection_threshold": _threshold,
    "per_process_memory_fraction": _real,
    "backend": _backend,
    "throw_on_cudamalloc_oom": _no_rejection,
}

# Host memory, locks and graph capture: no block of the device is larger or smaller for them.
_IGNORED = frozenset(
    """
    pinned_use_background_threads pinned_max_round_threshold_mb pinned_max_cached_size_mb pinned_num_register_threads
    pinned_use_cuda_host_register pinned_use_hip_host_register pinned_reserve_segment_size_mb pinned_free_catch_all
    release_lock_on_cudamalloc release_lock_on_hipmalloc graph_capture_record_stream_reuse
    """.split()
)


def _unknown(name: str) -> Problem:
    near = nearest_words(name, [*_READERS, *_IGNORED])
    return Problem(name, "PyTorch knows no such option", near)


def _out_of_range(settings: Settings) -> Iterator[Problem]:
    """AllocatorConfig.cpp 83-153 and CUDAAllocatorConfig.cpp, parsePerProcessMemoryFraction."""
    large = settings.large_segment_size_mb
    if large <= 10:
        yield Problem("large_segment_size_mb", f"must be more than 10, not {large}", ("20",))
    for name in ("max_split_size_mb", "max_non_split_rounding_mb"):
        value = getattr(settings, name)
        if value is not None and value < large:
            yield Problem(name, f"must be at least the large segment of {large} MiB, not {value}", (str(large),))
    threshold = settings.garbage_collection_threshold
    if not 0 <= threshold < 1:
        yield Problem("garbage_collection_threshold", f"must be between 0 and 1, not {threshold}", ("0.8",))
    fraction = settings.per_process_memory_fraction
    if not 0 <= fraction <= 1:
        yield Problem("per_process_memory_fraction", f"must be between 0 and 1, not {fraction}", ("1.0",))
    divisions = settings.roundup_power2_divisions
    if len(divisions) != INTERVALS or any(each < 0 or each & (each - 1) for each in divisions):
        yield Problem("roundup_power2_divisions", f"must be {INTERVALS} powers of two or zeros, not {divisions}")
