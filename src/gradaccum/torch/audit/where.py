"""Where a loop calls from, which trainer is in charge, and what lives in the process."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

LIBRARIES = ("torch", "accelerate", "lightning", "pytorch_lightning", "transformers", "trl", "deepspeed")
"""Packages that call backward in the name of a loop."""


def site_of_call() -> str:
    """Where the loop calls backward: the nearest frame that belongs to no library; else the outermost of one."""
    own = [os.path.dirname(__file__), *(_folder(name) for name in ("torch", "contextlib"))]
    libraries = [_folder(name) for name in LIBRARIES if name in sys.modules]
    library = ""
    for frame in frames():
        path = frame.f_code.co_filename
        if not path.startswith((*own, *libraries)):
            return f"{path}:{frame.f_lineno}"
        if not path.startswith(tuple(own)):
            library = library or f"{path}:{frame.f_lineno}"
    return library


def frames() -> Iterator[FrameType]:
    """The caller's, and all that it stands in, the nearest first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _folder(name: str) -> str:
    """Where a package lies, or the file of a module."""
    file = sys.modules[name].__file__ or ""
    return os.path.dirname(file) + os.sep if file.endswith("__init__.py") else file


def alive(kind: type) -> list[Any]:
    """All living objects of that kind."""
    return [each for each in gc.get_objects() if issubclass(type(each), kind)]


MOST_WRAPPERS = 3
"""Of one optimizer: Accelerate's around DeepSpeed's around PyTorch's."""


def innermost(optimizer: Any) -> Any:
    """An optimizer without what Accelerate, Fabric or DeepSpeed has put around it; some of that is an Optimizer too."""
    for _ in range(MOST_WRAPPERS):
        optimizer = getattr(optimizer, "optimizer", optimizer)
    return optimizer


FRAMEWORKS = {
    "trl": "trl/",
    "transformers": "transformers/trainer.py",
    "lightning": "lightning/pytorch/",
    "deepspeed": "deepspeed/",
    "fabric": "lightning/fabric/",
    "accelerate": "accelerate/",
}
"""Trainers, those first that stand upon the others, and the files in which they call."""


def framework_of_call() -> str:
    """The trainer in whose name backward is called; empty where it is the loop's own."""
    files = [frame.f_code.co_filename.replace(os.sep, "/") for frame in frames()]
    return next((name for name, part in FRAMEWORKS.items() if any(f"/{part}" in file for file in files)), "")


def nominal_steps(framework: str) -> int | None:
    """The micro-batches for each update that Lightning or Accelerate was told; None where neither says."""
    if framework == "accelerate":
        state = sys.modules["accelerate.state"].GradientState._shared_state
        return int(state["plugin_kwargs"].get("num_steps", 1)) if "plugin_kwargs" in state else None
    for frame in frames() if framework == "lightning" else ():
        trainer = getattr(frame.f_locals.get("self"), "trainer", None)
        if isinstance(steps := getattr(trainer, "accumulate_grad_batches", None), int):
            return steps
    return None
