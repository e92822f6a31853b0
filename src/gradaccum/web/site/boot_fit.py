"""The calls of the panel of what fits, under MicroPython: they come with the panel's own files, when it is opened."""

from __future__ import annotations

import gc
import json

from gradaccum.web.fit import fit_or_errors, render_fit
from gradaccum.web.site.json_text import json_text


def found(query: str) -> str:
    """What an edit changes in the panel, as JSON. Then memory is tidied up, while nobody waits."""
    text = json.dumps(render_fit(query))
    gc.collect()
    return text


def panel(query: str) -> str:
    """The whole panel, as JSON."""
    return json.dumps(render_fit(query, whole=True))


def fit(query: str) -> str:
    """The fit as the API gives it, or what is wrong, as JSON."""
    return json_text(fit_or_errors(query)[1])
