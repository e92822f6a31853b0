"""The algebra of a plan, line by line, with the person's numbers."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.units import show_count, show_percent, show_ratio, show_real, show_signed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.plan import Plan


@dataclass(frozen=True)
class Line:
    """`name` = `formula` = `numbers` = `result`."""

    name: str
    formula: str
    numbers: str
    result: str


def explain(plan: Plan) -> tuple[Line, ...]:
    """Every quantity of the plan in the order in which it follows from those before."""
    lines = []
    degrees = _times(plan.tensor_parallel, plan.pipeline_parallel, plan.context_parallel)
    words = "tensor_parallel x pipeline_parallel x context_parallel"
    if plan.solved_for in ("micro_batch", "num_gpus"):
        lines.append(_solved(plan, plan.solved_for))
    if plan.solved_for == "num_gpus" and plan.data_parallel != plan.num_gpus:
        numbers = f"{show_count(plan.data_parallel)} x {degrees}"
        lines.append(Line("num_gpus", f"data_parallel x {words}", numbers, show_count(plan.num_gpus)))
    elif plan.data_parallel != plan.num_gpus:
        numbers = f"{show_count(plan.num_gpus)} / ({degrees})"
        lines.append(Line("data_parallel", f"num_gpus / ({words})", numbers, show_count(plan.data_parallel)))
    lines.append(
        Line(
            "device_batch",
            "micro_batch x data_parallel",
            _times(plan.micro_batch, plan.data_parallel),
            show_count(plan.device_batch),
        )
    )
    given = Line("accum_steps", "given", show_count(plan.accum_steps), show_count(plan.accum_steps))
    lines.append(_solved(plan, "accum_steps") if plan.solved_for == "accum_steps" else given)
    lines.append(_effective(plan))
    lines.append(_drift(plan))
    if plan.tokens_per_step is not None and plan.sequence_length is not None:
        lines.append(
            Line(
                "tokens_per_step",
                "effective_batch x sequence_length",
                _times(plan.effective_batch, plan.sequence_length),
                show_count(plan.tokens_per_step),
            )
        )
    if plan.pipeline:
        stages, virtual, count = plan.pipeline.stages, plan.pipeline.virtual, plan.pipeline.micro_batches
        bubble = plan.pipeline.bubble
        lines.append(
            Line(
                "bubble",
                "(p - 1) / (v k + p - 1)",
                f"({stages} - 1) / ({_times(virtual, count)} + {stages} - 1)",
                show_percent(bubble.numerator, bubble.denominator) + "%",
            )
        )
    return (*lines, *_run(plan), *_rates(plan))


def _run(plan: Plan) -> list[Line]:
    """Updates, warm-up and tokens of the whole run, as far as they follow from something."""
    request, run, batch = plan.request, plan.training, plan.effective_batch
    per_update, lines = plan.tokens_per_step, []

    def divided(name: str, rounding: str, words: str, one: int, other: int, result: int) -> None:
        numbers = f"{rounding}({show_count(one)} / {show_count(other)})"
        lines.append(Line(name, f"{rounding}({words})", numbers, show_count(result)))

    if request.dataset_size is not None and run.updates_per_epoch is not None:
        rounding = "ceil" if request.last_group == "step" else "floor"
        words = "dataset_size / effective_batch"
        divided("updates_per_epoch", rounding, words, request.dataset_size, batch, run.updates_per_epoch)
    if request.token_budget is not None and run.updates is not None and per_update:
        divided("updates", "floor", "token_budget / tokens_per_step", request.token_budget, per_update, run.updates)
    elif request.epochs is not None and request.last_group != "carry" and run.updates_per_epoch and run.updates:
        numbers = f"ceil({request.epochs} x {show_count(run.updates_per_epoch)})"
        lines.append(Line("updates", "ceil(epochs x updates_per_epoch)", numbers, show_count(run.updates)))
    if run.warmup_updates is not None and request.warmup_tokens is not None and per_update:
        words = "warmup_tokens / tokens_per_step"
        divided("warmup_updates", "floor", words, request.warmup_tokens, per_update, run.warmup_updates)
    elif run.warmup_updates is not None and request.warmup_fraction is not None and run.updates is not None:
        numbers = f"ceil({request.warmup_fraction} x {show_count(run.updates)})"
        lines.append(Line("warmup_updates", "ceil(warmup_fraction x updates)", numbers, show_count(run.warmup_updates)))
    if run.tokens_per_param is not None and run.tokens is not None and request.params is not None:
        numbers = f"{show_count(run.tokens)} / {show_count(request.params)}"
        lines.append(Line("tokens_per_param", "tokens / params", numbers, str(run.tokens_per_param)))
    return lines


def _rates(plan: Plan) -> list[Line]:
    """The learning rates, each by its rule."""
    request = plan.request
    base = f"{show_count(plan.effective_batch)} / {show_count(request.base_batch or 1)}"
    found = []
    for rate in plan.scaled_rates:
        root = rate.rule != "linear"
        formula = "learning_rate x " + (
            "sqrt(effective_batch / base_batch)" if root else "effective_batch / base_batch"
        )
        numbers = f"{show_real(request.learning_rate or 0.0)} x " + (f"sqrt({base})" if root else base)
        found.append(Line(f"{rate.rule} rule", formula, numbers, show_real(rate.learning_rate)))
    return found


def _solved(plan: Plan, name: str) -> Line:
    """The quantity that was found from the other three."""
    one, other, words, result = {
        "micro_batch": (plan.data_parallel, plan.accum_steps, "(data_parallel x accum_steps)", plan.micro_batch),
        "num_gpus": (plan.micro_batch, plan.accum_steps, "(micro_batch x accum_steps)", plan.data_parallel),
        "accum_steps": (plan.micro_batch, plan.data_parallel, "device_batch", plan.accum_steps),
    }[name]
    goal, block, target = plan.target_batch, one * other, "target_batch"
    if plan.target_tokens is not None:
        goal, block, target = plan.target_tokens, block * (plan.sequence_length or 1), "target_tokens"
        words = f"({words.strip('()')} x sequence_length)"
    rounding = "ceil" if plan.rounding == "exact" else plan.rounding
    quotient = show_ratio(goal or 0, block, 6)
    shown = f"max(1, {rounding}({quotient}))" if (goal or 0) < block else f"{rounding}({quotient})"
    return Line(
        "data_parallel" if name == "num_gpus" else name,
        f"{rounding}({target} / {words})",
        f"{rounding}({show_count(goal or 0)} / {show_count(block)}) = {shown}",
        show_count(result),
    )


def _effective(plan: Plan) -> Line:
    result = show_count(plan.effective_batch)
    product = plan.device_batch * plan.accum_steps
    if product == plan.effective_batch:
        return Line(
            "effective_batch",
            "micro_batch x data_parallel x accum_steps",
            _times(plan.micro_batch, plan.data_parallel, plan.accum_steps),
            result,
        )
    rest = plan.effective_batch - plan.device_batch * (plan.accum_steps - 1)
    return Line(
        "effective_batch",
        "device_batch x (accum_steps - 1) + the last micro-step",
        f"{_times(plan.device_batch, plan.accum_steps - 1)} + {show_count(rest)}",
        result,
    )


def _drift(plan: Plan) -> Line:
    if plan.target_tokens is not None:
        return Line(
            "drift_tokens",
            "tokens_per_step - target_tokens",
            f"{show_count(plan.tokens_per_step or 0)} - {show_count(plan.target_tokens)}",
            f"{show_signed(plan.drift_tokens or 0)} ({plan.drift_signed_percent})",
        )
    return Line(
        "drift",
        "effective_batch - target_batch",
        f"{show_count(plan.effective_batch)} - {show_count(plan.target_batch or 0)}",
        f"{show_signed(plan.drift or 0)} ({plan.drift_signed_percent})",
    )


def _times(*factors: int) -> str:
    return " x ".join(show_count(factor) for factor in factors)
