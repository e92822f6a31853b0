"""What the batch means for a whole run: updates, the short last group, warm-up, tokens."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.units import Ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.request import Request

COMPUTE_OPTIMAL = (
    (20, "Hoffmann et al. 2022, arXiv:2203.15556, approaches 1 and 2"),
    (59, "the same, approach 3, at 5.76e23 FLOP"),
    (18, "Besiroglu et al. 2024, arXiv:2404.10102, refit of approach 3, at the same compute"),
)
"""Tokens per parameter of a compute-optimal run: the rule of thumb first, then how far estimates spread."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Counts of a whole run; None is unknown.

    updates_per_epoch: optimizer updates in one pass over the data.
    last_group_size: samples of the short last group of an epoch, 0 where it comes out even. Under `carry` the
        groups span epochs, so that it is what is left over when the run ends.
    updates, warmup_updates: optimizer updates in all, and those of warm-up.
    leftover_tokens: with a token budget, the tokens that fill no further update.
    tokens: what the run trains on; loss_tokens_per_step: those of one update that carry loss.
    tokens_per_param: tokens over parameters.
    """

    updates_per_epoch: int | None
    last_group_size: int | None
    updates: int | None
    warmup_updates: int | None
    leftover_tokens: int | None
    tokens: int | None
    loss_tokens_per_step: int | None
    tokens_per_param: Ratio | None


def training(request: Request, effective_batch: int) -> Training:
    """The run that a batch of `effective_batch` sequences makes of the request's data."""
    per_epoch, last_group_size = _epoch(request, effective_batch)
    length = request.sequence_length
    per_update = None if length is None else effective_batch * length
    updates = request.updates
    leftover_tokens = tokens = None
    if request.token_budget is not None and per_update is not None:
        updates, leftover_tokens = divmod(request.token_budget, per_update)
        tokens = updates * per_update
    elif request.dataset_size is not None and request.epochs is not None and per_epoch is not None:
        samples = request.epochs.floor_of(request.dataset_size)
        if request.last_group == "carry":
            updates, last_group_size = divmod(samples, effective_batch)
        else:
            updates = request.epochs.ceil_of(per_epoch)
        if request.last_group != "step":
            samples = updates * effective_batch
        tokens = None if length is None else samples * length
    elif updates is not None and per_update is not None:
        tokens = updates * per_update
    fraction = request.supervised_fraction
    return Training(
        updates_per_epoch=per_epoch,
        last_group_size=last_group_size,
        updates=updates,
        warmup_updates=_warmup(request, updates, per_update),
        leftover_tokens=leftover_tokens,
        tokens=tokens,
        loss_tokens_per_step=None if fraction is None or per_update is None else fraction.floor_of(per_update),
        tokens_per_param=None if tokens is None or request.params is None else Ratio(tokens, request.params),
    )


def _epoch(request: Request, effective_batch: int) -> tuple[int | None, int | None]:
    """(updates of one epoch, samples of its short last group)."""
    if request.dataset_size is None:
        return None, None
    whole, rest = divmod(request.dataset_size, effective_batch)
    return whole + (1 if rest and request.last_group == "step" else 0), rest


def _warmup(request: Request, updates: int | None, tokens_per_step: int | None) -> int | None:
    """Warm-up in updates: as given, or whole updates inside the warm-up tokens, or a share rounded up.

    Tokens are floored as OPT and Cerebras-GPT do (375M tokens are 715 updates of 2**19); a share is rounded up as
    Hugging Face Trainer's warmup_ratio is.
    """
    if request.warmup_tokens is not None and tokens_per_step is not None:
        return request.warmup_tokens // tokens_per_step
    if request.warmup_fraction is not None:
        return None if updates is None else request.warmup_fraction.ceil_of(updates)
    return request.warmup_updates
