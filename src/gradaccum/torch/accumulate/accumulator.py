"""Gradient accumulation that equals the big batch: `Accumulator`, over the groups of a loader.

    >>> accumulator = Accumulator(model, optimizer, accum_steps=16, clip_norm=1.0)       # doctest: +SKIP
    >>> for group in accumulator.groups(loader):
    ...     for batch in group:
    ...         loss_sum, weight = loss_of(model, batch)
    ...         group.backward(loss_sum, weight)
    ...     update = group.step()

The gradient of an update is the gradient of the summed loss over all micro-batches and ranks, divided once by the total
weight. Each backward pass runs on a loss divided by the weight that is expected, so that half-precision gradients
neither overflow nor vanish; `step()` corrects by what the weight really was, in the pass that clips.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from gradaccum.torch.accumulate.buffers import Buffers
from gradaccum.torch.accumulate.checkpoint import pack, unpack
from gradaccum.torch.accumulate.elastic import for_ranks
from gradaccum.torch.accumulate.errors import AccumulationError
from gradaccum.torch.accumulate.exact import ExactSource
from gradaccum.torch.accumulate.explain import Explanation, explain
from gradaccum.torch.accumulate.group import Group
from gradaccum.torch.accumulate.parts import mesh_size
from gradaccum.torch.accumulate.planned import Promise, check_arguments, check_ranks, cuts
from gradaccum.torch.accumulate.recover import Updates, run_groups
from gradaccum.torch.accumulate.source import Source
from gradaccum.torch.accumulate.spelling import Advising, options_by_name
from gradaccum.torch.accumulate.split import samples_of, split
from gradaccum.torch.accumulate.state import State
from gradaccum.torch.accumulate.sync import Sync
from gradaccum.torch.accumulate.wrappers import unwrapped
from gradaccum.torch.batchnorm import names_in_training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch.distributed.device_mesh import DeviceMesh

    from gradaccum.core.plan import Plan
    from gradaccum.torch.accumulate.progress import Progress
    from gradaccum.torch.accumulate.recover import Split
    from gradaccum.torch.accumulate.sums import LossOf
    from gradaccum.torch.accumulate.update import Update

T = TypeVar("T")

PARTIAL = ("step", "carry", "drop")
NONFINITE = ("skip", "raise")
NONFINITE_LOSS = ("count", "leave_out")
MODELS = "models come first: a module, or several"


class Accumulator(Advising):
    """Makes groups of micro-batches, and one optimizer update of each group.

    models: a module, or several that are stepped together; plain, DDP, FSDP2 or HSDP. optimizers: one, or several; of
    one that Accelerate or Fabric has prepared the optimizer inside is stepped.
    accum_steps: micro-batches of one group; or a function of the progress so far, such as Ramp, for the next one.
    clip_norm: the largest 2-norm of the mean gradient, over all optimizers.
    scaler: a GradScaler, for fp16 autocast.
    accumulate_in: for parameters in half precision, the dtype of own buffers in which gradients are summed and reduced:
    torch.float32 takes four bytes a parameter and twice the traffic of bf16; "kahan" two bf16 numbers a parameter.
    reduce: when gradients come together, see sync.py; auto is `last` under DDP (`after` with find_unused_parameters and
    with accumulate_in), `every` under FSDP2, `hybrid` under HSDP.
    partial: what becomes of a last group that the loader cannot fill: step with its true weight, carry it into the next
    call of `groups`, or drop it.
    nonfinite: what an update with a non-finite gradient does: skip, or raise; it is looked for where the norm is known,
    that is with clip_norm, a scaler, or grad_norm=True.
    nonfinite_loss: what becomes of a micro-batch whose loss is not finite: count it, or leave it out with its weight,
    before its backward pass; to look for it the host waits for the device with every micro-batch.
    noise_scale: measure the gradient noise scale of each update, at the cost of one more norm.
    process_group: the ranks over which gradients and weights of plain modules come together: a group, or a mesh such as
    mesh["dp"]; DDP and FSDP2 bring theirs. Tensor-parallel ranks see the same tokens and stay outside of it.
    context_parallel: so many of these ranks share each sequence: each hands over the weight of its own part, and a
    sequence is one sample.

    Raises AccumulationError for what cannot be right.
    """

    @options_by_name
    def __init__(
        self,
        models: torch.nn.Module | Sequence[torch.nn.Module],
        optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        accum_steps: int | Callable[[Progress], int] | None = None,
        clip_norm: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        accumulate_in: torch.dtype | str | None = None,
        reduce: str = "auto",
        partial: str = "step",
        nonfinite: str = "skip",
        nonfinite_loss: str = "count",
        grad_norm: bool = False,
        noise_scale: bool = False,
        process_group: dist.ProcessGroup | DeviceMesh | None = None,
        context_parallel: int = 1,
    ) -> None:
        models = _all_of(models, torch.nn.Module, MODELS)
        optimizers = _all_of(optimizers, torch.optim.Optimizer, "optimizers come second: one, or several")
        optimizers = [unwrapped(each) for each in optimizers]
        if not (accum_steps is None or callable(accum_steps) or (isinstance(accum_steps, int) and accum_steps >= 1)):
            raise AccumulationError(
                f"accum_steps is a whole number of at least 1, or a function of the progress, not {accum_steps!r}"
            )
        if clip_norm is not None and not clip_norm > 0:
            raise AccumulationError(f"clip_norm must be above 0, not {clip_norm}; None clips nothing")
        for name, word, words in (
            ("partial", partial, PARTIAL),
            ("nonfinite", nonfinite, NONFINITE),
            ("nonfinite_loss", nonfinite_loss, NONFINITE_LOSS),
        ):
            if word not in words:
                raise AccumulationError(f"{name} is one of {', '.join(words)}, not {word!r}")
        if scaler is not None and not scaler.is_enabled():
            scaler = None
        if scaler is not None and accumulate_in is not None:
            raise AccumulationError("a scaler goes with parameters in fp32, which need no accumulate_in; leave it out")
        self.sync = Sync(models, reduce, process_group, accumulate_in is not None, context_parallel)
        if noise_scale and self.sync.world > 1 and self.sync.mode not in ("last", "after"):
            raise AccumulationError(
                f"noise_scale needs the gradient of one rank alone, and reduce={self.sync.mode!r} brings all together "
                "in the first backward pass; it goes with plain modules and DDP"
            )
        parameters = _parameters(optimizers)
        _check_ownership(parameters, self.sync)
        _check(models, parameters, accum_steps)
        self._state = State(
            sync=self.sync,
            optimizers=optimizers,
            parameters=parameters,
            accum_steps=accum_steps,
            clip_norm=clip_norm,
            scaler=scaler,
            partial=partial,
            nonfinite=nonfinite,
            wants_norm=grad_norm or noise_scale or clip_norm is not None or scaler is not None,
            wants_noise=noise_scale,
            leaves_out=nonfinite_loss == "leave_out",
            buffers=None if accumulate_in is None else Buffers(parameters, accumulate_in, self.sync.sharded),
        )

    def __repr__(self) -> str:
        steps = self._state.accum_steps
        groups = "groups until a weight" if steps is None else "a ramp" if callable(steps) else f"{steps} micro-batches"
        ranks = f", {self.sync.kind} over {self.sync.world} ranks, reduce={self.sync.mode!r}" * (self.sync.world > 1)
        return f"<Accumulator: {groups}{ranks}, {self.progress.updates} updates>"

    @property
    def accum_steps(self) -> int | None:
        """Micro-batches of the next group; None where a weight ends it."""
        return self._state.steps()

    @property
    def progress(self) -> Progress:
        """What was consumed up to the last boundary, over all ranks."""
        return self._state.progress

    @property
    def open_micro_batches(self) -> int:
        """This rank's micro-batches of a group that has begun and made no step, or was carried."""
        begun = self._state.open or self._state.carried
        return 0 if begun is None else begun.micro_batches

    @property
    def open_samples(self) -> int | None:
        """This rank's samples of that group; None where a batch did not say."""
        begun = self._state.open or self._state.carried
        return 0 if begun is None else begun.seen

    @property
    def cuts_batches(self) -> bool:
        """Whether groups end within a batch, as an exact plan wants it."""
        return self._state.exact is not None

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs beside models, optimizers, scaler and loader; between groups, or after a `backward`.

        Raises AccumulationError where a micro-batch has no answer, and inside a group whose gradients FSDP2 keeps
        unsharded.
        """
        return pack(self._state)

    def load_state_dict(self, saved: dict[str, Any], *, group: bool = True) -> None:
        """Go on from there: a group that was open is carried into the next call of `groups`, whose loader begins behind
        what that group has consumed. group=False: from the boundary before it. Raises AccumulationError where an open
        group is another number of ranks'.
        """
        unpack(self._state, saved, group)

    @classmethod
    def from_plan(
        cls,
        plan: Plan,
        models: torch.nn.Module | Sequence[torch.nn.Module],
        optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        elastic: bool = False,
        **options: Any,
    ) -> Accumulator:
        """An accumulator of the plan's accumulation steps, for loaders of its micro-batch.

        elastic: where another number of ranks is there than the plan is for, plan again for these: the same
        micro-batch, and the same effective batch or the nearest, which is warned of.
        Of an exact plan with a smaller last micro-step the batch in which a group ends is cut, and the rest begins the
        next group. Of any other, updates that see other samples than it says are warned of, once. Raises
        AccumulationError where the plan is for another number of ranks; where it is exact in that way and the model is
        sharded, sequences are split over ranks, or a rank would have no sample.
        """
        check_arguments(plan, options)
        if plan.context_parallel > 1:
            options.setdefault("context_parallel", plan.context_parallel)
        if elastic:
            own = _all_of(models, torch.nn.Module, MODELS)
            sync = Sync(own, "auto", options.get("process_group"), context_parallel=plan.context_parallel)
            plan = for_ranks(plan, sync.world // plan.context_parallel)
        made = cls(models, optimizers, accum_steps=plan.accum_steps, **options)
        check_ranks(plan, made.sync)
        if cuts(plan):
            made._state.exact = plan.effective_batch
        else:
            made._state.promise = Promise(plan)
        return made

    @options_by_name
    def groups(
        self,
        loader: Iterable[Any],
        *,
        until_weight: float | None = None,
        may_skip: bool = False,
        count: Callable[[Any], int | None] = samples_of,
    ) -> Iterator[Group]:
        """The groups of one pass over the loader; each is gone through once, and then `step()` is called.

        until_weight: a group ends with the first micro-batch with which the weight of all ranks reaches it; one
        all-reduce of 16 bytes for each micro-batch. may_skip: `group.skip()` will be called; without it a skipped last
        micro-batch is an error under DDP, whose reduction it would have carried. count: samples of a batch, or None.
        Raises AccumulationError where an earlier group was left without `step()`.
        """
        return self._groups(loader, until_weight, may_skip, count)

    @options_by_name
    def run(
        self,
        loader: Iterable[Any],
        loss_of: LossOf,
        *,
        split: Split = split,
        mean: bool = False,
        until_weight: float | None = None,
        count: Callable[[Any], int | None] = samples_of,
    ) -> Iterator[Update]:
        """The whole loop: yields each update of one pass over the loader, and recovers where memory runs out. Each is
        made when it is asked for, as by `for update in accumulator.run(...)`: without a loop nothing is trained.

        loss_of: from a batch its summed loss, of shape (), and what it sums over; with mean=True its mean loss. Forward
        passes happen here alone. split: from a batch and a number a list of so many parts or fewer; if not given,
        tensors are cut along their first dimension. until_weight, count: as for `groups`.
        Where forward or backward runs out of memory, each micro-batch is split in twice as many parts, for the rest of
        this accumulator's life (`update.micro_batch_split`), and the group begins anew: gradients, random numbers of
        PyTorch and the models' buffers are as they were at its start, and nothing counts twice. The group's batches
        are held until its end. Under DDP gradients are reduced in `step()`, as with reduce='after', so that ranks that
        repeat nothing wait there, for no longer than their process group's timeout.
        Raises AccumulationError where a batch cannot be split further, and, a sharded model's, where memory runs out.
        After an error in a pass all is as it was before the group.
        """
        recovers = not self.sync.sharded
        groups = self._groups(loader, until_weight, recovers, count, unsynchronised=recovers)
        return Updates(run_groups(groups, self._state, loss_of, split, count, mean))

    def _groups(
        self,
        loader: Iterable[Any],
        until_weight: float | None,
        may_skip: bool,
        count: Callable[[Any], int | None],
        unsynchronised: bool = False,
    ) -> Iterator[Group]:
        steps, promise = self._state.accum_steps, self._state.promise
        if until_weight is None and steps is None:
            raise AccumulationError(
                "nothing says where a group ends: say Accumulator(..., accum_steps=16) for so many micro-batches, or "
                "groups(loader, until_weight=500_000)"
            )
        if until_weight is not None and steps is not None:
            raise AccumulationError(
                f"a group ends after accum_steps={steps} micro-batches or until_weight={until_weight}, not both: leave "
                "one out"
            )
        self._check_idle()
        may_skip = may_skip or self._state.leaves_out
        if self._state.exact is None:
            source = Source(loader, self._state, until_weight, may_skip, count)
        else:
            source = ExactSource(loader, self._state, may_skip, count, self._state.exact)
        if unsynchronised:
            source.reduce_after()
        try:
            while source.begin_group():
                if promise is not None:
                    promise.goes_on()
                yield Group(self._state, source)
                self._check_idle()
        finally:
            if promise is not None:
                promise.ends()
            self.sync.restore()

    def explain(self, accum_steps: int | None = None) -> Explanation:
        """What each way to reduce holds and sends, in bytes, before anything has run. print() shows it as a table.

        accum_steps: of the group that is meant, where a weight ends it.
        """
        buffers, steps = self._state.buffers, accum_steps or self.accum_steps or 1
        width = None if buffers is None or buffers.dtype is None else buffers.dtype.itemsize
        return explain(self.sync, self._state.parameters, steps, width)

    def discard(self) -> None:
        """Throw away the gradients of a group that was left without `step()`, and of one that was carried."""
        self._state.open = self._state.carried = None
        self.sync.restore()
        self._state.zero_grad()

    def close(self) -> None:
        """Give gradients back to the optimizers' own loop: with accumulate_in, its hooks are taken away."""
        self.discard()
        if self._state.buffers is not None:
            self._state.buffers.close()

    def _check_idle(self) -> None:
        if self._state.open is not None:
            raise AccumulationError(
                f"a group was left after {self._state.open.micro_batches} micro-batches without step(): call step(), "
                "or accumulator.discard() to throw its gradients away"
            )


def _all_of(given: Any, kind: type[T], words: str) -> list[T]:
    """One of the kind, or several, as a list."""
    found = [given] if isinstance(given, kind) else list(given) if isinstance(given, (list, tuple)) else []
    if not found or not all(isinstance(each, kind) for each in found):
        raise AccumulationError(f"{words}; not {given!r:.80}")
    return found


def _check_ownership(parameters: Sequence[torch.nn.Parameter], sync: Sync) -> None:
    """That the optimizers train these models, and that somebody brings the ranks' gradients together."""
    own = {id(each) for model in sync.models for each in model.parameters()}
    foreign = [each for each in parameters if id(each) not in own]
    if len(foreign) == len(parameters) or (foreign and sync.kind != "plain"):
        raise AccumulationError(
            f"{len(foreign)} of the optimizers' {len(parameters)} parameters are none of the models': make the "
            "optimizer from model.parameters(), after the model was sharded or moved"
        )
    copies = 1
    if sync.process_group is None and dist.is_available() and dist.is_initialized():
        copies = dist.get_world_size() // max(mesh_size(each) for each in parameters)
    if copies > 1:
        warnings.warn(
            f"{dist.get_world_size()} ranks are there, and the model is not wrapped: each rank trains one of its own. "
            "Wrap it in DDP or fully_shard, or say process_group=dist.group.WORLD",
            stacklevel=4,
        )


def _parameters(optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.nn.Parameter]:
    """Those that are trained, each once."""
    found = {id(each): each for one in optimizers for group in one.param_groups for each in group["params"]}
    trained = [each for each in found.values() if each.requires_grad]
    if not trained:
        raise AccumulationError("the optimizers have no parameter that requires a gradient")
    return trained


def _check(models: Sequence[torch.nn.Module], parameters: Sequence[torch.nn.Parameter], accum_steps: object) -> None:
    """What cannot be right with more than one micro-step, and what will surprise."""
    if accum_steps == 1:
        return
    if any(getattr(each, "_post_accumulate_grad_hooks", None) for each in parameters):
        raise AccumulationError(
            "a parameter has a hook that runs when its gradient is there, as an optimizer in the backward pass does: "
            "it would step with every micro-batch; use accum_steps=1, or an optimizer that steps by itself"
        )
    if normed := names_in_training(models):
        warnings.warn(
            f"BatchNorm in training mode ({normed[0]}{' and others' if len(normed) > 1 else ''}) normalises each "
            "micro-batch by itself, which no accumulation makes equal to the big batch: use GroupNorm or LayerNorm, "
            "or freeze its statistics with .eval()",
            stacklevel=4,
        )
