"""The weight of every token: the gradient that a backward pass lets arrive at each element of its loss.

From the root through scalar nodes to the reduction (a mean, a sum, a loss function that reduces by itself), and beneath
it through masks and shapes to the loss of each element. What arrives there in the pass itself is what the element
weighs in the update. No copy and no second pass: one hook for each node met, and a few numbers for each term.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from gradaccum.torch.audit.nodes import (
    MEAN,
    Edge,
    constant,
    element_units,
    identity_of,
    ignored,
    in_batch,
    is_python,
    is_scalar,
    loss_units,
    masks,
    name_of,
    product,
    reduces,
    saved_counts,
)
from gradaccum.torch.audit.records import Term

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_NODES = 20_000
"""Scalar nodes of one loss that are followed, so that one summed over a whole epoch in Python stays affordable; of a
larger one nothing is known.
"""

LINEAR = frozenset(
    "Add Sub Mul Div Neg ToCopy To Clone Alias View UnsafeView ReshapeAlias Reshape Squeeze Unsqueeze Permute Transpose"
    " T Where NanToNum Stack Cat Select Unbind Index Expand _DDPSink MaskedFill".split()
)
"""Scalar nodes through which a gradient passes as a multiple of itself."""

SHAPES = frozenset(
    "ToCopy To Clone Alias View UnsafeView ReshapeAlias Reshape Squeeze Unsqueeze Permute Transpose T Neg".split()
)
"""Nodes that leave each element its own gradient, up to its sign."""

CHOICES = frozenset("MaskedFill Index Select Slice MaskedSelect Where".split())
"""Nodes that hand each element its gradient, or 0."""


class Instrument:
    """Hooks for one backward pass: `attach(root)` before it, `detach()` after it; `settle()` gives the numbers."""

    def __init__(self, most_nodes: int = MOST_NODES) -> None:
        self._most_nodes = most_nodes
        self._handles: list[Any] = []
        self._arrived: dict[tuple[int, int], torch.Tensor] = {}  # the gradient of (node, output)
        self._nodes: list[Any] = []  # held, so that an id names one node
        self._found: list[_Found] = []

    def attach(self, root: torch.Tensor) -> None:
        """Find the terms beneath the root and hook the nodes on the way."""
        if root.grad_fn is None:
            return
        if root.numel() == 1:
            self._scalars((root.grad_fn, root.output_nr))
        else:
            self._element_path(_Found("", "root", ()), (root.grad_fn, root.output_nr))

    def detach(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._nodes.clear()

    def settle(self) -> list[Term]:
        """The terms as plain numbers; waits for the device."""
        return [found.term(self._arrived) for found in self._found]

    def _scalars(self, root: Edge) -> None:
        """All reductions that scalar nodes lead to, in the order of the graph."""
        stack: list[tuple[Edge, tuple[Key, ...]]] = [(root, ())]
        seen: set[Key] = set()
        at_first = len(self._found)
        while stack:
            edge, way = stack.pop()
            key = self._hook(edge, first)
            if key in seen:
                continue
            seen.add(key)
            before = len(self._found)
            if len(seen) > self._most_nodes:
                whole = _Found(f"a loss of more than {self._most_nodes:,} scalar nodes", "opaque", ())
                self._found[at_first:] = [whole]
                return
            way = (*way, key)
            name = name_of(edge[0])
            below = [each for each in edge[0].next_functions if each[0] is not None]
            if reduction := reduces(edge[0]):
                self._loss(edge, name, reduction, way)
            elif name in ("Mean", "Sum") and below:
                self._reduction(edge, name, way, below[0])
            elif name == "_DDPSink" and edge[1] < len(edge[0].next_functions):  # hands each output on as it is
                stack.append((edge[0].next_functions[edge[1]], way))
            elif all(is_scalar(each) for each in below) and (name in LINEAR or is_python(edge[0])):
                stack.extend((each, way) for each in reversed(below))
            elif name in LINEAR and len(below) == 1 and below[0][0].name().startswith(("Stack", "Cat")):
                stack.append((below[0], way))  # one of several losses that were put into a tensor
            elif name in ("Unbind", "Select", "Index") and below:  # one element of a tensor of losses
                found = _Found(name, "each", way, units={"elements": 1, "counted": 1, "rows": 1})
                self._found.append(found)
            elif below:
                kind = "nonlinear" if all(is_scalar(each) for each in below) else "opaque"
                self._found.append(_Found(name, kind, way, units=saved_counts(edge[0])))
            for found in self._found[before:]:
                found.identity = found.identity or identity_of(edge[0])

    def _loss(self, edge: Edge, name: str, reduction: int, way: tuple[Key, ...]) -> None:
        """A loss function that reduces by itself: the gradient of one unit follows from its count."""
        units, divisor = loss_units(edge[0])
        found = _Found(name, "mean" if reduction == MEAN else "sum", way, units=units)
        found.divisor = divisor if reduction == MEAN else None
        found.in_batch = in_batch(edge[0])
        if edge[0].next_functions and not found.in_batch and name != "NllLoss":
            found.product = product(edge[0].next_functions[0])
        self._found.append(found)

    def _reduction(self, edge: Edge, name: str, way: tuple[Key, ...], below: Edge) -> None:
        """A mean or a sum of elements; of scalars that were stacked, those scalars' own reductions."""
        leaf = name_of(below[0])
        if leaf in ("Stack", "Cat") and all(is_scalar(each) for each in below[0].next_functions if each[0] is not None):
            key = self._hook(below, first)
            for each in below[0].next_functions:
                if each[0] is not None:
                    self._branch(each, (*way, key))
            return
        self._element_path(_Found(name, name.lower(), way), below)

    def _branch(self, edge: Edge, way: tuple[Key, ...]) -> None:
        before = len(self._found)
        self._scalars(edge)
        for found in self._found[before:]:
            found.way = (*way, *found.way)

    def _element_path(self, found: _Found, edge: Edge) -> None:
        """Go down while each element keeps its gradient or loses it to a mask, and hook where that ends."""
        while True:
            node = edge[0]
            name = name_of(node)
            below = [each for each in node.next_functions if each[0] is not None]
            if name == "_DDPSink" and edge[1] < len(node.next_functions):  # hands each output on as it is
                below = [node.next_functions[edge[1]]]
            elif len(below) != 1 or not (name in SHAPES or name in CHOICES or masks(node, name)):
                break
            if below[0][0].name().endswith("AccumulateGrad"):
                break
            if found.above is None and name in ("Mul", "Div") and constant(node, name) is not None:
                found.above = (self._hook(edge, measured), element_units(*edge))
            edge = below[0]
        found.leaf = f"{found.leaf} of {name_of(edge[0])}".removeprefix(" of ")
        found.units = element_units(*edge)
        found.own_weights = name_of(edge[0]) in ("Mul", "Div") and constant(edge[0], name_of(edge[0])) is not None
        out = ignored(edge[0])
        found.at = self._hook(edge, measured if out is None else partial(measured, but=out))
        found.product = product(edge)
        self._found.append(found)

    # Hooks

    def _hook(self, edge: Edge, read: Callable[[torch.Tensor], torch.Tensor]) -> Key:
        """Keep what `read` makes of the gradient that arrives at that output."""
        node, index = edge
        key = (id(node), index)
        self._nodes.append(node)
        if key not in self._arrived:
            self._arrived[key] = torch.zeros(())

            def hook(gradients: tuple[torch.Tensor | None, ...]) -> None:
                if (gradient := gradients[index]) is not None:
                    self._arrived[key] = read(gradient.detach())

            self._handles.append(node.register_prehook(hook))
        return key


Key = tuple[int, int]


@dataclass
class _Found:
    """A term before its numbers are there. way: the scalar nodes to it; at: where its elements' gradients arrive."""

    leaf: str
    kind: str
    way: tuple[Key, ...]
    at: Key | None = None
    units: dict[str, Any] = field(default_factory=dict)
    divisor: Any = None
    own_weights: bool = False
    above: tuple[Key, dict[str, Any]] | None = None
    in_batch: Any = False
    product: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reduction = self.leaf
        self.identity = 0

    def term(self, arrived: dict[Key, torch.Tensor]) -> Term:
        gradients = [float(arrived[key]) for key in self.way]
        factors = [after / before if before else 1.0 for before, after in itertools.pairwise([1.0, *gradients])]
        units = {name: float(count) for name, count in self.units.items()}
        made = Term(self.leaf, self.kind, self.reduction, units=units, factors=factors, own_weights=self.own_weights)
        made.arrived = gradients[-1] if gradients else None
        made.in_batch, made.product, made.identity = bool(self.in_batch), self.product, self.identity
        if self.at is not None:
            stats = arrived[self.at]
            count, mean, most, least = stats.tolist() if stats.numel() == 4 else (0.0, 0.0, 0.0, 0.0)
            made.weight = mean
            made.spread = most / least if least else 1.0
            made.units["counted"] = count
            if self.above is not None and (stats := arrived[self.above[0]]).numel() == 4:
                counts = {name: float(number) for name, number in self.above[1].items()}
                made.above = float(stats[1]), {**counts, "counted": float(stats[0])}
        elif self.kind in ("mean", "sum"):
            divisor = 1.0 if self.divisor is None else float(self.divisor)
            made.weight = gradients[-1] / divisor if divisor else 0.0
        elif gradients:
            made.weight = gradients[-1]
        return made


def first(gradient: torch.Tensor) -> torch.Tensor:
    """Its first element, or its only one. Shape ()."""
    return gradient.reshape(-1)[0].double()


def measured(gradient: torch.Tensor, but: torch.Tensor | None = None) -> torch.Tensor:
    """Count of the elements that are not 0, their mean, the largest and the smallest magnitude. Shape (4,).

    but: elements that are left out, of the gradient's shape.
    """
    if but is not None and but.shape == gradient.shape:
        gradient = gradient.masked_fill(but, 0.0)
    flat = gradient.reshape(-1).double()
    size = flat.abs()
    there = size != 0
    count = there.sum()
    return torch.stack(
        (
            count.double(),
            flat.sum() / count.clamp(min=1),
            size.max() if flat.numel() else size.sum(),
            torch.where(there, size, torch.inf).min() if flat.numel() else size.sum(),
        )
    ).nan_to_num(posinf=0.0)
