"""Where a loop calls from, which trainer is in charge, and what lives in the process."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

LIBRARIES = ("torch", "accelerate", "lightning", "pytorch_lightning", "transformers", "trl", "deepspeed")
"""Packages that call backward in the name of a loop."""


def site_of_call() -> str:
    """Where the loop calls backward: the nearest frame that belongs to no library; else the outermost of one."""
    own = [os.path.dirname(__file__), *(_folder(name) for name in ("torch", "contextlib"))]
    libraries = [_folder(name) for name in LIBRARIES if name in sys.modules]
    frame: FrameType | None = sys._getframe(2)
    library = ""
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((*own, *libraries)):
            return f"{path}:{frame.f_lineno}"
        if not path.startswith(tuple(own)):
            library = library or f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return library


def _folder(name: str) -> str:
    """Where a package lies, or the file of a module."""
    file = sys.modules[name].__file__ or ""
    return os.path.dirname(file) + os.sep if file.endswith("__init__.py") else file


def alive(kind: type) -> list[Any]:
    """All living objects of that kind."""
    return [each for each in gc.get_objects() if issubclass(type(each), kind)]


def framework() -> str:
    """The trainer that is in charge, by what was imported."""
    modules = sys.modules
    for name, module in (
        ("trl", "trl.trainer.base_trainer"),
        ("transformers", "transformers.trainer"),
        ("lightning", "lightning.pytorch.trainer.trainer"),
        ("lightning", "pytorch_lightning.trainer.trainer"),
        ("deepspeed", "deepspeed.runtime.engine"),
        ("accelerate", "accelerate.accelerator"),
        ("fabric", "lightning.fabric.fabric"),
    ):
        if module in modules:
            return name
    return "torch"


def nominal_steps() -> int | None:
    """The micro-batches for each update that Lightning or Accelerate was told; None where neither says."""
    if "accelerate.state" in sys.modules and framework() == "accelerate":
        state = sys.modules["accelerate.state"].GradientState._shared_state
        return int(state["plugin_kwargs"].get("num_steps", 1)) if "plugin_kwargs" in state else None
    if framework() == "lightning":
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            trainer = getattr(frame.f_locals.get("self"), "trainer", None)
            if isinstance(steps := getattr(trainer, "accumulate_grad_batches", None), int):
                return steps
            frame = frame.f_back
    return None
