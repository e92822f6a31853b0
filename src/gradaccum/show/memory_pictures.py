"""A GPU's memory as pictures: the bar of what is there at the peak, and the peak against the micro-batch.

Both take a fit as plain data (its JSON). Blue does not grow with the micro-batch, amber does, grey is outside of the
tensors. No label stands in the bar, which stretches to the width that there is: its words stand below it as text.
"""

from __future__ import annotations

from gradaccum.show.html import el
from gradaccum.show.numbers import brief
from gradaccum.show.svg import box, dot, filled, line, picture, text
from gradaccum.units import show_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from gradaccum.show.html import Child, Markup

    Found = Mapping[str, Any]
    Place = Callable[[int], int]

KINDS = (
    ("gradients", ("gradient",), "0.8"),
    ("states", ("optimizer", "states"), "0.45"),
    ("shared", ("unsharded", "nccl", "communication", "bucket", "gather"), "0.35"),
    ("weights", ("weight", "adapter"), "0.25"),
    ("loss", ("logits", "loss"), "0.95"),
    ("activations", ("activation", "input", "norm", "scores", "temporar"), "0.65"),
    ("outside", ("",), "0.15"),
)
"""Kind of a line, words of its name (the first that fits holds), and its opacity where no stylesheet reaches."""

WIDTH, HEIGHT = 430, 216
LEFT, RIGHT, TOP, BOTTOM = 72, 14, 24, 40


def kind_of(name: str) -> str:
    """The kind of a ledger's line, which is its colour."""
    return next(kind for kind, words, _ in KINDS if any(word in name.lower() for word in words))


def swatch(kind: str) -> Markup:
    """A small square in the colour of a kind."""
    return el(
        "svg",
        {"aria-hidden": "true", "class": "swatch", "height": 11, "viewBox": "0 0 11 11", "width": 11},
        _patch(kind, box(0, 0, 11, 11)),
    )


def lines_of(memory: Found) -> list[tuple[str, int]]:
    """(name, bytes) of what is held against the capacity: the ledger and what stands outside of it."""
    return [(each["name"], each["bytes"]) for each in [*memory["ledger"], *memory["outside"]]]


def memory_bar(memory: Found) -> Markup:
    """What a process takes at the peak, line by line, within the card's frame; across it from low to high."""
    capacity, low, high = (memory[name] for name in ("capacity_bytes", "process_low_bytes", "process_high_bytes"))
    whole: int = max(capacity, high, 1)

    def at(count: int) -> int:
        return 1000 * count // whole

    parts: list[Child] = []
    here = 0
    for name, count in lines_of(memory):
        start, end = at(here), at(here + count)
        here += count
        if end > start:
            parts.append(_patch(kind_of(name), box(start, 6, max(1, end - start - 1), 32)))
    frame = el("path", {"class": "ga-card", "d": box(0, 3, at(capacity), 38), "fill": "none"})
    beyond = at(capacity) < 1000
    over = el("path", {"class": "ga-beyond", "d": box(at(capacity), 0, 1000 - at(capacity), 44), "fill": "none"})
    edge = el("path", {"class": "ga-edge", "d": box(max(0, at(capacity) - 3), 0, 3, 44), "fill": "currentColor"})
    reach = (
        box(at(low), 20, max(2, at(high) - at(low)), 4) + box(at(low), 13, 3, 18) + box(max(0, at(high) - 3), 13, 3, 18)
    )
    return el(
        "svg",
        {
            "class": "ga-svg memory-bar",
            "height": 44,
            "preserveAspectRatio": "none",
            "role": "img",
            "viewBox": "0 0 1000 44",
            "width": 1000,
            "xmlns": "http://www.w3.org/2000/svg",
        },
        el("title", None, "Memory of one GPU at the peak"),
        el("desc", None, bar_words(memory)),
        frame,
        over if beyond else None,
        parts,
        el("path", {"class": "ga-reach", "d": reach, "fill": "currentColor"}),
        edge,
    )


def bar_words(memory: Found) -> str:
    """What the bar shows, in words, the largest parts first."""
    most = sorted(lines_of(memory), key=lambda each: -each[1])[:5]
    parts = ", ".join([f"{name} {show_bytes(count)}" for name, count in most])
    return f"{room_words(memory)}. {parts}."


def room_words(memory: Found) -> str:
    """`17.3 GiB of 23.7 GiB, 13.7 GiB at best, 21 GiB at worst`"""
    expected, capacity, low, high = (
        show_bytes(memory[name])
        for name in ("process_bytes", "capacity_bytes", "process_low_bytes", "process_high_bytes")
    )
    return f"{expected} of {capacity}, {low} at best, {high} at worst"


def memory_curve(found: Found, own: int | None = None) -> Markup:
    """Bytes of the process over the micro-batch, from low to high, and the capacity. own: the person's micro-batch."""
    points: Sequence[Found] = found["curve"]
    capacity = found["memory"]["capacity_bytes"]
    first: int = points[0]["micro_batch"]
    last: int = points[-1]["micro_batch"]
    top: int = max([capacity] + [each["process_high_bytes"] for each in points])
    foot = HEIGHT - BOTTOM

    def across(micro_batch: int) -> int:
        return LEFT + 8 + (micro_batch - first) * (WIDTH - LEFT - RIGHT - 16) // max(1, last - first)

    def up(count: int) -> int:
        return foot - (foot - TOP - 8) * count // top

    def along(name: str, among: Sequence[Found]) -> list[str]:
        return [f"{across(each['micro_batch'])} {up(each[name])}" for each in among]

    band = "L".join([*along("process_high_bytes", points), *along("process_low_bytes", list(reversed(points)))])
    chosen = found["micro_batch"]
    return picture(
        "Memory by micro-batch",
        curve_words(found),
        WIDTH,
        HEIGHT,
        line("axis", f"M{LEFT} {TOP}V{foot}H{WIDTH - RIGHT}"),
        el("path", {"class": "ga-band", "d": f"M{band}z", "fill": "currentColor", "fill-opacity": "0.15"}),
        line("expected", "M" + "L".join(along("process_bytes", points))),
        filled("point", [dot(across(each["micro_batch"]), up(each["process_bytes"]), 2) for each in points]),
        line("capacity", f"M{LEFT} {up(capacity)}H{WIDTH - RIGHT}", dashed=True),
        text(LEFT - 8, up(capacity) + 4, show_bytes(capacity), anchor="end", kind="strong"),
        None if foot - up(capacity) < 16 else text(LEFT - 8, foot, "0", anchor="end", kind="faint"),
        _own(own, first, last, across, foot) if own != chosen else None,
        _chosen(found, across, up, foot) if chosen else None,
        _values([each["micro_batch"] for each in points], chosen, across),
        text(LEFT - 60, 11, "memory of one GPU", kind="faint"),
        text(WIDTH - RIGHT, HEIGHT - 4, "micro-batch", anchor="end", kind="faint"),
    )


def curve_words(found: Found) -> str:
    """What the curve shows, in words."""
    first, last = found["curve"][0], found["curve"][-1]
    largest = found["max_micro_batch"]
    most = f"{brief(largest)} is the largest that fits" if largest else "none fits"
    return (
        f"From micro-batch {brief(first['micro_batch'])} to {brief(last['micro_batch'])} one GPU needs "
        f"{show_bytes(first['process_bytes'])} to {show_bytes(last['process_bytes'])}; it has "
        f"{show_bytes(found['memory']['capacity_bytes'])}, and {most}."
    )


def _patch(kind: str, path: str) -> Markup:
    opacity = next(each for name, _, each in KINDS if name == kind)
    return el("path", {"class": "ga-" + kind, "d": path, "fill": "currentColor", "fill-opacity": opacity})


def _chosen(found: Found, across: Place, up: Place, foot: int) -> list[Child]:
    """The micro-batch of the plan, with what it needs."""
    count = found["memory"]["process_bytes"]
    x, y = across(found["micro_batch"]), up(count)
    anchor = "start" if x < LEFT + 60 else "end" if x > WIDTH - RIGHT - 60 else "middle"
    below = y - 12 < TOP or abs(y - 10 - up(found["memory"]["capacity_bytes"])) < 10
    return [
        line("guide", f"M{x} {foot}V{y}", dashed=True),
        el("circle", {"class": "ga-here", "cx": x, "cy": y, "fill": "currentColor", "r": 5}),
        text(x, y + 20 if below else y - 10, show_bytes(count), anchor=anchor, kind="strong"),
    ]


def _own(own: int | None, first: int, last: int, across: Place, foot: int) -> list[Child]:
    """Where the person's own micro-batch lies, if it is on the chart."""
    if own is None or not first <= own <= last:
        return []
    x = across(own)
    return [
        line("guide", f"M{x} {foot}V{TOP + 12}", dashed=True),
        text(x, TOP + 6, "yours", anchor="middle", kind="faint"),
    ]


def _values(values: Sequence[int], chosen: int | None, across: Place) -> list[Child]:
    """Under the axis: the chosen micro-batch, and others at a distance from it."""
    drawn: list[Child] = []
    taken: list[tuple[int, int]] = []
    for value in [*([chosen] if chosen else []), values[-1], *values]:
        label = brief(value, 10**5)
        half = 4 * len(label) + 3
        x = min(across(value), WIDTH - half)
        if all(x + half <= start or end <= x - half for start, end in taken):
            taken.append((x - half, x + half))
            kind = "strong" if value == chosen else "faint"
            drawn.append(text(x, HEIGHT - BOTTOM + 16, label, anchor="middle", kind=kind))
    return drawn
