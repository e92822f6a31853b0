"""Gradients as sixteen numbers: random projections, which add and scale as the gradients do.

Sums, factors and losses between a backward pass and the optimizer's step show in them, over ranks as well, where a copy
of the gradients would not fit. A few small parameters of each optimizer stand witness for the rest.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch

LENGTH = 16
"""Numbers in one sketch. A difference of two gradients shows unless all projections miss it."""

SAME = 2e-3
"""Residual up to which a sketch is explained; half types have LOW."""
LOW = 5e-2

MOST_ELEMENTS = 8192
MOST_PARAMETERS = 6

Sketch = list[float]


class Witness:
    """Some of the parameters that one optimizer trains, and what is read of their gradients.

    held: the optimizer steps on copies of them, of which each rank has its own part.
    """

    held = False

    def __init__(self, trained: Sequence[torch.Tensor]) -> None:
        self.parameters = chosen(trained)
        self.sharded = any(hasattr(each, "placements") for each in self.parameters)
        self._projections: dict[tuple[tuple[int, int], ...], torch.Tensor] = {}
        self._arrived: dict[int, torch.Tensor] = {}
        self._handles: list[Any] = []
        self._pairs: dict[int, list[torch.Tensor]] = {}

    def listen(self) -> None:
        """Take in what the next backward passes bring to the parameters, before it is added to anything."""
        if self._handles or self.sharded:
            return
        for index, each in enumerate(self.parameters):
            if each._backward_hooks:  # the loop's own, which may change what arrives: looked at before and behind them
                own = dict(each._backward_hooks)
                each._backward_hooks.clear()  # autograd runs them in the order in which they were put in
                self._handles.append(each.register_hook(self._hear_first(index)))
                each._backward_hooks.update(own)
            self._handles.append(each.register_hook(self._hear(index)))

    def deafen(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def heard(self) -> torch.Tensor | None:
        """The sketch of what came since the last call; None where nothing did."""
        found = self._sketch(self._arrived)
        self._arrived = {}
        return found

    def hooks(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each parameter that has hooks of the loop's own, what came before and behind them since the last call."""
        found = [(pair[0], pair[1]) for pair in self._pairs.values() if len(pair) == 2]
        self._pairs.clear()
        return found if len(found) == len(self.parameters) else []

    def place(self) -> torch.Tensor | None:
        """Where the parameters stand, as one number each; None where they are sharded."""
        if self.sharded:
            return None
        import torch

        with torch.no_grad():
            sums = [each.sum(dtype=torch.float64) for each in self.parameters]
            return torch.stack([each.to(sums[0].device) for each in sums]) if sums else None

    def among(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether any of its parameters is one of them."""
        return any(each is own for each in tensors for own in self.parameters)

    def take(self, tensors: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]) -> None:
        """Gradients that were asked for by name, as if they had come by a backward pass."""
        self._arrived = {}
        for each, gradient in zip(tensors, gradients, strict=True):
            for index, own in enumerate(self.parameters):
                if each is own and gradient is not None:
                    self._arrives(index, gradient)

    def gradients(self) -> torch.Tensor | None:
        """The sketch of what lies in `.grad` now; None where there is nothing."""
        there = {index: each.grad for index, each in enumerate(self.parameters) if each.grad is not None}
        return self._sketch({index: _numbers(gradient) for index, gradient in there.items()})

    def dtypes(self) -> list[str]:
        """The types that gradients have."""
        return sorted(
            {str(each.grad.dtype).removeprefix("torch.") for each in self.parameters if each.grad is not None}
        )

    def _hear(self, index: int) -> Any:
        def hook(gradient: torch.Tensor) -> None:
            part = self._arrives(index, gradient)
            if index in self._pairs:
                self._pairs[index].append(self._sketch({index: part}))

        return hook

    def _hear_first(self, index: int) -> Any:
        def hook(gradient: torch.Tensor) -> None:
            self._pairs[index] = [self._sketch({index: _numbers(gradient)})]

        return hook

    def _arrives(self, index: int, gradient: torch.Tensor) -> torch.Tensor:
        """Keep a copy of what is read of it: the tensor itself may become `.grad`, to which later passes add."""
        found = _numbers(gradient).clone()
        self._arrived[index] = found + self._arrived[index] if index in self._arrived else found
        return found

    def _sketch(self, parts: dict[int, torch.Tensor]) -> torch.Tensor | None:
        """Of some parameters' gradients, by one product for all."""
        import torch  # here, since records are judged where torch is not

        if not parts:
            return None
        device = next(iter(parts.values())).device
        key = tuple((index, each.numel()) for index, each in parts.items())
        known = self._projections.get(key)
        if known is None:
            known = torch.cat([_projection(*each) for each in key], dim=1).to(device)
            self._projections[key] = known
        whole = torch.cat([each if each.device == device else each.to(device) for each in parts.values()])
        return known @ whole.double()


def _numbers(gradient: torch.Tensor) -> torch.Tensor:
    """What is read of a gradient, in its memory where it can be. Shape (at most MOST_ELEMENTS,)."""
    local = gradient.detach()
    local = local.to_local() if hasattr(local, "to_local") else local
    flat = (local.to_dense() if local.is_sparse else local).reshape(-1)
    return flat if flat.numel() <= MOST_ELEMENTS else flat[:MOST_ELEMENTS]


def _projection(index: int, size: int) -> torch.Tensor:
    """LENGTH random directions for the gradient of one parameter, the same in each process."""
    import torch

    generator = torch.Generator().manual_seed(1_000_003 * (index + 1) + size)
    return torch.randn(LENGTH, size, generator=generator, dtype=torch.float64)


def chosen(trained: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The last parameters that are small enough, and the smallest of all where none is: the loss is nearest to them."""
    floating = [each for each in trained if each.is_floating_point() and _size(each)]
    small = [each for each in floating if _size(each) <= MOST_ELEMENTS] or sorted(floating, key=_size)[:1]
    taken: list[torch.Tensor] = []
    room = MOST_ELEMENTS
    for each in [*reversed(small[len(small) // 2 :]), *small[: len(small) // 2]]:
        if len(taken) < MOST_PARAMETERS and (_size(each) <= room or not taken):
            taken.append(each)
            room -= _size(each)
    return taken


def _size(parameter: Any) -> int:
    """The elements of all of it, also where ZeRO's third stage has taken them away for now."""
    return int(getattr(parameter, "ds_numel", None) or parameter.numel())


# Arithmetic of sketches, which needs no torch


def common_factor(pairs: Sequence[tuple[Sketch, Sketch]], within: float) -> tuple[float, bool]:
    """By what all first sketches were multiplied to give the second ones, 1 where by no common number; and whether
    each was multiplied by one at all.
    """
    found = [factor(before, after) for before, after in pairs]
    ratios = [ratio for ratio, _ in found]
    alike = bool(ratios) and max(ratios) - min(ratios) <= within * max(map(abs, ratios))
    return (ratios[0] if alike else 1.0), all(rest <= within for _, rest in found)


def plus(sketches: Iterable[Sketch | None]) -> Sketch | None:
    """Their sum; None where there is none."""
    there = [each for each in sketches if each is not None]
    return [sum(column) for column in zip(*there, strict=True)] if there else None


def norm(sketch: Sketch | None) -> float:
    """The 2-norm, about that of the gradient times the root of LENGTH."""
    return math.sqrt(sum(each * each for each in sketch)) if sketch else 0.0


def combination(parts: Sequence[Sketch], whole: Sketch) -> tuple[list[float], float]:
    """The factors with which the parts add up to the whole, by least squares, and what remains, as a share of it.

    Fewer parts than LENGTH are needed for the answer to mean anything; parts that depend on each other have none.
    """
    size = len(parts)
    rows = [
        [sum(x * y for x, y in zip(a, b, strict=True)) for b in parts]
        + [sum(x * y for x, y in zip(a, whole, strict=True))]
        for a in parts
    ]
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(rows[row][column]))
        if abs(rows[pivot][column]) <= 1e-9 * norm(parts[column]) ** 2:
            return [], 1.0
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(size):
            if row != column:
                times = rows[row][column] / rows[column][column]
                rows[row] = [a - times * b for a, b in zip(rows[row], rows[column], strict=True)]
    factors = [rows[index][size] / rows[index][index] for index in range(size)]
    made = [sum(each * part[i] for each, part in zip(factors, parts, strict=True)) for i in range(len(whole))]
    return factors, norm([a - b for a, b in zip(made, whole, strict=True)]) / (norm(whole) or 1.0)


def factor(before: Sketch | None, after: Sketch | None) -> tuple[float, float]:
    """By what `before` was multiplied to be nearest to `after`, and what remains, as a share of the larger of both."""
    size = norm(before)
    if before is None or size == 0.0:
        return 0.0, 0.0 if norm(after) == 0.0 else 1.0
    if after is None:
        return 0.0, 0.0
    ratio = sum(a * b for a, b in zip(before, after, strict=True)) / size**2
    rest = math.sqrt(sum((b - ratio * a) ** 2 for a, b in zip(before, after, strict=True)))
    return ratio, rest / max(norm(after), size * 1e-30, 1e-300) if norm(after) else 0.0
