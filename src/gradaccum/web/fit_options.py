"""The options of what fits, as a query names them: what a Setup holds, beside the calculator's own inputs.

The static page's first files bring these tables as they are here, without the room that they are read from: `build.py`
writes them down.
"""

from __future__ import annotations

from dataclasses import fields

from gradaccum.core.fields import BY_NAME
from gradaccum.memory.setup import CHOICES, Setup

COUNT, FLAG, WORD = "count", "flag", "word"


def _options() -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    found = []
    for field in fields(Setup):
        if field.name in CHOICES:
            found.append((field.name, WORD, CHOICES[field.name]))
        elif field.type == "bool":
            found.append((field.name, FLAG, ("yes", "no") if field.default else ("no", "yes")))
        elif field.name not in ("model", "micro_batch"):
            found.append((field.name, COUNT, ()))
    return tuple(found)


OPTIONS = _options()
"""(name, COUNT, FLAG or WORD, what it may say, the default first) of each: the model and the micro-batch apart."""

NAMES = ("model", "gpu", *[name for name, _, _ in OPTIONS if name not in BY_NAME])
"""What a query may name beside the calculator's inputs."""
