"""An audit as a terminal shows it, as a page of its own, and as a notebook's output. It computes nothing."""

from __future__ import annotations

from gradaccum.show.audit_page import as_fragment, as_html
from gradaccum.show.audit_words import (
    evidence_words,
    fact_rows,
    finite,
    groups_of,
    headline,
    plain,
    runs_of,
    scaled,
    tolerance_words,
    top_of,
)
from gradaccum.show.text import PLAIN, Style, wrapped
from gradaccum.units import show_real

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.audit import AuditedUpdate, AuditFinding, AuditReport
    from gradaccum.show.audit_words import Run

__all__ = ["as_fragment", "as_html", "as_text"]

LABELS = 18
"""Width of the column of labels."""

ROWS = 16
"""Rows of one update's picture; more are counted in words."""

LEAST = 8
"""Characters that a bar needs."""

PICTURES = 4
"""Updates that are drawn; those that look alike are one."""


def as_text(report: AuditReport, width: int = 80, style: Style = PLAIN) -> str:
    """The verdict in one line, what was found with evidence and fix, the weight of every micro-batch, facts, and what
    was not seen. width: columns; no line is longer.
    """
    lines = cut(headline(report), width)
    lines = [style.strong(line) for line in lines]
    for finding in report.findings:
        lines += ["", *_finding(finding, width, style)]
    groups = groups_of(report)
    for update, which in groups[:PICTURES]:
        lines += ["", *cut(f"{which}: weight of a token or sample (|: what it should be)", width), ""]
        lines += _picture(update, width, style)
    if len(groups) > PICTURES:
        lines += ["", *cut(f"and {len(groups) - PICTURES} more that look different", width)]
    lines.append("")
    for label, value in [*fact_rows(report), ("tolerance", tolerance_words(report))]:
        lines += row(label, value, width, style)
    for index, each in enumerate(report.not_seen):
        lines += row("" if index else "not seen", each, width, style)
    return "\n".join(lines)


def cut(text: str, width: int, indent: int = 0) -> list[str]:
    """`text` in lines of at most `width`; a word longer than that is cut."""
    room = max(8, width - indent)
    words: list[str] = []
    for word in plain(text).split():
        words += [word[start : start + room] for start in range(0, len(word), room)]
    return wrapped(" ".join(words), width, indent)


def _finding(finding: AuditFinding, width: int, style: Style) -> list[str]:
    name = f"{finding.severity} {finding.code}"
    first, *rest = cut(f"{name}: {finding.message}", width)
    marked = style.strong(name) if finding.severity == "note" else style.warning(name)
    lines = [first.replace(name, marked, 1), *rest]
    for label, value in (
        ("evidence", evidence_words(finding.evidence)),
        ("what it means", finding.consequence),
        ("fix", finding.fix),
    ):
        if value:
            lines += row("  " + label, value, width, style)
    return lines


def row(label: str, value: str, width: int, style: Style = PLAIN) -> list[str]:
    """A label and its value beside it, in lines of at most `width`."""
    lines = cut(value, width, LABELS) or [" " * LABELS]
    if len(label) >= LABELS:
        return [*[style.faint(line) for line in cut(label, width)], *lines]
    return [style.faint(_left(label, LABELS)) + lines[0][LABELS:], *lines[1:]]


# The picture


def _picture(update: AuditedUpdate, width: int, style: Style) -> list[str]:
    """A line for each run of micro-batches that look alike: its weight as a bar, and how much it holds."""
    runs = runs_of(update)
    several = len({run.rank for run in runs}) > 1
    names = [f"rank {run.rank}, micro-batch {run.name}" if several else f"micro-batch {run.name}" for run in runs]
    shown = list(zip(names, runs))[:ROWS]
    labels = max([len(name) for name, _ in shown], default=0)
    weights = max([len(run.weight_words) for _, run in shown], default=0)
    units = max([len(run.units_words) for _, run in shown], default=0)
    room = min(40, width - 2 - labels - 2 - weights - 2 - 2 - units)
    top = top_of(update)
    lines = []
    for name, run in shown:
        cells = [_left(name, labels), _right(run.weight_words, weights), _bar(run, top, room), run.units_words]
        if room < LEAST:
            cells.pop(2)
        lines.append(("  " + "  ".join(cells)).rstrip())
    if len(runs) > ROWS:
        rest = [run.weight for run in runs[ROWS:] if run.weight is not None]
        between = f", weights from {show_real(min(rest))} to {show_real(max(rest))}" if rest else ""
        lines.append(style.faint(f"  and {len(runs) - ROWS} more{between}"))
    return lines


def _bar(run: Run, top: float, room: int) -> str:
    """`########    |    `: the weight, and the mark at 1."""
    if run.weight is None or not finite(run.weight):
        return _left("?", room)
    filled, one = scaled(run.weight, top, room), min(room - 1, max(0, scaled(1.0, top, room) - 1))
    bar = "#" * filled + " " * (room - filled)
    return bar[:one] + "|" + bar[one + 1 :]


def _left(text: str, width: int) -> str:
    return text + " " * (width - len(text))


def _right(text: str, width: int) -> str:
    return " " * (width - len(text)) + text
