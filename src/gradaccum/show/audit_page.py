"""An audit as HTML without a script: a page of its own, light and dark, or an output in a notebook's own colour.

Every selector is under one class, so that several stand in one notebook and none reaches beyond itself.
"""

from __future__ import annotations

from gradaccum.show.audit_picture import weights_picture
from gradaccum.show.audit_words import (
    evidence_words,
    fact_rows,
    groups_of,
    headline,
    plain,
    runs_of,
    tolerance_words,
)
from gradaccum.show.html import el, raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.audit import AuditedUpdate, AuditFinding, AuditReport
    from gradaccum.show.html import Child, Markup

MOST_ROWS = 200
"""Rows of numbers under a picture."""

PICTURES = 12
"""Updates that are drawn; those that look alike are one."""

STYLE = """
.gradaccum-audit { color: inherit; container: gradaccum-audit / inline-size; font-variant-numeric: tabular-nums;
  line-height: 1.45; max-width: 960px; overflow-wrap: anywhere; text-align: left; }
.gradaccum-audit p, .gradaccum-audit dl, .gradaccum-audit dt, .gradaccum-audit dd, .gradaccum-audit ul,
.gradaccum-audit li, .gradaccum-audit figure { float: none; font-size: inherit; margin: 0; padding: 0; width: auto; }
.gradaccum-audit ul { list-style: none; }
.gradaccum-audit .verdict { border-left: 5px solid currentColor; font-size: 1.25em; font-weight: 600;
  margin: 0 0 0.9em; padding: 0.15em 0 0.15em 0.7em; }
.gradaccum-audit .verdict.right { border-color: #2d9d66; }
.gradaccum-audit .verdict.fault { border-color: #d0553f; }
.gradaccum-audit .heading { margin: 1.3em 0 0.5em; }
.gradaccum-audit .finding { border-top: 1px solid #80808066; padding: 0.7em 0; }
.gradaccum-audit .message, .gradaccum-audit .code { font-weight: 600; }
.gradaccum-audit .code { white-space: nowrap; }
.gradaccum-audit .rows > div { display: flex; flex-wrap: wrap; gap: 0 1em; margin: 0.3em 0; }
.gradaccum-audit .rows dt { flex: 0 0 9em; font-weight: 400; opacity: 0.8; }
.gradaccum-audit .rows dd { flex: 1 1 16em; max-width: 62em; min-width: 0; }
.gradaccum-audit .fix dd { font-weight: 600; }
.gradaccum-audit figure { margin: 0.9em 0 1.2em; overflow: visible; }
.gradaccum-audit figcaption { font-weight: 600; margin: 0 0 0.4em; }
.gradaccum-audit .hint { font-size: 0.88em; opacity: 0.8; }
.gradaccum-audit svg { display: block; height: auto; max-width: 100%; }
.gradaccum-audit .narrow { display: none; }
.gradaccum-audit summary { cursor: pointer; display: list-item; font-size: 0.88em; }
.gradaccum-audit table { border: 0; border-collapse: collapse; color: inherit; font: inherit; margin: 0.4em 0;
  table-layout: auto; width: auto; }
.gradaccum-audit .numbers thead, .gradaccum-audit .numbers tbody tr { background: none; border: 0; }
.gradaccum-audit .numbers th, .gradaccum-audit .numbers td { background: none; border: 0; color: inherit;
  font-weight: 400; padding: 0.1em 1.4em 0.1em 0; text-align: right; white-space: nowrap; }
.gradaccum-audit .numbers th:first-child, .gradaccum-audit .numbers td:first-child { text-align: left; }
.gradaccum-audit .numbers thead th { font-size: 0.88em; opacity: 0.8; }
.gradaccum-audit .ga-right { fill: #4a8ab5; fill-opacity: 1; }
.gradaccum-audit .ga-off { fill: #d0553f; fill-opacity: 1; }
.gradaccum-audit .ga-one { stroke: #2d9d66; stroke-opacity: 1; stroke-width: 1.5; }
@container gradaccum-audit (max-width: 620px) {
  .gradaccum-audit .wide { display: none; }
  .gradaccum-audit .narrow { display: block; }
}
"""
"""It undoes what notebooks say of tables and lists in an output. Colours stand out on white and on black alike."""

PAGE_STYLE = """
:root { color-scheme: light dark; background: #f6f6f3; color: #15181c; }
body { font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; margin: 0; }
main { margin: 0 auto; max-width: 960px; padding: 28px 24px 56px; }
h1 { font-size: 15px; font-weight: 400; margin: 0 0 1.2em; }
@media (prefers-color-scheme: dark) { :root { background: #0f1216; color: #e7eaee; } }
"""


def as_html(report: AuditReport) -> str:
    """A page that stands alone: no script, nothing to load, light and dark as the reader has it."""
    page = el(
        "html",
        {"lang": "en"},
        el(
            "head",
            None,
            el("meta", {"charset": "utf-8"}),
            el("meta", {"content": "width=device-width, initial-scale=1", "name": "viewport"}),
            el("title", None, f"gradaccum audit: {report.verdict}"),
            el("style", None, raw(PAGE_STYLE)),
        ),
        el(
            "body",
            None,
            el("main", None, el("h1", None, el("b", None, "gradaccum"), " audit"), raw(as_fragment(report))),
        ),
    )
    return "<!DOCTYPE html>\n" + str(page)


def as_fragment(report: AuditReport) -> str:
    """The same for a notebook's output, in the notebook's own text colour."""
    shown = el(
        "div",
        {"class": "gradaccum-audit"},
        el("style", None, raw(STYLE)),
        el("p", {"class": f"verdict {report.verdict.replace(' ', '-')}"}, headline(report)),
        [_finding(each) for each in report.findings],
        _pictures(report),
        _heading("What an update was"),
        labelled([*fact_rows(report), ("tolerance", tolerance_words(report))]),
        _not_seen(report),
    )
    return str(shown)


def _heading(words: str) -> Markup:
    return el("p", {"aria-level": "2", "class": "heading", "role": "heading"}, el("b", None, words))


def _finding(finding: AuditFinding) -> Markup:
    rows = [("evidence", evidence_words(finding.evidence)), ("what it means", plain(finding.consequence))]
    return el(
        "div",
        {"class": f"finding {finding.severity}"},
        el(
            "p",
            {"class": "message"},
            el("span", {"class": "code"}, f"{finding.severity} {finding.code}"),
            ": ",
            plain(finding.message),
        ),
        el(
            "dl",
            {"class": "rows"},
            [_pair(label, value) for label, value in rows if value],
            _pair("fix", plain(finding.fix), "fix") if finding.fix else None,
        ),
    )


def labelled(rows: list[tuple[str, str]]) -> Markup:
    """Labels, each with its value beside it."""
    return el("dl", {"class": "rows"}, [_pair(label, value) for label, value in rows])


def _pair(label: str, value: str, kind: str | None = None) -> Markup:
    return el("div", {"class": kind}, el("dt", None, label), el("dd", None, value))


def _pictures(report: AuditReport) -> Child:
    groups = groups_of(report)
    if not groups:
        return None
    more = len(groups) - PICTURES
    return [
        _heading("What a token or sample weighs"),
        el(
            "p",
            {"class": "hint"},
            "A bar for each micro-batch, a row for each rank. Height: the weight of one token or sample beside what it "
            "should be, the dashed line at 1. Width: how many the micro-batch holds. Area: what it contributes.",
        ),
        [_figure(update, which, report.tolerance) for update, which in groups[:PICTURES]],
        el("p", {"class": "hint"}, f"and {more} more that look different") if more > 0 else None,
    ]


def _figure(update: AuditedUpdate, which: str, tolerance: float) -> Markup:
    return el(
        "figure",
        None,
        el("figcaption", None, which),
        el("div", {"class": "wide"}, weights_picture(update, which, tolerance)),
        el("div", {"class": "narrow"}, weights_picture(update, which, tolerance, narrow=True)),
        el("details", None, el("summary", None, "The numbers"), _numbers(update)),
    )


def _numbers(update: AuditedUpdate) -> Child:
    runs = runs_of(update)
    head = [el("th", {"scope": "col"}, name) for name in ("rank", "micro-batch", "weight", "holds")]
    rows = [
        el("tr", None, [el("td", None, cell) for cell in (str(run.rank), run.name, run.weight_words, run.units_words)])
        for run in runs[:MOST_ROWS]
    ]
    rest = len(runs) - MOST_ROWS
    return [
        el("table", {"class": "numbers"}, el("thead", None, el("tr", None, head)), el("tbody", None, rows)),
        el("p", {"class": "hint"}, f"and {rest} more rows") if rest > 0 else None,
    ]


def _not_seen(report: AuditReport) -> Child:
    if not report.not_seen:
        return None
    return [_heading("What was not seen"), el("ul", None, [el("li", None, plain(each)) for each in report.not_seen])]
