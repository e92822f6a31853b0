"""What runs first under MicroPython: the two names that lowered code uses, and the three calls that the page makes.

Lowered itself, so that it is written like the rest. Nothing else of the package imports it.
"""

from __future__ import annotations

import builtins
import gc
import json
from collections import OrderedDict


def _ordered(*parts):  # type: ignore[no-untyped-def]
    """A dictionary display: each part a list of pairs, or a dictionary that is unpacked."""
    result = OrderedDict()
    for part in parts:
        for key, value in part if isinstance(part, list) else part.items():
            result[key] = value
    return result


builtins._ordered = _ordered  # type: ignore[attr-defined]

from gradaccum.web.page import answer, render_live, render_rest  # noqa: E402 - they use the name above


def first(query: str) -> str:
    """What an edit changes on the answer, as JSON."""
    return json.dumps(render_live(query))


def rest(query: str) -> str:
    """The results below it, as JSON. Then memory is tidied up, while nobody waits."""
    text = json.dumps(render_rest(query))
    gc.collect()
    return text


def plan(query: str) -> str:
    """The plan as the API gives it, or what is wrong, as JSON."""
    asked = answer(query)
    if asked.plan is None:
        return json.dumps({"errors": [problem.to_dict() for problem in asked.problems]})
    return json.dumps(asked.plan.to_dict())
