"""A plan in a notebook: HTML without a script, every selector under one class, in the notebook's own text colour."""

from __future__ import annotations

from gradaccum.show.html import el, raw
from gradaccum.show.nearby import nearby_section
from gradaccum.show.sections import answer, findings_section, run_section
from gradaccum.show.update_picture import update_picture, update_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.plan import Plan
    from gradaccum.show.html import Markup

STYLE = """
.gradaccum-plan { color: inherit; font-variant-numeric: tabular-nums; line-height: 1.4; max-width: 960px;
  overflow-wrap: anywhere; text-align: left; }
.gradaccum-plan dl, .gradaccum-plan dt, .gradaccum-plan dd, .gradaccum-plan p, .gradaccum-plan figure,
.gradaccum-plan .figure { float: none; font-size: inherit; margin: 0; overflow: visible; padding: 0; width: auto; }
.gradaccum-plan .heading { margin: 1.1em 0 0.4em; }
.gradaccum-plan figcaption, .gradaccum-plan details, .gradaccum-plan dd, .gradaccum-plan .hint { max-width: 62em; }
.gradaccum-plan .figures { display: flex; flex-wrap: wrap; gap: 0.7em 2.6em; }
.gradaccum-plan dt, .gradaccum-plan .aside, .gradaccum-plan .name, .gradaccum-plan .replica, .gradaccum-plan .hint,
.gradaccum-plan .which, .gradaccum-plan figcaption { font-size: 0.88em; font-weight: 400; opacity: 0.8; }
.gradaccum-plan .source { font-size: 0.88em; }
.gradaccum-plan .number { display: block; font-size: 1.6em; font-weight: 600; line-height: 1.3; }
.gradaccum-plan .first .number { font-size: 2.1em; line-height: 1; }
.gradaccum-plan .huge .number { font-size: 1em; line-height: inherit; }
.gradaccum-plan .equation { margin: 0.8em 0 0; }
.gradaccum-plan .term { white-space: nowrap; }
.gradaccum-plan .operator { margin: 0 0.35em; opacity: 0.8; }
.gradaccum-plan .factor { font-weight: 600; }
.gradaccum-plan .replica { display: block; }
.gradaccum-plan .picture, .gradaccum-plan .nearby { container: gradaccum-plan / inline-size; }
.gradaccum-plan .picture { display: block !important; margin: 0 0 0.3em; }
.gradaccum-plan .picture svg { display: block; height: auto; max-width: 100%; }
.gradaccum-plan .narrow { display: none; }
.gradaccum-plan .nearby { overflow-x: auto; }
.gradaccum-plan .nearby table { border: 0; border-collapse: collapse; color: inherit; font: inherit; margin: 0;
  table-layout: auto; width: auto; }
.gradaccum-plan .nearby table, .gradaccum-plan .nearby thead, .gradaccum-plan .nearby tbody tr { background: none; }
.gradaccum-plan .nearby thead, .gradaccum-plan .nearby tr { border: 0; }
.gradaccum-plan .nearby th, .gradaccum-plan .nearby td { background: none; border: 0; color: inherit;
  font-weight: 400; line-height: inherit; overflow-wrap: normal; padding: 0.15em 1.2em 0.15em 0; text-align: left;
  vertical-align: baseline; white-space: normal; }
.gradaccum-plan .nearby thead th { font-size: 0.88em; opacity: 0.8; }
.gradaccum-plan .nearby .n { text-align: right; }
.gradaccum-plan .nearby td.n, .gradaccum-plan .nearby .short { white-space: nowrap; }
.gradaccum-plan .nearby .own > * { font-weight: 600; }
.gradaccum-plan .bar { display: inline; height: 12px; margin-left: 8px; vertical-align: -1px; }
.gradaccum-plan .nearby .hint { margin: 0.4em 0 0; }
@container gradaccum-plan (max-width: 700px) {
  .gradaccum-plan .wide, .gradaccum-plan .bar { display: none; }
  .gradaccum-plan .narrow { display: block; }
}
.gradaccum-plan details { margin: 0.2em 0; }
.gradaccum-plan summary { cursor: pointer; display: list-item; }
.gradaccum-plan details p { margin: 0.2em 0 0.2em 1.2em; }
.gradaccum-plan details .source { margin-left: 1.36em; }
.gradaccum-plan .severity { font-weight: 600; }
.gradaccum-plan a { color: inherit; text-decoration: underline; }
.gradaccum-plan .rows > div { display: flex; flex-wrap: wrap; gap: 0 1em; margin: 0.3em 0; }
.gradaccum-plan .rows dt { flex: 0 0 17em; }
.gradaccum-plan .rows dd { flex: 1 1 20em; }
.gradaccum-plan .ga-forward { fill: #8fbcd9; fill-opacity: 0.75; }
.gradaccum-plan .ga-backward, .gradaccum-plan .ga-stem-bar { fill: #4a8ab5; fill-opacity: 1; }
.gradaccum-plan .ga-sum { fill: #2f76a6; fill-opacity: 1; }
.gradaccum-plan .ga-sync { fill: #d9972f; fill-opacity: 1; }
.gradaccum-plan .ga-on-sync { fill: #140d00; }
.gradaccum-plan .ga-optimizer { fill: #6b7580; fill-opacity: 1; }
.gradaccum-plan .ga-on-optimizer { fill: #ffffff; }
"""
"""It undoes what notebooks say of tables (zebra rows, cells to the right) and lists (floating terms) in an output.

JupyterLab's rules for rows weigh (0, 2, 2): `.gradaccum-plan .nearby tbody tr` weighs as much, and comes later.
Colours are of a middle lightness, which stands out on white and on black alike.
"""

HEADING = '<p aria-level="2" class="heading" role="heading"><b>'
"""A heading that the notebook's table of contents leaves out: it would list those of every plan."""


def plan_html(plan: Plan) -> str:
    """The answer, the picture of one update, what else is close, findings and the run."""
    shown = el(
        "div",
        {"class": "gradaccum-plan"},
        el("style", None, raw(STYLE)),
        answer(plan),
        _update(plan),
        nearby_section(plan, None),
        findings_section(plan, alone=False),
        run_section(plan),
    )
    return str(shown).replace("<h2>", HEADING).replace("</h2>", "</b></p>")


def _update(plan: Plan) -> Markup:
    """The picture for wide and for narrow cells, and the same in words.

    `hidden` holds where no stylesheet says otherwise: what strips that from a notebook nobody trusts strips `svg` too,
    and the labels of a picture alone are no text.
    """
    return el(
        "figure",
        None,
        el("h2", None, "One update over time"),
        el(
            "div",
            {"class": "picture", "hidden": "hidden"},
            el("div", {"class": "wide"}, update_picture(plan)),
            el("div", {"class": "narrow"}, update_picture(plan, narrow=True)),
        ),
        el("figcaption", None, update_words(plan)),
    )
