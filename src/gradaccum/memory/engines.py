"""The words for who answers: the closed form, the trace, or both."""

from __future__ import annotations

from gradaccum.errors import InputError, Problem, nearest_words
from gradaccum.units import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ENGINES = ("closed-form", "trace", "both")


def names_function(text: str) -> bool:
    """Whether a text is `package.module:function` or `folder/train.py:function`: no model's name, no config.json."""
    module, colon, function = text.rpartition(":")
    names = function if module.endswith(".py") else f"{module}.{function}"
    return bool(colon) and all(part.isidentifier() for part in names.split("."))


def read_engine(word: object, own: bool) -> str:
    """The engine asked for. own: the model is a person's own code, which a trace alone can follow.

    InputError on field `engine` for another word, and for the closed form of one's own code.
    """
    if word is None:
        return "trace" if own else "closed-form"
    if word not in ENGINES:
        raise InputError(
            Problem(
                "engine", f"is one of {', '.join(ENGINES)}, not {quote(str(word))}", nearest_words(str(word), ENGINES)
            )
        )
    if own and word != "trace":
        raise InputError(
            Problem("engine", "the closed form knows named models and config.json alone, not code", ["trace"])
        )
    return str(word)


def take_of_trace(how: dict[str, Any], engine: str) -> dict[str, Any]:
    """What only a trace is told, taken out of `how`. InputError where it was given to another, or not to a trace."""
    for name in ("batch", "loss"):
        # Of a named model `loss` is a word: how it is calculated.
        if (name == "batch" and name in how) or callable(how.get(name)):
            raise InputError(Problem(name, "goes with a module of your own; a named model makes its own"))
    taken: dict[str, Any] = {name: how.pop(name) for name in ("allocator", "time_limit") if name in how}
    if taken and engine == "closed-form":
        raise InputError(*[Problem(name, "is for a trace alone", ["engine trace"]) for name in taken])
    return taken
