"""Effective batch against micro-batch or GPU count: what each would make of the target, and how far off it is.

A stem from the target line to each point is its drift: above the line is more than wanted, below it less. The vertical
axis counts what the target counts, sequences or tokens.
"""

from __future__ import annotations

from gradaccum.show.html import el
from gradaccum.show.numbers import brief, goal_of, signed
from gradaccum.show.svg import dot, filled, line, picture, text
from gradaccum.units import show_count, show_short

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gradaccum.core.arithmetic import Goal
    from gradaccum.core.plan import Plan
    from gradaccum.show.html import Child, Markup

    Points = Sequence[tuple[int, int]]

WIDTH, HEIGHT = 430, 216
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 24, 40
SPAN = 32
"""How far the points reach beyond the plan's own."""


def batch_chart(plan: Plan, axis: str) -> Markup:
    """The chart as `svg`. axis: "micro_batch" or "num_gpus"; the other of the two stays as it is in the plan."""
    points, goal = chart_points(plan, axis), goal_of(plan)
    here = [value for value, _ in points].index(plan.micro_batch if axis == "micro_batch" else plan.num_gpus)
    amounts = [amount for _, amount in points] + [goal.amount]
    lowest, highest = min(amounts), max(amounts)

    def across(index: int) -> int:
        return LEFT + (2 * index + 1) * (WIDTH - LEFT - RIGHT) // (2 * len(points))

    def up(amount: int) -> int:
        room = HEIGHT - TOP - BOTTOM - 24
        if lowest == highest:
            return TOP + 12 + room // 2
        return TOP + 12 + (highest - amount) * room // (highest - lowest)

    level = up(goal.amount)
    places = [(across(index), up(amount)) for index, (_, amount) in enumerate(points)]
    return picture(
        f"{_amount_words(goal)} by {_axis_words(axis)}",
        chart_words(goal, axis, points, here),
        WIDTH,
        HEIGHT,
        line("axis", f"M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"),
        line("target", f"M{LEFT} {level}H{WIDTH - RIGHT}", dashed=True),
        line("stem", "".join([f"M{x} {level}V{y}" for x, y in places])),
        filled("point", [dot(x, y, 3) for index, (x, y) in enumerate(places) if index != here]),
        _here(goal, points[here][1], *places[here]),
        _heights(goal, lowest, highest, up),
        _values(points, here, across),
        text(LEFT - 50, 11, _amount_words(goal), kind="faint"),
        text(WIDTH - RIGHT, HEIGHT - 4, _axis_words(axis), anchor="end", kind="faint"),
    )


def chart_points(plan: Plan, axis: str) -> list[tuple[int, int]]:
    """(micro-batch or GPUs, what an update would see in the target's unit) around the plan's own, ascending."""
    goal, replica = goal_of(plan), plan.num_gpus // plan.data_parallel
    by_micro_batch = axis == "micro_batch"
    own, other = plan.micro_batch, plan.data_parallel
    if not by_micro_batch:
        own, other = other, own
    first, last = (1, max(16, 2 * own)) if own <= SPAN // 2 else (own - SPAN // 2, own + SPAN // 2)
    found = []
    for value in range(first, last + 1):
        batch = value * other * goal.steps(value * other, plan.rounding)
        amount = goal.amount if plan.rounding == "exact" else batch * goal.unit
        found.append((value if by_micro_batch else value * replica, amount))
    return found


def chart_words(goal: Goal, axis: str, points: Points, here: int) -> str:
    """What the chart shows, in words. points: of `chart_points`; here: the place of the plan's own."""
    own, gives = points[here]
    amounts = [amount for _, amount in points]
    exact = [brief(value) for value, amount in points if amount == goal.amount]
    return (
        f"Target {brief(goal.amount)}. From {_axis_words(axis)} {brief(points[0][0])} to "
        f"{brief(points[-1][0])} an update sees {brief(min(amounts))} to {brief(max(amounts))}; "
        f"{brief(own)} gives {brief(gives)}. "
        f"{'Exactly on the target: ' + ', '.join(exact) if exact else 'None is exactly on the target'}."
    )


def _amount_words(goal: Goal) -> str:
    return "tokens per update" if goal.in_tokens else "effective batch"


def _axis_words(axis: str) -> str:
    return "micro-batch" if axis == "micro_batch" else "GPUs"


def _label(count: int) -> str:
    """Short enough to stand beside an axis."""
    return show_count(count) if count < 10**5 else show_short(count)


def _here(goal: Goal, amount: int, x: int, y: int) -> list[Child]:
    """The plan's own point, with its numbers."""
    drift = amount - goal.amount
    words = f"{_label(amount)} ({signed(drift) if drift else 'on target'})"
    above = drift >= 0 or y + 20 > HEIGHT - BOTTOM - 6
    anchor = "start" if x < LEFT + 50 else "end" if x > WIDTH - RIGHT - 50 else "middle"
    return [
        line("guide", f"M{x} {HEIGHT - BOTTOM}V{y}", dashed=True),
        el("circle", {"class": "ga-here", "cx": x, "cy": y, "fill": "currentColor", "r": 5}),
        text(x, y - 10 if above else y + 20, words, anchor=anchor, kind="strong"),
    ]


def _heights(goal: Goal, lowest: int, highest: int, up: Callable[[int], int]) -> list[Child]:
    """The target, and both ends where they do not crowd it."""
    wanted = _label(goal.amount)
    drawn: list[Child] = [text(LEFT - 8, up(goal.amount) + 4, wanted, anchor="end", kind="strong")]
    for amount in (lowest, highest):
        if abs(up(amount) - up(goal.amount)) > 14 and _label(amount) != wanted:
            drawn.append(text(LEFT - 8, up(amount) + 4, _label(amount), anchor="end", kind="faint"))
    return drawn


def _values(points: Points, here: int, across: Callable[[int], int]) -> list[Child]:
    """Under the axis: the plan's own value, and others at a distance from it."""
    longest = max(len(_label(points[i][0])) for i in (0, here, len(points) - 1))
    stride = max(1, -(-len(points) * (8 * longest + 8) // (WIDTH - LEFT - RIGHT)))
    drawn: list[Child] = []
    own = _label(points[here][0])
    for index in range(here % stride, len(points), stride):
        value, kind = _label(points[index][0]), "strong" if index == here else "faint"
        if value != own or index == here:
            drawn.append(text(across(index), HEIGHT - BOTTOM + 16, value, anchor="middle", kind=kind))
    return drawn
