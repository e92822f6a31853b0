"""A plan as text: the first answer on one screen, for a terminal, a pipe and `print(plan)`.

ASCII alone. Width and colour come from the caller, so that the same words serve a narrow window and a file.
"""

from __future__ import annotations

from gradaccum.core.training import COMPUTE_OPTIMAL
from gradaccum.show.numbers import drift_words
from gradaccum.units import MAX_DIGITS, show_count, show_percent, show_real, show_signed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gradaccum.core.choices import Choice
    from gradaccum.core.findings import Finding
    from gradaccum.core.plan import Plan
    from gradaccum.core.sweep import Row

LABELS = 18
"""Width of the column of labels."""

NARROW = 56
"""Below this width a label stands on a line of its own."""


class Style:
    """Marks text for a terminal; the plain one leaves it as it is."""

    def __init__(self, colour: bool = False) -> None:
        self.colour = colour

    def _mark(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def strong(self, text: str) -> str:
        """The answer."""
        return self._mark("1", text)

    def faint(self, text: str) -> str:
        """Labels and asides."""
        return self._mark("2", text)

    def warning(self, text: str) -> str:
        """The name of a warning."""
        return self._mark("33", text)


PLAIN = Style()


def plan_text(plan: Plan, width: int = 80, style: Style = PLAIN) -> str:
    """The first answer: steps, effective batch, drift, tokens per update, equation, better choices, the line to
    paste, and the one thing that will bite this setup. width: columns; no line is longer, words permitting.
    """
    lines = _answer_lines(plan, width, style)
    bite = biting(plan)
    if bite:
        lines.append("")
        lines.extend(_finding(bite, width, style))
        rest = len(plan.findings) - 1
        if rest:
            lines.extend(
                style.faint(line)
                for line in wrapped(f"and {rest} more finding{'s' if rest > 1 else ''}: --explain", width)
            )
    return "\n".join(lines)


def _answer_lines(plan: Plan, width: int, style: Style) -> list[str]:
    rows = [
        ("effective batch", f"{show_count(plan.effective_batch)} sequences, {drift_words(plan)}"),
        *_tokens(plan),
        ("equation", equation(plan)),
        *_pipeline(plan),
        *_run(plan),
        *_rates(plan),
        ("closer" if plan.better_choices else "", _better(plan)),
        ("other roundings", _neighbours(plan)),
        ("to paste", _to_paste(plan)),
    ]
    lines = [style.strong(_answer(plan)), ""]
    for label, value in rows:
        if value:
            lines.extend(_row(label, value, width, style))
    return lines


def explain_text(plan: Plan, width: int = 80, style: Style = PLAIN) -> str:
    """The algebra with the person's numbers, then every finding with what to do and its source."""
    from gradaccum.core.explain import explain

    lines = [*_answer_lines(plan, width, style), "", style.strong("How the numbers follow"), ""]
    for line in explain(plan):
        lines.extend(_row(line.name, f"= {line.formula}", width, style))
        shown = f"= {line.numbers} = {line.result}" if line.numbers != line.result else f"= {line.result}"
        lines.extend(_row("", shown, width, style))
    if plan.findings:
        lines += ["", style.strong("What to know")]
        for finding in plan.findings:
            lines.append("")
            lines.extend(_finding(finding, width, style))
            lines.extend(style.faint(line) for line in wrapped(f"source: {finding.source}", width, indent=2))
    return "\n".join(lines)


def table_text(rows: Sequence[Row], width: int = 80, style: Style = PLAIN) -> str:
    """Rows of a sweep under a header, right-aligned; columns that do not fit the width lose their padding."""
    in_tokens = bool(rows) and rows[0].drift is None
    varied = [name for name, _ in rows[0].varied] if rows else []
    header = ["micro-batch", "GPUs", "accum steps", "effective batch", "drift" + (" in tokens" if in_tokens else "")]
    header = [name.replace("_", " ") for name in varied] + header
    cells = [
        [
            *[show_count(value) if isinstance(value, int) else str(value) for _, value in row.varied],
            show_count(row.micro_batch),
            show_count(row.num_gpus),
            show_count(row.accum_steps),
            show_count(row.effective_batch),
            show_signed((row.drift_tokens if row.drift is None else row.drift) or 0),
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [header, *cells]) for column in range(len(header))]
    gap = "   " if sum(widths) + 3 * (len(widths) - 1) <= width else " "
    lines = [gap.join(_right(text, size) for text, size in zip(line, widths)) for line in [header, *cells]]
    return "\n".join([style.faint(lines[0]), *lines[1:]])


# The words that other faces share


def headline(plan: Plan) -> str:
    """`16 accumulation steps`"""
    return f"{show_count(plan.accum_steps)} accumulation step{'' if plan.accum_steps == 1 else 's'}"


def equation(plan: Plan) -> str:
    """`4 micro-batch x 8 GPUs x 16 accumulation steps = 512`"""
    who = "GPU" if plan.data_parallel == plan.num_gpus else "data-parallel rank"
    ranks = f"{show_count(plan.data_parallel)} {who}{'' if plan.data_parallel == 1 else 's'}"
    product = plan.device_batch * plan.accum_steps
    result = f"{show_count(plan.micro_batch)} micro-batch x {ranks} x {headline(plan)} = "
    if product == plan.effective_batch:
        return result + show_count(product)
    return f"{result}{show_count(product)}, less {show_count(product - plan.effective_batch)} in the last micro-step"


def biting(plan: Plan) -> Finding | None:
    """The one finding to show first; the drift itself already stands in the answer."""
    others = [finding for finding in plan.findings if finding.code != "GA001" or finding.severity == "warning"]
    return others[0] if others else None


def product(micro_batch: int, ranks: int, accum_steps: int) -> str:
    """`3 x 8 x 21 = 504`: micro-batch x ranks x accumulation steps."""
    factors = " x ".join(show_count(factor) for factor in (micro_batch, ranks, accum_steps))
    return f"{factors} = {show_count(micro_batch * ranks * accum_steps)}"


def _answer(plan: Plan) -> str:
    """What was asked for first: the quantity that was found, then the steps."""
    found = {
        "micro_batch": f"micro-batch {show_count(plan.micro_batch)}",
        "num_gpus": f"{show_count(plan.num_gpus)} GPU{'' if plan.num_gpus == 1 else 's'}",
        "target_batch": f"{show_count(plan.effective_batch)} sequences per update",
    }.get(plan.solved_for or "", "")
    if plan.request.micro_batch is None:
        found = f"micro-batch {show_count(plan.micro_batch)}"
    return f"{found}, {headline(plan)}" if found else headline(plan)


def _tokens(plan: Plan) -> list[tuple[str, str]]:
    if plan.tokens_per_step is None:
        return []
    length = show_count(plan.sequence_length or 0)
    return [("tokens per update", f"{show_count(plan.tokens_per_step)} (sequences of {length})")]


def _pipeline(plan: Plan) -> list[tuple[str, str]]:
    pipe = plan.pipeline
    if pipe is None:
        return []
    share = show_percent(pipe.bubble.numerator, pipe.bubble.denominator)
    return [("pipeline bubble", f"{share}% ({show_count(pipe.micro_batches)} micro-batches, {pipe.stages} stages)")]


def _run(plan: Plan) -> list[tuple[str, str]]:
    run = plan.training
    rows = []
    if run.updates is not None:
        per_epoch = "" if run.updates_per_epoch is None else f", {show_count(run.updates_per_epoch)} per epoch"
        warmup = "" if run.warmup_updates is None else f", {show_count(run.warmup_updates)} of warm-up"
        rows.append(("updates", show_count(run.updates) + per_epoch + warmup))
    elif run.updates_per_epoch is not None:
        rows.append(("updates per epoch", show_count(run.updates_per_epoch)))
    elif run.warmup_updates is not None:
        rows.append(("warm-up updates", show_count(run.warmup_updates)))
    if run.loss_tokens_per_step is not None:
        rows.append(("loss tokens", f"about {show_count(run.loss_tokens_per_step)} per update"))
    if run.tokens_per_param is not None:
        thumb = COMPUTE_OPTIMAL[0][0]
        rows.append(("tokens per param", f"{run.tokens_per_param} (compute-optimal rule of thumb: {thumb})"))
    return rows


def _rates(plan: Plan) -> list[tuple[str, str]]:
    return [
        (
            "learning rate" if index == 0 else "",
            f"{show_real(rate.learning_rate)} by the {rate.rule} rule, for {rate.holds_for}: {rate.advice} "
            f"({rate.source})",
        )
        for index, rate in enumerate(plan.scaled_rates)
    ]


def _better(plan: Plan) -> str:
    """The two closest batches; of several ways to one of them, the first, which has the larger micro-batch."""
    replica = plan.num_gpus // plan.data_parallel
    batches: dict[int, Choice] = {}
    for choice in plan.better_choices:
        batches.setdefault(choice.effective_batch, choice)
    return "   ".join(
        f"{product(each.micro_batch, each.num_gpus // replica, each.accum_steps)} "
        f"({show_signed((each.drift_tokens if each.drift is None else each.drift) or 0)})"
        for each in list(batches.values())[:2]
    )


def _to_paste(plan: Plan) -> str:
    """Hugging Face's names, since most trainers know them; plain digits, as far as digits can be read."""
    if max(plan.accum_steps, plan.micro_batch) >= 10**MAX_DIGITS:
        return ""
    if plan.effective_batch != plan.device_batch * plan.accum_steps:
        return "--loop prints a loop for it; no trainer has a setting for a smaller last micro-step"
    if plan.pipeline_parallel > 1:
        return f"--micro-batch-size {plan.micro_batch} --global-batch-size {plan.effective_batch} (Megatron-LM)"
    return f"gradient_accumulation_steps={plan.accum_steps} per_device_train_batch_size={plan.micro_batch}"


def _neighbours(plan: Plan) -> str:
    shown = []
    for each in plan.neighbours[:2]:
        if each.accum_steps == plan.accum_steps:
            continue
        drift = show_signed((each.drift_tokens if each.drift is None else each.drift) or 0)
        shown.append(f"{each.rounding} {show_count(each.accum_steps)} -> {show_count(each.effective_batch)} ({drift})")
    return "   ".join(shown)


# Lines


def _finding(finding: Finding, width: int, style: Style) -> list[str]:
    name = f"{finding.severity} {finding.code}"
    message, *rest = wrapped(f"{name}: {finding.message}", width)
    marked = style.warning(name) if finding.severity == "warning" else style.strong(name)
    if message.startswith(name):
        message = marked + message[len(name) :]
    return [message, *rest, *wrapped(finding.action, width, indent=2)]


def _row(label: str, value: str, width: int, style: Style) -> list[str]:
    if width < NARROW:
        return [style.faint(line) for line in wrapped(label, width)] + wrapped(value, width, indent=2)
    head = _left(label, LABELS) + "  "
    first, *rest = hung(head, value, width)
    return [style.faint(label) + first[len(label) :], *rest]


def wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    """`text` in lines of at most `width`, each behind `indent` spaces; a word longer than that stays whole.

    Where three spaces stand between parts, a line rather ends there.
    """
    lines: list[str] = []
    line = ""
    for word in _words(text, max(8, width - indent)):
        if line and len(line) + 1 + len(word.strip()) > max(8, width - indent):
            lines.append(line)
            line = word.strip()
        else:
            line = f"{line} {word}" if line else word.strip()
    return [" " * indent + each for each in [*lines, line] if each]


def hung(head: str, text: str, width: int) -> list[str]:
    """`head` and `text` in lines of at most `width`; what does not fit beside the head follows beneath the text."""
    first, *rest = wrapped(text, width, indent=len(head)) or [head]
    return [head + first[len(head) :], *rest]


def _words(text: str, width: int) -> Iterable[str]:
    """Words; parts between which three spaces stand are kept together where they fit into one line."""
    for index, part in enumerate(text.split("   ")):
        lead = "  " if index else ""
        if "   " in text and len(part) <= width:
            yield lead + part
        else:
            yield from part.split()


def _left(text: str, width: int) -> str:
    return text + " " * (width - len(text))


def _right(text: str, width: int) -> str:
    return " " * (width - len(text)) + text
