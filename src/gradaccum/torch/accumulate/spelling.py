"""Names that people bring from trainers and from their own loops, answered with ours."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from gradaccum.core.fields import BY_NAME
from gradaccum.errors import nearest_words
from gradaccum.torch.accumulate.errors import AccumulationError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

OURS = dict.fromkeys(BY_NAME["accum_steps"].aliases, "accum_steps") | dict.fromkeys(
    ("max_grad_norm", "max_norm", "clip_grad_norm", "gradient_clip_val", "gradient_clipping"), "clip_norm"
)
"""Trainers' words for options."""

ATTRIBUTES = dict.fromkeys(("step", "backward", "backward_mean", "skip", "cached"), "a group has it") | {
    "zero_grad": "step() of a group clears the gradients",
    "clip_grad_norm_": "Accumulator(..., clip_norm=1.0) clips",
    "no_sync": "a group sets when ranks reduce",
    "accumulate": "groups(loader) makes the groups",
}
"""What people look for on an accumulator."""

_home: dict[str, str] = {}
"""Whose each option is."""


def options_by_name(function: Callable[P, R]) -> Callable[P, R]:
    """The function; an option that it does not have is answered by AccumulationError with the one that is meant."""
    label = function.__qualname__.removesuffix(".__init__")
    known = inspect.signature(function).parameters
    places = [each.name for each in known.values() if each.kind is each.POSITIONAL_OR_KEYWORD]
    named = [each for each in known if each not in places]
    for each in named:
        _home.setdefault(each, label)

    @functools.wraps(function)
    def checked(*values: P.args, **options: P.kwargs) -> R:
        if len(values) > len(places):
            extra = f"{values[len(places)]!r:.40}"
            raise AccumulationError(
                f"{label} takes {' and '.join(places[1:])} by place and options by name, such as {named[0]}=; "
                f"{extra} has none"
            )
        for name in options:
            if name not in known:
                raise AccumulationError(f"{label} has no option {name}: {_meant(name, named)}")
        return function(*values, **options)

    return checked


def _meant(name: str, named: list[str]) -> str:
    ours = OURS.get(name, name)
    if ours in _home:
        return f"it is {ours}= of {_home[ours]}(...)"
    nearest = nearest_words(name, named)
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"its options are {', '.join(named)}"


class Advising:
    """Answers the name of something that is elsewhere with where it is."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            words = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in ATTRIBUTES:
                words += f": {ATTRIBUTES[name]}, see `for group in accumulator.groups(loader)`"
            raise AttributeError(words)
