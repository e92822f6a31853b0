"""One update's micro-batches: `Group` is gone through once, answers each with one backward pass, and steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from gradaccum.torch.accumulate.aliased import WATCHED, Watch
from gradaccum.torch.accumulate.boundary import clipped, multiply, noise_scale, step_all, unscale
from gradaccum.torch.accumulate.cached import run_cached
from gradaccum.torch.accumulate.errors import IN_THE_STEP, AccumulationError, advise
from gradaccum.torch.accumulate.kept import Kept, check_clean, versions
from gradaccum.torch.accumulate.parts import mesh_size
from gradaccum.torch.accumulate.reduced import warn_of_a_mean
from gradaccum.torch.accumulate.sums import Sums, checked, checked_weight, loss_and_weight
from gradaccum.torch.accumulate.totals import expect, totals
from gradaccum.torch.accumulate.update import Update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gradaccum.torch.accumulate.source import Source
    from gradaccum.torch.accumulate.state import State
    from gradaccum.torch.accumulate.sums import LossOf, Number
    from gradaccum.torch.accumulate.totals import Totals


class Group:
    """The micro-batches of one update. `for batch in group`, and for each `backward`, `backward_mean` or `skip`."""

    def __init__(self, state: State, source: Source) -> None:
        self._state, self._source = state, source
        self.sums = state.open = state.carried or Sums()
        self.device = state.device
        self.split = 1  # parts of each micro-batch
        self._more = False  # whether another part follows of the one that waits for its answer
        self._samples: int | None = 0  # of that one
        self._first: int | None = None  # and of the first one
        self._last = False  # and its backward pass reduces
        self._ended = source.planned == 0
        self._begun = False
        self._seeds: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}
        self._continues = state.carried is not None
        self._kept: Kept | None = None  # a gradient that this group has begun
        self._broken = False  # by a backward pass that failed
        self._watches = False  # whether to look at it in the next backward pass
        self._versions = None if self._continues else versions(state)

    def __iter__(self) -> Iterator[Any]:
        self._begin_once()
        state, source = self._state, self._source
        index = 0
        try:
            while True:
                if self.sums.waiting:
                    raise AccumulationError(
                        f"micro-batch {self.sums.micro_batches + 1} of the group got no answer: call group.backward, "
                        "group.backward_mean or group.skip for each, in a loop over the group within the one over "
                        "accumulator.groups(loader)"
                    )
                found = source.next(index, self.sums.weight)
                if found is None:
                    break
                self._last = source.is_last(index)
                state.sync.set(source.mode, self._last)
                self.sums.waiting = True
                self._samples = source.count(found[0])
                if index == 0:
                    self._first = self._samples
                yield found[0]
                index += 1
            self._ended = True
        finally:
            state.sync.restore()

    # Answers

    def backward(self, loss_sum: torch.Tensor, weight: Number) -> None:
        """Backward pass of a summed loss. weight: what it sums over (tokens, samples), 0 or more; a tensor stays where
        it is. loss_sum has shape (). Raises AccumulationError where no micro-batch waits for an answer, or gradients of
        the group were cleared or changed since its last pass.
        """
        self._go_back(loss_sum, weight, False)

    def backward_mean(self, loss: torch.Tensor, weight: Number) -> None:
        """The same for a mean loss. weight: what it is the mean of."""
        self._go_back(loss, weight, True)

    def _go_back(self, loss: torch.Tensor, weight: Number, mean: bool) -> None:
        self._check_answer()
        if self._kept is not None:
            self._kept.check()
        if self._state.expected is None and not mean and isinstance(loss, torch.Tensor):
            warn_of_a_mean(loss, checked_weight(weight))
        loss, weight = checked(loss), checked_weight(weight)
        if self._state.leaves_out and not bool(torch.isfinite(loss.detach())):
            self.skip()
            return
        seed = self.seed(loss, weight)
        watch = Watch(self._kept.parameter) if self._watches and self._kept is not None else None
        self._broken = True  # until the pass has ended
        try:
            loss.backward(gradient=seed * weight if mean else seed)
        except Exception as error:
            advise(error)
            raise
        finally:
            if watch is not None:
                watch.end()
        self._broken = False
        if watch is not None:
            self._watches = False
            watch.check()
        self.sums.answered(self._samples, counted=True, more=self._more)
        self.sums.add(loss, weight, mean)
        if self._kept is None:
            self._after_first(seed, weight)
        else:
            self._kept.note()

    def skip(self) -> None:
        """Leave the micro-batch out: neither its loss nor its weight counts.

        Raises AccumulationError where its backward pass would have carried the reduction.
        """
        self._check_answer()
        reduces = self._source.mode == "every" or (self._source.mode == "last" and self._last)
        if self._state.sync.needs_the_end() and not self._state.sync.sharded and reduces:
            raise AccumulationError(
                "this micro-batch's backward pass carries a reduction, and leaving it out would leave the other ranks "
                "waiting: say groups(loader, may_skip=True), which reduces afterwards"
            )
        if self._state.sync.sharded:
            raise AccumulationError(
                "a sharded model's backward pass is a collective: answer with group.backward(0 * loss_sum, 0) instead"
            )
        self.sums.answered(self._samples, counted=False, more=self._more)

    def cached(self, encode: Callable[[Any], Any], loss_of: LossOf) -> None:
        """All micro-batches at once, for a loss over the whole batch, such as a contrastive one; then `step()`.

        encode: a batch's representations, tensors with one row for each sample (a tensor, or tuples and dicts of them).
        loss_of: from those of the group, concatenated in their order, the summed loss and what it sums over. It may
        gather other ranks' representations by a function whose gradients come back: all_gather of
        torch.distributed.nn.functional, or from PyTorch 2.13 on what its warning names instead.
        The batches of the group are held until the end. Raises AccumulationError where a weight ends the group.
        """
        if self._source.until_weight is not None:
            raise AccumulationError("a group that a weight ends cannot be cached: its weight is known at its end alone")
        run_cached(self, encode, loss_of)

    # What cached.py needs

    def unanswered(self) -> Iterator[Any]:
        """The group's micro-batches, without waiting for answers."""
        self._begin_once()
        index = 0
        while (found := self._source.next(index, 0)) is not None:
            yield found[0]
            index += 1
        self._ended = True

    def begin(self, index: int, last: bool) -> None:
        """The flags for the forward and backward pass of one of them."""
        self._last = last and self._source.is_last(index)
        self._state.sync.set(self._source.mode, self._last)

    def answer(self, batch: Any) -> None:
        """Count it, and put the flags back."""
        self._state.sync.restore()
        self.sums.answered(self._source.count(batch), counted=True)

    # What recover.py needs

    def answer_in_parts(self, parts: Sequence[Any], loss_of: LossOf, mean: bool) -> None:
        """Forward and backward of the parts of one micro-batch, which count as one."""
        self.sums.waiting = True
        for left, part in zip(reversed(range(len(parts))), parts, strict=True):
            self._more = left > 0
            self._samples = self._source.count(part)
            self._go_back(*loss_and_weight(loss_of(part)), mean)

    def begin_anew(self, sums: Sums | None) -> None:
        """From its start, with these carried sums."""
        self.sums = self._state.open = sums or Sums()
        self._state.carried = sums
        self._kept = None
        self._broken = self._watches = self._more = False

    def _begin_once(self) -> None:
        if self._begun:
            raise AccumulationError("a group is gone through once")
        self._begun = True
        if not self._continues:
            check_clean(self._state)

    def _check_answer(self) -> None:
        if self._state.open is not self.sums:
            raise AccumulationError(
                "this group has made its step, or was discarded, and its loop goes on: call group.step() once, after "
                "`for batch in group`"
            )
        self._check_whole()
        if not self.sums.waiting:
            raise AccumulationError(
                "no micro-batch waits for an answer: each is answered once, within `for batch in group`"
            )

    def _check_whole(self) -> None:
        if self._broken:
            raise AccumulationError(
                "a backward pass of this group failed, and may have left a part of its gradient in the sums: throw the "
                "group away with accumulator.discard(), or let accumulator.run repeat it where memory runs out"
            )

    def _after_first(self, seed: torch.Tensor, weight: Number) -> None:
        """After the first backward pass, and each until one leaves a gradient on a parameter itself."""
        state = self._state
        begun = next((each for each in state.parameters if state.sum_of(each) is not None), None)
        if begun is not None:
            self._kept = Kept(begun, state)
            # Buffers are ours alone, and a DTensor's memory is another in each pass.
            if state.watched < WATCHED and state.buffers is None and mesh_size(begun) == 1:
                state.watched += 1
                self._watches = True
        reduced = self._last and self._source.mode == "last" and state.sync.world > 1
        if state.wants_noise and self.sums.first is None and not reduced:
            norm = state.norm() / (seed * weight)
            self.sums.first = norm * norm, 1 / weight

    def seed(self, loss: torch.Tensor, weight: Number) -> torch.Tensor:
        """The gradient that the backward pass starts from: 1 / expected weight, times the scaler's scale."""
        key = loss.dtype, loss.device
        seed = self._seeds.get(key)
        if seed is None:
            expected = self._expected(weight)
            if isinstance(expected, torch.Tensor):
                seed = expected.reciprocal().to(*key[::-1])
            else:
                seed = torch.tensor(1.0 / expected, dtype=loss.dtype, device=loss.device)
            if self._state.scaler is not None:
                seed = self._state.scaler.scale(seed)
            self._seeds[key] = seed
        return seed

    def _expected(self, weight: Number) -> float | torch.Tensor:
        """The weight that losses are divided by, see totals.py."""
        if self._state.expected is None:
            # Of the whole micro-batch, about: ranks may split differently.
            expect(self._state, weight * self.split, self._source.steps or 1)
        assert self._state.expected is not None
        return self._state.expected

    # The step

    def step(self) -> Update:
        """Normalise, clip, step, and clear the gradients. On every rank, once the group has been gone through.

        Raises AccumulationError where a micro-batch has no answer, or the group was left in its middle while others
        wait for its end.
        """
        try:
            return self._step()
        except Exception as error:
            advise(error, IN_THE_STEP)
            raise

    def _step(self) -> Update:
        state, sync = self._state, self._state.sync
        self._check_step()
        expected = self._expected(0)  # a rank without a micro-batch joins in
        state.open = None
        # Where gradients may be left as they are, the host asks for the totals first; else once for all.
        asks_first = (sync.world > 1 and self._source.mode == "after") or state.partial == "carry"
        beside, norm = None, None
        if not asks_first and state.scaler is None and state.wants_norm:
            beside = state.norm()
        total, found = totals(self.sums, state, beside)
        reason = self._why_not(total)
        if reason:
            return self._left(total, reason)
        if sync.world > 1 and self._source.mode == "after":
            state.reduce()
        if state.scaler is not None:
            unscale(state.optimizers, state.scaler)
        gradients = state.gradients()
        if not gradients:
            raise AccumulationError(
                "no parameter has a gradient: the loss does not depend on those of the optimizers, but perhaps on "
                "another copy of the model"
            )
        if state.wants_norm:
            norm = found if beside is not None else float(state.norm())
        if state.promise is not None:
            whole = not self._continues and total.micro_batches == sync.world * (self._source.steps or 1)
            state.promise.compare(total.seen, self._first, whole)
        factor = float(expected) * sync.mean_over / total.weight
        state.expected = total.weight / sync.mean_over
        state.carried = None
        return self._apply(total, gradients, factor, norm)

    def _apply(self, total: Totals, gradients: list[torch.Tensor], factor: float, norm: float | None) -> Update:
        state, scaler = self._state, self._state.scaler
        if norm is not None and not math.isfinite(norm):
            if scaler is not None:
                for each in state.optimizers:  # on every rank, also where this one's shard is finite
                    for found in scaler._per_optimizer_states[id(each)]["found_inf_per_device"].values():
                        found.fill_(1.0)
                scaler.update()
            state.zero_grad()
            if state.nonfinite == "raise" and scaler is None:
                raise AccumulationError(
                    f"the gradient of this update is not finite (norm {norm}, loss {total.loss / total.weight}); its "
                    "gradients are thrown away and no parameter has changed"
                )
            return self._update(total, "non-finite gradient", norm * factor)
        factor_of_all = clipped(factor, norm or 0.0, state.clip_norm)
        if state.buffers is not None:
            multiply(gradients, factor_of_all)
            state.buffers.hand_over()
            factor_of_all = 1.0
        step_all(state.optimizers, gradients, factor_of_all, scaler)
        if scaler is not None:
            scaler.update()
        state.zero_grad()
        return self._update(total, "", None if norm is None else norm * factor)

    def _check_step(self) -> None:
        state = self._state
        if state.open is not self.sums:
            raise AccumulationError("this group has made its step; take the next one of accumulator.groups")
        self._check_whole()
        if self.sums.waiting:
            raise AccumulationError("the last micro-batch has no answer yet: call group.backward before group.step")
        left_early = not self._ended and self.sums.micro_batches != self._source.planned
        if left_early and (not self._begun or state.sync.world > 1):
            raise AccumulationError(
                f"the group was left after {self.sums.micro_batches} micro-batches"
                + (": other ranks wait for the rest of it" if state.sync.world > 1 else "")
                + "; go through `for batch in group` to its end, or call accumulator.discard() on every rank"
            )
        if self._kept is not None:
            self._kept.check(alone=False)
        if self._versions is not None and self._versions != versions(state):
            raise AccumulationError(
                "parameters changed while the group's gradients were summed, so that these belong to different models: "
                "step and load weights between groups alone"
            )

    def _why_not(self, total: Totals) -> str:
        """Why no update is made of the group, by the totals, which every rank has; "" where one is."""
        state, until = self._state, self._source.until_weight
        if state.exact is not None:
            short = (total.seen or 0) < state.exact
        elif until is None:
            short = total.micro_batches < state.sync.world * (self._source.steps or 1)
        else:
            short = total.weight < until
        if not 0 <= total.weight < math.inf:
            state.carried = None
            state.zero_grad()
            raise AccumulationError(
                f"the group's weight is {total.weight}, and it is what the loss sums over, a finite number, 0 or "
                "more: look at what group.backward is given second; the group is thrown away"
            )
        if short and state.partial != "step":
            return {"carry": "carried", "drop": "dropped"}[state.partial]
        return "" if total.weight > 0 else "no weight"

    def _left(self, total: Totals, reason: str) -> Update:
        if reason == "carried":
            self._state.carried = self.sums
        else:
            self._state.carried = None
            self._state.zero_grad()
        return self._update(total, reason, None)

    def _update(self, total: Totals, reason: str, grad_norm: float | None) -> Update:
        if reason != "carried":
            self._state.progress = self._state.progress.after(total.seen, total.weight, applied=not reason)
        noise = None
        if not reason and grad_norm is not None and total.first is not None:
            noise = noise_scale(*total.first, grad_norm**2, 1 / total.weight)
        return Update(
            applied=not reason,
            reason=reason,
            micro_batches=self.sums.micro_batches,
            micro_batch_split=self.split,
            skipped=total.skipped,
            effective_batch=total.samples,
            weight=total.weight,
            loss=total.loss / total.weight if total.weight else None,
            grad_norm=grad_norm,
            noise_scale=noise,
        )
