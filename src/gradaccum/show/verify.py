"""One update as one batch and as micro-batches: the answer as text, and as a notebook's output."""

from __future__ import annotations

from gradaccum.show.audit import cut, row
from gradaccum.show.audit_page import STYLE, labelled
from gradaccum.show.audit_words import evidence_words, plain
from gradaccum.show.html import el, raw
from gradaccum.units import show_count, show_real

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MOST_ROWS = 8
"""Parameters that are shown, those with the largest error."""

HEADER = ("parameter", "ratio", "cosine", "largest error")


def verify_text(found: Mapping[str, Any], width: int = 80) -> str:
    """found: the answer as plain data (its JSON)."""
    lines = cut(_headline(found), width)
    for each in found["findings"]:
        lines += ["", *cut(f"{each['severity']} {each['code']}: {each['message']}", width)]
        lines += [*row("  what it means", each["consequence"], width), *row("  fix", each["fix"], width)]
    rows = [HEADER, *_rows(found)]
    sizes = [max([len(cells[column]) for cells in rows]) for column in range(len(HEADER))]
    sizes[0] = min(sizes[0], width - sum(sizes[1:]) - 6)
    lines.append("")
    for name, *numbers in rows:
        name = name if len(name) <= sizes[0] else "..." + name[len(name) - sizes[0] + 3 :]
        cells = [" " * (size - len(cell)) + cell for cell, size in zip(numbers, sizes[1:])]
        lines.append("  ".join([name + " " * (sizes[0] - len(name)), *cells]).rstrip())
    lines += [*_rest(found), "", *cut(_tolerance(found), width)]
    for each in found["remarks"]:
        lines += cut(each, width)
    return "\n".join(lines)


def verify_html(found: Mapping[str, Any]) -> str:
    """The same for a notebook, in the notebook's own text colour."""
    findings = [
        el(
            "div",
            {"class": f"finding {each['severity']}"},
            el("p", {"class": "message"}, f"{each['severity']} {each['code']}: {plain(each['message'])}"),
            labelled(
                [
                    ("evidence", evidence_words(each["evidence"])),
                    ("what it means", plain(each["consequence"])),
                    ("fix", plain(each["fix"])),
                ]
            ),
        )
        for each in found["findings"]
    ]
    head = [el("th", {"scope": "col"}, name) for name in HEADER]
    body = [el("tr", None, [el("td", None, cell) for cell in cells]) for cells in _rows(found)]
    return str(
        el(
            "div",
            {"class": "gradaccum-audit"},
            el("style", None, raw(STYLE)),
            el("p", {"class": f"verdict {found['verdict'].replace(' ', '-')}"}, _headline(found)),
            findings,
            el("table", {"class": "numbers"}, el("thead", None, el("tr", None, head)), el("tbody", None, body)),
            [el("p", {"class": "hint"}, each) for each in [*_rest(found), _tolerance(found), *found["remarks"]]],
        )
    )


def _headline(found: Mapping[str, Any]) -> str:
    parts = f"{show_count(found['micro_batches'])} micro-batches of {show_count(found['micro_batch'])}"
    batch = f"one batch of {show_count(found['samples'])}"
    if found["verdict"] == "right":
        return f"right: {parts} give the gradient of {batch}"
    if found["verdict"] == "fault":
        codes = ", ".join([each["code"] for each in found["findings"]])
        return f"fault: {parts} do not give the gradient of {batch} ({codes})"
    return f"not seen: whether {parts} give the gradient of {batch}"


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    return [
        (plain(each["name"]), _number(each["ratio"]), _number(each["cosine"]), show_real(each["error"], 2))
        for each in found["parameters"][:MOST_ROWS]
    ]


def _rest(found: Mapping[str, Any]) -> list[str]:
    rest = len(found["parameters"]) - MOST_ROWS
    return [f"and {show_count(rest)} more with smaller errors"] if rest > 0 else []


def _number(value: float | None) -> str:
    return "" if value is None else show_real(value, 5)


def _tolerance(found: Mapping[str, Any]) -> str:
    return (
        f"Errors up to {show_real(found['tolerance'], 2)} are rounding in {found['dtype']}. An error is the largest "
        "difference by the parameter's largest gradient."
    )
