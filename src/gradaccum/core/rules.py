"""The rules behind the findings: each looks at one thing and returns a Finding or None.

RULES gives their order: what bites hardest first. Every code has an entry in docs/findings.md, and a code never
changes its meaning.
"""

from __future__ import annotations

import math

from gradaccum.core.findings import Facts, Finding
from gradaccum.core.training import COMPUTE_OPTIMAL
from gradaccum.units import show_bytes, show_count, show_percent, show_real, show_short, show_signed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.solve import Sizes

BYTES_OF = {"fp32": 4, "bf16": 2, "fp16": 2}

BF16_NOTE, BF16_WARNING = 32, 128
"""Micro-steps from which summing gradients in bf16 is worth a note, and a warning."""

BF16_ERROR = 0.0012
"""Relative L2 error of a bf16 sum of k noise-dominated gradients is about this times sqrt(k) (tests measure it)."""


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Every finding of a plan: warnings first, then notes, each in the order of RULES."""
    found = [finding for rule in RULES for finding in [rule(facts)] if finding]
    return tuple(sorted(found, key=lambda finding: finding.severity != "warning"))


def below_one_device_batch(facts: Facts) -> Finding | None:
    """GA002"""
    sizes, goal = facts.sizes, facts.sizes.goal
    if goal.amount >= sizes.device_batch * goal.unit or facts.request.rounding == "exact":
        return None
    block = (sizes.micro_batch, sizes.data_parallel) + ((goal.unit,) if goal.in_tokens else ())
    smallest = sizes.data_parallel * goal.unit
    remedy = f"Take a smaller micro-batch (1 gives {show_count(smallest)}), or fewer GPUs"
    return Finding(
        "GA002",
        "warning",
        f"One micro-step already takes {_product(*block)} {facts.unit}, "
        f"above your target of {show_count(goal.amount)}: an update sees {show_count(sizes.drift)} more "
        f"({_signed_percent(sizes)}).",
        remedy + ", or rounding exact in your own loop." if smallest <= goal.amount else "Use fewer GPUs.",
        "effective_batch = device_batch x accum_steps, and accum_steps is at least 1",
    )


def drift(facts: Facts) -> Finding | None:
    """GA001"""
    sizes, goal = facts.sizes, facts.sizes.goal
    if not sizes.drift or goal.amount < sizes.device_batch * goal.unit:
        return None
    ways = [
        f"{_product(each.micro_batch, each.num_gpus // facts.request.model_parallel, each.accum_steps)} "
        f"({show_signed((each.drift if each.drift is not None else each.drift_tokens) or 0)})"
        for each in facts.better[:1]
    ]
    action = f"Closer on the same GPUs: {ways[0]}. " if ways and not facts.request.vary else ""
    more = "more" if sizes.drift > 0 else "fewer"
    return Finding(
        "GA001",
        "warning" if 10 * abs(sizes.drift) > goal.amount else "note",
        f"You asked for {show_count(goal.amount)} {facts.unit}; an update sees "
        f"{show_count(goal.amount + sizes.drift)}, {show_count(abs(sizes.drift))} {more} ({_signed_percent(sizes)}).",
        action + "Schedules and budgets count the batch that you really get; rounding exact keeps the target.",
        "effective_batch = device_batch x accum_steps",
    )


def nothing_to_accumulate(facts: Facts) -> Finding | None:
    """GA003"""
    sizes, goal = facts.sizes, facts.sizes.goal
    if sizes.accum_steps > 1 or goal.amount < sizes.device_batch * goal.unit:
        return None
    return Finding(
        "GA003",
        "note",
        f"One micro-step of {_product(sizes.micro_batch, sizes.data_parallel)} sequences is the whole batch: "
        "there is nothing to accumulate.",
        "Leave accumulation off: you do not need it here.",
        "accum_steps = 1",
    )


def interleaving(facts: Facts) -> Finding | None:
    """GA011"""
    pipe = facts.pipeline
    if pipe is None or not pipe.nearest_even:
        return None
    counts = " or ".join(show_count(count) for count in pipe.nearest_even)
    return Finding(
        "GA011",
        "warning",
        f"Interleaving wants a number of micro-batches that {show_count(pipe.stages)} stages divide; "
        f"{show_count(pipe.micro_batches)} is no multiple of {show_count(pipe.stages)}.",
        f"Take {counts} accumulation steps, or virtual_pipeline 1.",
        "Narayanan et al. 2021, arXiv:2104.04473, section 2.2",
    )


def bubble(facts: Facts) -> Finding | None:
    """GA010"""
    pipe = facts.pipeline
    if pipe is None or 5 * pipe.bubble.numerator <= pipe.bubble.denominator:
        return None
    share = show_percent(pipe.bubble.numerator, pipe.bubble.denominator)
    return Finding(
        "GA010",
        "warning",
        f"{show_count(pipe.micro_batches)} micro-batches leave {show_count(pipe.stages)} pipeline stages idle for "
        f"{share}% of an update.",
        f"{'Smaller micro-batches' if facts.sizes.micro_batch > 1 else 'A larger batch'} would make more of them: from "
        f"{show_count(-(-4 * (pipe.stages - 1) // pipe.virtual))} on the bubble is at most 20%. Or use fewer stages, "
        "or interleave.",
        "(p - 1) / (v k + p - 1), Narayanan et al. 2021, arXiv:2104.04473",
    )


def bf16_sum(facts: Facts) -> Finding | None:
    """GA004"""
    steps = facts.sizes.accum_steps
    if facts.request.gradient_dtype != "bf16" or steps < BF16_NOTE:
        return None
    percent = show_real(100 * BF16_ERROR * math.sqrt(steps), 2) if steps < 10**6 else "over 100"
    worse = " Gradients that agree stop growing near 256 terms." if steps > 256 else ""
    return Finding(
        "GA004",
        "warning" if steps >= BF16_WARNING else "note",
        f"A bf16 sum over {show_count(steps)} micro-steps is off by about {percent}% of the gradient.{worse}",
        "Accumulate in fp32.",
        f"about {BF16_ERROR} x sqrt(accum_steps), measured with round-to-nearest bf16; "
        "https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/training/arguments.py sums bf16 gradients in fp32",
    )


def group_longer_than_epoch(facts: Facts) -> Finding | None:
    """GA014"""
    size, batch = facts.request.dataset_size, facts.sizes.effective_batch
    if size is None or size >= batch:
        return None
    return Finding(
        "GA014",
        "warning",
        f"One epoch of {show_count(size)} samples is shorter than one update of {show_count(batch)}.",
        "Let groups span epochs (last_group carry), or take a smaller batch; many trainers instead make an update at "
        "every epoch end.",
        "https://github.com/Lightning-AI/pytorch-lightning/issues/21808",
    )


def budget_without_update(facts: Facts) -> Finding | None:
    """GA015"""
    if facts.training.updates != 0:
        return None
    return Finding(
        "GA015",
        "warning",
        f"The data ends before the first update of {show_count(facts.sizes.effective_batch)} sequences is full: "
        "there is no whole update.",
        "Take a smaller batch, or train on more.",
        "updates = tokens // tokens_per_step",
    )


def warmup_too_long(facts: Facts) -> Finding | None:
    """GA017"""
    warmup, updates = facts.training.warmup_updates, facts.training.updates
    if not warmup or not updates or warmup < updates:
        return None
    return Finding(
        "GA017",
        "warning",
        f"A warm-up of {show_count(warmup)} updates takes all {show_count(updates)} updates of the run.",
        "Shorten it: a larger batch makes fewer updates of the same data.",
        "warmup_updates >= updates",
    )


def warmup_unknown(facts: Facts) -> Finding | None:
    """GA019"""
    share = facts.request.warmup_fraction
    if share is None or facts.training.warmup_updates is not None:
        return None
    return Finding(
        "GA019",
        "note",
        f"A warm-up of {show_percent(share.numerator, share.denominator)}% is unknown: the run's length is not given.",
        "Give updates, token_budget, or dataset_size and epochs.",
        "warmup_updates = warmup_fraction x updates",
    )


def length_in_thousands(facts: Facts) -> Finding | None:
    """GA013"""
    text = dict(facts.request.written).get("sequence_length", "")
    length = facts.request.sequence_length
    if not length or text[-1:] not in ("k", "K") or length % 1000:
        return None
    binary = length // 1000 * 1024
    return Finding(
        "GA013",
        "note",
        f"Sequence length {text} was read as {show_count(length)}. Did you mean {binary}?",
        f"Write {text[:-1].strip()}Ki or {binary} if so; k is 1000 everywhere.",
        "k = 1000, Ki = 1024",
    )


def tokens_as_sequences(facts: Facts) -> Finding | None:
    """GA018"""
    text = dict(facts.request.written).get("target_batch", "")
    if text[-1:] not in ("m", "M", "b", "B", "t", "T"):
        return None
    return Finding(
        "GA018",
        "note",
        f"A target of {text} was read as {show_count(facts.sizes.goal.amount)} sequences. Did you mean tokens?",
        f"Write '{text} tokens' if so.",
        "target_batch counts sequences, target_tokens counts tokens",
    )


def picked_micro_batch(facts: Facts) -> Finding | None:
    """GA016"""
    request, sizes = facts.request, facts.sizes
    largest = request.max_micro_batch
    if largest is None or request.micro_batch is not None or sizes.solved_for == "micro_batch":
        return None
    message = (
        f"Micro-batch {show_count(sizes.micro_batch)} was picked, of those up to {show_count(largest)}, for its drift"
    )
    small = 2 * sizes.micro_batch <= largest
    if sizes.micro_batch < largest:
        block = largest * sizes.data_parallel
        steps = sizes.goal.steps(block, request.rounding)
        percent = show_percent(sizes.goal.drift(block * steps), sizes.goal.amount)
        message += f"; {_product(largest, sizes.data_parallel, steps)} would drift by {percent}%"
    return Finding(
        "GA016",
        "warning" if small else "note",
        message + ".",
        "A micro-batch so far below what fits is slower: set micro_batch, and accept some drift."
        if small
        else "Set micro_batch to use another.",
        "smallest drift, then the largest micro-batch: the order of the better choices",
    )


def exact_is_for_your_own_loop(facts: Facts) -> Finding | None:
    """GA012"""
    sizes = facts.sizes
    if facts.request.rounding != "exact":
        return None
    samples = sizes.effective_batch - (sizes.accum_steps - 1) * sizes.device_batch
    if samples == sizes.device_batch:
        return None
    idle = max(0, sizes.data_parallel - samples)
    last = f"The last micro-step holds {show_count(samples)} of {show_count(sizes.device_batch)} samples"
    last += (
        f"; {show_count(idle)} of {show_count(sizes.data_parallel)} ranks run one repeated sample with weight 0."
        if idle
        else f", at most {show_count(sizes.last_micro_batch)} on a rank."
    )
    return Finding(
        "GA012",
        "note",
        last,
        "Exact is for your own loop, with the loss divided by the group's true count: few trainers can express it.",
        "the samples are shared out over the ranks, the first ranks one more",
    )


def short_last_group(facts: Facts) -> Finding | None:
    """GA007"""
    left, steps = facts.training.last_group_size, facts.sizes.accum_steps
    if not left or facts.training.updates == 0:
        return None
    batch = show_count(facts.sizes.effective_batch)
    message, action = {
        "step": (
            f"The last group of an epoch holds {show_count(left)} of {batch} samples.",
            f"As an update of its own it must be divided by what it holds, not by {show_count(steps)} micro-steps.",
        ),
        "drop": (
            f"At the end of each epoch {show_count(left)} samples fill no group of {batch}.",
            "They are left out of that epoch; shuffle, so that it is not always them.",
        ),
        "carry": (
            f"Groups span epochs; when the run ends, {show_count(left)} samples fill no group of {batch}.",
            "They make no update: the optimizer never sees them.",
        ),
    }[facts.request.last_group]
    divided = "https://github.com/Lightning-AI/pytorch-lightning/issues/19987"
    source = divided if facts.request.last_group == "step" else "dataset_size modulo effective_batch"
    return Finding("GA007", "note", message, action, source)


def not_the_big_batch(facts: Facts) -> Finding | None:
    """GA005"""
    sizes = facts.sizes
    if sizes.accum_steps == 1:
        return None
    known = facts.request.sequence_length is not None
    weighed = ", as the loop for this plan does" if known else "; given a sequence length, the loop does"
    return Finding(
        "GA005",
        "note",
        f"{show_count(sizes.accum_steps)} micro-steps equal one batch of {show_count(sizes.effective_batch)} only if "
        "the loss is divided once, by the samples or tokens of the whole group. BatchNorm, in-batch negatives and an "
        f"MoE balancing loss still see {show_count(sizes.micro_batch)} at a time.",
        f"Weigh by tokens where their counts differ{weighed}. Use GroupNorm or LayerNorm; cache the features of a "
        "contrastive loss.",
        "https://github.com/huggingface/transformers/issues/34242; Goyal et al. 2017, arXiv:1706.02677, section 3; "
        "Gao et al. 2021, arXiv:2101.06983",
    )


def supervised(facts: Facts) -> Finding | None:
    """GA008"""
    loss_tokens = facts.training.loss_tokens_per_step
    length = facts.request.sequence_length
    if loss_tokens is None or length is None:
        return None
    tokens = facts.sizes.effective_batch * length
    if loss_tokens == tokens:
        return None
    return Finding(
        "GA008",
        "note" if loss_tokens else "warning",
        f"Of {show_count(tokens)} tokens per update {'about ' + show_count(loss_tokens) if loss_tokens else 'none'} "
        "carry loss.",
        "Compare batches by those; they differ between micro-batches, so divide the loss by their count in the group."
        if loss_tokens
        else "Nothing would be learnt: check the fraction.",
        "effective_batch x sequence_length x supervised_fraction",
    )


def tokens_per_parameter(facts: Facts) -> Finding | None:
    """GA009"""
    ratio = facts.training.tokens_per_param
    if ratio is None or facts.training.tokens is None:
        return None
    (thumb, where), *spread = COMPUTE_OPTIMAL
    others = " and ".join(f"{count} ({source})" for count, source in spread)
    return Finding(
        "GA009",
        "note",
        f"{show_short(facts.training.tokens)} tokens for {show_short(facts.request.params or 0)} parameters are "
        f"{ratio} tokens per parameter; the compute-optimal rule of thumb is {thumb}, and estimates spread from "
        f"{min(count for count, _ in spread)} to {max(count for count, _ in spread)}.",
        "Models meant for use are trained on far more: it makes them smaller to serve.",
        f"{thumb}: {where}; {others}",
    )


def memory(facts: Facts) -> Finding | None:
    """GA006"""
    sizes, params = facts.sizes, facts.request.params
    if sizes.accum_steps == 1:
        return None
    dtype = facts.request.gradient_dtype or "fp32"
    amount = f" ({show_bytes(params * BYTES_OF[dtype])} in {dtype} for a whole replica)" if params else ""
    return Finding(
        "GA006",
        "note",
        f"{show_count(sizes.accum_steps)} micro-steps need no more memory than 2: one set of gradients{amount} is kept "
        "between them.",
        f"The micro-batch of {show_count(sizes.micro_batch)} is what must fit; if memory is left, raise that.",
        "autograd adds to .grad in place: https://docs.pytorch.org/docs/stable/notes/autograd.html",
    )


RULES = (
    below_one_device_batch,
    interleaving,
    group_longer_than_epoch,
    budget_without_update,
    warmup_too_long,
    bf16_sum,
    bubble,
    warmup_unknown,
    tokens_as_sequences,
    length_in_thousands,
    drift,
    exact_is_for_your_own_loop,
    short_last_group,
    supervised,
    nothing_to_accumulate,
    picked_micro_batch,
    not_the_big_batch,
    tokens_per_parameter,
    memory,
)


def _product(*factors: int) -> str:
    """`4 x 8 = 32`"""
    result = 1
    for factor in factors:
        result *= factor
    return f"{' x '.join(show_count(factor) for factor in factors)} = {show_count(result)}"


def _signed_percent(sizes: Sizes) -> str:
    percent = show_percent(sizes.drift, sizes.goal.amount)
    return f"{'+' if sizes.drift > 0 else ''}{percent}%"
