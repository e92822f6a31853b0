"""The words of each verdict: what it is, what it means for the optimizer in use, and the line that mends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gradaccum.core.audit import ERROR, NOTE, WARNING, AuditFinding
from gradaccum.show.audit_words import held, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradaccum.torch.audit.records import OptimizerSeen


@dataclass
class Found:
    """A verdict's code and the numbers that it rests on. severity: where it is not that of the code."""

    code: str
    evidence: dict[str, object]
    severity: str = ""


@dataclass(frozen=True)
class Kind:
    """What is said of a code. message: formatted with the evidence. scale: it is wrong by a constant factor alone.
    fixes: by framework; "" stands for the others. instead: message and fix where the evidence has that name.
    """

    severity: str
    message: str
    consequence: str
    fixes: dict[str, str]
    scale: bool = False
    instead: dict[str, tuple[str, str]] = field(default_factory=dict)


_MEAN_OF_MEANS = {
    "": "sum the losses (reduction='sum') and divide all of them by the token count of the whole group",
    "accelerate": "gather the token count of the group first; loss = loss_sum * accelerator.num_processes * "
    "accelerator.gradient_accumulation_steps / total, since backward divides by the steps and DDP by the ranks",
    "transformers": "let the model or compute_loss_func take num_items_in_batch: loss_sum / num_items_in_batch",
    "trl": "let the model or compute_loss_func take num_items_in_batch: loss_sum / num_items_in_batch",
    "lightning": "use manual optimization: sum the losses, and divide by the token count of the group",
    "fabric": "sum the losses, and divide by the token count of the group over all ranks",
    "deepspeed": "all_reduce the token count of the group first; loss = loss_sum * world_size * "
    "gradient_accumulation_steps / total, since engine.backward divides by the steps and DeepSpeed by the ranks",
}
_NOT_DIVIDED = {
    "": "loss = loss / accum_steps before loss.backward()",
    "accelerate": "accelerator.backward(loss), with Accelerator(gradient_accumulation_steps=k); divide nowhere else",
    "transformers": "set trainer.model_accepts_loss_kwargs = False, or use num_items_in_batch in the loss",
    "trl": "set trainer.model_accepts_loss_kwargs = False, or use num_items_in_batch in the loss",
    "lightning": "return the loss, and let Trainer(accumulate_grad_batches=k) divide; by hand: loss / k",
    "fabric": "fabric.backward(loss / accum_steps)",
    "deepspeed": "engine.backward(loss), without scale_wrt_gas=False: it divides by gradient_accumulation_steps",
}
_DIVIDED_TWICE = {
    "": "divide in one place alone: the loss, or the gradients",
    "accelerate": "leave out `loss / accum_steps`: accelerator.backward divides by gradient_accumulation_steps",
    "transformers": "leave out the division: the Trainer divides",
    "trl": "leave out the division: the Trainer divides",
    "lightning": "leave out the division: Trainer(accumulate_grad_batches=k) divides",
    "deepspeed": "leave out the division: engine.backward divides by gradient_accumulation_steps",
}
_SHORT = {
    "": "divide by the micro-batches that the group really has: min(accum_steps, batches left)",
    "accelerate": "multiply the last losses by gradient_accumulation_steps / batches left, or drop them: "
    "DataLoader(drop_last=True) with a length that the steps divide",
    "lightning": "Trainer(limit_train_batches=...) to a multiple of accumulate_grad_batches, or manual optimization",
}

_CACHED = "cache the representations' gradients: group.cached(encode, loss_of) of gradaccum.torch.Accumulator"

KINDS: dict[str, Kind] = {
    "GA101": Kind(
        ERROR,
        "Not divided: all weights are {times} times too large, the number of {of}.",
        "the gradient is that of {times} batches added up",
        _NOT_DIVIDED,
        scale=True,
        instead={
            "sum_over": (
                "Divided by another number than what is there: sums over {held} in all were divided by "
                "{divided_by:.6g}, so that the weights sum to {times:.4g}, not to 1.",
                "count what the group really holds, and divide the sum of its losses by that",
            )
        },
    ),
    "GA102": Kind(
        ERROR,
        "Divided once too often: the weights sum to {total:.4g}, not to 1 ({of}).",
        "the gradient is too small by a constant factor",
        _DIVIDED_TWICE,
        scale=True,
    ),
    "GA103": Kind(
        ERROR,
        "A mean of means: each micro-batch weighs the same though they hold {held}, so that some weigh "
        "{largest_by_smallest:.3g} times what others do.",
        "what stands in short micro-batches is learnt more than the rest",
        _MEAN_OF_MEANS,
        instead={
            "divisors": (
                "A mean of means: each micro-batch was divided by a number of its own, {numbers}, so that some weigh "
                "{largest_by_smallest:.3g} times what others do.",
                "sum what you divide by over the whole group, and divide all of its losses by that",
            )
        },
    ),
    "GA104": Kind(
        ERROR,
        "A mean of means over ranks: each rank weighs the same though they hold {held}.",
        "what stands on ranks with little is learnt more than the rest",
        {
            **_MEAN_OF_MEANS,
            "": "all_reduce the token count, and take loss_sum * world_size / total: DDP and FSDP divide by world_size",
        },
    ),
    "GA105": Kind(
        ERROR,
        "A short group was divided by {divided_by}, not by its micro-batches, {micro_batches}: its weights sum to "
        "{total:.4g}.",
        "that update is too small, as the last one of an epoch often is",
        _SHORT,
        scale=True,
        instead={
            "first_group": (
                "The first group was divided by {divided_by}, not by its micro-batches, {micro_batches}: its weights "
                "sum to {total:.4g}.",
                "step after the micro-batch for which (index + 1) % accum_steps == 0, counted from 0",
            )
        },
    ),
    "GA106": Kind(
        ERROR,
        "{lost} of {micro_batches} micro-batches of an update never reached the optimizer.",
        "their samples are not learnt from, and the others weigh too little",
        {"": "let every backward() add to .grad until optimizer.step(): nothing may clear or replace it in between"},
    ),
    "GA107": Kind(
        ERROR,
        "Gradients from before the update leaked into it: {share_of_gradient:.3g} of what the optimizer received.",
        "each update repeats part of the ones before",
        {"": "call optimizer.zero_grad() after every optimizer.step()"},
    ),
    "GA108": Kind(
        ERROR,
        "zero_grad() within the group: {lost} of {micro_batches} micro-batches were cleared, the last alone survived.",
        "the effective batch is one micro-batch",
        {"": "call optimizer.zero_grad() once for each optimizer.step(), not for each micro-batch"},
    ),
    "GA109": Kind(
        ERROR,
        "Ranks step with different gradients: {passes} backward passes never reached the other ranks.",
        "the ranks' models drift apart",
        {
            "": "let the forward and the backward of the last micro-batch both run outside no_sync()",
            "fabric": "fabric.no_backward_sync(model, enabled=is_accumulating), around forward and backward",
        },
        instead={
            "factors": (
                "Ranks step with different gradients: each multiplied what was reduced by a factor of its own.",
                "scale and clip by the same numbers on all ranks: reduce norms and counts before you use them",
            )
        },
    ),
    "GA110": Kind(
        ERROR,
        "Gradients were clipped within the group, {times} times before its last micro-batch.",
        "partial sums are held to the threshold, so that early micro-batches weigh less",
        {
            "": "clip once, after the last micro-batch: right before optimizer.step()",
            "accelerate": "if accelerator.sync_gradients: accelerator.clip_grad_norm_(model.parameters(), max_norm)",
        },
    ),
    "GA111": Kind(
        ERROR,
        "The scheduler stepped {times} times in an update, once for each of its {of}.",
        "the learning rate runs through its schedule that many times too fast",
        {
            "": "scheduler.step() once, after optimizer.step()",
            "accelerate": "count the schedule's steps times num_processes, or take "
            "Accelerator(step_scheduler_with_optimizer=False) and step it once for each update",
        },
    ),
    "GA112": Kind(
        WARNING,
        "BatchNorm in training mode ({modules}) normalises each micro-batch by itself.",
        "no accumulation makes it equal to the big batch",
        {"": "use GroupNorm or LayerNorm, or freeze the statistics with .eval()"},
    ),
    "GA113": Kind(
        ERROR,
        "Summing {micro_batches} gradients in {dtype} lost {error:.2%} of the sum.",
        "small gradients vanish beside the sum of those before",
        {
            "": "keep parameters in fp32 under autocast, or sum in fp32: "
            "gradaccum.torch.Accumulator(accumulate_in=torch.float32)"
        },
    ),
    "GA114": Kind(
        WARNING,  # a coefficient that was divided beforehand looks the same
        "The loss term {term} is nowhere divided by the {times} micro-batches, while the first term is.",
        "unless its coefficient holds the division already, it counts {times} times",
        {"": "divide the whole loss, auxiliary terms too, by the number of micro-batches"},
    ),
    "GA115": Kind(
        ERROR,
        "An update sees {effective_batch} samples, not the {target_batch} that were wanted.",
        "learning rate and schedule were chosen for another batch",
        {"": "plan it: gradaccum plan --target-batch {target_batch} --micro-batch ... --num-gpus ..."},
    ),
    "GA116": Kind(
        NOTE,
        "DDP reduced gradients in {times} backward passes of an update, {bytes} bytes each; the last alone is enough.",
        "the result is the same, and the network carries {times} times as much",
        {
            "": "run all but the last micro-batch, forward and backward, under model.no_sync()",
            "fabric": "fabric.no_backward_sync(model, enabled=is_accumulating)",
        },
    ),
    "GA117": Kind(
        ERROR,
        "Gradients still carried the loss scale of {scale:.6g} where they were clipped or used.",
        "the threshold in effect is that many times smaller",
        {
            "": "scaler.unscale_(optimizer) before clip_grad_norm_, and scaler.step(optimizer)",
            "accelerate": "accelerator.clip_grad_norm_ unscales first; do not call torch's own",
        },
    ),
    "GA118": Kind(
        ERROR,
        "Weights differ within one update in no pattern that is known.",
        "the gradient is not that of the big batch",
        {"": "compare with gradaccum.torch.verify, parameter by parameter"},
        instead={
            "factor_between_micro_batches": (
                "Weights differ within one update: gradients were multiplied by {factor_between_micro_batches:.4g} "
                "between its micro-batches, the early ones again each time.",
                "scale, or reduce, once: after the last micro-batch",
            ),
            "counts": (
                "Weights differ within one update: between its micro-batches gradients were divided by what the last "
                "one held, {held}, the early ones again each time.",
                "divide once, after the last micro-batch, by what the whole group holds",
            ),
        },
    ),
    "GA119": Kind(
        ERROR,
        "A loss over the whole batch was taken over each micro-batch: {classes} samples are each other's classes.",
        "each sample has fewer negatives than in the big batch, which no accumulation makes up for",
        {"": _CACHED},
        instead={
            "pairs_of": (
                "A loss over the whole batch was taken over each micro-batch: its {pairs_of} samples are multiplied "
                "with each other, and with none of the other micro-batches.",
                _CACHED,
            )
        },
    ),
    "GA120": Kind(
        ERROR,
        "Every micro-batch makes an update: {effective_batch} samples where {target_batch} were wanted.",
        "nothing is accumulated; {steps} micro-batches belong to one update",
        {"": "call optimizer.step() and zero_grad() once in {steps} micro-batches"},
    ),
}
"""Everything an audit may say."""


def finding(found: Found, optimizers: Sequence[OptimizerSeen], framework: str) -> AuditFinding:
    """The words for one verdict. framework: torch, accelerate, fabric, lightning, transformers, trl, deepspeed."""
    kind = KINDS[found.code]
    values: dict[str, Any] = {**found.evidence}
    if "unit" in values:
        values["held"] = held(values.get("counts") or [values["sum_over"]], values["unit"])
    if "divisors" in values:
        values["numbers"] = listed(values["divisors"])
    message, fix = next(
        (words for name, words in kind.instead.items() if name in values),
        (kind.message, kind.fixes.get(framework, kind.fixes[""])),
    )
    consequence = kind.consequence.format(**values)
    if kind.scale:
        consequence += "; " + _for_optimizer(optimizers)
    return AuditFinding(
        code=found.code,
        severity=found.severity or kind.severity,
        message=message.format(**values),
        evidence=found.evidence,
        consequence=consequence,
        fix=fix.format(**values),
    )


def _for_optimizer(optimizers: Sequence[OptimizerSeen]) -> str:
    """What a constant factor does to the step."""
    free = [each.name for each in optimizers if each.scale_free]
    if free:
        return f"{free[0]}'s step does not change with it, but the clipping threshold, the logged norm and epsilon do"
    names = optimizers[0].name if optimizers else "the optimizer"
    return f"with {names} the learning rate in effect changes by the same factor"
