"""What would bring the peak down at the same micro-batch, each change with the bytes that the closed form gives it.

Where the micro-batch fits, most bytes come first. Where nothing fits, also what changes the result or needs more GPUs,
and first what makes it fit: the smallest change of the result first, and two together where none suffices alone.
"""

from __future__ import annotations

from gradaccum.errors import InputError
from gradaccum.memory.answer import Change
from gradaccum.memory.lora import DEFAULTS
from gradaccum.memory.loss import CHUNKS
from gradaccum.memory.ranks import lighter_layouts
from gradaccum.units import show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gradaccum.memory.answer import Memory
    from gradaccum.memory.setup import Setup

    Candidate = tuple[int, dict[str, object], str]

SAME, MORE_GPUS, NUMERICS, ADAPTERS, QUANTISED = range(5)
"""How much of the result a change touches, least first: nothing on these GPUs, nothing on more of them, the types of
numbers, what is trained, and the model's own weights."""

RANK = 16
"""Of the adapters that are proposed, as in the examples of PEFT's documentation."""

GPUS = (2, 4, 8, 16, 32, 64, 128)
"""Times as many GPUs: so many are looked at."""

OUTDONE = {"selective", "chunked"}
"""Words that another of the same field outdoes in bytes: these are told alone, and tried in no pair."""

MOST = 2
"""Pairs of changes that are told, of those that touch the same."""

PAIRED = 6
"""Changes that are tried in pairs, those that buy most: an answer has to come while a person types."""


def changes(setup: Setup, memory: Memory, at: Callable[[Setup], Memory]) -> tuple[Change, ...]:
    """The changes of this setup, whose memory is given. at: the memory of another one on the same card."""
    plain = [*_plain(setup), *[(SAME, *each) for each in lighter_layouts(setup)]]
    if memory.process_bytes <= memory.capacity_bytes:
        found = [change for _, change in _tried(plain, setup, memory, at)]
        return tuple(sorted(found, key=lambda change: -change.bytes))
    singles = [*plain, *_of_the_result(setup)]
    more = [_shared(setup, times) for times in GPUS]
    tried = [*_tried(singles, setup, memory, at), *_first_that_fits(more, setup, memory, at)]
    alone = [change for _, change in tried if change.fits]
    if not any(change.fits and touches != MORE_GPUS for touches, change in tried):
        pairs = _pairs(_strongest(singles, tried), more, setup, memory, at)
        tried += [each for each in pairs if not any(set(one.values) <= set(each[1].values) for one in alone)]
    enough = sorted([each for each in tried if each[1].fits], key=_least_first)
    others = sorted([each for each in tried if not each[1].fits], key=lambda each: -each[1].bytes)
    return tuple([change for _, change in (*enough, *others)])


def _strongest(singles: list[Candidate], tried: list[tuple[int, Change]]) -> list[Candidate]:
    """Those that buy most alone, in their order, without those that another of the same field outdoes."""
    bought = {change.values: change.bytes for _, change in tried}
    strong = [each for each in singles if not OUTDONE.intersection(map(str, each[1].values()))]
    most = sorted(strong, key=lambda each: -bought.get(tuple(each[1].items()), 0))[:PAIRED]
    return [each for each in strong if each in most]


def _tried(
    candidates: list[Candidate], setup: Setup, memory: Memory, at: Callable[[Setup], Memory]
) -> list[tuple[int, Change]]:
    """Those that can be had and save something, each with what it touches."""
    found = []
    for touches, values, words in candidates:
        try:
            other = at(setup.with_values(values))
        except InputError:
            continue  # it does not go with the rest of the setup
        saved = memory.peak_bytes - other.peak_bytes
        if saved > 0:
            fits = other.process_bytes <= other.capacity_bytes
            found.append((touches, Change(words, saved, tuple(values.items()), fits)))
    return found


def _first_that_fits(
    candidates: list[Candidate], setup: Setup, memory: Memory, at: Callable[[Setup], Memory]
) -> list[tuple[int, Change]]:
    """Of more and more GPUs the fewest that suffice; the most where none do."""
    enough = _tried(candidates[-1:], setup, memory, at)
    few, many = -1, len(candidates) - 1
    while enough and enough[0][1].fits and many - few > 1:
        middle = (few + many) // 2
        fewer = _tried([candidates[middle]], setup, memory, at)
        if fewer and fewer[0][1].fits:
            enough, many = fewer, middle
        else:
            few = middle
    return enough


def _pairs(
    singles: list[Candidate], more: list[Candidate], setup: Setup, memory: Memory, at: Callable[[Setup], Memory]
) -> list[tuple[int, Change]]:
    """Two changes together that make it fit, those that touch least; where none do, the two that buy most."""
    found = []
    for place, one in enumerate(singles):
        others = [each for each in singles[place + 1 :] if not set(each[1]).intersection(one[1])]
        found += _tried([_together(one, other) for other in others], setup, memory, at)
        if place < PAIRED // 2 and not set(one[1]).intersection(more[0][1]):
            found += _first_that_fits([_together(one, other) for other in more], setup, memory, at)
    fitting: list[tuple[int, Change]] = []
    for each in sorted(found, key=_least_first):
        if each[1].fits and sum([other[0] == each[0] for other in fitting]) < MOST:
            fitting.append(each)
    return fitting or sorted(found, key=lambda each: -each[1].bytes)[:1]


def _least_first(each: tuple[int, Change]) -> tuple[int, int, int]:
    """By what it touches, the GPUs that it takes, and then most bytes."""
    touches, change = each
    gpus = [value for name, value in change.values if name == "num_gpus"]
    return touches, int(str(gpus[0])) if gpus else 0, -change.bytes


def _together(one: Candidate, other: Candidate) -> Candidate:
    return max(one[0], other[0]), {**one[1], **other[1]}, f"{_short(one[2])}, and {_short(other[2])}"


def _short(words: str) -> str:
    return words.partition(":")[0]


# What can be changed


def _plain(setup: Setup) -> Iterator[Candidate]:
    """How the same step is calculated."""
    options = [
        (SAME, "checkpointing", "full", "full checkpointing: about a third more compute"),
        (
            SAME,
            "checkpointing",
            "selective",
            "selective checkpointing: attention and every other product are not run again",
        ),
        (SAME, "attention", "flash", "a fused attention kernel"),
        (SAME, "attention", "efficient", "the memory-efficient attention kernel, keys and values repeated"),
        (SAME, "optimizer", "adamw-fused", "fused AdamW: no temporary"),
        (NUMERICS, "optimizer", "adamw-8bit", "8-bit AdamW states"),
        (NUMERICS, "gradient_dtype", "auto", "gradients summed in the weights' type"),
    ]
    if setup.model.head == "lm":
        options.append((SAME, "loss", "chunked", f"loss in {CHUNKS} chunks of tokens"))
        options.append((SAME, "loss", "fused", "head and loss in one kernel, as Liger's"))
    for touches, name, word, words in options:
        if getattr(setup, name) != word and (name != "optimizer" or setup.optimizer.startswith("adamw")):
            yield touches, {name: word}, words


def _of_the_result(setup: Setup) -> Iterator[Candidate]:
    """What changes numbers, or what is trained."""
    if setup.dtype not in ("bf16", "fp16") and setup.quantization == "none":
        yield (
            NUMERICS,
            {"dtype": "bf16"},
            "bf16: weights, gradients and states in 16 bits, which round small updates away",
        )
    targets = setup.lora_targets if setup.lora_rank or setup.model.family in DEFAULTS else "attention"
    adapters: dict[str, object] = {"lora_rank": setup.lora_rank or RANK, "lora_targets": targets}
    if not setup.lora_rank:
        yield ADAPTERS, adapters, f"LoRA of rank {RANK}: adapters are trained, the model is frozen"
    lighter = {"none": "nf4", "int8": "nf4", "nf4": "nf4-double"}.get(setup.quantization)
    if lighter:
        rank = show_count(setup.lora_rank or RANK)
        words = f"{lighter} weights with LoRA of rank {rank}: the frozen model in 4 bits"
        yield QUANTISED, {**adapters, "quantization": lighter}, words


def _shared(setup: Setup, times: int) -> Candidate:
    """More GPUs that share weights, gradients and states."""
    count = times * setup.num_gpus
    values: dict[str, object] = {"num_gpus": count}
    if setup.strategy in ("single", "ddp"):
        values["strategy"] = "fsdp2"
        values["distributed_optimizer"] = values["gradient_as_bucket_view"] = False
    strategy = values.get("strategy", setup.strategy)
    what = ": weights, gradients and states shared" if strategy in ("fsdp2", "zero3") else ""
    return MORE_GPUS, values, f"{strategy} over {show_count(count)} GPUs{what}"
