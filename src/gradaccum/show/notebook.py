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
.gradaccum-plan { color: inherit; font-variant-numeric: tabular-nums; line-height: 1.4; max-width: 62em; }
.gradaccum-plan dl, .gradaccum-plan dd, .gradaccum-plan figure { margin: 0; }
.gradaccum-plan h2 { font-size: 1em; font-weight: 600; margin: 1.1em 0 0.4em; }
.gradaccum-plan .figures { display: flex; flex-wrap: wrap; gap: 0.6em 2.2em; }
.gradaccum-plan dt, .gradaccum-plan .aside, .gradaccum-plan .name, .gradaccum-plan .replica, .gradaccum-plan .hint,
.gradaccum-plan .source, .gradaccum-plan .which, .gradaccum-plan figcaption { font-size: 0.88em; font-weight: 400;
  opacity: 0.8; }
.gradaccum-plan .number { display: block; font-size: 1.6em; font-weight: 600; overflow-wrap: anywhere; }
.gradaccum-plan .first .number { font-size: 2.1em; }
.gradaccum-plan .huge .number { font-size: 1em; }
.gradaccum-plan .equation { margin: 0.8em 0 0; }
.gradaccum-plan .operator { margin: 0 0.35em; opacity: 0.8; }
.gradaccum-plan .factor { font-weight: 600; }
.gradaccum-plan svg { height: auto; max-width: 100%; }
.gradaccum-plan table { background: none; border-collapse: collapse; color: inherit; font: inherit; margin: 0; }
.gradaccum-plan th, .gradaccum-plan td { background: none; border: 0; color: inherit; font-weight: 400;
  padding: 0.15em 1.2em 0.15em 0; text-align: left; }
.gradaccum-plan .n { text-align: right; }
.gradaccum-plan .own > * { font-weight: 600; }
.gradaccum-plan details { margin: 0.2em 0; }
.gradaccum-plan details p { margin: 0.2em 0 0.2em 1.2em; }
.gradaccum-plan .severity { font-weight: 600; }
.gradaccum-plan .rows > div { display: flex; gap: 0 1em; }
.gradaccum-plan .rows dt { flex: 0 0 15em; }
.gradaccum-plan .ga-forward { fill: #8fbcd9; fill-opacity: 0.75; }
.gradaccum-plan .ga-backward, .gradaccum-plan .ga-stem-bar { fill: #4a8ab5; fill-opacity: 1; }
.gradaccum-plan .ga-sum { fill: #2f76a6; fill-opacity: 1; }
.gradaccum-plan .ga-sync { fill: #d9972f; fill-opacity: 1; }
.gradaccum-plan .ga-on-sync { fill: #140d00; }
.gradaccum-plan .ga-optimizer { fill: #6b7580; fill-opacity: 1; }
.gradaccum-plan .ga-on-optimizer { fill: #ffffff; }
"""
"""Colours of a middle lightness, which stand out on white and on black alike."""


def plan_html(plan: Plan) -> str:
    """The answer, the picture of one update, what else is close, findings and the run."""
    return str(
        el(
            "div",
            {"class": "gradaccum-plan"},
            el("style", None, raw(STYLE)),
            answer(plan),
            _update(plan),
            nearby_section(plan, None),
            findings_section(plan, alone=False),
            run_section(plan),
        )
    )


def _update(plan: Plan) -> Markup:
    caption = el("figcaption", None, update_words(plan))
    return el("figure", None, el("h2", None, "One update over time"), update_picture(plan), caption)
