"""The largest micro-batch that a GPU holds, the plan that follows from it, and where every byte goes.

The closed form is monotone in the micro-batch, so that a search by halves finds the largest in some forty steps.
"""

from __future__ import annotations

from gradaccum.core.arithmetic import divide
from gradaccum.core.plan import make_plan
from gradaccum.core.request import Request
from gradaccum.errors import InputError, Problem
from gradaccum.memory.answer import Fit, Memory
from gradaccum.memory.changes import changes
from gradaccum.memory.closed_form import heaviest, highest
from gradaccum.memory.evidence import evidence
from gradaccum.memory.layout import DEGREES
from gradaccum.memory.outside import outside
from gradaccum.memory.remarks import remarks
from gradaccum.units import show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gradaccum.catalog.gpus import Gpu
    from gradaccum.core.plan import Plan
    from gradaccum.memory.setup import Setup

LARGEST = 2**40
"""No micro-batch beyond this is looked at."""


def fit(setup: Setup, gpu: Gpu, target_batch: int | None = None) -> Fit:
    """How much fits. setup: its micro-batch is not looked at. target_batch: sequences of one update, for the plan.

    Where the setup says no number of micro-steps, it is the plan's, and one micro-step where all of the target fits in
    it: no gradients of an earlier one are there then. Raises InputError for a model that the closed form does not know,
    and for a number of micro-steps with which the target needs more than fits.
    """
    at = _memories(setup, gpu)
    largest = _largest(at, lambda memory: memory.process_bytes)
    plan = _plan(setup, gpu, largest, target_batch)
    if setup.accum_steps is None and target_batch:
        in_one = plan is not None and plan.accum_steps == 1
        if in_one or _fits_in_one_step(setup, gpu, target_batch):
            setup = setup.changed("accum_steps", 1)
            at = _memories(setup, gpu)
            largest = _largest(at, lambda memory: memory.process_bytes)
            plan = plan if in_one else _plan(setup, gpu, largest, target_batch)
        elif plan:
            setup = setup.changed("accum_steps", plan.accum_steps)
    chosen = setup.with_micro_batch(plan.micro_batch if plan else max(1, largest))
    memory = memory_of(chosen, gpu)
    found = changes(chosen, memory, lambda other: memory_of(other, gpu))
    surely = _largest(at, lambda memory: memory.process_high_bytes)
    return Fit(
        setup=chosen,
        gpu=gpu,
        max_micro_batch=largest,
        surely=surely,
        at_best=_largest(at, lambda memory: memory.process_low_bytes),
        plan=plan,
        memory=memory,
        curve=tuple((each, at(each)) for each in along(largest)),
        changes=found,
        findings=remarks(chosen, gpu, memory, surely, found),
        most=LARGEST,
    )


def memory_of(setup: Setup, gpu: Gpu) -> Memory:
    """One GPU's memory for this very micro-batch."""
    capability = None if gpu.capability is None else float(gpu.capability)
    stage, instants = heaviest(setup, capability)
    peak_at, ledger = highest(instants)
    capacity = gpu.memory_bytes if gpu.usable_bytes is None else gpu.usable_bytes
    return Memory(peak_at, ledger, outside(setup, ledger), evidence(setup), capacity, stage.name)


def _plan(setup: Setup, gpu: Gpu, largest: int, target_batch: int | None) -> Plan | None:
    """None where nothing fits, or no target is given."""
    if not largest or not target_batch:
        return None
    most = largest
    if setup.accum_steps == 1 and target_batch > largest * setup.data_parallel:
        at = _memories(setup.with_values({"accum_steps": None}), gpu)
        most = _largest(at, lambda memory: memory.process_bytes)  # with two micro-steps or more
    degrees = {name: getattr(setup, name) for name in DEGREES}
    asked = Request(
        num_gpus=setup.num_gpus,
        target_batch=target_batch,
        sequence_length=setup.sequence_length,
        **with_steps(setup.accum_steps, target_batch, setup.data_parallel, largest, most),  # type: ignore[arg-type]
        **degrees,
    )
    return make_plan(asked)


def with_steps(
    accum_steps: int | None, target_batch: int, data_parallel: int, largest: int, most: int
) -> dict[str, int]:
    """What a plan is asked of micro-batch and micro-steps. most: the largest micro-batch that fits with several steps.

    Raises InputError where the target needs a larger micro-batch than fits.
    """
    if accum_steps is None:
        return {"max_micro_batch": at_most(largest, target_batch, data_parallel)}
    needed = divide(target_batch, data_parallel * accum_steps, "round")
    if needed > largest:
        message = (
            f"is {show_count(accum_steps)}, with which {show_count(target_batch)} sequences need a micro-batch of "
            f"{show_count(needed)}; the largest that fits is {show_count(largest)}"
        )
        raise InputError(
            Problem("accum_steps", message, [str(-(-target_batch // (data_parallel * most)))] if most else [])
        )
    return {"accum_steps": accum_steps}


def _fits_in_one_step(setup: Setup, gpu: Gpu, target_batch: int) -> bool:
    share, rest = divmod(target_batch, setup.data_parallel)
    if rest or share > LARGEST:
        return False
    memory = memory_of(setup.with_values({"accum_steps": 1, "micro_batch": share}), gpu)
    return memory.process_bytes <= memory.capacity_bytes


def _memories(setup: Setup, gpu: Gpu) -> Callable[[int], Memory]:
    """memory_of by micro-batch, each calculated once: the searches and the curve meet at the same ones."""
    known: dict[int, Memory] = {}

    def at(micro_batch: int) -> Memory:
        if micro_batch not in known:
            known[micro_batch] = memory_of(setup.with_micro_batch(micro_batch), gpu)
        return known[micro_batch]

    return at


def _largest(at: Callable[[int], Memory], needed: Callable[[Memory], int]) -> int:
    """The largest micro-batch whose `needed` bytes are there; 0 where even 1 is too many."""

    def holds(micro_batch: int) -> bool:
        memory = at(micro_batch)
        return needed(memory) <= memory.capacity_bytes

    return search(holds, 1, LARGEST)


def search(holds: Callable[[int], bool], start: int, most: int) -> int:
    """The largest micro-batch up to `most` that `holds`, looked for from `start` on in growing strides; 0 for none."""
    below, above, stride = 0, most + 1, 1
    here = start
    while below < here < above:
        if holds(here):
            below, here = here, here + stride
        else:
            above, here = here, here - stride
        if below and above <= most:
            break
        stride *= 2
    while above - below > 1:
        middle = (below + above) // 2
        if holds(middle):
            below = middle
        else:
            above = middle
    return below


def at_most(largest: int, target_batch: int, data_parallel: int) -> int:
    """The largest micro-batch that a plan has a use for: one micro-step of all ranks comes to the target."""
    return min(largest, -(-target_batch // data_parallel))


def along(largest: int) -> list[int]:
    """Micro-batches for the curve: from 1 to a third beyond the largest, at most 13."""
    end = max(4, largest + largest // 3)
    stride = max(1, -(-end // 12))
    return sorted({1, max(1, largest), *range(stride, end + 1, stride)})
