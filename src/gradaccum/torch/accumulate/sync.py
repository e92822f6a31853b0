"""How the ranks' gradients come together: one answer for each way that a model is wrapped.

The wrappers reduce in the backward pass, as flags say that have to be set before the forward pass (DDP reads its flag
there). `Sync` sets them for each micro-batch, puts them back as they were, and can reduce afterwards by itself.

    last      in the backward pass of the last micro-batch (DDP's `no_sync`, FSDP2's `set_requires_gradient_sync`)
    every     in each backward pass
    hybrid    HSDP: reduce-scatter in each, all-reduce in the last
    after     in none: `step()` reduces, so that nobody needs to know the last one ahead
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gradaccum.torch.accumulate.errors import AccumulationError, advise
from gradaccum.torch.accumulate.parts import local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch.distributed.device_mesh import DeviceMesh

MODES = ("auto", "last", "every", "hybrid", "after")

ALLOWED = {
    "plain": ("after",),
    "ddp": ("last", "every", "after"),
    "fsdp2": ("every", "last"),
    "hsdp": ("hybrid", "every", "last"),
}
"""What goes with each wrapper, its default first."""

BUCKET = 25 * 2**20
"""Bytes that one all-reduce of `after` takes together, as DDP's buckets."""


class Sync:
    """The models' common way: plain (one process, or a process group given by hand), DDP, FSDP2, or HSDP.

    models: as given; of each the DDP inside where there is one, as torch.compile and Fabric wrap it once more.
    world, rank: of those over which gradients come together. sharded: whether each forward pass is a collective, so
    that every rank has to run as many. mode: one of MODES but auto.
    """

    def __init__(
        self,
        models: Sequence[torch.nn.Module],
        reduce: str,
        process_group: dist.ProcessGroup | DeviceMesh | None = None,
        buffered: bool = False,
        context_parallel: int = 1,
    ) -> None:
        self.kind = _kind_of(models)
        self.models = [each for model in models for each in _replicas(model)] or models
        self._param_groups = [each for model in models for each in _param_groups(model)]
        self.process_group = self._data_parallel(process_group)
        self.context_parallel = context_parallel
        self.world = 1 if self.process_group is None else dist.get_world_size(self.process_group)
        self.rank = 0 if self.process_group is None else dist.get_rank(self.process_group)
        self.sharded = self.kind in ("fsdp2", "hsdp")
        self.allowed = ALLOWED[self.kind]
        self.mode = self._resolved(reduce, buffered)
        self._before: list[tuple[Any, str, bool]] = []
        _ = self.mean_over  # refused early, where parts of the model differ
        if context_parallel < 1 or self.world % context_parallel:
            raise AccumulationError(
                f"context_parallel={context_parallel} does not divide the {self.world} ranks over which gradients come "
                "together: shard or wrap over data-parallel times context-parallel ranks"
            )

    def _data_parallel(self, given: dist.ProcessGroup | DeviceMesh | None) -> dist.ProcessGroup | None:
        """The ranks that hold different tokens, and over which gradients come together."""
        group = _as_group(given)
        if self.kind == "plain":
            return group
        own = self._group_of_wrapper()
        if group is not None and dist.get_process_group_ranks(group) != dist.get_process_group_ranks(own):
            raise AccumulationError(
                f"process_group has the ranks {dist.get_process_group_ranks(group)}, and {self.kind} reduces over "
                f"{dist.get_process_group_ranks(own)}: leave it out, as it is for plain modules"
            )
        return own

    def _group_of_wrapper(self) -> dist.ProcessGroup:
        """The same as the wrapper knows them; where parts of a model are sharded over fewer, those of the most."""
        if self.kind == "ddp":
            found: dist.ProcessGroup = self.models[0].process_group
            return found
        info = max((each.mesh_info for each in self._param_groups), key=_ranks_of)
        group: dist.ProcessGroup = (
            info.mesh._flatten().get_group() if hasattr(info, "replicate_mesh_size") else info.shard_process_group
        )
        return group

    @property
    def shape(self) -> tuple[int, int]:
        """Over how many ranks gradients are sharded, and how many copies of the shards there are."""
        if not self.sharded:
            return 1, self.world
        shards = int(self._param_groups[0].mesh_info.shard_mesh_size)
        return shards, self.world // shards

    @property
    def mean_over(self) -> float:
        """By how much a reduced gradient is smaller than the sum over the ranks. Raises AccumulationError where parts
        of a sharded model divide by different numbers.
        """
        if not self.sharded:
            return self.world if self.kind == "ddp" else 1
        found = {each.gradient_divide_factor or _ranks_of(each.mesh_info) for each in self._param_groups}
        if len(found) > 1:
            raise AccumulationError(
                f"parts of the model divide their gradients by {' and '.join(f'{each:g}' for each in sorted(found))}: "
                "set_gradient_divide_factor reaches one module and none inside it; call it on every FSDPModule of "
                "model.modules()"
            )
        return float(found.pop())

    def _resolved(self, reduce: str, buffered: bool) -> str:
        if reduce not in MODES:
            raise AccumulationError(f"reduce is one of {', '.join(MODES)}, not {reduce!r}")
        if self.world == 1 and self.kind in ("plain", "ddp"):
            return "after" if buffered else "last"
        allowed = self.allowed
        buffered = buffered and not self.sharded  # which is refused elsewhere
        unused = self.kind == "ddp" and any(model.find_unused_parameters for model in self.models)
        mode = ("after" if unused or buffered else allowed[0]) if reduce == "auto" else reduce
        if buffered and mode != "after":
            raise AccumulationError(
                f"reduce={mode!r} does not go with accumulate_in: what is reduced are the buffers, in step(); leave "
                "reduce at auto"
            )
        if mode == "last" and unused:
            raise AccumulationError(
                "reduce='last' does not go with DDP(find_unused_parameters=True): what the last micro-batch does not "
                "use would not be reduced, though earlier ones have; use reduce='after' or 'every'"
            )
        if mode not in allowed:
            why = {
                "after": "sharded gradients are reduced in the backward pass alone",
                "hybrid": "hybrid is HSDP's: it shards and replicates",
            }.get(mode, "nothing reduces a plain module's gradients in its backward pass; wrap it, or say after")
            raise AccumulationError(f"reduce={mode!r} does not go with {self.kind}: {why}; use {' or '.join(allowed)}")
        if mode == "every" and self.kind == "ddp" and any(model._comm_hooks for model in self.models):
            raise AccumulationError(
                "reduce='every' does not go with a communication hook of DDP: one that sums would add the sums of "
                "earlier micro-batches again; use reduce='last'"
            )
        if mode in ("last", "after"):
            self.check_deferral()
        return mode

    def check_deferral(self) -> None:
        """Raises AccumulationError where a backward pass cannot leave out its reduction."""
        if self.kind == "ddp" and any(model.static_graph for model in self.models):
            raise AccumulationError(
                "DDP(static_graph=True) reduces in every backward pass or breaks (pytorch's reducer asserts when a "
                "pass is left out); wrap without static_graph, or use reduce='every' with loaders of one length"
            )

    def needs_the_end(self) -> bool:
        """Whether the last micro-batch has to be known before its forward pass; under DDP's `every`, that no rank has
        more of them than another.
        """
        return self.world > 1 and (self.mode in ("last", "hybrid") or (self.mode == "every" and self.kind == "ddp"))

    def set(self, mode: str, last: bool) -> None:
        """The flags for the next forward and backward pass, where the group reduces as `mode` says."""
        if self.kind == "plain":
            return
        scatter = mode in ("every", "hybrid") or (mode == "last" and last)
        for model in self.models if self.kind == "ddp" else ():
            self._flag(model, "require_backward_grad_sync", scatter)
            if mode == "after":
                self._flag(model, "require_forward_param_sync", False)  # buffers: a rank may have no forward pass
        for params in self._param_groups:
            self._flag(params, "reduce_grads", scatter)
            self._flag(params, "all_reduce_grads", mode == "every" or (scatter and last))

    def restore(self) -> None:
        """Every flag as it was before the first `set`."""
        while self._before:
            owner, name, value = self._before.pop()
            setattr(owner, name, value)

    def _flag(self, owner: Any, name: str, value: bool) -> None:
        before = getattr(owner, name)
        if before != value:
            self._before.append((owner, name, before))
            setattr(owner, name, value)

    # Collectives of our own

    def settle(self) -> None:
        """Before a group in which a rank may have no forward pass: in DDP's next one ranks exchange bucket orders."""
        if self.kind == "ddp" and self.world > 1:
            for model in self.models:
                model.reducer._rebuild_buckets()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, in place."""
        if self.world > 1:
            try:
                dist.all_reduce(values, group=self.process_group)
            except RuntimeError as error:
                advise(error)
                raise
        return values

    def gather(self, value: int, device: torch.device) -> list[int]:
        """One whole number of each rank, in their order."""
        counts = [0] * self.world
        counts[self.rank] = value
        found: list[int] = self.sum(torch.tensor(counts, device=device)).tolist() if self.world > 1 else counts
        return found

    def reduce(
        self, gradients: Sequence[torch.Tensor | None], zeros: Callable[[int], torch.Tensor], device: torch.device
    ) -> list[torch.Tensor | None]:
        """The mean (of a plain module: the sum) of each gradient over the ranks, in buckets, in place.

        One that some rank has and another has not counts as zeros(its number) there; one that no rank has stays None,
        as the optimizer has to see it.
        """
        have = self.sum(torch.tensor([each is not None for each in gradients], dtype=torch.int32).to(device)).tolist()
        found = [zeros(number) if each is None and have[number] else each for number, each in enumerate(gradients)]
        with torch.no_grad():
            for bucket in _buckets([local(each) for each in found if each is not None]):
                flat = self.sum(torch.cat([each.reshape(-1) for each in bucket]))
                if self.mean_over > 1:
                    flat /= self.mean_over
                parts = flat.split([each.numel() for each in bucket])
                torch._foreach_copy_(bucket, [part.view_as(each) for part, each in zip(parts, bucket, strict=True)])
        return found


def _as_group(given: dist.ProcessGroup | DeviceMesh | None) -> dist.ProcessGroup | None:
    """A mesh as the group of all its ranks."""
    if given is None or isinstance(given, dist.ProcessGroup):
        return given
    group: dist.ProcessGroup = (given if given.ndim == 1 else given._flatten()).get_group()
    return group


def _ranks_of(info: Any) -> int:
    """Over how many ranks FSDP2 brings the gradients of one record together."""
    return int(getattr(info, "shard_mesh_size", 1)) * int(getattr(info, "replicate_mesh_size", 1))


def _kind_of(models: Sequence[torch.nn.Module]) -> str:
    kinds = {_kind(model) for model in models}
    if len(kinds) > 1:
        raise AccumulationError(f"models of one group are wrapped alike, not {' and '.join(sorted(kinds))}")
    return kinds.pop()


def _kind(model: torch.nn.Module) -> str:
    if _replicas(model):
        return "ddp"
    groups = _param_groups(model)
    if not groups:
        return "plain"
    return "hsdp" if any(hasattr(each.mesh_info, "replicate_mesh_size") for each in groups) else "fsdp2"


def _replicas(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Itself, or what is inside, where that is DDP."""
    return [each for each in model.modules() if isinstance(each, DistributedDataParallel)]


def _param_groups(model: torch.nn.Module) -> list[Any]:
    """FSDP2's own record of what it reduces together, of every module inside."""
    from torch.distributed.fsdp import FSDPModule

    found: list[Any] = []
    for module in model.modules():
        if isinstance(module, FSDPModule):
            state = module._get_fsdp_state()
            several = getattr(state, "_fsdp_param_groups", None)  # torch 2.12 and later have several of a module
            if several is None:
                several = [state._fsdp_param_group] if state._fsdp_param_group is not None else []
            found += several
    return found


def _buckets(gradients: Iterable[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    """Gradients of one dtype and device, at most BUCKET bytes together where one alone is not more."""
    open_buckets: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    sizes: dict[tuple[torch.dtype, torch.device], int] = {}
    for gradient in gradients:
        key = gradient.dtype, gradient.device
        size = gradient.numel() * gradient.element_size()
        if sizes.get(key, 0) + size > BUCKET and open_buckets.get(key):
            yield open_buckets.pop(key)
            sizes[key] = 0
        open_buckets.setdefault(key, []).append(gradient)
        sizes[key] = sizes.get(key, 0) + size
    yield from open_buckets.values()
