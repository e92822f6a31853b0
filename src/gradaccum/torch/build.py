"""What a person's own training step is called by: `module:function`, and what that function returns.

    >>> def build(micro_batch):                                  # in train.py: "train:build"
    ...     model = torch.nn.Linear(8, 2)
    ...     batch = torch.randn(micro_batch, 8)
    ...     return model, batch, lambda result: result.square().mean()

`build(micro_batch)` makes everything anew, on the default device, and returns one of
    (model, batch, loss)        batch: the model's arguments; `loss(result)`: a scalar; AdamW is added
    (model, optimizer, step)    `step()`: one micro-step, its forward, loss and backward
    Job                         the same with more of it said
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradaccum.errors import InputError, Problem, nearest_words
from gradaccum.torch.trace.record import OPTIMIZERS, Job

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def find_build(name: str, field: str = "model") -> Callable[..., Any]:
    """The function that `module:function` or `folder/train.py:function` names, looked for from the working directory.

    Raises InputError where there is none, or where importing its module raises.
    """
    place, colon, function = name.rpartition(":")
    if not (colon and place and function):
        raise InputError(Problem(field, f"names no function: {name!r}; write module:function", [f"{name}:build"]))
    module = _imported(place, field)
    found: Any = module
    for part in function.split("."):
        if not hasattr(found, part):
            known = [each for each, value in vars(found).items() if getattr(value, "__module__", "") == module.__name__]
            nearest = [f"{place}:{each}" for each in nearest_words(part, known) or known[:3]]
            raise InputError(Problem(field, f"{place} has no function {function!r}", nearest))
        found = getattr(found, part)
    if not callable(found):
        raise InputError(Problem(field, f"{name} is a {type(found).__name__}, not a function of the micro-batch"))
    return found


def name_of(build: Callable[..., Any] | str) -> str:
    """The name by which another process finds the function. Raises InputError where only this process knows it."""
    if isinstance(build, str):
        return build
    module, name = getattr(build, "__module__", None), getattr(build, "__qualname__", "<no name>")
    if module is None or "<" in name or not _is_there(sys.modules.get(module), name, build):
        raise InputError(
            Problem(
                "build", f"{name} is no function at the top of a module, so no other process can import it; move it"
            )
        )
    if module == "__main__":
        file = getattr(sys.modules[module], "__file__", None)
        if file is None or not Path(file).is_file():
            raise InputError(
                Problem("build", f"{name} was typed in, so no other process can import it; write it into a file")
            )
        return f"{Path(file).resolve()}:{name}"
    return f"{module}:{name}"


def as_job(built: Any, optimizer: str = "adamw") -> Job:
    """The Job of what a `build` returned. optimizer: a name of OPTIMIZERS, for (model, batch, loss).

    Raises InputError where it is none of the three.
    """
    if isinstance(built, Job):
        return built
    if isinstance(built, tuple) and len(built) == 3 and isinstance(built[0], torch.nn.Module) and callable(built[2]):
        module, second, third = built
        if isinstance(second, torch.optim.Optimizer):
            return Job(module=module, optimizer=second, step=third)
        made = OPTIMIZERS[optimizer]([each for each in module.parameters() if each.requires_grad])
        return Job(module=module, optimizer=made, step=lambda: third(called(module, second)).backward(), batch=second)
    said = f"({', '.join(type(each).__name__ for each in built)})" if isinstance(built, tuple) else type(built).__name__
    raise InputError(
        Problem("build", f"returned {said}; it returns (model, batch, loss), (model, optimizer, step) or a Job")
    )


def called(module: torch.nn.Module, batch: Any) -> Any:
    """The module's result: a dict is its keywords, a tuple or list its arguments, all else its one argument."""
    if isinstance(batch, dict):
        return module(**batch)
    return module(*batch) if isinstance(batch, (tuple, list)) else module(batch)


def _imported(place: str, field: str) -> ModuleType:
    """The module, by its dotted name or its file; the folder that it is looked for in stays on the path."""
    by_file = place.endswith(".py")
    if by_file and not Path(place).is_file():
        raise InputError(Problem(field, f"there is no file {place}"))
    folder = str(Path(place).resolve().parent if by_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = Path(place).stem if by_file else place
    try:
        if not by_file:
            return importlib.import_module(name)
        return _from_file(Path(place).resolve(), name)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            nearest = nearest_words(name, [each.stem for each in Path.cwd().glob("*.py")])
            raise InputError(
                Problem(field, f"there is no module {name!r} here or among the packages", nearest)
            ) from None
        raise InputError(Problem(field, f"importing {place} failed: {error}")) from error
    except Exception as error:
        raise InputError(Problem(field, f"importing {place} failed: {type(error).__name__}: {error}")) from error


def _from_file(path: Path, name: str) -> ModuleType:
    """As `import` would: a module that is there from this very file is not run again."""
    there = sys.modules.get(name)
    if there is not None and getattr(there, "__file__", None) == str(path):
        return there
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if there is None:
        sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if there is None:
            del sys.modules[name]
        raise
    return module


def _is_there(module: ModuleType | None, name: str, build: object) -> bool:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is build
