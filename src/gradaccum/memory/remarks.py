"""What to know about a fit, as findings with codes of their own."""

from __future__ import annotations

from gradaccum.core.findings import Finding
from gradaccum.memory.answer import Step
from gradaccum.memory.closed_form import END_OF_FORWARD, LAST_LAYER, RECOMPUTATION, START_OF_FORWARD, heaviest
from gradaccum.memory.recipe import kernel_of
from gradaccum.memory.sharding import UNSHARDED_GRADIENTS, kept_and_sent
from gradaccum.units import show_bytes, show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradaccum.catalog.gpus import Gpu
    from gradaccum.memory.answer import Change, Memory
    from gradaccum.memory.setup import Setup


def remarks(
    setup: Setup | Step, gpu: Gpu, memory: Memory, surely: int, changes: Sequence[Change]
) -> tuple[Finding, ...]:
    """The findings, warnings first. surely: the largest micro-batch that fits at worst; changes: best first."""
    found = [
        *_room(setup, gpu, memory, surely, changes),
        *_gradients(setup, memory),
        *_usable(gpu, memory),
    ]
    if not isinstance(setup, Step):
        found += [*_positions(setup), *_routing(setup), *_kernel(setup, gpu)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "warning"))


def _positions(setup: Setup) -> Iterator[Finding]:
    model, length = setup.model, setup.sequence_length
    if model.image:
        tokens = model.image_tokens
        message = f"{model.name} makes {show_count(tokens)} tokens of an image; {show_count(length)} were counted."
        action, source = f"Say -s {tokens}.", "(image / patch)^2 patches and a class token, by the model's config"
        there = length == tokens
    else:
        cannot = ", and it has no position beyond: it cannot run so" if model.learned_positions else ""
        message = (
            f"Sequences of {show_count(length)} tokens are longer than the {show_count(model.positions)} that "
            f"{model.name}'s config names{cannot}."
        )
        action = f"Take -s {model.positions} or less" + ("." if cannot else ", or scale its rotary positions.")
        source = "max_position_embeddings, or n_positions, of the model's config"
        there = length <= model.positions or not model.positions
    if not there:
        yield Finding("GA032", "warning", message, action, source)


def _room(setup: Setup | Step, gpu: Gpu, memory: Memory, surely: int, changes: Sequence[Change]) -> Iterator[Finding]:
    needed, there = show_bytes(memory.process_bytes), show_bytes(memory.capacity_bytes)
    if memory.verdict == "does not fit":
        action = "Shard the model over more GPUs, or take a larger one."
        if changes and changes[0].fits:
            words = changes[0].words.partition(":")[0]
            action = f"It fits with {words}: {show_bytes(changes[0].bytes)} less."
        elif changes:
            most = max(changes, key=lambda change: change.bytes)
            action = (
                f"Most would bring, and not suffice, {most.words.partition(':')[0]}: {show_bytes(most.bytes)} less."
            )
        yield Finding(
            "GA020",
            "warning",
            f"Not even one sequence fits: {needed} are needed, and {gpu.name} has {there}.",
            action,
            f"the ledger's sum at the {memory.peak_at}, and what stands outside of it",
        )
    if memory.verdict == "marginal":
        yield Finding(
            "GA021",
            "warning",
            f"Micro-batch {show_count(setup.micro_batch)} is marginal: {needed} are expected, up to "
            f"{show_bytes(memory.process_high_bytes)} at worst, and there are {there}.",
            f"Micro-batch {show_count(surely)} fits at worst too." if surely else "Try it with a short run first.",
            str(memory.evidence),
        )


def _gradients(setup: Setup | Step, memory: Memory) -> Iterator[Finding]:
    """What earlier micro-steps leave, and under FSDP2 what reducing them sooner or later would cost instead."""
    if not setup.accumulates or memory.peak_at not in (END_OF_FORWARD, LAST_LAYER, RECOMPUTATION, START_OF_FORWARD):
        return
    kept = [line for line in memory.ledger if line.name in ("gradients", UNSHARDED_GRADIENTS)]
    if not kept:
        return
    cost = f"Accumulation costs {show_bytes(kept[0].bytes)} here:"
    message = (
        f"{cost} the gradients of the earlier micro-steps are there while activations peak. More micro-steps cost "
    )
    message += "no more."
    action = "A micro-batch that fits with one micro-step may not fit with two: try it with two."
    if not isinstance(setup, Step) and setup.strategy in ("fsdp2", "hsdp"):
        whole, shards, sent = (show_bytes(count) for count in kept_and_sent(heaviest(setup)[0]))
        action = f"Reduced at the last micro-step alone, they would be {whole}, and every rank would send {sent} less "
        action += "in each micro-step but that."
        if kept[0].name == UNSHARDED_GRADIENTS:
            message = f"{cost} with no reduction before the last micro-step a rank keeps whole gradients; its shard of "
            message += f"them is {shards}."
            action = f"--reduce every keeps the shard alone, and every rank sends {sent} more in each micro-step but "
            action += "the last."
    source = "gradients are kept from the first backward pass of a group to its optimizer step"
    yield Finding("GA022", "note", message, action, source)


def _usable(gpu: Gpu, memory: Memory) -> Iterator[Finding]:
    if gpu.usable_bytes is None:
        yield Finding(
            "GA023",
            "note",
            f"What {gpu.name} leaves for programs is not known; its nominal {show_bytes(memory.capacity_bytes)} are "
            "taken.",
            "Leave some room: a display, ECC and other processes take theirs.",
            "no source prints it",
        )


def _routing(setup: Setup) -> Iterator[Finding]:
    model = setup.model
    if model.experts:
        yield Finding(
            "GA030",
            "note",
            f"Each token is taken to go to {show_count(model.experts_per_token)} of {show_count(model.experts)} "
            "experts, and none is dropped: the rows of all experts lie in one tensor, so that on one GPU uneven "
            "routing costs nothing.",
            "Experts with a capacity of their own, or shared out over ranks, take more where routing is uneven.",
            "transformers/integrations/moe.py:grouped_mm_experts_forward",
        )


def _kernel(setup: Setup, gpu: Gpu) -> Iterator[Finding]:
    capability = None if gpu.capability is None else float(gpu.capability)
    if setup.attention == "flash" and kernel_of(setup, capability) == "math":
        yield Finding(
            "GA031",
            "warning",
            f"PyTorch has no fused attention for grouped queries in these types on {gpu.name}: its math form runs, "
            "which keeps the scores of every head in fp32.",
            "Repeat keys and values first, as Transformers does with a mask: --attention efficient counts it. In fp32, "
            "16 bits or autocast help too, from compute capability 8.0 on.",
            "aten/src/ATen/native/transformers/cuda/sdp_utils.cpp",
        )
