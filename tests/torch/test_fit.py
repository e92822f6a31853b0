"""A fit by tracing: its search against every micro-batch traced and replayed, its ledger, and what it says."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradaccum
from gradaccum.catalog.gpus import find_gpu
from gradaccum.errors import InputError
from gradaccum.memory.allocator import Allocator, OutOfMemory, ties_of
from gradaccum.memory.allocator_settings import Settings
from gradaccum.memory.fit import search
from gradaccum.memory.outside import CONTEXT, LIBRARY
from gradaccum.torch.fit.largest import LARGEST
from gradaccum.torch.fit.traces import Traces
from gradaccum.torch.trace import Job, Trace, TraceError, cuda, record, replay
from tests.torch.cpu_steps import LENGTH, WIDTH, WORDS, Block, Language, dense, job, words
from tests.torch.models import CHANNELS, IMAGE, BertLike, Recurrent, ResNetLike, UNetLike, VitLike, with_lora

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

MIB = 2**20


def room(mib: int) -> int:
    """The memory of a GPU with so much room for tensors."""
    return CONTEXT.expected + mib * MIB


def cross_entropy(result: Any, target: Any) -> Any:
    return functional.cross_entropy(result.flatten(0, -2), target.flatten())


def language(micro_batch: int, wide: int = 1) -> Any:
    """A build function, as a person writes one."""
    batch = torch.zeros(micro_batch, LENGTH * wide, dtype=torch.int64)
    return Language(), (batch, batch), cross_entropy


def _as_job(found: Any) -> Job:
    """The step of a usual loop, in which the result has a name until the backward pass is done."""
    model, (batch, target), loss = found

    def step() -> None:
        result = model(batch)
        loss(result, target).backward()

    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad])
    return Job(module=model, optimizer=optimizer, step=step, batch=(batch, target))


def by_hand(build: Callable[[int], Job], micro_batch: int, capacity: int, settings: str = "") -> bool:
    """Whether it fits: traced and replayed at this very micro-batch, on the kernels of an A100."""
    try:
        made = Allocator(capacity, Settings.parse(settings), ties=ties_of(torch.__version__), total_memory=capacity)
        replay(record(build, micro_batch, device=cuda((8, 0))), made)
    except OutOfMemory:
        return False
    return True


# The search


@pytest.mark.parametrize("mib", [40, 90, 200])
@pytest.mark.parametrize("settings", ["", "expandable_segments:True"])
def test_the_largest_is_the_largest(mib: int, settings: str):
    def build(micro_batch: int) -> Job:
        batch = torch.zeros(micro_batch, LENGTH, dtype=torch.int64)
        return job(Language(), batch, lambda y: cross_entropy(y, batch))

    found = gradaccum.fit(model=build, gpu=room(mib), allocator=settings)
    (engine,) = found.engines
    assert len(engine.traces) <= 3
    assert found.max_micro_batch in engine.traces
    assert by_hand(build, found.max_micro_batch, mib * MIB, settings)
    assert not by_hand(build, found.max_micro_batch + 1, mib * MIB, settings)
    assert found.surely <= found.max_micro_batch <= found.at_best


@pytest.mark.parametrize("largest", [0, 1, 2, 3, 17, 64, LARGEST])
@pytest.mark.parametrize("start", [1, 2, 16, 17, 18, 500, LARGEST])
def test_a_search_finds_the_edge_from_anywhere(largest: int, start: int):
    asked = []

    def holds(micro_batch: int) -> bool:
        asked.append(micro_batch)
        return micro_batch <= largest

    assert search(holds, start, LARGEST) == largest
    assert len(asked) <= 45
    assert all(1 <= each <= LARGEST for each in asked)


def sizes(trace: Trace) -> list[int]:
    return [block.bytes for block in trace.blocks]


@pytest.mark.parametrize(
    "build",
    [
        words(lambda: Language(keep="checkpoint")),
        dense(Block),
        words(lambda: with_lora(BertLike())),
    ],
)
def test_a_trace_between_two_is_the_one_that_is_recorded(build: Callable[[int], Job]):
    make = partial(record, build, device=cuda((8, 0)))
    traces = Traces(make)
    traces.record(2)
    with pytest.raises(ValueError):
        traces.at(5)
    traces.record(11)
    for micro_batch in (5, 30):
        assert traces.at(micro_batch) == make(micro_batch)
    assert list(traces.seen) == [2, 11]


def test_traces_of_two_shapes_are_told_apart():
    """Over a list of more than 3,072 words the gradient of an embedding sorts them first."""
    make = partial(record, words(Language), device=cuda((8, 0)))
    few, many = 3072 // LENGTH, 3072 // LENGTH + 1
    traces = Traces(make)
    traces.record(2)
    traces.record(many)
    assert len(traces.seen[many].blocks) > len(traces.seen[2].blocks)
    # The nearest tells the order; the buffers that the other does not have grow with the micro-batch.
    beyond, truth = traces.at(many + 1), make(many + 1)
    assert beyond.events == truth.events
    assert sum(sizes(beyond)) == pytest.approx(sum(sizes(truth)), rel=1e-4)
    traces.record(few)
    assert traces.at(10) == make(10)


def test_a_micro_batch_of_one_is_traced_when_two_are_too_many():
    def build(micro_batch: int) -> Any:
        return nn.Linear(1024, 1024), torch.zeros(micro_batch, 8192, 1024), lambda y: y.mean()

    one = gradaccum.fit(model=build, gpu=room(180))
    assert (one.max_micro_batch, one.engines[0].traces) == (1, (2, 1))
    none = gradaccum.fit(model=build, gpu=room(16), target_batch=8)
    assert (none.max_micro_batch, none.plan, none.memory.verdict) == (0, None, "does not fit")
    assert none.findings[0].code == "GA020"


def test_the_plan_keeps_the_target():
    found = gradaccum.fit(model=language, gpu=room(90), target_batch=100)
    assert found.plan is not None
    assert found.plan.micro_batch == found.setup.micro_batch <= found.max_micro_batch
    assert found.plan.effective_batch == 100


def test_a_number_of_micro_steps_that_is_given_is_the_plans():
    found = gradaccum.fit(model=language, gpu=room(300), target_batch=12, accum_steps=3)
    assert found.plan is not None
    assert (found.plan.micro_batch, found.plan.accum_steps) == (4, 3)
    with pytest.raises(InputError, match="accum_steps: is 1, with which 100,000 sequences need"):
        gradaccum.fit(model=language, gpu=room(90), target_batch=100_000, accum_steps=1)


def test_a_plan_of_one_micro_step_has_the_memory_of_one():
    found = gradaccum.fit(model=language, gpu=room(300), target_batch=4)
    asked = gradaccum.fit(model=language, gpu=room(300), target_batch=4, accum_steps=1)
    assert found.plan is not None
    assert (found.plan.micro_batch, found.plan.accum_steps) == (4, 1)
    assert found.to_dict() == asked.to_dict()
    assert "GA022" not in [finding.code for finding in found.findings]


# The answer


def test_the_ledger_sums_to_what_the_allocator_counts():
    found = gradaccum.fit(model=language, gpu=room(90))
    trace = record(lambda m: _as_job(language(m)), found.setup.micro_batch, device=cuda((8, 0)))
    peaks = replay(trace, Allocator(90 * MIB, ties=ties_of(torch.__version__)))
    memory = found.memory
    data = found.to_dict()
    parts: Any = data["memory"]
    assert sum(line.bytes for line in memory.ledger) == memory.peak_bytes == peaks.allocated
    assert memory.reserved_bytes == peaks.reserved
    assert memory.process_bytes == peaks.reserved + CONTEXT.expected
    assert parts["process_bytes"] == parts["peak_bytes"] + sum(each["bytes"] for each in parts["outside"])
    assert all(line.source == "its trace" for line in memory.ledger)
    assert data["engine"] == "trace"
    assert data["disagreement"] is None


def test_the_ledger_by_hand():
    """Weights, their gradients and two states are as many bytes as parameters; the batch is 8 bytes for each word."""
    found = gradaccum.fit(model=language, gpu=room(90))
    lines = {line.name: line.bytes for line in found.memory.ledger}
    weights = sum(each.nbytes for each in Language().parameters())
    assert (lines["weights"], lines["gradients"]) == (weights, weights)
    steps = 4 * sum(1 for _ in Language().parameters())  # AdamW counts its steps in a tensor, on the host when foreach
    assert lines["optimizer states"] in (2 * weights, 2 * weights + steps)
    assert lines["batch"] == 8 * LENGTH * found.setup.micro_batch
    inside = [name for name in lines if name.startswith("activations of blocks.*")]
    assert "activations of blocks.*.gated" in inside
    assert found.memory.peak_at == "end of forward"
    assert "GA022" in [finding.code for finding in found.findings]


def test_what_checkpointing_would_buy_is_what_it_buys():
    def build(keep: str, micro_batch: int) -> Any:
        batch = torch.zeros(micro_batch, LENGTH, dtype=torch.int64)
        return Language(blocks=3, keep=keep), (batch, batch), cross_entropy

    found = gradaccum.fit(model=partial(build, "all"), gpu=room(300), target_batch=512)
    saved = {change.words.partition(":")[0]: change.bytes for change in found.changes}
    assert list(saved.values()) == sorted(saved.values(), reverse=True)
    traces = [record(lambda m, keep=keep: _as_job(build(keep, m)), 512) for keep in ("all", "checkpoint")]
    without, with_it = (replay(trace, Allocator(None)).allocated for trace in traces)
    assert saved["checkpointing each of blocks"] == pytest.approx(without - with_it, rel=0.15)
    again = gradaccum.fit(model=partial(build, "checkpoint"), gpu=room(300), target_batch=512)
    assert not any(change.words.startswith("checkpointing") for change in again.changes)


def test_a_fused_optimizer_saves_the_temporary():
    def build(micro_batch: int) -> Any:
        return nn.Linear(4000, 4000, bias=False), torch.zeros(micro_batch, 4000), lambda y: y.mean()

    found = gradaccum.fit(model=build, gpu=room(600), target_batch=1, accum_steps=1)
    assert found.memory.peak_at == "optimizer step"
    saved = {change.words: change.bytes for change in found.changes}
    assert saved["a fused optimizer: no temporary"] == pytest.approx(4 * 4000 * 4000, rel=0.02)
    for less, enough in ((MIB, True), (70 * MIB, False)):
        smaller = gradaccum.fit(model=build, gpu=found.memory.process_bytes - less, target_batch=1, accum_steps=1)
        assert smaller.max_micro_batch == 0
        assert {change.words: change.fits for change in smaller.changes}["a fused optimizer: no temporary"] is enough


def test_data_parallel_ranks_have_buckets_and_a_library():
    one, four = (gradaccum.fit(model=language, gpu=room(1500), num_gpus=n, target_batch=4) for n in (1, 4))
    buckets = {line.name: line.bytes for line in four.memory.ledger}["DDP's buckets"]
    assert buckets == sum(each.nbytes for each in Language().parameters())
    assert four.memory.outside[2] == LIBRARY
    assert four.max_micro_batch < one.max_micro_batch


def test_the_allocator_settings_come_from_the_variable(monkeypatch):
    def slack(**how: Any) -> int:
        return gradaccum.fit(model=language, gpu=room(300), target_batch=700, **how).memory.outside[0].expected

    usual = slack()
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    assert slack() < usual
    assert slack(allocator="") == usual
    with pytest.raises(InputError, match="expandable_segment: PyTorch knows no such option"):
        slack(allocator="expandable_segment:True")


def test_a_share_of_the_card_is_a_smaller_card():
    whole, half = (
        gradaccum.fit(model=language, gpu=room(300), allocator=words)
        for words in ("", "per_process_memory_fraction:0.3")
    )
    assert half.max_micro_batch < whole.max_micro_batch


def test_the_card_decides_the_kernels():
    """Without a compute capability those of an A100 are taken, and that is said."""

    def of(gpu: str) -> gradaccum.Fit:
        return gradaccum.fit(
            model=nn.Linear(64, 64, bias=False), batch=torch.zeros(4, 64), loss=torch.mean, gpu=gpu, target_batch=4
        )

    assert "sm_80 (the card's own are not known)" in of("24GiB").memory.evidence.regime
    assert "kernels of sm_89, one GPU" in of("rtx-4090").memory.evidence.regime
    for gpu, mib in (("rtx-4090", 8.125), ("h100-sxm-80gb", 32)):
        lines = {line.name: line.bytes for line in of(gpu).memory.ledger}
        assert lines["cuBLAS workspaces"] == 2 * mib * MIB


def test_accumulation_costs_one_gradient_set():
    """At the end of forward the earlier gradients are there from two micro-steps on, and no more of them."""
    one, eight = (
        {line.name: line.bytes for line in gradaccum.fit(model=language, gpu=room(90), accum_steps=each).memory.ledger}
        for each in (1, 8)
    )
    whole = sum(each.nbytes for each in Language().parameters())
    assert one.get("gradients", 0) < whole
    assert eight["gradients"] == whole


# What is not followed


def vision(module: Callable[[], nn.Module]) -> Callable[[int], Any]:
    def build(micro_batch: int) -> Any:
        classes = torch.zeros(micro_batch, dtype=torch.int64)
        return module(), (torch.zeros(micro_batch, CHANNELS, IMAGE, IMAGE), classes), nn.CrossEntropyLoss()

    return build


def test_a_convolution_widens_the_interval_by_a_stated_number():
    found = gradaccum.fit(model=vision(ResNetLike), gpu=room(60))
    (unseen,) = [each for each in found.memory.outside if each.name == "workspaces that are not followed"]
    # The second convolution of the first block: 9 x 8 columns, or the stem's backward; per pixel of the result.
    assert (unseen.low, unseen.expected) == (0, 0)
    assert unseen.high == 4 * 9 * 8 * found.setup.micro_batch * IMAGE**2
    finding = next(each for each in found.findings if each.code == "GA026")
    assert "aten.convolution and aten.convolution_backward in 6 modules such as" in finding.message
    assert "more may be allocated" in finding.message
    memory = found.memory
    others = sum(each.high for each in memory.outside if each is not unseen)
    assert memory.process_high_bytes == memory.high_bytes + others + unseen.high


def test_a_transposed_convolution_unfolds_its_result():
    def build(micro_batch: int) -> Any:
        shape = (micro_batch, CHANNELS, IMAGE, IMAGE)
        inputs = (torch.zeros(shape), torch.zeros(micro_batch, WIDTH))
        return UNetLike(), (inputs, torch.zeros(shape)), functional.mse_loss

    trace = gradaccum.fit(model=build, gpu=room(60))
    assert trace.max_micro_batch > 2
    codes = [finding.code for finding in trace.findings]
    assert "GA026" in codes


def test_recurrent_layers_may_keep_as_much_again():
    found = gradaccum.fit(model=Recurrent(), batch=torch.zeros(4, 3, WIDTH), loss=lambda y: y.mean(), gpu=room(60))
    (reserve,) = [each for each in found.memory.outside if each.name.startswith("reserve")]
    lines = {line.name: line.bytes for line in found.memory.ledger}
    assert reserve.high == lines["activations of lstm"] > 0


def test_what_is_chosen_by_data_is_an_upper_bound_and_values_are_named():
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            y = self.linear(x)
            return y[y.sum(-1) > 0] if torch.isfinite(y).all() else y

    found = gradaccum.fit(model=Chooses(), batch=torch.zeros(4, WIDTH), loss=lambda y: y.mean(), gpu=room(60))
    messages = {finding.code: finding.message for finding in found.findings}
    assert "an upper bound" in messages["GA026"]
    assert "aten.all in the step itself as True" in messages["GA027"]


def test_a_step_that_raises_names_its_module_its_line_and_its_error():
    class Raises(nn.Module):
        def forward(self, x: Any) -> Any:
            raise ValueError("no such luck")

    model = nn.Sequential(nn.Linear(4, 4), Raises())
    with pytest.raises(TraceError, match=r"module '1': ValueError: no such luck \(test_fit.py, line \d+\)"):
        gradaccum.fit(model=model, batch=torch.zeros(2, 4), loss=lambda y: y.sum(), gpu="t4")


def test_a_step_that_makes_nothing_of_its_micro_batch_is_an_error():
    def build(micro_batch: int) -> Any:
        return nn.Linear(4, 4), torch.zeros(7, 4), lambda y: y.sum()

    with pytest.raises(InputError, match="makes no use of the micro-batch"):
        gradaccum.fit(model=build, gpu=room(60))


def test_the_time_is_bounded():
    with pytest.raises(gradaccum.GradaccumError, match=r"longer than the 1e-09 seconds of --time-limit"):
        gradaccum.fit(model=language, gpu="t4", time_limit=1e-9)
    assert gradaccum.fit(model=language, gpu="t4", time_limit=1e6, target_batch=4).plan


# Encoders and vision


@pytest.mark.parametrize(
    "build",
    [
        lambda m: (BertLike(), (torch.zeros(m, LENGTH, dtype=torch.int64),) * 2, cross_entropy),
        lambda m: (with_lora(BertLike()), (torch.zeros(m, LENGTH, dtype=torch.int64),) * 2, cross_entropy),
        vision(VitLike),
        vision(partial(VitLike, convolution=True)),
    ],
)
def test_encoders_and_vision_models_are_fitted(build: Callable[[int], Any]):
    found = gradaccum.fit(model=build, gpu=room(80), target_batch=4096)
    assert found.max_micro_batch > 2
    assert len(found.engines[0].traces) <= 3
    assert found.plan is not None
    assert WORDS > 0
    assert find_gpu(room(80)).memory_bytes == found.memory.capacity_bytes
