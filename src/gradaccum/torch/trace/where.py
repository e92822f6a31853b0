"""Where the program is: in which phase of the step, and in which module.

Nothing of the program is changed. Modules and optimizers are followed by torch's own global hooks; the backward pass
is known by the engine's graph task, and a recomputation in it by the gradient mode, which only a forward turns on.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from gradaccum.torch.trace import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_task = torch._C._current_graph_task_id
_node = torch._C._current_autograd_node
_grad = torch.is_grad_enabled
_sequence = torch.autograd._get_sequence_nr


class Where:
    """Follows modules while entered; `names` gives their paths. Phases other than backward are set from outside."""

    def __init__(self) -> None:
        self.outside = ev.SETUP
        self.names: dict[int, str] = {}
        self.stack: list[str] = []
        # Autograd numbers its nodes as they are made. Where the module changes, the next number is kept, so that a
        # node of the backward pass can be asked which module made it.
        self.numbers: list[int] = []
        self.paths: list[str] = []
        self._handles: list[Any] = []

    def follow(self, module: torch.nn.Module) -> None:
        """Give the modules in `module` their paths."""
        self.names.update({id(each): name for name, each in module.named_modules()})

    def phase(self) -> str:
        """The phase of the operator that runs now."""
        if _task() == -1:
            return self.outside
        return ev.RECOMPUTE if _grad() else ev.BACKWARD

    def module(self) -> str:
        """The path of the module that runs now or, in backward, of the one whose node runs."""
        if _task() != -1 and not _grad():
            node = _node()
            if node is None:
                return ""
            place = bisect_right(self.numbers, node._sequence_nr())
            return self.paths[place - 1] if place else ""
        return self.stack[-1] if self.stack else ""

    def raised(self, error: BaseException) -> str:
        """The path of the innermost module through which an exception came; empty where there was none."""
        path, at = "", error.__traceback__
        while at is not None:
            path = self.names.get(id(at.tb_frame.f_locals.get("self")), path)
            at = at.tb_next
        return path

    def __enter__(self) -> Where:
        self._handles = [
            register_module_forward_pre_hook(self._into),
            # A module that is left by an exception is left too: checkpointing stops a recomputation that way.
            register_module_forward_hook(self._out_of, always_call=True),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def _into(self, module: torch.nn.Module, inputs: Any) -> None:
        if self.outside == ev.LOSS:
            self.outside = ev.FORWARD
        self.stack.append(self.names.get(id(module), ""))
        self._turn()

    def _out_of(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if self.stack:
            self.stack.pop()
        if not self.stack and self.outside == ev.FORWARD and _task() == -1:
            self.outside = ev.LOSS
        self._turn()

    def _turn(self) -> None:
        number, path = _sequence(), self.stack[-1] if self.stack else ""
        if self.numbers and self.numbers[-1] == number:
            self.paths[-1] = path
        else:
            self.numbers.append(number)
            self.paths.append(path)


def optimizer_hooks(before: Callable[..., None], after: Callable[..., None]) -> list[Any]:
    """Handles of hooks on every optimizer's step: each is called with the optimizer, and can be removed."""
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    return [
        register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: before(optimizer)),
        register_optimizer_step_post_hook(lambda optimizer, args, kwargs: after(optimizer)),
    ]
