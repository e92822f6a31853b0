"""The optimizers that a name stands for, as they are on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from gradaccum.errors import InputError, Problem, nearest_words
from gradaccum.units import quote

if TYPE_CHECKING:
    from collections.abc import Callable


class AdamW8bit(torch.optim.Optimizer):
    """The memory of bitsandbytes' 8-bit AdamW (bitsandbytes/optim/optimizer.py:Optimizer2State), which works in place.

    Two states of one byte for each number, and for each block of 256 numbers their largest, in fp32; parameters of
    fewer than 4096 numbers keep states in fp32 (min_8bit_size). A table of 256 numbers for each of the two states is
    shared by all.
    """

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.tables: list[torch.Tensor] = []

    def step(self, closure: Any = None) -> None:
        """Makes the states when it is called first. It never reads a closure."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or self.state[parameter]:
                    continue
                if not self.tables:
                    self.tables = [parameter.new_empty(256, dtype=torch.float32) for _ in range(2)]
                for number in "12":
                    self._make(parameter, number)

    def _make(self, parameter: torch.Tensor, number: str) -> None:
        state = self.state[parameter]
        small = parameter.numel() < 4096
        dtype = torch.float32 if small else torch.uint8
        state[f"state{number}"] = torch.zeros_like(parameter, dtype=dtype)
        if not small:
            state[f"absmax{number}"] = parameter.new_zeros(-(-parameter.numel() // 256), dtype=torch.float32)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adamw-fused": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "adamw-loop": lambda parameters: torch.optim.AdamW(parameters, foreach=False),
    "adamw-8bit": AdamW8bit,
    "sgd": torch.optim.SGD,
    "sgd-momentum": lambda parameters: torch.optim.SGD(parameters, momentum=0.9),
    "adafactor": torch.optim.Adafactor,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}


def make_optimizer(optimizer: object, parameters: Any) -> torch.optim.Optimizer:
    """The optimizer of a name, or of a function of the parameters. InputError for what is neither."""
    if callable(optimizer):
        made: torch.optim.Optimizer = optimizer(parameters)
        return made
    if not isinstance(optimizer, str):
        kind = type(optimizer).__name__
        message = f"is a name, or a function that makes one of the parameters, not an object of type {kind}"
        raise InputError(Problem("optimizer", message, nearest_words(kind, OPTIMIZERS)))
    if optimizer not in OPTIMIZERS:
        near = nearest_words(optimizer, OPTIMIZERS) or list(OPTIMIZERS)
        raise InputError(Problem("optimizer", f"is one of {', '.join(OPTIMIZERS)}, not {quote(optimizer)}", near))
    return OPTIMIZERS[optimizer](parameters)
