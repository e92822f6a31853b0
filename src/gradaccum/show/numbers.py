"""Numbers as the page and the notebook show them, and a plan's target and drift in their own unit."""

from __future__ import annotations

from gradaccum.core.arithmetic import Goal
from gradaccum.units import show_count, show_short, show_signed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.choices import Choice, Neighbour
    from gradaccum.core.plan import Plan

TIMES = " \u00d7 "
MINUS = "\u2212"


def brief(count: int, below: int = 10**15) -> str:
    """All digits below a bound, three significant ones from there on."""
    return show_count(count) if abs(count) < below else show_short(count)


def signed(count: int) -> str:
    """`+12`, or a real minus sign; three significant digits from a million on."""
    return with_minus(show_signed(count) if abs(count) < 10**6 else ("+" if count > 0 else "") + show_short(count))


def with_minus(text: str) -> str:
    """`text` with its hyphen as a minus sign, which is as wide as a plus and is read out as one."""
    return text.replace("-", MINUS)


def plural(count: int, word: str) -> str:
    """`1 GPU`, `8 GPUs`"""
    return f"{brief(count)} {word}{'' if count == 1 else 's'}"


def goal_of(plan: Plan) -> Goal:
    """What an update should see, in the unit of the target; where that was solved for, what it does see."""
    if plan.target_tokens is not None:
        return Goal(plan.target_tokens, plan.sequence_length or 1, in_tokens=True)
    return Goal(plan.effective_batch if plan.target_batch is None else plan.target_batch)


def drift_of(thing: Plan | Choice | Neighbour) -> int:
    """The drift in the unit of the target: one of drift and drift_tokens is None."""
    return (thing.drift_tokens if thing.drift is None else thing.drift) or 0


def drift_words(plan: Plan) -> str:
    """`12 more than the target of 500 (+2.40%)`, in the target's own unit."""
    drift = plan.drift if plan.drift is not None else plan.drift_tokens or 0
    target = plan.target_batch if plan.target_batch is not None else plan.target_tokens or 0
    unit = " tokens" if plan.target_batch is None else ""
    if plan.solved_for == "target_batch":
        return "which is what these settings make"
    if not drift:
        return f"exactly the target of {show_count(target)}{unit}"
    return (
        f"{show_count(abs(drift))}{unit} {'more' if drift > 0 else 'fewer'} than the target of {show_count(target)}"
        f"{unit} ({plan.drift_signed_percent})"
    )
