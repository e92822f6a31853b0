"""Watch a running training loop without changing it: what each backward pass weighs, and what each step receives.

The loop's own calls are followed: `backward`, `Optimizer.step`, and between them `zero_grad`, clipping, `unscale_` and
schedulers. In an audited update hooks read a few numbers from the loss and from the gradients of a few parameters; in
all others a backward pass is counted, and no more.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gradaccum.torch.audit.holders import clipped_to, holders, is_holder, kinds, trained_by
from gradaccum.torch.audit.models import Models
from gradaccum.torch.audit.patches import Patches
from gradaccum.torch.audit.records import RankSeen, UpdateSeen
from gradaccum.torch.audit.underway import Happened, OpenPass, Watched
from gradaccum.torch.audit.weights import Instrument
from gradaccum.torch.audit.where import alive, framework_of_call, innermost, nominal_steps, site_of_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Watcher:
    """Watches from `start` to `stop`; `seen` is this rank's record.

    updates: how many updates of each optimizer are audited from the first on; None for all. models, optimizers: those
    to watch; none: all that take part. on_update: called after each update with its record.
    """

    def __init__(
        self,
        models: Iterable[torch.nn.Module] = (),
        optimizers: Iterable[Optimizer] = (),
        *,
        updates: int | None = 3,
        target_batch: int | None = None,
        on_update: Callable[[UpdateSeen], None] | None = None,
    ) -> None:
        self.updates, self.on_update = updates, on_update
        self.seen = RankSeen(target_batch=target_batch)
        self._patches = Patches()
        self._handles: list[Any] = []
        self._watched: dict[int, Watched] = {}
        self._followed: set[Any] = set()  # of DeepSpeed's
        # Of an optimizer that steps on copies, what holds them; of others None.
        self._holders: weakref.WeakKeyDictionary[Optimizer, Any] = weakref.WeakKeyDictionary()
        optimizers = [self._acting(each) for each in optimizers]
        self._only = {id(each) for each in optimizers}
        self._frozen: weakref.WeakValueDictionary[int, Optimizer] = weakref.WeakValueDictionary()
        self._models = Models(self.seen, lambda: self._auditing)
        self._serial = 0
        self._auditing, self._discovered = True, False
        self._schedulers: set[type[Any]] = set()
        self._schedulers_deep = 0
        for model in models:
            self._models.follow(model)
        for optimizer in optimizers:
            self._attach(optimizer)

    def start(self) -> None:
        """Begin to watch."""
        around = self._patches.around
        around(torch.autograd, "backward", self._backward)
        around(torch.autograd, "grad", self._grad)
        around(Optimizer, "zero_grad", self._zero_grad)
        around(torch.nn.utils.clip_grad, "_clip_grads_with_norm_", self._clip)
        for module in (torch.nn.utils, torch.nn.utils.clip_grad):
            around(module, "clip_grad_value_", self._clip_value)
        around(torch.amp.grad_scaler.GradScaler, "unscale_", self._unscale)
        around(torch.amp.grad_scaler.GradScaler, "step", self._scaler_step)
        self._follow_schedulers()
        self._follow_deepspeed()
        self._handles = [
            register_optimizer_step_pre_hook(_uncompiled(self._before_step)),
            register_optimizer_step_post_hook(_uncompiled(self._after_step)),
        ]

    def stop(self) -> RankSeen:
        """End, put everything back, and return the record with what is still open counted as leftover."""
        self._patches.undo()
        self._models.leave()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for watched in self._watched.values():
            watched.witness.deafen()
        return self.so_far()

    def so_far(self) -> RankSeen:
        """The record as it stands, while the loop goes on."""
        used = max((each.at for each in self.seen.updates), default=0)  # by whatever optimizer was the last
        open_ = max((each.count for each in self._watched.values()), default=0)
        self.seen.leftover = min(open_, self._serial - used)
        if dist.is_available() and dist.is_initialized():
            self.seen.rank, self.seen.world = dist.get_rank(), dist.get_world_size()
        return self.seen

    # What is watched

    def _acting(self, optimizer: Any) -> Any:
        """What makes the updates: the optimizer itself, or what holds the copies that it steps on."""
        if not kinds() or is_holder(optimizer):
            return optimizer
        if optimizer not in self._holders:
            found = next((each for each in holders() if each.optimizer is optimizer), None)
            if found is None and not self._discovered:
                return optimizer  # what holds its copies may be made yet
            self._holders[optimizer] = found
        return self._holders[optimizer] or optimizer

    def _attach(self, optimizer: Any) -> Watched | None:
        optimizer = self._acting(optimizer)
        known = self._watched.get(id(optimizer))
        if known is None and (not self._only or id(optimizer) in self._only):
            if not trained_by(optimizer):
                self._frozen[id(optimizer)] = optimizer  # for now, as Lightning does in another optimizer's turn
                return None
            self._frozen.pop(id(optimizer), None)
            known = Watched(optimizer, len(self._watched))
            self._watched[id(optimizer)] = known
            self.seen.optimizers.append(known.described())
            if known.holds:
                self._follow_deepspeed()
            if known.witness.held:
                self.seen.wrapped = "zero"
            if self._audits(known):
                known.witness.listen()
                self._auditing = True
        return known

    def _audits(self, watched: Watched) -> bool:
        return self.updates is None or watched.number < self.updates

    def _follow_schedulers(self) -> None:
        """Every class of schedulers that is known by now and has a `step` of its own."""
        for kind in _with_own_step(LRScheduler):
            if kind not in self._schedulers:
                self._schedulers.add(kind)
                self._patches.around(kind, "step", self._scheduler_step)

    def _follow_deepspeed(self) -> None:
        """Its optimizers that hold copies, and its own clipping, where they are imported by now."""
        for kind in kinds():
            if kind not in self._followed:
                self._followed.add(kind)
                self._patches.around(kind, "step", self._holder_step)
        engine = sys.modules.get("deepspeed.runtime.engine")
        if engine is not None and engine not in self._followed and hasattr(engine, "clip_grad_norm_"):
            self._followed.add(engine)
            self._patches.around(engine, "clip_grad_norm_", self._deepspeed_clip)

    def _discover(self) -> None:
        """Every optimizer that has parameters with gradients to come, and the outermost models that hold them; and
        schedulers that the loop's own modules brought.
        """
        self._follow_schedulers()
        self._follow_deepspeed()
        if self._only:
            return
        for each in alive(Optimizer):
            if type(each).step is not Optimizer.step and getattr(each, "param_groups", None) and "state" in vars(each):
                self._attach(each)
        self._models.find([each for watched in self._watched.values() for each in watched.witness.parameters])

    # The loop's calls

    def _backward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() != -1:  # within a backward pass, as checkpointing calls it
            return original(*args, **kwargs)
        if self._watched and not self._auditing:
            for each in self._watched.values():
                each.count += 1
            self._serial += 1
            return original(*args, **kwargs)
        roots = args[0] if args else kwargs.get("tensors", ())
        return self._passed(lambda: original(*args, **kwargs), roots)

    def _grad(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`torch.autograd.grad` of watched parameters: a backward pass whose gradients the loop adds up by itself."""
        inputs = _listed(args[1] if len(args) > 1 else kwargs.get("inputs", ()))
        nested = torch._C._current_graph_task_id() != -1
        if nested or kwargs.get("create_graph") or (self._watched and not self._auditing):
            return original(*args, **kwargs)
        roots = args[0] if args else kwargs.get("outputs", ())
        return self._passed(lambda: original(*args, **kwargs), roots, inputs)

    def _passed(self, run: Callable[[], Any], roots: Any, inputs: list[torch.Tensor] | None = None) -> Any:
        """The pass, with the instrument around it. inputs: whose gradients were asked for by name."""
        begun = self._quietly(self._begin, _listed(roots), inputs)
        if begun is None:
            return run()
        instrument, auditing = begun
        try:
            result = run()
        finally:
            instrument.detach()
        self._quietly(self._end, instrument, auditing, _listed(roots), inputs, result)
        return result

    def _begin(
        self, roots: list[torch.Tensor], inputs: list[torch.Tensor] | None
    ) -> tuple[Instrument, list[Watched]] | None:
        if not self._discovered:
            self._discover()
            self._discovered = bool(self._watched)
        for each in list(self._frozen.values()):
            self._attach(each)
        auditing = [each for each in self._watched.values() if self._audits(each)]
        for each in auditing:
            each.grow()
        if inputs is not None:
            auditing = [each for each in auditing if each.witness.among(inputs)]
        if not auditing:
            return None
        instrument = Instrument()
        for root in roots:
            instrument.attach(root)
        for each in auditing:
            each.witness.heard()
            each.before = each.witness.gradients()
        return instrument, auditing

    def _end(
        self,
        instrument: Instrument,
        auditing: list[Watched],
        roots: list[torch.Tensor],
        inputs: list[torch.Tensor] | None,
        result: Any,
    ) -> None:
        for each in auditing if inputs is not None else self._watched.values():
            if inputs is not None:
                each.witness.take(inputs, result)
            each.count += 1
        dtype = str(roots[0].dtype).removeprefix("torch.") if roots else "float32"
        self._record(auditing, instrument, dtype, by_name=inputs is not None)
        self._models.calls.clear()
        self._serial += 1

    def _quietly(self, function: Callable[..., Any], *args: Any) -> Any:
        """What it returns; an error of the audit's own ends the audit, never the run."""
        try:
            return function(*args)
        except Exception as error:
            self.seen.not_seen.append(f"what came after an error of the audit itself: {type(error).__name__}: {error}")
            self.updates, self._auditing = 0, False
            return None

    def _record(self, auditing: list[Watched], instrument: Instrument, dtype: str, *, by_name: bool) -> None:
        site, reduces = site_of_call(), self._models.reduce()
        self.seen.framework = framework_of_call() or self.seen.framework
        self.seen.nominal_steps = nominal_steps(self.seen.framework) or self.seen.nominal_steps
        calls = next(iter(self._models.calls.values()), ([], []))
        for each in auditing:
            heard, after = each.witness.heard(), each.witness.gradients()
            if heard is None and not each.witness.sharded:  # it did not reach this optimizer
                each.count -= 1
                continue
            each.passes.append(
                OpenPass(
                    site=site,
                    instrument=instrument,
                    calls=calls,
                    serial=self._serial,
                    sketches=(each.before, heard, after),
                    reduces=reduces,
                    dtype=dtype,
                    events=each.events,
                    by_name=by_name or each.witness.held,
                    place=each.witness.place(),
                    hooks=each.witness.hooks(),
                )
            )
            each.events = []

    def _event(self, name: str, *values: Any) -> None:
        for each in self._watched.values():
            if self._audits(each):
                each.events.append(Happened(name, values))

    def _zero_grad(self, original: Callable[..., Any], optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if (watched := self._watched.get(id(optimizer))) is not None and self._audits(watched):
            watched.events.append(Happened("zero_grad", ()))
        return original(optimizer, *args, **kwargs)

    def _clip(self, original: Callable[..., Any], parameters: Any, max_norm: Any, total_norm: Any, *rest: Any) -> Any:
        self._event("clip", total_norm.detach() if isinstance(total_norm, torch.Tensor) else total_norm, max_norm)
        return original(parameters, max_norm, total_norm, *rest)

    def _deepspeed_clip(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        norm = original(*args, **kwargs)
        self._event("clip", norm, args[1] if len(args) > 1 else kwargs["max_norm"])
        return norm

    def _clip_value(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._event("clip_value")
        return original(*args, **kwargs)

    def _unscale(self, original: Callable[..., Any], scaler: Any, *args: Any, **kwargs: Any) -> Any:
        self._event("unscale")
        return original(scaler, *args, **kwargs)

    def _scaler_step(self, original: Callable[..., Any], scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        watched = self._watched.get(id(optimizer))
        before = watched.number if watched is not None else 0
        result = original(scaler, optimizer, *args, **kwargs)
        if watched is not None and watched.number == before:
            self._close(watched, skipped=True)
        return result

    def _scheduler_step(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        if self._schedulers_deep == 0 and not _names_its_place(scheduler, args, kwargs):
            optimizer = innermost(scheduler)
            watched = self._watched.get(id(self._acting(optimizer))) if isinstance(optimizer, Optimizer) else None
            if watched is not None:
                if watched.count == 0:
                    if watched.last is not None:
                        watched.last.afterwards += 1
                elif self._audits(watched):
                    watched.events.append(Happened("scheduler", ()))
        self._schedulers_deep += 1
        try:
            return original(scheduler, *args, **kwargs)
        finally:
            self._schedulers_deep -= 1

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Read what the optimizer is about to use; behind its closure where it has one, whose backward pass it runs."""
        watched = self._quietly(self._attach, optimizer)
        if watched is not None:
            watched.stepped = True
        if watched is None or not self._audits(watched):
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._quietly(watched.receive, optimizer)
            return None

        def followed() -> Any:
            result = closure()
            self._quietly(watched.receive, optimizer)
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": followed}
        return (args[0], followed, *args[2:]), kwargs

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watched = self._watched.get(id(optimizer))
        if watched is not None:
            self._close(watched, skipped=False)

    def _holder_step(self, original: Callable[..., Any], holder: Any, *args: Any, **kwargs: Any) -> Any:
        """A step in which PyTorch's optimizer is called for each group of the copies; not at all after an overflow."""
        watched = self._quietly(self._attach, holder)
        if watched is None:
            return original(holder, *args, **kwargs)
        watched.stepped, watched.received = False, None  # its making may have called PyTorch's optimizer
        if self._audits(watched) and not watched.witness.held:
            self._quietly(watched.receive_whole, holder)
        result = original(holder, *args, **kwargs)
        if self._audits(watched) and (clipped := self._quietly(clipped_to, holder, watched.grad_scale)) is not None:
            watched.clip(*clipped)
        self._close(watched, skipped=not watched.stepped)
        return result

    def _close(self, watched: Watched, *, skipped: bool) -> None:
        """An update is there: keep its record, and begin the next group."""
        update = UpdateSeen(watched.index, watched.number, watched.count, self._audits(watched), skipped=skipped)
        update.grad_scale, update.at = watched.grad_scale, self._serial
        update.divide_factor = self._models.divide_factor
        self._quietly(self._settle, watched, update)
        self.seen.updates.append(update)
        watched.next(update)
        self._models.next()
        self._auditing = any(self._audits(each) for each in self._watched.values())
        if watched.number == 1:
            self._quietly(self._models.look)
        if self._audits(watched):
            watched.witness.listen()
        else:
            watched.witness.deafen()
        if self.on_update is not None:
            self.on_update(update)

    def _settle(self, watched: Watched, update: UpdateSeen) -> None:
        """Fetch the group's numbers. A step that the scaler left out has received nothing."""
        update.passes = [each.settled() for each in watched.passes]
        update.events = [each.settled() for each in watched.events]
        update.received = None if update.skipped or watched.received is None else watched.received.tolist()
        described = self.seen.optimizers[watched.index]
        described.gradient_dtypes = described.gradient_dtypes or watched.witness.dtypes()


def _listed(given: Any) -> list[torch.Tensor]:
    """One tensor or several, as a list."""
    tensors = [given] if isinstance(given, torch.Tensor) else list(given)
    return [each for each in tensors if isinstance(each, torch.Tensor)]


def _names_its_place(scheduler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a scheduler is told where it is, as by `step(epoch + i / len(loader))`, and counts nothing."""
    if isinstance(scheduler, ReduceLROnPlateau):  # whose first argument is a metric
        return False
    return (args[0] if args else kwargs.get("epoch")) is not None


def _with_own_step(kind: type[Any]) -> list[type[Any]]:
    found: list[type[Any]] = [kind] if "step" in vars(kind) else []
    for below in kind.__subclasses__():
        found.extend(_with_own_step(below))
    return list(dict.fromkeys(found))


def _uncompiled(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook as a compiled step runs it: as it is, between two compiled parts."""
    return torch._disable_dynamo(lambda *given: hook(*given))
