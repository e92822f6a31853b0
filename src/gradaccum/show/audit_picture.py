"""The weight of every token in one update, drawn: a row for each rank, a bar for each micro-batch.

A bar is as wide as the micro-batch holds tokens or samples, and as high as one of them weighs, so that its area is what
the micro-batch contributes. In one big batch all are as high as the line at 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.show.audit_words import counted_words, finite, runs_of, scaled, top_of
from gradaccum.show.html import el
from gradaccum.show.numbers import plural
from gradaccum.show.svg import box, line, picture, text
from gradaccum.units import show_real

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradaccum.core.audit import AuditedMicroBatch, AuditedUpdate
    from gradaccum.show.html import Child, Markup

GAP = 2
"""Between bars."""
ABOVE, BELOW = 10, 22
"""Room over the bars of a rank, and under them for their numbers."""
HIGH = 72
"""Height of the scale of one rank."""


@dataclass(frozen=True)
class Frame:
    """How much one picture shows: micro-batches and ranks at most, and how many at each end where there are more."""

    width: int
    gutter: int
    most_columns: int
    columns: tuple[int, int]
    most_rows: int
    rows: tuple[int, int]


WIDE = Frame(900, 74, 48, (30, 12), 8, (5, 2))
NARROW = Frame(330, 58, 16, (9, 4), 4, (2, 1))


def weights_picture(update: AuditedUpdate, title: str, tolerance: float, narrow: bool = False) -> Markup:
    """The picture as `svg`. tolerance: how far from 1 a weight may be to be drawn as right; narrow: for a phone."""
    frame = NARROW if narrow else WIDE
    by_rank = _by_rank(update)
    ranks = _ends(sorted(by_rank), frame.most_rows, frame.rows)
    top = top_of(update)
    drawn: list[Child] = []
    y = 0
    for rank in ranks:
        if rank is None:
            y += 14
            drawn.append(
                text(frame.gutter, y, f"and {plural(len(by_rank) - len(ranks) + 1, 'more rank')}", kind="faint")
            )
            continue
        base = y + ABOVE + HIGH
        drawn.append(_rank(by_rank[rank], update.unit, top, base, tolerance, frame))
        drawn.append(text(0, base - 2, f"rank {rank}", kind="faint"))
        y = base + BELOW
    return picture(title, weights_words(update), frame.width, y, drawn)


def weights_words(update: AuditedUpdate) -> str:
    """The same in words."""
    runs = runs_of(update)
    several = len({run.rank for run in runs}) > 1
    parts = [
        f"{f'rank {run.rank}, ' if several else ''}micro-batch {run.name}: {run.weight_words}"
        + (f" for each of {run.units_words}" if run.units_words else "")
        for run in runs[:12]
    ]
    more = f"; and {len(runs) - 12} more" if len(runs) > 12 else ""
    return f"Weight of one token or sample, 1 is right. {'; '.join(parts)}{more}."


def _by_rank(update: AuditedUpdate) -> dict[int, list[AuditedMicroBatch]]:
    found: dict[int, list[AuditedMicroBatch]] = {}
    for each in sorted(update.micro_batches, key=lambda each: (each.rank, each.index)):
        found.setdefault(each.rank, []).append(each)
    return found


def _ends(items: Sequence[int], most: int, ends: tuple[int, int]) -> list[int | None]:
    """All of them, or both ends with None for what is left out."""
    if len(items) <= most:
        return list(items)
    return [*items[: ends[0]], None, *items[len(items) - ends[1] :]]


def _rank(
    micro_batches: Sequence[AuditedMicroBatch], unit: str | None, top: float, base: int, tolerance: float, frame: Frame
) -> list[Child]:
    """One rank's bars, the line at 1, and what is left out."""
    one = base - scaled(1.0, top, HIGH)
    drawn: list[Child] = []
    columns = _ends(list(range(len(micro_batches))), frame.most_columns, frame.columns)
    shown = [None if column is None else micro_batches[column] for column in columns]
    x = frame.gutter
    for each, width in zip(shown, _widths(shown, frame.width - frame.gutter - 4)):
        if each is None:
            drawn.append(text(x + (width >> 1), base + 14, "\u2026", anchor="middle", kind="faint"))
        else:
            drawn += _bar(each, unit, x, width, base, top, tolerance)
        x += width + GAP
    drawn.append(line("axis", f"M{frame.gutter} {base}H{frame.width - 4}"))
    drawn.append(line("one", f"M{frame.gutter} {one}H{frame.width - 4}", dashed=True))
    drawn.append(text(frame.gutter - 6, one + 4, "1", anchor="end", kind="strong"))
    return drawn


def _widths(shown: Sequence[AuditedMicroBatch | None], room: int) -> list[int]:
    """Each in the measure of what it holds; all the same where that is not known of every one."""
    there = [each for each in shown if each is not None]
    known = all(each.units is not None and finite(each.units) for each in there)
    units = [24 if each is None else int(1000 * (each.units or 0)) if known else 1 for each in shown]
    gaps = [index for index, each in enumerate(shown) if each is None]
    free = room - GAP * len(shown) - 24 * len(gaps) - 3 * len(there)
    whole = sum([count for index, count in enumerate(units) if index not in gaps])
    return [
        24 if index in gaps else 3 + (free * count // whole if whole else free // len(there))
        for index, count in enumerate(units)
    ]


def _bar(
    each: AuditedMicroBatch, unit: str | None, x: int, width: int, base: int, top: float, tolerance: float
) -> list[Child]:
    """One micro-batch, with its number under it where there is room for it, and all of it where one points at it."""
    said = "?" if each.weight is None else show_real(each.weight, 3)
    units = "" if each.units is None else f", {counted_words(each.units, unit)}"
    words = f"rank {each.rank}, micro-batch {each.index}: weight {said}{units}"
    if each.weight is None or not finite(each.weight):
        height, kind = HIGH >> 1, "unseen"
    else:
        height = scaled(each.weight, top, HIGH)
        kind = "right" if abs(each.weight - 1) <= tolerance else "off"
    shape = el(
        "path",
        {
            "class": f"ga-{kind}",
            "d": box(x, base - height, width, height),
            "fill": "none" if kind == "unseen" else "currentColor",
            "fill-opacity": None if kind == "unseen" else "0.35" if kind == "right" else "0.75",
            "stroke": "currentColor" if kind == "unseen" else None,
            "stroke-dasharray": "3 3" if kind == "unseen" else None,
        },
        el("title", None, words),
    )
    label = text(x + (width >> 1), base + 14, said, anchor="middle")
    return [shape, label if 7 * len(said) + 2 <= width + GAP else None]
