"""What to know about a fit by a trace: what it could not see, what it took for granted, where the engines differ."""

from __future__ import annotations

from gradaccum.core.findings import Finding
from gradaccum.units import show_bytes, show_count, show_percent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradaccum.memory.answer import Engine, Memory

MOST_NAMED = 4
"""Operators or values that one finding names."""


def trace_remarks(
    memory: Memory,
    engines: Sequence[Engine],
    unknown: Sequence[tuple[str, str, str]],
    assumed: Sequence[tuple[str, str, str]],
    doubts: Sequence[str],
) -> tuple[Finding, ...]:
    """The findings, warnings first. unknown, assumed: operator, module and words. doubts: sentences about a resized
    sample batch.
    """
    return (*_unknown(memory, unknown), *_apart(memory, engines), *_assumed(assumed), *_doubts(doubts))


def _unknown(memory: Memory, unknown: Sequence[tuple[str, str, str]]) -> Iterator[Finding]:
    if not unknown:
        return
    ops: dict[str, list[str]] = {}
    modules: dict[str, list[str]] = {}
    for op, module, what in unknown:
        ops.setdefault(what, []).append(op)
        modules.setdefault(what, []).append(module or "the step itself")
    named = [f"{' and '.join(dict.fromkeys(ops[what]))} in {_several(modules[what])} ({what})" for what in ops]
    more = sum(each.high for each in memory.outside if each.expected == 0 < each.high)
    bound = f" Up to {show_bytes(more)} more may be allocated; the worst case counts them." if more else ""
    yield Finding(
        "GA026",
        "warning",
        f"The trace does not follow {'; '.join(named[:MOST_NAMED])}{_rest(named)}.{bound}",
        "Try the micro-batch with a short run of two updates.",
        "torch/trace/kernels.py and answers.py name these operators, torch/trace/unseen.py bounds them",
    )


def _several(modules: Sequence[str]) -> str:
    different = sorted(set(modules))
    return different[0] if len(different) == 1 else f"{show_count(len(different))} modules such as {different[0]}"


def _rest(named: Sequence[str]) -> str:
    return f"; and {show_count(len(named) - MOST_NAMED)} more" if len(named) > MOST_NAMED else ""


def _apart(memory: Memory, engines: Sequence[Engine]) -> Iterator[Finding]:
    if len(engines) < 2:
        return
    one, other = engines
    apart = abs(other.peak_bytes - one.peak_bytes)
    if 100 * apart > memory.evidence.margin * one.peak_bytes:
        yield Finding(
            "GA028",
            "warning",
            f"The engines are {show_bytes(apart)} apart ({show_percent(apart, one.peak_bytes)}%): {one.name} says "
            f"{show_bytes(one.peak_bytes)}, {other.name} {show_bytes(other.peak_bytes)}. The interval reaches to both.",
            "The trace is of the code that runs; the closed form of the model as its family is usually written.",
            "both engines, at the same micro-batch",
        )


def _assumed(assumed: Sequence[tuple[str, str, str]]) -> Iterator[Finding]:
    if assumed:
        named = list(
            dict.fromkeys([f"{op} in {module or 'the step itself'} as {value}" for op, module, value in assumed])
        )
        yield Finding(
            "GA027",
            "note",
            f"The step reads values from tensors, which a trace does not hold. It was answered "
            f"{'; '.join(named[:MOST_NAMED])}{_rest(named)}.",
            "Where another value takes another path, the memory may be another.",
            "torch/trace/answers.py",
        )


def _doubts(doubts: Sequence[str]) -> Iterator[Finding]:
    if doubts:
        yield Finding(
            "GA029",
            "note",
            f"Other micro-batches are the sample batch resized. {' '.join(doubts)}",
            "Give a function of the micro-batch instead, which makes its own batch.",
            "tensors whose first dimension is that of the sample's first tensor change it",
        )
