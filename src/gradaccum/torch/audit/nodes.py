"""What the nodes of an autograd graph say: what a loss reduces over, what multiplies its elements, what made them."""

from __future__ import annotations

import functools
import itertools
import math
import re
from typing import Any

import torch

MEAN, SUM = 1, 2
"""What ATen's loss nodes save as their reduction; 0 is none."""

MOST_BETWEEN = 30
"""Nodes from a loss's elements down to a product of two matrices that are followed."""

MOST_LOOKED_AT = 5_000
"""Nodes beneath a matrix in which data is looked for."""

PRODUCTS = frozenset("Mm Addmm Bmm Baddbmm Convolution Linear".split())
"""Nodes by which data and parameters come together; the edge to data is none."""

Edge = tuple[Any, int]
"""A node, and which of its outputs."""


def name_of(node: Any) -> str:
    """The node's function, without the word Backward and its number."""
    return _short(node.name())


@functools.cache
def _short(name: str) -> str:
    return re.sub(r"Backward\d*$", "", name).removeprefix("torch::autograd::")


_identities = itertools.count(1)


def identity_of(node: Any) -> int:
    """A number for the node, for as long as its graph lives."""
    return int(node.metadata.setdefault("gradaccum.audit", next(_identities)))


def is_python(node: Any) -> bool:
    """A torch.autograd.Function's node."""
    return hasattr(type(node), "_forward_cls")


def is_scalar(edge: Edge) -> bool:
    """Whether the output of that edge has one element. False where the graph does not say."""
    shape = shape_of(edge)
    return shape is not None and all(size == 1 for size in shape)


def shape_of(edge: Edge) -> list[int] | None:
    """Of the output of that edge; None where the graph does not say."""
    node, index = edge
    try:
        return [int(size) for size in node._input_metadata[index].shape]
    except (AttributeError, IndexError, RuntimeError, TypeError):
        return None


def reduces(node: Any) -> int:
    """The reduction that a loss node has saved: MEAN, SUM, or 0."""
    try:
        return int(getattr(node, "_saved_reduction", 0))
    except (RuntimeError, TypeError):
        return 0


def masks(node: Any, name: str) -> bool:
    """Whether it multiplies by a constant tensor of 0 and one other value, and nothing else."""
    if name not in ("Mul", "Div"):
        return False
    if (by := constant(node, name)) is None:
        return not any(isinstance(saved(node, each), torch.Tensor) for each in ("_saved_other", "_saved_self")) or (
            _of_one_element(node)
        )
    flat = by.detach().reshape(-1)
    if flat.dtype == torch.bool:
        return True
    return bool(((flat == 0) | (flat == flat.abs().max())).all())


def constant(node: Any, name: str) -> torch.Tensor | None:
    """The tensor of several elements by which a product or quotient multiplies or divides; None where there is none, or
    where it is part of the graph itself.
    """
    given = [saved(node, "_saved_other"), None if name == "Div" else saved(node, "_saved_self")]
    tensors = [each for each in given if isinstance(each, torch.Tensor)]
    return tensors[0] if len(tensors) == 1 and tensors[0].numel() > 1 else None


def _of_one_element(node: Any) -> bool:
    given = [saved(node, "_saved_other"), saved(node, "_saved_self")]
    return any(isinstance(each, torch.Tensor) and each.numel() == 1 for each in given)


def in_batch(node: Any) -> Any:
    """Whether each row asks for a class of its own, of as many as there are rows or rows of all ranks: the samples of
    the batch are each other's classes.
    """
    target, logits = saved(node, "_saved_target"), node.next_functions[0]
    if not isinstance(target, torch.Tensor) or target.dim() != 1 or target.is_floating_point():
        return False
    rows, shape = target.numel(), shape_of(logits)
    if rows < 2 or not shape or shape[-1] % rows:
        return False
    asked = target - target[0] if rows == 2 else target.sort().values - target.min()  # of two any order is likely
    return (asked == torch.arange(rows, device=target.device)).all()


def product(edge: Edge) -> list[int]:
    """Rows, columns and inner size of a product of two matrices of activations from whose elements alone those at the
    edge were made, as similarities of pairs are; empty where there is none.
    """
    stack, products = [edge[0]], set()
    for _ in range(MOST_BETWEEN):
        if not stack:
            break
        node = stack.pop()
        if name_of(node) in ("Mm", "Bmm"):
            products.add(node)
            continue
        below = [each[0] for each in node.next_functions if each[0] is not None and not is_scalar(each)]
        if not below or node.name().endswith("AccumulateGrad"):
            return []
        stack.extend(below)
    if stack or len(products) != 1:
        return []
    (node,) = products
    one, other = (shape_of(each) for each in node.next_functions)
    if not one or not other or any(size > 1 for size in one[:-2]):
        return []
    return [one[-2], other[-1], one[-1]] if all(_has_data(each[0]) for each in node.next_functions) else []


def _has_data(root: Any) -> bool:
    """Whether anything goes in there that is no parameter: not so for a weight that is made of parameters alone, as by
    LoRA or by a norm. False where the graph does not say within MOST_LOOKED_AT nodes.
    """
    stack, seen = [root], {None}
    while stack and len(seen) < MOST_LOOKED_AT:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        name = name_of(node)
        if name == "Embedding" or (name in PRODUCTS and any(each[0] is None for each in node.next_functions)):
            return True
        stack.extend(each[0] for each in node.next_functions)
    return False


def saved(node: Any, name: str) -> Any:
    """What the node has saved under that name; None where it has not, or would have to run the model again for it."""
    try:
        if _made_anew(getattr(node, name.replace("_saved", "_raw_saved", 1), None)):
            return None
        return getattr(node, name, None)
    except RuntimeError:  # it was released
        return None


def _made_anew(raw: Any) -> bool:
    """Whether a saved tensor comes from a forward pass that is run again, as under checkpointing: to look at it would
    run the model once more than the loop does.
    """
    hook = getattr(raw, "unpack_hook", None)
    return hook is not None and getattr(hook, "__module__", "") != "torch.autograd.graph"


def loss_units(node: Any) -> tuple[dict[str, Any], Any]:
    """What a loss node reduces over, and by what its mean divides."""
    target = saved(node, "_saved_target")
    if not isinstance(target, torch.Tensor):
        return {}, None
    units: dict[str, Any] = {"elements": target.numel(), "rows": target.shape[0] if target.dim() else 1}
    if isinstance(own := saved(node, "_saved_weight"), torch.Tensor) and target.is_floating_point():
        units["weighed"] = own.detach().double().sum() * (target.numel() / own.numel())  # as it is spread over them
    elif (classes := saved(node, "_saved_weight")) is not None:
        there = target != _signed(saved(node, "_saved_ignore_index"))
        units["weighed"] = torch.where(there, classes[target.clamp(0, len(classes) - 1)], 0.0).sum()
    if (without := saved(node, "_saved_ignore_index")) is None:
        return {**units, "counted": target.numel()}, target.numel()
    units["counted"] = (target != _signed(without)).sum()
    if (total := saved(node, "_saved_total_weight")) is not None and reduces(node) == MEAN:
        units["weighed"] = total
        return units, total
    return units, units["counted"]


def ignored(node: Any) -> torch.Tensor | None:
    """Where a loss of each element has a target that counts nothing, though a gradient arrives there."""
    target, without = saved(node, "_saved_target"), saved(node, "_saved_ignore_index")
    return target == _signed(without) if isinstance(target, torch.Tensor) and without is not None else None


def _signed(index: int | None) -> int:
    """An ignore index as a node saves it, without its sign."""
    return -100 if index is None else index - 2**64 if index >= 2**63 else index


def element_units(node: Any, index: int) -> dict[str, Any]:
    """What the elements' own node says of their number."""
    shape = shape_of((node, index))
    if shape is None:
        return {}
    units: dict[str, Any] = {"elements": math.prod(shape), "rows": shape[0] if shape else 1}
    if name_of(node) == "Mul" and (by := constant(node, "Mul")) is not None and list(by.shape) == shape:
        units["weighed"] = by.detach().double().sum()
    return units


def saved_counts(node: Any) -> dict[str, Any]:
    """Of a function that is not known: the targets that it saved, or the rows of the first tensor that it saved."""
    if node.name().startswith("CompiledFunction"):
        return {}  # what a compiled graph keeps is its own
    try:
        if any(_made_anew(each) for each in node._raw_saved_tensors):
            return {}
        tensors = [each for each in node.saved_tensors if isinstance(each, torch.Tensor)]
    except (AttributeError, RuntimeError):
        return {}
    for each in tensors:
        if each.dtype == torch.int64 and each.numel() > 1:
            return {"counted": (each != -100).sum(), "elements": each.numel()}
    for each in tensors:
        if each.is_floating_point() and each.dim() > 1:
            return {"elements": each.shape[:-1].numel()}
    return {}
