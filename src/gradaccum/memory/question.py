"""What a person asks of a fit, read: the model, the GPU, numbers and words; and all that is wrong with it, together.

The same for the command line, whose values are text, and for Python, where they may be anything.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

from gradaccum.catalog.gpus import Gpu, find_gpu
from gradaccum.catalog.models import Model, find_model, read_config
from gradaccum.core.arithmetic import divide
from gradaccum.core.fields import NAME_OF
from gradaccum.core.request import unit_named, unknown_name
from gradaccum.errors import InputError, Problem
from gradaccum.memory.engines import names_function, read_engine, take_of_trace
from gradaccum.memory.layout import with_default_strategy
from gradaccum.memory.setup import COUNTS, Setup, plain_problems
from gradaccum.units import at_least, quote, read_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

USUAL_LENGTH = 2048
"""Tokens of a sequence where nothing is said, if the model's config allows as many; an image has as many as its model
makes of it."""

OF_A_TRACE = ("allocator", "time_limit")
OF_A_MODULE = ("batch", "loss")
KNOWN = (*[each.name for each in fields(Setup) if each.name not in ("model", "micro_batch")], *OF_A_TRACE, *OF_A_MODULE)
"""What may be said beside model, GPU, target batch and engine."""

MODEL = "is a name such as llama-3.1-8b, a config.json, or your own code (a module, a function, module:function)"
GPU = "is a name such as rtx-4090, or bytes"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question that can be answered. setup: of a model that is known by its shapes, read from `config` where that was
    no name; None for code of one's own, and then `how` holds all else that was said. traced: what a trace is told.
    """

    gpu: Gpu
    target_batch: int | None
    engine: str
    setup: Setup | None
    config: Any
    how: dict[str, Any]
    traced: dict[str, Any]


def read_question(model: object, gpu: object, target_batch: object, engine: object, how: dict[str, Any]) -> Asked:
    """The question, read. Raises InputError with every problem: of the model, the GPU, each number and word."""
    problems: list[Problem] = []

    def attempt(read: Callable[..., Any], *what: Any) -> Any:
        try:
            return read(*what)
        except InputError as error:
            problems.extend(error.problems)
            return None

    own = callable(model) or (isinstance(model, str) and names_function(model))
    shapes = None if own else attempt(_model, model)
    card = attempt(_gpu, gpu)
    chosen = attempt(read_engine, engine, own)
    unit, number = unit_named("target_batch", target_batch)
    number = number.strip() if isinstance(number, str) else number
    target = None if number is None else attempt(_count, "target_batch", number, 1)
    problems += [_unknown(name) for name in how if name not in KNOWN]
    said: dict[str, Any] = {}
    for name, value in how.items():
        read = _reader(name, own)
        value = attempt(read, name, value) if read and value is not None else value
        if name in KNOWN and value is not None:
            said[name] = value
    traced = {} if own or chosen is None else attempt(take_of_trace, said, chosen)
    setup = None
    if not own:
        said.setdefault("sequence_length", USUAL_LENGTH if shapes is None else _usual_length(shapes))
    if target and unit == "target_tokens":
        target = attempt(_sequences, target, said.get("sequence_length"))
    if not own:
        if problems:
            known = [each.field for each in problems]
            problems += [each for each in plain_problems(said) if each.field not in known]
        else:
            fields_of_setup: Any = {"model": shapes, **with_default_strategy(said)}
            setup = attempt(lambda: Setup(**fields_of_setup))
    if problems:
        raise InputError(*problems)
    config = None if own or _is_name(model) else _config_of(model)
    return Asked(gpu=card, target_batch=target, engine=chosen, setup=setup, config=config, how=said, traced=traced)


# The model


def _model(model: object) -> Model:
    if isinstance(model, Model):
        return model
    if model is None:
        raise InputError(Problem("model", "is missing", ["llama-3.2-1b"]))
    if not isinstance(model, (str, dict, os.PathLike)) and not hasattr(model, "to_dict"):
        raise InputError(Problem("model", f"{MODEL}, not {_described(model)}"))
    if not _is_name(model):
        return read_config(_config_of(model))
    try:
        return find_model(str(model))
    except InputError:
        _refuse_a_place(str(model))
        raise


def _is_name(model: object) -> bool:
    """Whether it is a name or a row of the catalog: no config, and no folder of one but with the bare name of a row."""
    if isinstance(model, Model):
        return True
    if not isinstance(model, str) or model.endswith(".json") or "{" in model:
        return False
    return not os.path.isfile(os.path.join(model, "config.json")) or (os.sep not in model and _in_catalog(model))


def _in_catalog(name: str) -> bool:
    try:
        return bool(find_model(name))
    except InputError:
        return False


def _config_of(model: object) -> Any:
    """What read_config takes: of a folder its config.json."""
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        return os.path.join(path, "config.json") if os.path.isdir(path) else path
    return model


def _refuse_a_place(name: str) -> None:
    """Raise InputError where a text that is no model's name is a folder or a Python file here."""
    if os.path.isdir(name):
        raise InputError(Problem("model", f"is a folder without a config.json: {quote(name)}"))
    file = name if name.endswith(".py") else name.replace(".", os.sep) + ".py"
    if os.path.isfile(file):
        message = f"is a Python file, in which a function has to be named: {quote(name)}; write module:function"
        raise InputError(
            Problem("model", message, [f"{name}:{each}" for each in _functions(file)] or [f"{name}:build"])
        )
    if name.endswith(".py"):
        raise InputError(Problem("model", f"is a file that is not there: {quote(name)}"))


def _functions(file: str) -> list[str]:
    """The first functions at the top of a Python file; none where it cannot be read."""
    import ast

    try:
        with open(file, encoding="utf-8") as source:
            tree = ast.parse(source.read())
    except (OSError, ValueError, SyntaxError):
        return []
    return [each.name for each in tree.body if isinstance(each, ast.FunctionDef) and each.name[0] != "_"][:3]


def _usual_length(model: Model) -> int:
    """Tokens of a sequence where nothing is said."""
    return model.image_tokens or min(USUAL_LENGTH, model.positions or USUAL_LENGTH)


# The rest


def _gpu(gpu: object) -> Gpu:
    if isinstance(gpu, Gpu):
        return gpu
    if gpu is None:
        raise InputError(Problem("gpu", "is missing", ["rtx-4090"]))
    if isinstance(gpu, str):
        return find_gpu(gpu)
    if isinstance(gpu, bool) or not hasattr(gpu, "__index__"):
        raise InputError(Problem("gpu", f"{GPU}, not {_described(gpu)}"))
    return find_gpu(gpu.__index__())


def _reader(name: str, own: bool) -> Callable[[str, Any], Any] | None:
    """How a value is read; None: as it is. What the person's own function is handed is its own affair."""
    if name in ("num_gpus", "accum_steps", "sequence_length") or (name in COUNTS and not own):
        return lambda name, value: _count(name, value, 1)
    if name == "lora_rank" and not own:
        return lambda name, value: _count(name, value, 0)
    return {"time_limit": _seconds, "allocator": _text}.get(name)


def _count(name: str, value: object, minimum: int) -> int:
    if isinstance(value, str):
        return read_count(value, name, minimum)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputError(Problem(name, f"must be a whole number, not {quote(repr(value))}"))
    return at_least(value.__index__(), minimum, name)


def _sequences(tokens: int, length: int | None) -> int:
    """Those that come closest to the tokens."""
    if length is None:
        message = "is in tokens, and nothing says how many a sequence has: say sequence_length, or count sequences"
        raise InputError(Problem("target_batch", message))
    return max(1, divide(tokens, length, "round"))


def _seconds(name: str, value: object) -> float:
    try:
        seconds = float(value) if isinstance(value, (str, int, float)) else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        said = quote(value) if isinstance(value, str) else repr(value)
        raise InputError(Problem(name, f"is a number of seconds above 0, not {said}", ["60"]))
    return seconds


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(Problem(name, f"is text, as PYTORCH_ALLOC_CONF has it, not {_described(value)}"))
    return value


def _unknown(name: str) -> Problem:
    if NAME_OF.get(name) == "micro_batch":
        return Problem(name, "is what a fit finds: leave it out")
    if NAME_OF.get(name) in KNOWN:
        return Problem(name, "is nothing that a fit is told under this name", [NAME_OF[name]])
    return unknown_name(name, KNOWN, "is nothing that a fit is told")


def _described(value: object) -> str:
    return f"an object of type {type(value).__name__}"
