"""Gradients that are parts of a whole: DTensors, as tensor parallelism and FSDP2 make them.

Tensor-parallel ranks see the same tokens, and each holds a part of some parameters. So nothing of theirs is counted or
reduced by us; but a norm is of the whole, and PyTorch takes no list of both kinds, or of two meshes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def local(gradient: torch.Tensor) -> torch.Tensor:
    """This rank's part, in the same memory."""
    part: torch.Tensor = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return part


def placed(parameter: torch.Tensor, gradient: torch.Tensor | None) -> torch.Tensor | None:
    """The gradient laid out as its parameter is: autograd may leave a sum over the tensor-parallel ranks undone."""
    if gradient is None or getattr(gradient, "placements", None) == getattr(parameter, "placements", None):
        return gradient
    laid_out: torch.Tensor = gradient.redistribute(placements=parameter.placements)
    return laid_out


def whole(parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A gradient that knows what it is a part of. DDP over tensor-parallel modules trains the bare parts, and notes
    the layout beside them (torch/distributed/tensor/parallel/ddp.py).
    """
    spec: Any = getattr(parameter, "_st_info", None)
    if spec is None:
        return gradient
    from torch.distributed.tensor import DTensor

    found: torch.Tensor = DTensor.from_local(
        gradient, spec.mesh, spec.placements, run_check=False, shape=spec.shape, stride=spec.stride
    )
    return found


def parts_of(parameter: torch.Tensor) -> int:
    """Into how many parts a parameter is cut."""
    mesh: Any = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return 1
    placements: Any = parameter.placements
    return math.prod(mesh.size(dim) for dim, each in enumerate(placements) if not each.is_replicate())


def mesh_size(parameter: torch.Tensor) -> int:
    """Over how many ranks a parameter is laid out."""
    mesh = getattr(parameter, "device_mesh", None)
    return 1 if mesh is None else int(mesh.size())


def by_mesh(gradients: Sequence[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    """Those that PyTorch takes in one list."""
    found: dict[object, list[torch.Tensor]] = {}
    for each in gradients:
        found.setdefault(getattr(each, "device_mesh", None), []).append(each)
    return found.values()
