"""Of target, micro-batch, GPUs and accumulation steps, three give the fourth.

device_batch    = micro_batch x data_parallel
accum_steps     = target_batch / device_batch, rounded as asked
effective_batch = device_batch x accum_steps          (under `exact`: the target)
"""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.core.arithmetic import Goal, divide, last_micro_step
from gradaccum.errors import InputError, Problem
from gradaccum.units import show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.request import Request

WINDOW = 4096
"""How many micro-batches are looked at, from the largest allowed downwards."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sizes:
    """The four quantities of one update, and what follows from them at once. Counts are sequences.

    solved_for: the one of the four that was computed; None where all four were given and agree.
    last_micro_batch: the largest share of one rank in the last micro-step; differs from micro_batch under `exact` only.
    """

    goal: Goal
    micro_batch: int
    num_gpus: int
    data_parallel: int
    accum_steps: int
    effective_batch: int
    last_micro_batch: int
    solved_for: str | None

    @property
    def device_batch(self) -> int:
        """micro_batch x data_parallel: one micro-step over all ranks."""
        return self.micro_batch * self.data_parallel

    @property
    def drift(self) -> int:
        """effective_batch - target, in the goal's unit."""
        return self.goal.drift(self.effective_batch)


def solve(request: Request) -> Sizes:
    """The sizes of one update. Raises InputError where inputs are missing or contradict each other."""
    solved_for = _unknown(request)
    goal = _goal(request)
    micro_batch, accum_steps = request.micro_batch or 0, request.accum_steps or 0
    ranks = (request.num_gpus or 0) // request.model_parallel
    if not micro_batch and solved_for != "micro_batch":
        micro_batch = _pick_micro_batch(request, goal, ranks)

    if goal is None:
        goal = Goal(micro_batch * ranks * accum_steps)
    elif not accum_steps:
        accum_steps = goal.steps(micro_batch * ranks, request.rounding)
    elif not ranks:
        ranks = _solve_factor(request, goal, micro_batch, "num_gpus")
    elif not micro_batch:
        micro_batch = _solve_factor(request, goal, ranks, "micro_batch")
        _check_micro_batch_fits(request, goal, micro_batch, ranks)
    else:
        _check_all_four(request, goal, micro_batch, ranks, accum_steps)
    return _sizes(request, goal, micro_batch, ranks, accum_steps, solved_for)


def _sizes(
    request: Request, goal: Goal, micro_batch: int, ranks: int, accum_steps: int, solved_for: str | None
) -> Sizes:
    device_batch = micro_batch * ranks
    effective_batch, last_micro_batch = device_batch * accum_steps, micro_batch
    if request.rounding == "exact":
        effective_batch = goal.amount // goal.unit
        last_micro_batch = last_micro_step(effective_batch, device_batch, ranks)[1]
    return Sizes(
        goal=goal,
        micro_batch=micro_batch,
        num_gpus=ranks * request.model_parallel,
        data_parallel=ranks,
        accum_steps=accum_steps,
        effective_batch=effective_batch,
        last_micro_batch=last_micro_batch,
        solved_for=solved_for,
    )


def _goal(request: Request) -> Goal | None:
    """What an update should see; None where that is to be found."""
    if request.target_tokens is None:
        return None if request.target_batch is None else Goal(request.target_batch)
    length = request.sequence_length or 1  # a Request holds no target_tokens without it
    below = request.target_tokens // length * length
    if request.rounding == "exact" and below != request.target_tokens:
        raise InputError(
            Problem(
                "target_tokens",
                f"is {show_count(request.target_tokens)}, which is no whole number of sequences of "
                f"{show_count(length)} tokens, so that no update can see exactly that",
                [str(tokens) for tokens in (below, below + length) if tokens],
            )
        )
    return Goal(request.target_tokens, length, in_tokens=True)


def _unknown(request: Request) -> str | None:
    """The one quantity to compute. Raises InputError where more than one is missing."""
    four = {
        "micro_batch": request.micro_batch,
        "num_gpus": request.num_gpus,
        "target_batch": request.target,
        "accum_steps": request.accum_steps,
    }
    missing = [name for name, value in four.items() if value is None]
    if len(missing) == 2 and missing[0] == "micro_batch" and missing[1] != "num_gpus" and request.max_micro_batch:
        return missing[1]  # the largest micro-batch stands in for the micro-batch
    if len(missing) <= 1:
        return missing[0] if missing else None
    wanted = ["micro_batch or max_micro_batch" if name == "micro_batch" else name for name in missing]
    number = {1: "one", 2: "two", 3: "three"}[len(missing) - 1]
    if missing == ["micro_batch", "num_gpus"] and request.max_micro_batch:
        wanted[0] = "micro_batch"
    raise InputError(
        Problem(
            missing[0],
            "is missing: a plan needs three of target_batch, micro_batch, num_gpus and accum_steps; "
            f"add {number} of {', '.join(wanted)}",
        )
    )


def _pick_micro_batch(request: Request, goal: Goal | None, ranks: int) -> int:
    """The micro-batch up to the largest allowed: smallest |drift|, then the larger one."""
    largest = request.max_micro_batch or 1
    if goal is None or request.rounding == "exact":
        return largest
    least = max(1, largest - WINDOW + 1)
    # One micro-step of more than the goal only drifts further as it grows: the first such one is enough.
    best, best_gap = least, None
    for micro_batch in range(min(largest, max(goal.amount // (ranks * goal.unit), least - 1) + 1), least - 1, -1):
        block = micro_batch * ranks * goal.unit
        rest = goal.amount % block
        if best_gap is not None and rest >= best_gap and block - rest >= best_gap:
            continue
        gap = abs(divide(goal.amount, block, request.rounding) * block - goal.amount)
        if best_gap is None or gap < best_gap:
            best, best_gap = micro_batch, gap
            if not gap:
                break
    return best


def _solve_factor(request: Request, goal: Goal, known: int, name: str) -> int:
    """The micro-batch or the ranks that, times `known` and accum_steps, come to the goal."""
    accum_steps = request.accum_steps or 1
    factor = divide(goal.amount, known * accum_steps * goal.unit, request.rounding)
    needed = goal.steps(known * factor, "exact")
    if request.rounding == "exact" and needed != accum_steps:
        raise InputError(
            Problem(
                "accum_steps",
                f"is {show_count(accum_steps)}, but no {name} reaches exactly {show_count(goal.amount // goal.unit)} "
                f"sequences in that many micro-steps: the nearest finishes in {show_count(needed)}",
                [str(needed)],
            )
        )
    return factor


def _check_micro_batch_fits(request: Request, goal: Goal, micro_batch: int, ranks: int) -> None:
    largest = request.max_micro_batch
    if largest is not None and micro_batch > largest:
        steps = goal.steps(largest * ranks, "ceil")
        raise InputError(
            Problem(
                "accum_steps",
                f"is {show_count(request.accum_steps or 0)}, which needs a micro-batch of {show_count(micro_batch)}, "
                f"above max_micro_batch {show_count(largest)}",
                [str(steps)],
            )
        )


def _check_all_four(request: Request, goal: Goal, micro_batch: int, ranks: int, accum_steps: int) -> None:
    """All four were given: they must agree. A mismatch names its cause and the nearest valid triples."""
    device_batch = micro_batch * ranks
    if request.rounding == "exact":
        if goal.steps(device_batch, "exact") == accum_steps:
            return
    elif goal.drift(device_batch * accum_steps) == 0:
        return
    target = "target_tokens" if goal.in_tokens else "target_batch"
    product = device_batch * accum_steps * goal.unit
    factors = [micro_batch, ranks, accum_steps] + ([goal.unit] if goal.in_tokens else [])
    message = (
        f"micro_batch x data_parallel x accum_steps{' x sequence_length' if goal.in_tokens else ''} is "
        f"{' x '.join(show_count(factor) for factor in factors)} = {show_count(product)}, "
        f"not the {target} {show_count(goal.amount)}"
    )
    other_ranks, rest = divmod(goal.amount, micro_batch * accum_steps * goal.unit)
    if other_ranks and not rest:
        world = other_ranks * request.model_parallel
        message += f"; it would hold on {show_count(world)} GPUs, but num_gpus is {show_count(request.num_gpus or 0)}"
        if request.num_gpus == 1:
            message += " (a script started without its launcher sees a world of 1)"
    steps = goal.steps(device_batch, "round")
    factor = divide(goal.amount, ranks * accum_steps * goal.unit, "round")
    triples = {
        (micro, count, micro * ranks * count * goal.unit)
        for micro, count in ((micro_batch, steps), (factor, accum_steps), (micro_batch, accum_steps))
    }
    nearest = sorted(triples, key=lambda triple: (abs(triple[2] - goal.amount), -triple[0]))
    raise InputError(
        Problem(
            "",
            message,
            [f"micro_batch {micro} with accum_steps {count} and {target} {total}" for micro, count, total in nearest],
        )
    )
