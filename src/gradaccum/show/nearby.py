"""What else is close: the other roundings and the better choices, each row a link that applies it."""

from __future__ import annotations

from gradaccum.show.html import el
from gradaccum.show.numbers import TIMES, brief, drift_of, goal_of, signed, with_minus
from gradaccum.show.sections import section
from gradaccum.show.svg import box
from gradaccum.units import show_percent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gradaccum.core.choices import Choice, Neighbour
    from gradaccum.core.plan import Plan
    from gradaccum.show.html import Child, Markup

    Link = Callable[[Mapping[str, str]], str]
    """The address of the page with some inputs changed; "" clears an input."""

TIGHT = 10**9
"""From here on a table shows three digits, so that its columns fit a phone."""


def nearby_section(plan: Plan, link: Link | None) -> Markup:
    """The table of roundings and better choices. link: None where nothing can be applied, as in a notebook."""
    widest = max(1, max(abs(drift_of(each)) for each in plan.neighbours))
    rows = [
        _row(plan, each.accum_steps, plan.micro_batch, plan.num_gpus, each, _rounding_words(plan, each), link, widest)
        for each in plan.neighbours[:2]
    ]
    if plan.neighbours[0].accum_steps == plan.neighbours[1].accum_steps:
        rows = rows[:1]
    for each in plan.better_choices:
        rows.append(_row(plan, each.accum_steps, each.micro_batch, each.num_gpus, each, "", link, widest))
    return section(
        "What else is close",
        el(
            "table",
            None,
            el(
                "thead",
                None,
                el(
                    "tr",
                    None,
                    el("th", {"scope": "col"}, _product_words(plan)),
                    el("th", {"class": "n", "scope": "col"}, "effective batch"),
                    el("th", {"class": "n", "scope": "col"}, "drift" + (", tokens" if plan.drift is None else "")),
                    el("th", {"scope": "col"}, "that is"),
                ),
            ),
            el("tbody", None, rows),
        ),
        el("p", {"class": "hint"}, _remark(plan)),
        kind="nearby",
    )


def changes_to(plan: Plan, micro_batch: int, num_gpus: int, accum_steps: int) -> dict[str, str]:
    """The inputs to change so that the plan becomes this one: a rounding that leads there, else fixed steps."""
    goal = goal_of(plan)
    device_batch = micro_batch * (num_gpus * plan.data_parallel // plan.num_gpus)
    changed = {"micro_batch": str(micro_batch), "num_gpus": str(num_gpus), "accum_steps": ""}
    if plan.request.max_micro_batch is not None and micro_batch > plan.request.max_micro_batch:
        changed["max_micro_batch"] = ""
    for rounding in (plan.rounding, "round", "ceil", "floor"):
        if rounding != "exact" and goal.steps(device_batch, rounding) == accum_steps:
            changed["rounding"] = rounding
            return changed
    changed["rounding"] = "round"
    changed["accum_steps"] = str(accum_steps)
    changed["target_batch"] = changed["target_tokens"] = ""
    return changed


def _row(
    plan: Plan,
    accum_steps: int,
    micro_batch: int,
    num_gpus: int,
    each: Neighbour | Choice,
    words: str,
    link: Link | None,
    widest: int,
) -> Markup:
    ranks = num_gpus * plan.data_parallel // plan.num_gpus
    product = TIMES.join(brief(count, TIGHT) for count in (micro_batch, ranks, accum_steps))
    own = (micro_batch, num_gpus, each.effective_batch) == (plan.micro_batch, plan.num_gpus, plan.effective_batch)
    name: Child = product
    if link and not own:
        href = link(changes_to(plan, micro_batch, num_gpus, accum_steps))
        name = el("a", {"data-apply": True, "href": href}, product)
    drift = drift_of(each)
    remarks = [words] if words else []
    if own:
        remarks.insert(0, "your plan")
    remarks.append(_percent(drift, goal_of(plan).amount) if drift else "on the target")
    return el(
        "tr",
        {"class": "own" if own else None},
        el("th", {"class": "short" if len(product) < 20 else None, "scope": "row"}, name),
        el("td", {"class": "n"}, brief(each.effective_batch, TIGHT)),
        el("td", {"class": "n drift"}, signed(drift), _bar(drift, widest)),
        el("td", {"class": "which"}, ", ".join(remarks)),
    )


def _bar(drift: int, widest: int) -> Markup:
    """The drift as a bar to the left or to the right of the target."""
    length = min(22, abs(drift) * 22 // widest)
    if drift and not length:
        length = 1
    return el(
        "svg",
        {"aria-hidden": "true", "class": "bar", "height": 12, "viewBox": "0 0 48 12", "width": 48},
        el("path", {"class": "ga-axis", "d": "M24 0v12", "fill": "none", "stroke": "currentColor"}),
        el(
            "path",
            {"class": "ga-stem-bar", "d": box(24 if drift > 0 else 24 - length, 3, length, 6), "fill": "currentColor"},
        )
        if drift
        else el("circle", {"class": "ga-on-target", "cx": 24, "cy": 6, "fill": "currentColor", "r": 3}),
    )


def _percent(drift: int, goal: int) -> str:
    return ("+" if drift > 0 else "") + with_minus(show_percent(drift, goal)) + "%"


def _rounding_words(plan: Plan, each: Neighbour) -> str:
    floor, ceil = plan.neighbours[:2]
    if floor.accum_steps == ceil.accum_steps:
        return "every rounding"
    return each.rounding


def _product_words(plan: Plan) -> str:
    return TIMES.join(("micro-batch", "GPUs" if plan.data_parallel == plan.num_gpus else "ranks", "steps"))


def _remark(plan: Plan) -> str:
    own = f"micro-batches up to {brief(plan.micro_batch)} on your GPUs"
    if plan.request.vary == "num_gpus":
        own = "other GPU counts too"
    elif plan.request.vary == "micro_batch":
        own = "larger micro-batches too"
    if plan.is_exact:
        return "This plan is on the target: nothing is closer."
    if not plan.better_choices:
        return f"Nothing is closer, of {own}."
    return f"Closer ones, of {own}: smallest drift first, then the larger micro-batch."
