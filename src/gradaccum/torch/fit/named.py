"""`package.module:function`: import what a person names, and say what is wrong with it in their own words."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from gradaccum.errors import GradaccumError, InputError, Problem, nearest_words
from gradaccum.torch.trace.errors import line_of
from gradaccum.units import quote

if TYPE_CHECKING:
    from collections.abc import Callable


def find_function(text: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; modules are looked for in the working directory first.

    InputError on field `model`: no such module, no such function, or an exception while it is imported, with its line.
    """
    name, _, path = text.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any = _imported(name)
    for part in path.split("."):
        if not hasattr(found, part):
            near = nearest_words(part, [each for each in vars(found) if callable(getattr(found, each))])
            message = f"has no function {quote(part)} in the module {name}"
            raise InputError(Problem("model", message, [f"{name}:{each}" for each in near]))
        found = getattr(found, part)
    if not callable(found):
        raise InputError(Problem("model", f"names a {type(found).__name__}, no function: {quote(text)}"))
    return found


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Of the module itself, or of a package that it is in; another that it imports is its own mistake.
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            message = f"names a module that is not found from here: {quote(name)}"
            raise InputError(Problem("model", message, _modules_near(name))) from error
        raise _raised(f"importing {name}", error) from error
    except (Exception, SystemExit) as error:
        raise _raised(f"importing {name}", error) from error


def _modules_near(name: str) -> list[str]:
    files = [each.removesuffix(".py") for each in os.listdir() if each.endswith(".py")]
    return nearest_words(name, files)


def calling(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with whatever it raises as an InputError that names the exception and its line."""

    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except GradaccumError:
            raise
        except (Exception, SystemExit) as error:
            raise _raised(f"{name}()", error) from error

    called.__wrapped__ = function  # type: ignore[attr-defined]  # so that its signature is read
    called.__name__ = name
    return called


def _raised(what: str, error: BaseException) -> InputError:
    where = line_of(error)
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({os.path.basename(error.filename)}, line {error.lineno})"
        said = error.msg
    else:
        said = str(error).strip().partition("\n")[0]
    message = f"{what} raised {type(error).__name__}: {said}{where}"
    if "CUDA" in said:
        message += "; without a GPU, name no device: what is made lies on the meta device"
    return InputError(Problem("model", message))
