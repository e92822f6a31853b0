"""Recording, answers, errors, plain data and the replay of a trace."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from gradaccum.memory.allocator import Allocator, OutOfMemory
from gradaccum.torch.trace import Counter, Job, Trace, TraceError, cpu, cuda, record, replay, trace_module
from gradaccum.torch.trace.record import OPTIMIZERS
from tests.torch.cpu_steps import LENGTH, WIDTH, WORDS, Gated, Language, dense, words

if TYPE_CHECKING:
    from collections.abc import Callable


class Reads(nn.Module):
    """Asks for a value, or fails."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), Function(function))

    def forward(self, x: Any) -> Any:
        return self.inner(x)


class Function(nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def reading(function: Callable[[Any], Any], **options: Any) -> Trace:
    return trace_module(Reads(function), torch.randn(2, 4), lambda y: y.sum(), **options)


def assumed(trace: Trace) -> set[tuple[str, str]]:
    return {(guess.op, guess.what) for guess in trace.assumed}


# Values


def only_if(right: bool, y: Any) -> Any:
    assert right
    return y


@pytest.mark.parametrize(
    ("function", "answer"),
    [
        (lambda y: only_if(bool(torch.isfinite(y).all()), y), ("aten.all", "True")),
        (lambda y: only_if(not torch.isnan(y).any(), y), ("aten.any", "False")),
        (lambda y: only_if(torch.equal(y, y), y), ("aten.equal", "True")),
        (lambda y: y * y.max().item(), ("aten.max", "1.0")),
        (lambda y: y[: int(y.argmax())], ("aten.argmax", "1")),
        (lambda y: y * float(y.new_zeros(())), ("aten.new_zeros", "0.0")),
        (lambda y: y * float(y.detach().cpu().sum()), ("aten._to_copy", "'zeros on the host'")),
    ],
)
def test_values_are_answered_and_noted(function: Callable[[Any], Any], answer: tuple[str, str]):
    assert answer in assumed(reading(function))


def test_an_answer_can_be_given():
    trace = reading(
        lambda y: y[: int(y.argmax())] * float(torch.equal(y, y)), answers={"aten.argmax": 2, "aten.equal": False}
    )
    assert {("aten.argmax", "2"), ("aten.equal", "False")} <= assumed(trace)


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda y: y[y > 0], "aten.nonzero"),
        (lambda y: y[(y.sum(-1) > 0).nonzero()[:, 0]], "aten.nonzero"),
        (lambda y: y.masked_select(y > 0), "aten.masked_select"),
    ],
)
def test_a_choice_by_data_is_taken_as_everything(function: Callable[[Any], Any], op: str):
    trace = reading(function)
    assert op in trace.unknown_ops()
    assert any(guess.op == op and guess.module == "inner.1" for guess in trace.unknown)


def test_host_tensors_are_read_as_they_are():
    host = torch.tensor([0.0, 2.0])
    trace = reading(
        lambda y: y * host.max().item() * len(host.nonzero()) * len(host[host > 0]) * len(host.masked_select(host > 0))
    )
    assert not trace.assumed
    assert not trace.unknown
    reading(lambda y: only_if(not torch.equal(host, host + 1), y))


# What cannot be followed


@pytest.mark.parametrize(
    ("function", "op", "words"),
    [
        (lambda y: torch.unique(y), "aten._unique2", "no rule for shapes alone"),
        (lambda y: y @ y.new_zeros(3, 3), "aten.mm", "could not be run on shapes alone"),
        (lambda y: only_if(False, y), "", "the step raised in the module 'inner.1': AssertionError"),
        (lambda y: y * y.detach().numpy(), "", "meta"),
    ],
)
def test_an_error_names_the_operator_and_the_module(function: Callable[[Any], Any], op: str, words: str):
    with pytest.raises(TraceError, match=words) as caught:
        reading(function)
    assert caught.value.op == op
    assert caught.value.module == "inner.1"


def test_an_error_in_backward_names_the_module_of_its_node():
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return torch.unique(grad)

    with pytest.raises(TraceError) as caught:
        reading(Bad.apply)
    assert (caught.value.op, caught.value.module) == ("aten._unique2", "inner.1")


def test_an_unknown_optimizer_is_a_key_error():
    with pytest.raises(KeyError):
        trace_module(nn.Linear(2, 2), torch.randn(1, 2), lambda y: y.sum(), "adamx")


# Recording


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_named_optimizer_is_followed(name: str):
    trace = trace_module(nn.Linear(4, 4), torch.randn(2, 4), lambda y: y.sum(), name)
    assert trace.marks[-1].phase == "optimizer"


@pytest.mark.parametrize("batch", [torch.randn(2, WIDTH), (torch.randn(2, WIDTH),), {"x": torch.randn(2, WIDTH)}])
def test_a_module_with_data_is_traced_and_left_as_it_is(batch: Any):
    module = Gated()
    before = {name: (each, each.clone()) for name, each in module.state_dict(keep_vars=True).items()}
    trace = trace_module(module, batch, lambda y: y.pow(2).mean(), device=cpu())
    for name, each in module.state_dict(keep_vars=True).items():
        same, value = before[name]
        assert each is same
        assert torch.equal(each, value)
        assert each.grad is None
    weights = sum(block.bytes for block in trace.persistent if block.kind == "weight")
    assert weights == sum(each.nbytes for each in module.parameters())


def test_a_tied_weight_counts_once():
    def persistent(tied: bool) -> int:
        return sum(block.bytes for block in record(words(lambda: Language(tied=tied)), 1).persistent)

    assert persistent(False) - persistent(True) == WORDS * WIDTH * 4


def test_a_build_may_return_a_plain_triple():
    def build(micro_batch: int) -> Any:
        module = nn.Linear(4, 4)
        x = torch.randn(micro_batch, 4)
        return module, torch.optim.SGD(module.parameters()), lambda: module(x).sum().backward()

    trace = record(build, 3)
    assert (trace.accum_steps, trace.updates) == (2, 2)
    assert [block.kind for block in trace.persistent] == ["weight", "weight"]


def test_load_order_is_that_of_moving_a_module():
    """Module.to() reaches the submodules first."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.register_buffer("table", torch.ones(5))
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.inner(x) * self.scale.sum() * self.table.sum()

    trace = trace_module(Outer(), torch.randn(2, 4), lambda y: y.sum())
    assert [(block.kind, block.name) for block in trace.persistent] == [
        ("weight", "inner.weight"),
        ("weight", "inner.bias"),
        ("weight", "scale"),
        ("buffer", "table"),
        ("batch", ""),
    ]


def test_what_happens_on_the_device_while_it_is_set_up_is_recorded():
    def build(micro_batch: int, module: nn.Module) -> Job:
        for each in module.parameters():
            each.data = each.data.half().float()
        adapter = nn.Linear(4, 4).to("meta")
        module.add_module("adapter", adapter)
        x = torch.randn(micro_batch, 4, device="meta")
        return Job(
            module=module, optimizer=torch.optim.SGD(adapter.parameters()), step=lambda: adapter(x).sum().backward()
        )

    trace = record(build, 2, load=lambda: nn.Linear(4, 4))
    sizes = [trace.blocks[event].bytes if event >= 0 else -trace.blocks[~event].bytes for event in trace.events]
    assert sizes[: trace.num_setup] == [64, 16, 32, 64, -32, -64, 8, 16, -8, -16, 64, 16, 32]
    assert [block.name for block in trace.persistent] == ["weight", "bias", "adapter.weight", "adapter.bias", ""]


def test_phases_come_in_the_order_of_a_step():
    trace = record(words(lambda: Language(keep="checkpoint", blocks=1)), 2, accum_steps=2, updates=1)
    phases = [(mark.phase, mark.micro_step) for mark in trace.marks]
    one = ["forward", "loss", "backward", "recompute", "backward"]
    assert phases == [("setup", 0), *((phase, 0) for phase in one), *((phase, 1) for phase in one), ("optimizer", 1)]


# Plain data


def test_a_trace_survives_json():
    trace = record(words(Language), 2)
    assert Trace.from_dict(json.loads(json.dumps(trace.to_dict()))) == trace


def test_a_trace_of_another_version_is_refused():
    with pytest.raises(ValueError, match="schema version 1"):
        Trace.from_dict({"schema_version": 2})


def test_every_birth_has_at_most_one_death_and_it_comes_later():
    trace = record(words(lambda: Language(keep="reentrant")), 2)
    seen: set[int] = set()
    for event in trace.events:
        if event >= 0:
            assert event not in seen
            seen.add(event)
        else:
            seen.remove(~event)
    kinds = {trace.blocks[block].kind for block in seen}
    assert kinds <= {"weight", "buffer", "batch", "optimizer state", "workspace"}


# Replay


def test_a_counter_gives_the_peak_of_the_sums():
    trace = record(dense(Gated), 2, device=cpu())
    peaks = replay(trace, Counter(1))
    sizes = [trace.blocks[event].bytes if event >= 0 else -trace.blocks[~event].bytes for event in trace.events]
    assert peaks.allocated == peaks.reserved == max(accumulate(sizes))
    assert peaks.at.event == next(i for i, live in enumerate(accumulate(sizes)) if live == peaks.allocated)
    assert sum(line.bytes for line in peaks.ledger) == peaks.allocated
    assert peaks.ledger[-1].bytes == 0
    assert max(peaks.by_phase.values()) <= peaks.allocated


def test_the_allocator_reserves_what_it_allocates_and_more():
    trace = record(words(Language), 2, device=cuda((8, 0)))
    peaks, counted = replay(trace, Allocator(2**30)), replay(trace, Counter())
    assert counted.allocated <= peaks.allocated <= peaks.reserved
    assert peaks.reserved % 2**21 == 0
    assert sum(line.bytes for line in peaks.ledger) == peaks.allocated


def test_a_card_that_is_too_small_is_out_of_memory():
    trace = record(words(Language), 2, device=cuda((8, 0)))
    reserved = replay(trace, Allocator(None)).reserved
    assert replay(trace, Allocator(reserved)).reserved == reserved
    with pytest.raises(OutOfMemory):
        replay(trace, Allocator(2**23))


def test_peaks_are_affine_in_the_micro_batch():
    found = [
        replay(record(words(lambda: Language(blocks=4)), size, device=cpu()), Counter(1)).allocated
        for size in (8, 16, 32)
    ]
    assert found[2] - found[1] == 2 * (found[1] - found[0])
    assert found[0] > LENGTH
