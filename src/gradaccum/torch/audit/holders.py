"""DeepSpeed's optimizers that hold copies of the parameters in fp32, on which an optimizer of PyTorch's steps.

No backward pass reaches the copies: gradients come to the model's own parameters. In ZeRO they leave these for buffers,
and PyTorch's optimizer steps on flat copies, once for each of their groups. So two places are looked at: what each pass
brings to a few parameters, and the same parameters' place in the flat gradients that PyTorch's optimizer is given. Of
these a rank has its own part, and the sum over the ranks is the whole. Without ZeRO gradients stay where they are.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from gradaccum.torch.audit.sketch import MOST_ELEMENTS, Witness
from gradaccum.torch.audit.where import alive

PARTED = (
    ("deepspeed.runtime.zero.stage_1_and_2", "DeepSpeedZeroOptimizer"),
    ("deepspeed.runtime.zero.stage3", "DeepSpeedZeroOptimizer_Stage3"),
    ("deepspeed.runtime.bf16_optimizer", "BF16_Optimizer"),
)
"""Where those are defined of which each rank has a part."""
WHOLE = (
    ("deepspeed.runtime.fp16.fused_optimizer", "FP16_Optimizer"),
    ("deepspeed.runtime.fp16.unfused_optimizer", "FP16_UnfusedOptimizer"),
)
"""Those that hold all, in half precision without ZeRO. Each has PyTorch's as `optimizer`, and a `step` of its own."""

GROUPS = ("bit16_groups", "fp16_groups", "bf16_groups")
"""Where a holder has the model's own parameters."""


def kinds(among: tuple[tuple[str, str], ...] = PARTED + WHOLE) -> list[type[Any]]:
    """Those classes that the process has imported by now."""
    modules = [(sys.modules.get(path), name) for path, name in among]
    return [getattr(module, name) for module, name in modules if hasattr(module, name)]


def holders() -> list[Any]:
    """Every living holder."""
    return [each for kind in kinds() for each in alive(kind)]


def is_holder(optimizer: Any) -> bool:
    """Whether it holds copies, and PyTorch's optimizer steps on them."""
    return isinstance(optimizer, tuple(kinds()))


def has_parts(holder: Any) -> bool:
    """Whether this rank has its own part of the copies."""
    return isinstance(holder, tuple(kinds(PARTED)))


def loss_scale(holder: Any) -> float:
    """By what the gradients are multiplied when its step begins; of those that hold all."""
    return float(holder.loss_scale_config.cur_scale)


def clipped_to(holder: Any, scale: float) -> tuple[float, float] | None:
    """The norm of the gradients at its last step, and the threshold that they were held to; None where none is.

    scale: the loss's in that step, which one kind leaves in the norm.
    """
    threshold, norm = getattr(holder, "clip_grad", 0.0), getattr(holder, "_global_grad_norm", None)
    if not threshold or norm is None:
        return None
    scaled = type(holder).__name__ == "FP16_UnfusedOptimizer"
    return float(norm) / (scale if scaled else 1.0), float(threshold)


@dataclass(frozen=True)
class Part:
    """This rank's part of one parameter: `size` elements from `start` on, which lie in `flat` from `place` on."""

    flat: torch.Tensor
    place: int
    start: int
    size: int


class HeldWitness(Witness):
    """A few of the model's parameters whose copies a holder has."""

    def __init__(self, holder: Any) -> None:
        super().__init__(trained_by(holder))
        self._holder = holder
        self.held = True

    def place(self) -> None:
        """Not known: in ZeRO's third stage the parameters are elsewhere between passes."""

    def gradients(self) -> None:
        """None: they are taken out of `.grad` while the pass is under way."""

    def dtypes(self) -> list[str]:
        """The types of the parameters, which their gradients have."""
        return sorted({str(each.dtype).removeprefix("torch.") for each in self.parameters})

    def given(self, optimizer: torch.optim.Optimizer) -> torch.Tensor | None:
        """The sketch of this rank's part of what PyTorch's optimizer steps on now; None where it has none of it."""
        flats = {id(each) for group in optimizer.param_groups for each in group["params"]}
        parts = {}
        for index, each in enumerate(self.parameters):
            part = _part_of(self._holder, each)
            if part is None or part.flat.grad is None or id(part.flat) not in flats:
                continue
            whole = torch.zeros(each.ds_numel if hasattr(each, "ds_numel") else each.numel(), device=part.flat.device)
            whole[part.start : part.start + part.size] = part.flat.grad.detach()[part.place : part.place + part.size]
            parts[index] = whole[:MOST_ELEMENTS]
        return self._sketch(parts)


def trained_by(optimizer: Any) -> list[torch.Tensor]:
    """The parameters that it trains; of a holder the model's own, whose copies it has."""
    if is_holder(optimizer):
        groups = next(getattr(optimizer, name) for name in GROUPS if hasattr(optimizer, name))
    else:
        groups = [group["params"] for group in optimizer.param_groups]
    return [each for group in groups for each in group if each.requires_grad]


def _part_of(holder: Any, parameter: Any) -> Part | None:
    """Where this rank's part of a parameter lies; None where all of it belongs to others."""
    if hasattr(holder, "grad_position"):  # the third stage
        flat, place, size = holder.grad_position[holder.get_param_id(parameter)]
        start = dist.get_rank(parameter.ds_process_group) * size
        return Part(
            holder.fp32_partitioned_groups_flat[flat], place, start, max(0, min(size, parameter.ds_numel - start))
        )
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    flats = getattr(holder, "single_partition_of_fp32_groups", None) or holder.fp32_groups_flat_partition
    there, here = mapping.hp_fragment_address, mapping.lp_fragment_address
    return Part(flats[mapping.param_group_index], there.start, here.start, there.numel)
