"""Half precision: the gradient's error against float64, beside that of the loop that one writes by hand.

Of the whole gradient: rounding is chance, and a bias of four numbers has too little of it to be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from gradaccum.torch.accumulate import Accumulator
from tests.torch.accumulate.cases import Case, loss_of, make_model, micro_batch

STEPS = 8
AS = Case(dtype=torch.float32, accum_steps=STEPS)
AUTOCAST = {"bf16 autocast": torch.bfloat16, "fp16 autocast and scaler": torch.float16}
KEPT = {"bf16 parameters, sums in fp32": torch.float32, "bf16 parameters, sums by Kahan": "kahan"}
SHARDED = "bf16 in FSDP2, reduced in fp32"
TIMES = 2.0


@dataclass(frozen=True)
class Half:
    """One group of 8 micro-batches on each rank. mean: of a mean loss over micro-batches of even weight."""

    precision: str
    wrap: str
    mean: bool
    clip_norm: float | None

    def __str__(self) -> str:
        return f"{self.precision}, {self.wrap}, {'mean' if self.mean else 'tokens'}, clip {self.clip_norm}"

    def __call__(self) -> list[str]:
        """Where our error is more than twice that of the loop by hand."""
        ours, by_hand, right = self._ours(), self._by_hand(), self._truth()
        off, beside = (float((_flat(each) - _flat(right)).norm() / _flat(right).norm()) for each in (ours, by_hand))
        return [] if off <= TIMES * beside else [f"the gradient is off by {off:.1e}, and by hand by {beside:.1e}"]

    def _batches(self, rank: int) -> list[dict[str, torch.Tensor]]:
        case = replace(AS, weights="even" if self.mean else "ragged")
        return [micro_batch(case, rank, 0, 2 * index if self.mean else index) for index in range(STEPS)]

    def _model(self) -> nn.Module:
        model = make_model(torch.float32)
        if self.precision in KEPT:
            model = model.bfloat16()
        if self.wrap == "ddp":
            return DistributedDataParallel(model)
        if self.wrap == "fsdp2":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            options = {"mp_policy": policy} if self.precision == SHARDED else {}
            return fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)), **options)
        return model

    def _loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        kind = AUTOCAST.get(self.precision)
        if self.precision in KEPT:
            batch = {**batch, "x": batch["x"].bfloat16()}
        with torch.autocast("cpu", dtype=kind or torch.bfloat16, enabled=kind is not None):
            return loss_of(model, batch)

    def _scaler(self) -> torch.amp.GradScaler | None:
        return torch.amp.GradScaler("cpu", init_scale=2.0**10) if "scaler" in self.precision else None

    def _ours(self) -> list[torch.Tensor]:
        model = self._model()
        optimizer, seen = _watched(model)
        accumulator = Accumulator(
            model,
            optimizer,
            accum_steps=STEPS,
            clip_norm=self.clip_norm,
            scaler=self._scaler(),
            accumulate_in=KEPT.get(self.precision),
            process_group=dist.group.WORLD if self.wrap == "plain" else None,
        )
        for group in accumulator.groups(self._batches(dist.get_rank())):
            for batch in group:
                loss_sum, weight = self._loss(model, batch)
                if self.mean:
                    group.backward_mean(loss_sum / weight, weight)
                else:
                    group.backward(loss_sum, weight)
            assert group.step().applied
        return seen

    def _by_hand(self) -> list[torch.Tensor]:
        """As an expert writes it: tokens counted first, one division, reduced once where the wrapper can."""
        model, scaler = self._model(), self._scaler()
        optimizer, seen = _watched(model)
        batches = self._batches(dist.get_rank())
        total = sum(batch["mask"].sum() for batch in batches)
        dist.all_reduce(total)
        world = dist.get_world_size()
        for number, batch in enumerate(batches, 1):
            if self.wrap == "ddp":
                model.require_backward_grad_sync = number == STEPS
            loss_sum, weight = self._loss(model, batch)
            loss = loss_sum / weight / STEPS if self.mean else loss_sum * world / total
            (loss if scaler is None else scaler.scale(loss)).backward()
        if self.wrap == "plain":
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
        if scaler is not None:
            scaler.unscale_(optimizer)
        if self.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), self.clip_norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
        return seen

    def _truth(self) -> list[torch.Tensor]:
        model = self._model()
        exact = make_model(torch.float64)
        whole = [_whole(each) for each in model.parameters()]
        for parameter, start in zip(exact.parameters(), whole, strict=True):
            parameter.data.copy_(start)
        every = [batch for rank in range(dist.get_world_size()) for batch in self._batches(rank)]
        loss_sum, weight = loss_of(
            exact, {name: torch.cat([each[name].double() for each in every]) for name in every[0]}
        )
        (loss_sum / weight).backward()
        nn.utils.clip_grad_norm_(exact.parameters(), self.clip_norm or float("inf"))
        return [parameter.grad for parameter in exact.parameters()]


def _watched(model: nn.Module) -> tuple[torch.optim.Optimizer, list[torch.Tensor]]:
    """An optimizer, and the gradients that it steps with."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen: list[torch.Tensor] = []
    optimizer.register_step_pre_hook(lambda *_: seen.extend(_whole(each.grad).clone() for each in model.parameters()))
    return optimizer, seen


def _flat(gradients):
    return nn.utils.parameters_to_vector([each.double() for each in gradients])


def _whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def cases() -> list[Half]:
    """Every precision with the wrappers that it goes with."""
    ways = {**dict.fromkeys(AUTOCAST, ("plain", "ddp", "fsdp2")), **dict.fromkeys(KEPT, ("plain", "ddp"))}
    ways[SHARDED] = ("fsdp2",)
    return [
        Half(precision, wrap, mean, clip)
        for precision, wraps in ways.items()
        for wrap, mean, clip in product(wraps, (False, True), (None, 0.05))
    ]
