"""The calls that the page makes, under MicroPython. Lowered itself, and the first module that is imported there."""

from __future__ import annotations

import gc
import json

import gradaccum.web.site.prelude  # noqa: F401 - before all others: their code uses the names that it brings
from gradaccum.web.page import plan_or_errors, render_live, render_page, render_rest
from gradaccum.web.site.json_text import json_text

gc.threshold(-1)  # type: ignore[attr-defined]  # memory is tidied up after `rest`, or where it is full, not after each call


def first(query: str) -> str:
    """What an edit changes on the answer, as JSON."""
    return json.dumps(render_live(query, fill=False))


def filled(query: str) -> str:
    """The same, and what a link brings into the fields."""
    return json.dumps(render_live(query))


def rest(query: str) -> str:
    """The results below it, as JSON. Then memory is tidied up, while nobody waits."""
    text = json.dumps(render_rest(query))
    gc.collect()
    return text


def page(query: str) -> str:
    """The whole page, for a permalink."""
    return render_page(query)


def plan(query: str) -> str:
    """The plan as the API gives it, or what is wrong, as JSON."""
    return json_text(plan_or_errors(query)[1])
