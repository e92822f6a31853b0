"""A fit in a notebook: what the page's panel shows, under the rules of a plan's output (`notebook.py`)."""

from __future__ import annotations

from gradaccum.show.fit_panel import found_parts, plan_words
from gradaccum.show.html import el, raw
from gradaccum.show.notebook import HEADING, STYLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from gradaccum.show.html import Child

FIT_STYLE = """
.gradaccum-plan .fit-bar { margin: 0.9em 0; }
.gradaccum-plan .memory-bar { display: block; width: 100%; height: 44px; }
.gradaccum-plan .fit-columns { display: flex; flex-wrap: wrap; gap: 0.6em 3em; }
.gradaccum-plan .fit-columns > * { flex: 1 1 25em; min-width: 0; }
.gradaccum-plan .fit-columns svg { height: auto; max-width: 100%; }
.gradaccum-plan .fit-columns .swatch { height: 11px; }
.gradaccum-plan .ledger { border: 0; border-collapse: collapse; color: inherit; font: inherit; margin: 0; }
.gradaccum-plan .ledger thead, .gradaccum-plan .ledger tbody tr { background: none; border: 0; }
.gradaccum-plan .ledger th, .gradaccum-plan .ledger td { background: none; border: 0; color: inherit;
  font-weight: 400; padding: 0.1em 1.2em 0.1em 0; text-align: left; vertical-align: baseline; white-space: normal; }
.gradaccum-plan .ledger .n, .gradaccum-plan .ledger td.n { text-align: right; white-space: nowrap; }
.gradaccum-plan .ledger .own > * { font-weight: 600; }
.gradaccum-plan .formula, .gradaccum-plan .ledger thead th { font-size: 0.88em; opacity: 0.8; }
.gradaccum-plan .changes { list-style: none; margin: 0; padding: 0; }
.gradaccum-plan .ga-weights { fill: #8fbcd9; fill-opacity: 1; }
.gradaccum-plan .ga-states { fill: #4a8ab5; fill-opacity: 1; }
.gradaccum-plan .ga-gradients { fill: #2f76a6; fill-opacity: 1; }
.gradaccum-plan .ga-shared { fill: #6b7580; fill-opacity: 1; }
.gradaccum-plan .ga-activations { fill: #d9972f; fill-opacity: 1; }
.gradaccum-plan .ga-loss { fill: #bf5f2c; fill-opacity: 1; }
.gradaccum-plan .ga-outside { fill: #8b929a; fill-opacity: 1; }
.gradaccum-plan .ga-beyond { fill: #bf3a2c; fill-opacity: 0.2; }
.gradaccum-plan .ga-card { stroke: currentColor; stroke-opacity: 0.5; vector-effect: non-scaling-stroke; }
"""


def fit_html(found: Mapping[str, Any], gpu: str, words: str) -> str:
    """found: the fit as plain data (its JSON). gpu: the card's name; words: the model and how it is trained."""
    shown = el(
        "div",
        {"class": "gradaccum-plan"},
        el("style", None, raw(STYLE + FIT_STYLE)),
        el("p", None, el("b", None, found["model"]), ", ", words),
        found_parts(found, gpu, None, _plan(found["plan"])),
    )
    return str(shown).replace("<h3>", HEADING).replace("</h3>", "</b></p>")


def _plan(plan: Mapping[str, Any] | None) -> tuple[str, Child] | None:
    if plan is None:
        return None
    shown = plan_words(
        plan["micro_batch"], plan["data_parallel"], plan["accum_steps"], plan["effective_batch"], plan["drift"] or 0
    )
    return shown, "micro-batch, ranks, accumulation steps"
