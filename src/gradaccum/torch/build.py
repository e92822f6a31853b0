"""What a person's own training step is called by, `module:function`, and what that function returns.

    >>> def build(micro_batch):                                  # in train.py: "train:build"
    ...     model = torch.nn.Linear(8, 2)
    ...     batch = torch.randn(micro_batch, 8)
    ...     return model, batch, lambda result: result.square().mean()

`build(micro_batch)` makes everything anew, on the default device, and returns one of
    (model, batch, loss)        batch: the model's arguments; `loss(result)`: a scalar; an optimizer is added
    (model, optimizer, step)    `step()`: one micro-step, its forward, loss and backward
    Job                         the same with more of it said
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradaccum.errors import GradaccumError, InputError, Problem, nearest_words
from gradaccum.memory.question import USUAL_LENGTH
from gradaccum.torch.trace.errors import line_of
from gradaccum.torch.trace.record import Job
from gradaccum.units import quote

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

RETURNS = "(model, batch, loss), (model, optimizer, step) or a gradaccum.torch.trace.Job"

NO_GRADIENT = Problem(
    "step",
    "leaves no parameter of the optimizer a gradient, so that nothing is trained: call backward() on the loss in it",
)


# The name


def find_build(text: str, field: str = "model") -> Callable[..., Any]:
    """The function that `package.module:function` or `folder/train.py:function` names, from the working directory.

    InputError on the field: no such module, file or function, or an exception while it is imported, with its line.
    """
    name, colon, path = text.rpartition(":")
    if not (colon and name and path):
        raise InputError(Problem(field, f"names no function: {quote(text)}; write module:function", [f"{text}:build"]))
    found: Any = _imported(name, field)
    module = found
    for part in path.split("."):
        if not hasattr(found, part):
            own = [each for each, value in vars(found).items() if getattr(value, "__module__", "") == module.__name__]
            near = nearest_words(part, own) or own[:3]
            message = f"has no function {quote(part)} in the module {name}"
            raise InputError(Problem(field, message, [f"{name}:{each}" for each in near]))
        found = getattr(found, part)
    if not callable(found):
        raise InputError(Problem(field, f"names a {type(found).__name__}, no function: {quote(text)}"))
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


def _imported(name: str, field: str) -> ModuleType:
    """The module, by its dotted name or its file; the folder that it is looked for in stays on the path."""
    by_file = name.endswith(".py")
    if by_file and not Path(name).is_file():
        raise InputError(Problem(field, f"names a file that is not there: {quote(name)}"))
    folder = str(Path(name).resolve().parent if by_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return _from_file(Path(name).resolve(), Path(name).stem) if by_file else importlib.import_module(name)
    except GradaccumError:
        raise
    except ModuleNotFoundError as error:
        # Of the module itself, or of a package that it is in; another that it imports is its own mistake.
        if not by_file and error.name is not None and f"{name}.".startswith(f"{error.name}."):
            message = f"names a module that is not found from here: {quote(name)}"
            near = nearest_words(name, [each.stem for each in Path.cwd().glob("*.py")])
            raise InputError(Problem(field, message, near)) from error
        raise _raised(f"importing {name}", error, field) from error
    except (Exception, SystemExit) as error:
        raise _raised(f"importing {name}", error, field) from error


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


# The call


def calling(name: str, function: Callable[..., Any], field: str = "model") -> Callable[..., Any]:
    """The function, with whatever it raises as an InputError that names the exception and its line."""

    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except GradaccumError:
            raise
        except (Exception, SystemExit) as error:
            raise _raised(f"{name}()", error, field) from error

    called.__wrapped__ = function  # type: ignore[attr-defined]  # so that its signature is read
    called.__name__ = name
    return called


def _raised(what: str, error: BaseException, field: str) -> InputError:
    where = line_of(error)
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({Path(error.filename).name}, line {error.lineno})"
        said = error.msg
    else:
        said = str(error).strip().partition("\n")[0]
    message = f"{what} raised {type(error).__name__}: {said}{where}"
    if "CUDA" in said and not torch.cuda.is_available():
        message += "; there is no GPU here: name no device, the default one is the right one"
    return InputError(Problem(field, message, verbatim=True))


def by_micro_batch(function: Callable[..., Any], options: Mapping[str, object]) -> tuple[Callable[[int], Any], bool]:
    """The function as one of the micro-batch alone, and whether it takes that.

    It is handed over as `micro_batch`, or by position where the first argument needs a value. options: further
    arguments, by name. InputError for an option that the function does not take.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    unknown = [name for name in options if name not in parameters and not takes_any]
    if unknown:
        said = [(name, _own_decision(name, function)) for name in unknown]
        raise InputError(*[Problem(name, words, ["leave it out"], verbatim=True) for name, words in said])
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next((each for each in parameters.values() if each.kind in positional), None)
    if "micro_batch" in parameters and parameters["micro_batch"].kind is not inspect.Parameter.POSITIONAL_ONLY:
        return lambda micro_batch: function(micro_batch=micro_batch, **options), True
    if first is not None and first.default is inspect.Parameter.empty and first.name not in options:
        return lambda micro_batch: function(micro_batch, **options), True
    return lambda micro_batch: function(**options), False


def with_usual_length(function: Callable[..., Any], options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, and the usual sequence length for a function that needs one where nothing is said."""
    length = inspect.signature(function).parameters.get("sequence_length")
    if length is None or length.default is not inspect.Parameter.empty:
        return options
    return {"sequence_length": USUAL_LENGTH, **options}


def _own_decision(name: str, function: Callable[..., Any]) -> str:
    called = getattr(function, "__name__", "the function")
    return f"{called}() decides this itself, as it has no parameter `{name}`"


# The result


def as_job(
    found: Any,
    optimizer: Callable[[Any], torch.optim.Optimizer] = torch.optim.AdamW,
    field: str = "model",
    prepare: Callable[[torch.nn.Module, Any], tuple[torch.nn.Module, Any]] | None = None,
) -> Job:
    """What a person's function returned, as a Job. InputError for anything but RETURNS.

    optimizer: of the parameters that are trained, for (model, batch, loss). prepare: what becomes of that model and
    batch before anything is made of them.
    """
    if isinstance(found, Job):
        return found
    is_step = isinstance(found, (tuple, list)) and len(found) == 3 and isinstance(found[0], torch.nn.Module)
    if not is_step or not (callable(found[2]) or found[2] is None):
        raise InputError(Problem(field, f"must return {RETURNS}, not {described(found)}"))
    module, second, third = found
    if isinstance(second, torch.optim.Optimizer):
        return Job(module=module, optimizer=second, step=third)
    if prepare is not None:
        module, second = prepare(module, second)
    return job_of(module, second, third, optimizer, field)


def job_of(
    module: torch.nn.Module,
    batch: Any,
    loss: Any,
    optimizer: Callable[[Any], torch.optim.Optimizer],
    field: str = "model",
) -> Job:
    """The step of a module, its batch and its loss (see `loss_of`). InputError where nothing is trained, and where a
    pair needs a loss.
    """
    trained = [each for each in module.parameters() if each.requires_grad]
    if not trained:
        raise InputError(Problem(field, "has no parameter that is trained: none has requires_grad"))
    if loss is None and isinstance(batch, (tuple, list)) and len(batch) == 2 and num_arguments(module) == 1:
        message = f"is missing: the batch is a pair, and {type(module).__name__} takes one argument"
        raise InputError(Problem("loss", f"{message}; give a function of its result and the target", verbatim=True))
    given, evaluate = loss_of(batch, loss)

    def step() -> None:
        if isinstance(given, Mapping):
            result = module(**given)
        else:
            result = module(*given) if isinstance(given, (tuple, list)) else module(given)
        evaluate(result).backward()

    return Job(module=module, optimizer=optimizer(trained), step=step, batch=batch)


def described(found: Any) -> str:
    """What a person handed over, in words."""
    if isinstance(found, (tuple, list)):
        return f"({', '.join(type(each).__name__ for each in found)})"
    if isinstance(found, type):
        return f"the class {found.__name__}"
    return "None" if found is None else f"an object of type {type(found).__name__}"


def loss_of(batch: Any, loss: Any) -> tuple[Any, Callable[[Any], Any]]:
    """What the module is called with, and the scalar that backward starts from.

    loss None: the result's `loss`, as Transformers has it, or the result itself. A loss of one argument: of the result.
    Of two: where the batch is a pair, it is (inputs, target), and the loss is that of (result, target); else that of
    (result, batch).
    """
    if loss is None:
        return batch, own_loss
    if not callable(loss):
        raise InputError(Problem("loss", f"is a function of the model's result, not {described(loss)}", verbatim=True))
    if num_arguments(loss) < 2:
        return batch, loss
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], lambda result: loss(result, batch[1])
    return batch, lambda result: loss(result, batch)


def own_loss(result: Any) -> Any:
    """The loss that a model gives itself. InputError where there is none."""
    found = result.get("loss") if isinstance(result, Mapping) else getattr(result, "loss", result)
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        said = f"is missing, and the model's result is no loss but {described(result)}"
        raise InputError(Problem("loss", said, verbatim=True))
    return found


def num_arguments(function: Any) -> int:
    """How many arguments without a default a function takes by position."""
    try:
        # A module says it in its forward; its __call__ takes anything.
        signature = inspect.signature(function.forward if isinstance(function, torch.nn.Module) else function)
    except ValueError:  # a function written in C
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is each.empty for each in signature.parameters.values())
