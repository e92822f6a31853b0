"""The pieces of the page as functions of a Plan: the answer, findings, the run, the algebra.

Numbers are shown whole as long as they can be read; where they cannot, the full digits stay in the answer alone.
"""

from __future__ import annotations

from gradaccum.core.explain import explain
from gradaccum.core.training import COMPUTE_OPTIMAL
from gradaccum.show.html import EMPTY, el, fragment, linked, raw
from gradaccum.show.numbers import MINUS, TIMES, brief, drift_of, drift_words, goal_of, plural, signed, with_minus
from gradaccum.units import show_count, show_percent, show_real, show_short, show_signed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.findings import Finding
    from gradaccum.core.plan import Plan
    from gradaccum.show.html import Child, Markup


def section(heading: str, *children: Child, kind: str = "") -> Markup:
    """A titled part of the results."""
    return el("section", {"class": f"part {kind}" if kind else "part"}, el("h2", None, heading), *children)


# The answer


def answer(plan: Plan, heading: Markup = EMPTY) -> Markup:
    """Steps, effective batch, drift and tokens per update; what was solved for comes first."""
    solved = {
        "micro_batch": ("Micro-batch", plan.micro_batch, "found from the other three"),
        "num_gpus": ("GPUs", plan.num_gpus, "found from the other three"),
    }.get(plan.solved_for or "")
    figures = [
        ("steps", "Accumulation steps", show_count(plan.accum_steps), "micro-steps per update"),
        ("batch", "Effective batch", show_count(plan.effective_batch), "sequences per update"),
        ("drift " + drift_kind(plan), "Drift", with_minus(show_signed(drift_of(plan))), _drift_aside(plan)),
        ("tokens", "Tokens per update", *_tokens(plan)),
    ]
    if solved:
        label, count, aside = solved
        figures.insert(0, ("solved", label, show_count(count), aside))
    elif plan.solved_for == "target_batch":
        figures.insert(0, figures.pop(1))
    return el(
        "section",
        {"class": "part answer"},
        heading,
        el("dl", {"class": "figures"}, [_figure(*each, first=not i) for i, each in enumerate(figures)]),
        equation(plan),
    )


def _figure(kind: str, label: str, number: str, aside: Child, first: bool) -> Markup:
    """Written as text: the answer is what every edit waits for. kind and label are ours, and number has only digits.

    Spaces keep words apart where no stylesheet reaches.
    """
    size = "" if len(number) < 11 else " long" if len(number) < 20 else " huge"
    return raw(
        f'<div class="figure {kind}{" first" if first else ""}{size}"><dt>{label}</dt> '
        f'<dd><span class="number">{number}</span> <span class="aside">{fragment(aside)}</span></dd></div>'
    )


def drift_kind(plan: Plan) -> str:
    """`none`, `small`, or `large` beyond a tenth of the target."""
    if plan.is_exact:
        return "none"
    return "large" if 10 * abs(drift_of(plan)) > goal_of(plan).amount else "small"


def _drift_aside(plan: Plan) -> Child:
    if plan.solved_for == "target_batch":
        return "the target is what these make"
    if plan.is_exact:
        return f"on the target of {target_words(plan)}"
    unit = " tokens" if goal_of(plan).in_tokens else ""
    more = "more" if drift_of(plan) > 0 else "fewer"
    return [
        el("b", None, with_minus(plan.drift_signed_percent)),
        f" \u00b7 {brief(abs(drift_of(plan)))}{unit} {more} than {target_words(plan)}",
    ]


def target_words(plan: Plan) -> str:
    """The target in its own unit."""
    return brief(goal_of(plan).amount) + (" tokens" if goal_of(plan).in_tokens else "")


def _tokens(plan: Plan) -> tuple[str, str]:
    if plan.tokens_per_step is None or plan.sequence_length is None:
        return "unknown", "give a sequence length"
    loss = plan.training.loss_tokens_per_step
    if loss is not None:
        return show_count(plan.tokens_per_step), f"about {brief(loss)} of them carry loss"
    return show_count(plan.tokens_per_step), brief(plan.effective_batch) + TIMES + brief(plan.sequence_length)


def equation(plan: Plan) -> Markup:
    """`4 micro-batch x 8 GPUs x 16 accumulation steps = 512`, each number above its name."""
    ranks = "GPUs" if plan.data_parallel == plan.num_gpus else "ranks"
    product = plan.device_batch * plan.accum_steps
    terms = [
        _term(plan.micro_batch, "micro-batch"),
        _operator(TIMES),
        _term(plan.data_parallel, ranks if plan.data_parallel != 1 else ranks[:-1]),
        _operator(TIMES),
        _term(plan.accum_steps, "accumulation step" + "s" * (plan.accum_steps != 1)),
        _operator("="),
        _term(product, "effective batch" if product == plan.effective_batch else "places", strong=True),
    ]
    if product != plan.effective_batch:
        terms += [
            _operator(MINUS),
            _term(product - plan.effective_batch, "left empty at the end"),
            _operator("="),
            _term(plan.effective_batch, "effective batch", strong=True),
        ]
    return el("p", {"class": "equation"}, terms, _replica(plan))


def _term(count: int, name: str, strong: bool = False) -> Markup:
    tag = "b" if strong else "span"
    words = f'<{tag} class="factor">{brief(count)}</{tag}> <span class="name">{name}</span>'
    return raw(f'<span class="term">{words}</span> ')


def _operator(sign: str) -> Markup:
    return raw(f'<span class="operator">{sign.strip()}</span> ')


def _replica(plan: Plan) -> Markup | None:
    """How ranks follow from GPUs, where they are not the same."""
    if plan.data_parallel == plan.num_gpus:
        return None
    degrees = [
        f"{name} {brief(degree)}"
        for name, degree in (
            ("tensor", plan.tensor_parallel),
            ("pipeline", plan.pipeline_parallel),
            ("context", plan.context_parallel),
        )
        if degree > 1
    ]
    return el(
        "span",
        {"class": "replica"},
        f"{plural(plan.data_parallel, 'data-parallel rank')} = {brief(plan.num_gpus)} GPUs / ({TIMES.join(degrees)})",
    )


def summary(plan: Plan) -> str:
    """The answer in one sentence, for a screen reader and a page's description."""
    tokens = "" if plan.tokens_per_step is None else f", {brief(plan.tokens_per_step)} tokens per update"
    return (
        f"{plural(plan.accum_steps, 'accumulation step')}, effective batch {brief(plan.effective_batch)}, "
        f"{drift_words(plan)}{tokens}"
    )


def pinned(plan: Plan) -> Markup:
    """The answer in one line, pinned to the foot of a phone's screen."""
    percent = "" if plan.is_exact else f" ({with_minus(plan.drift_signed_percent)})"
    return el(
        "a",
        {"class": "drift " + drift_kind(plan), "href": "#results"},
        el("span", None, el("b", None, plural(plan.accum_steps, "step")), " "),
        el("span", None, "batch ", el("b", None, brief(plan.effective_batch)), " "),
        el("b", {"class": "number"}, signed(drift_of(plan)) + percent),
    )


# What to know


def findings_section(plan: Plan, alone: bool = True) -> Markup:
    """Every finding, the first one open. alone: one plan on the page, in which one finding at most is open."""
    if not plan.findings:
        return EMPTY
    found = [_finding(each, not index, alone) for index, each in enumerate(plan.findings)]
    return section("What to know", found, kind="findings")


def _finding(finding: Finding, is_open: bool, alone: bool) -> Markup:
    return el(
        "details",
        {
            "class": "finding " + finding.severity,
            "id": finding.code if alone else None,
            "name": "finding" if alone else None,
            "open": is_open,
        },
        el(
            "summary",
            None,
            el("span", {"class": "severity"}, finding.severity[:1].upper() + finding.severity[1:]),
            " ",
            el("span", {"class": "message"}, finding.message),
        ),
        el("p", None, finding.action),
        el("p", {"class": "source"}, el("span", {"class": "code"}, finding.code), " ", linked(finding.source)),
    )


# The run


def run_section(plan: Plan) -> Markup:
    """What the batch makes of a whole run, of a pipeline, and of a learning rate; nothing where none is given."""
    rows = _run_rows(plan)
    if not (rows or plan.pipeline or plan.scaled_rates):
        return EMPTY
    return section(
        "The run",
        el("dl", {"class": "rows"}, [_row(*row) for row in rows + _pipeline_rows(plan) + _rate_rows(plan)]),
        kind="run",
    )


def _row(name: str, value: str, aside: Child) -> Markup:
    told = el("dd", None, el("b", None, value), " ", el("span", None, aside))
    return el("div", None, el("dt", None, name), " ", told)


def _run_rows(plan: Plan) -> list[tuple[str, str, Child]]:
    run, request = plan.training, plan.request
    rows: list[tuple[str, str, Child]] = []
    if run.updates is not None:
        aside = "" if run.updates_per_epoch is None else f"{brief(run.updates_per_epoch)} per epoch"
        if run.leftover_tokens:
            aside = f"{brief(run.leftover_tokens)} tokens are left over: they fill no further update"
        rows.append(("Updates", show_count(run.updates), aside))
    elif run.updates_per_epoch is not None:
        rows.append(("Updates per epoch", show_count(run.updates_per_epoch), "give epochs for the whole run"))
    if run.warmup_updates is not None:
        share = "" if not run.updates else f"{show_percent(run.warmup_updates, run.updates)}% of all updates"
        rows.append(("Warm-up", show_count(run.warmup_updates), ["updates", ", " if share else None, share]))
    if run.last_group_size:
        kept = {
            "step": "an update of its own, divided by what it holds",
            "drop": "left out of each epoch",
            "carry": "left over when the run ends",
        }[request.last_group]
        rows.append(("Short last group", show_count(run.last_group_size), f"sequences, {kept}"))
    if run.tokens is not None:
        rows.append(("Tokens", brief(run.tokens), f"the run trains on {show_short(run.tokens)}"))
    if run.tokens_per_param is not None:
        thumb = COMPUTE_OPTIMAL[0][0]
        rows.append(("Tokens per parameter", str(run.tokens_per_param), f"compute-optimal is about {thumb}"))
    return rows


def _pipeline_rows(plan: Plan) -> list[tuple[str, str, Child]]:
    pipe = plan.pipeline
    if pipe is None:
        return []
    stages = plural(pipe.stages, "stage")
    if pipe.virtual > 1:
        stages += f", {brief(pipe.virtual)} per rank"
    share = show_percent(pipe.bubble.numerator, pipe.bubble.denominator)
    filled = f"of an update is idle: {brief(pipe.micro_batches)} micro-batches through {stages}"
    return [("Pipeline bubble", share + "%", filled)]


def _rate_rows(plan: Plan) -> list[tuple[str, str, Child]]:
    return [
        (
            f"Learning rate, {rate.rule} rule",
            show_real(rate.learning_rate),
            [f"for {rate.holds_for}, {rate.advice}. ", el("span", {"class": "source"}, linked(rate.source))],
        )
        for rate in plan.scaled_rates
    ]


# The algebra


def algebra_section(plan: Plan) -> Markup:
    """Every quantity with its formula and the person's numbers."""
    rows = [
        el(
            "div",
            None,
            el("dt", None, el("code", None, line.name)),
            el(
                "dd",
                None,
                el("code", {"class": "formula"}, "= ", line.formula),
                None if line.numbers == line.result else el("code", None, "= ", line.numbers),
                el("code", {"class": "result"}, "= ", line.result),
            ),
        )
        for line in explain(plan)
    ]
    return section("How the numbers follow", el("dl", {"class": "algebra"}, rows), kind="algebra-part")
