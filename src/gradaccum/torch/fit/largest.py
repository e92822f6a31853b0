"""The largest micro-batch that a GPU holds, by at most three traces of the person's own step."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from gradaccum.core.arithmetic import divide
from gradaccum.core.plan import make_plan
from gradaccum.core.request import Request
from gradaccum.errors import GradaccumError, InputError, Problem
from gradaccum.memory.allocator import ties_of
from gradaccum.memory.allocator_settings import Settings
from gradaccum.memory.answer import Engine, Fit, Memory, Step
from gradaccum.memory.evidence import CLOSED_FORM, TRACE, evidence, evidence_of_own
from gradaccum.memory.fit import along, memory_of, search, with_steps
from gradaccum.memory.fit import fit as closed_form
from gradaccum.memory.remarks import remarks
from gradaccum.memory.trace_remarks import trace_remarks
from gradaccum.torch.build import NO_GRADIENT
from gradaccum.torch.fit.changes import changes
from gradaccum.torch.fit.replays import Card, Replays
from gradaccum.torch.fit.traces import Traces
from gradaccum.torch.trace import Job, Trace, TraceError, cuda, record
from gradaccum.torch.trace import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gradaccum.catalog.gpus import Gpu
    from gradaccum.core.plan import Plan
    from gradaccum.memory.setup import Setup

LARGEST = 2**20
"""No micro-batch beyond this is traced."""

USUAL_CAPABILITY = "8.0"
"""Taken where a card's is not known: an A100's kernels."""


class OutOfTime(GradaccumError):
    """The traces took longer than the person allowed. seconds: the limit."""

    def __init__(self, seconds: float, micro_batch: int) -> None:
        super().__init__(
            f"tracing took longer than the {seconds:g} seconds of --time-limit, at micro-batch {micro_batch:,}; "
            "a smaller model or sequence is traced faster, and the closed form takes no time"
        )


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a trace beside the step itself.

    name: the model's; words: how it is trained, for people. target_batch: sequences of one update, for the plan;
    sequence_length: tokens, for the plan too. accum_steps: micro-steps per update; None is "two or more". num_gpus:
    data-parallel ranks, each with a replica (DDP). allocator: the words of PYTORCH_ALLOC_CONF; None is what that
    variable says. time_limit: seconds for all traces. setup: the same question to the closed form, where it is to
    answer too. doubts: sentences about how a sample batch is resized.
    """

    gpu: Gpu
    name: str
    words: str = ""
    target_batch: int | None = None
    sequence_length: int | None = None
    accum_steps: int | None = None
    num_gpus: int = 1
    allocator: str | None = None
    time_limit: float | None = None
    setup: Setup | None = None
    doubts: tuple[str, ...] = ()

    @property
    def capacity(self) -> int:
        """Bytes for programs."""
        return self.gpu.memory_bytes if self.gpu.usable_bytes is None else self.gpu.usable_bytes

    @property
    def capability(self) -> str:
        """Of the card, or the usual one."""
        return self.gpu.capability or USUAL_CAPABILITY


def fit_step(build: Callable[[int], Job], question: Question, begun: float | None = None) -> Fit:
    """The answer for the step that `build(micro_batch)` makes. begun: when the clock of a time limit started.

    Raises TraceError for a step that cannot be followed, OutOfTime, and InputError for allocator settings that PyTorch
    would not read.
    """
    said = question.allocator
    if said is None:
        said = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""
    card = Card(
        capacity=question.capacity,
        settings=Settings.parse(said),
        ties=ties_of(torch.__version__),
        num_gpus=question.num_gpus,
    )
    recording = _Recording(build, question, time.monotonic() if begun is None else begun)
    traces = Traces(recording)
    traces.record(2)
    setup = question.setup
    replays = Replays(
        traces,
        card,
        evidence_of_own(f"trace, {recording.words}, {_kernels(question)}, {_gpus(question)}")
        if setup is None
        else evidence(setup, TRACE),
        None if setup is None else lambda each: memory_of(setup.with_micro_batch(each), question.gpu).peak_bytes,
    )
    largest = _find(traces, replays)
    if _is_one_step(question, largest):
        return fit_step(build, replace(question, accum_steps=1), recording.begun)
    return _answer(question, replays, largest)


def _kernels(question: Question) -> str:
    known = "" if question.gpu.capability else " (the card's own are not known)"
    return f"kernels of sm_{question.capability.replace('.', '')}{known}"


def _gpus(question: Question) -> str:
    return "one GPU" if question.num_gpus == 1 else "ddp on several GPUs"


def _find(traces: Traces, replays: Replays) -> int:
    """The largest micro-batch, in at most three traces: at 2, near the answer, and at the answer.

    A dimension of 1 needs no copies, so that a micro-batch of 1 is unlike all others, and is traced when 2 is too
    many. The second is where the first one's bytes, less what does not grow, would fill the card.
    """

    def holds(micro_batch: int) -> bool:
        memory = replays.memory(micro_batch)
        return memory.process_bytes <= memory.capacity_bytes

    if not holds(2):
        traces.record(1)
        return int(holds(1))
    guess = _guess(traces, replays)
    if _sizes(traces.record(guess)) == _sizes(traces.record(2)):
        raise InputError(
            Problem(
                "model", f"takes the same memory at micro-batches 2 and {guess:,}: it makes no use of the micro-batch"
            )
        )
    largest = search(holds, guess, LARGEST)
    traces.record(max(1, largest))
    return search(holds, max(1, largest), LARGEST)


def _sizes(trace: Trace) -> list[int]:
    return [block.bytes for block in trace.blocks]


def _guess(traces: Traces, replays: Replays) -> int:
    """About the largest micro-batch, from the trace at 2."""
    trace = traces.record(2)
    peaks = replays.peaks(trace)
    fixed = sum(_fixed(trace))
    most = max(bytes_ for phase, bytes_ in peaks.by_phase.items() if phase != ev.OPTIMIZER)
    each = max(1, (most - fixed) // 2)
    room = replays.card.allowed - sum(outside.expected for outside in replays.card.beside)
    return max(3, min(LARGEST, (room - fixed) // each))


def _fixed(trace: Trace) -> Iterator[int]:
    """Bytes of what is there at any micro-batch: weights, buffers, a gradient and its states, workspaces."""
    names = set()
    for block in trace.blocks:
        if block.kind in (ev.WEIGHT, ev.BUFFER, ev.STATE, ev.WORKSPACE):
            yield block.bytes
        elif block.kind == ev.GRADIENT and block.name not in names:
            names.add(block.name)
            yield block.bytes


class _Recording:
    """Records the step at a micro-batch, within the time that is left. words: what its weights are."""

    def __init__(self, build: Callable[[int], Job], question: Question, begun: float) -> None:
        self.build, self.question, self.words, self.begun = build, question, "", begun
        self.own_update = False

    def __call__(self, micro_batch: int) -> Trace:
        major, _, minor = self.question.capability.partition(".")
        try:
            with self._in_time(micro_batch):
                trace = record(
                    self._built,
                    micro_batch,
                    device=cuda((int(major), int(minor))),
                    accum_steps=1 if self.question.accum_steps == 1 else 2,
                )
        except TraceError as error:
            if isinstance(error.__cause__, (OutOfTime, InputError)):
                raise error.__cause__ from None
            raise
        if not self._trains(trace):
            raise InputError(NO_GRADIENT)
        return trace

    def _trains(self, trace: Trace) -> bool:
        """Whether gradients were seen at an optimizer's step, or where an update of its own may have none, made."""
        if any(block.kind == ev.GRADIENT for block in trace.blocks):
            return True
        return self.own_update and any(mark.phase == ev.BACKWARD for mark in trace.marks)

    def _built(self, micro_batch: int) -> Job:
        job = self.build(micro_batch)
        self.own_update = job.update is not None
        parameters = list(job.module.parameters())
        largest = max(parameters, key=lambda each: each.numel() * each.element_size(), default=None)
        if largest is not None:
            frozen = "" if all(each.requires_grad for each in parameters) else ", some weights frozen"
            self.words = f"{str(largest.dtype).removeprefix('torch.')}{frozen}"
        return job

    @contextmanager
    def _in_time(self, micro_batch: int) -> Iterator[None]:
        """A module's forward is where the clock is looked at."""
        limit = self.question.time_limit
        if limit is None:
            yield
            return

        def check(module: Any, inputs: Any) -> None:
            if time.monotonic() - self.begun > limit:
                raise OutOfTime(limit, micro_batch)

        handle = register_module_forward_pre_hook(check)
        try:
            yield
        finally:
            handle.remove()


def _plan(question: Question, largest: int) -> Plan | None:
    """None where nothing fits, or no target is given."""
    if not largest or not question.target_batch:
        return None
    ranks = question.num_gpus
    return make_plan(
        Request(
            num_gpus=ranks,
            target_batch=question.target_batch,
            sequence_length=question.sequence_length,
            **with_steps(question.accum_steps, question.target_batch, ranks, largest, largest),  # type: ignore[arg-type]
        )
    )


def _is_one_step(question: Question, largest: int) -> bool:
    """Whether all of the target is one micro-step that fits, and nothing was said of their number."""
    if question.accum_steps is not None or not question.target_batch:
        return False
    return divide(question.target_batch, question.num_gpus, "round") <= largest


def _answer(question: Question, replays: Replays, largest: int) -> Fit:
    gpu, traces = question.gpu, replays.traces
    plan = _plan(question, largest)
    looked_at = tuple(traces.seen)
    chosen = plan.micro_batch if plan else max(1, largest)
    # A micro-batch of 1 is unlike all others.
    trace = traces.record(chosen) if chosen == 1 else traces.at(chosen)
    memory = replays.memory(chosen)
    found = changes(trace, replays)
    surely = _bounded(replays, largest, lambda memory: memory.process_high_bytes)
    accum_steps = plan.accum_steps if plan and plan.accum_steps > 1 else question.accum_steps
    step = Step(question.name, chosen, accum_steps, question.num_gpus, question.words)
    at = replays.peaks(trace).at
    engine = Engine(
        TRACE,
        largest,
        memory.peak_bytes,
        memory.process_bytes,
        f"{at.op} in {at.module or 'the step itself'}",
        looked_at,
    )
    engines = (engine,) if question.setup is None else (engine, _other(question.setup, gpu, chosen))
    findings = (
        *remarks(step, gpu, memory, surely, found),
        *trace_remarks(
            memory,
            engines,
            [guess[:3] for guess in trace.unknown],
            [guess[:3] for guess in trace.assumed],
            question.doubts,
        ),
    )
    return Fit(
        setup=step,
        gpu=gpu,
        max_micro_batch=largest,
        surely=surely,
        at_best=_bounded(replays, largest, lambda memory: memory.process_low_bytes),
        plan=plan,
        memory=memory,
        curve=tuple((each, replays.memory(each)) for each in along(largest)),
        changes=found,
        findings=tuple(sorted(findings, key=lambda finding: finding.severity != "warning")),
        most=LARGEST,
        engines=engines,
    )


def _bounded(replays: Replays, largest: int, needed: Callable[[Memory], int]) -> int:
    def holds(micro_batch: int) -> bool:
        memory = replays.memory(micro_batch)
        return needed(memory) <= memory.capacity_bytes

    return search(holds, max(1, largest), LARGEST)


def _other(setup: Setup, gpu: Gpu, micro_batch: int) -> Engine:
    memory = memory_of(setup.with_micro_batch(micro_batch), gpu)
    return Engine(
        CLOSED_FORM, closed_form(setup, gpu).max_micro_batch, memory.peak_bytes, memory.process_bytes, memory.peak_at
    )
