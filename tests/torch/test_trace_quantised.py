"""Linear layers of 4 bits against what bitsandbytes' CUDA code allocates, with sizes worked out by hand.

bitsandbytes is not needed: its two operators are declared here, with the schema of its _ops.py, for the meta device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from gradaccum.memory.allocator import Allocator
from gradaccum.torch.trace import Counter, Job, Trace, cuda, record, replay

if TYPE_CHECKING:
    from collections.abc import Iterator

GEMM = (
    "gemm_4bit(Tensor A, Tensor B, int[] shapeB, Tensor absmax, int blocksize, str quant_type, Tensor? bias=None, "
    "Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None) -> Tensor"
)
QUANTIZE = "quantize_4bit(Tensor A, int blocksize, str quant_type, ScalarType quant_storage) -> (Tensor, Tensor)"

OUT, IN, ROWS = 96, 64, 520


@pytest.fixture(scope="module", autouse=True)
def bitsandbytes() -> Iterator[None]:
    if hasattr(torch.ops.bitsandbytes, "gemm_4bit"):  # some test before has imported the library itself
        yield
        return
    with torch.library._scoped_library("bitsandbytes", "FRAGMENT") as library:
        library.define(GEMM)
        library.define(QUANTIZE)

        def gemm(a: Any, b: Any, shape: Any, *rest: Any) -> Any:
            return a.new_empty((*a.shape[:-1], shape[0]))

        library.impl("gemm_4bit", gemm, "Meta")
        library.impl("quantize_4bit", lambda *args: (args[0].new_empty(1), args[0].new_empty(1)), "Meta")
        yield


class Quantised(nn.Module):
    """A linear layer in NF4 behind one that is trained. nested: the scales are quantised too."""

    def __init__(self, bias: bool = False, nested: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(IN, IN, dtype=torch.float16)
        self.packed = torch.empty(OUT * IN // 2, 1, dtype=torch.uint8)
        self.scales = torch.empty(OUT * IN // 64)
        self.nested = (
            [torch.empty(OUT * IN // 64, dtype=torch.uint8), torch.empty(256), torch.empty(())] if nested else []
        )
        self.bias = torch.empty(OUT, dtype=torch.float16) if bias else None

    def forward(self, x: Any) -> Any:
        with torch.no_grad():  # its backward is Python, which the recorder sees as it is
            product = torch.ops.bitsandbytes.gemm_4bit(
                x, self.packed, [OUT, IN], self.scales, 64, "nf4", self.bias, *self.nested
            )
        return self.first(x), product


def traced(rows: int = ROWS, **how: bool) -> Trace:
    def build(micro_batch: int) -> Job:
        module = Quantised(**how)
        x = torch.empty(rows, IN, dtype=torch.float16)

        def step() -> None:
            result, product = module(x)
            del product
            result.sum().backward()

        return Job(module=module, optimizer=torch.optim.SGD(module.parameters(), lr=1.0), step=step, batch=x)

    return record(build, 1, device=cuda((7, 5)), accum_steps=1, updates=1)


def born(trace: Trace) -> list[tuple[str, int]]:
    """What operators make in forward, workspaces included."""
    return [(block.op, block.bytes) for block in trace.blocks if block.phase == "forward" and block.op]


def test_the_weight_is_made_whole_and_dies_after_the_product():
    trace = traced()
    whole, product = 2 * OUT * IN, 2 * ROWS * OUT
    blocks = [number for number, block in enumerate(trace.blocks) if block.bytes in (whole, product)]
    assert [trace.blocks[each].bytes for each in blocks] == [whole, product]
    events = list(trace.events)
    weight, result = blocks
    assert events.index(weight) < events.index(result) < events.index(~weight)
    assert trace.unknown == ()


def test_a_bias_is_added_in_the_product_and_asks_for_the_other_workspace():
    assert "cuBLASLt of the forward thread" in {block.name for block in traced(bias=True).blocks}
    product = 2 * ROWS * OUT
    assert ("aten.addmm", product) in born(traced(bias=True))
    assert ("aten.mm", product) in born(traced())


def test_quantised_scales_are_made_whole_too():
    plain, nested = born(traced()), born(traced(nested=True))
    assert sum(size for _, size in nested) - sum(size for _, size in plain) == 2 * 4 * OUT * IN // 64


def test_few_rows_are_an_upper_bound():
    """ops.py:_gemm_4bit_use_custom_cuda: up to 512 rows a kernel may read the packed weight."""
    (guess,) = traced(rows=512).unknown
    assert guess.op == "bitsandbytes.gemm_4bit"
    assert guess.what.endswith("an upper bound for few tokens")


def test_quantising_allocates_scales_before_the_packed_weight():
    """And the whole weight dies afterwards: what a model in 4 bits leaves behind while it loads."""
    whole, packed, scales = 2 * OUT * IN, OUT * IN // 2, 4 * OUT * IN // 64

    def build(micro_batch: int, nothing: nn.Module) -> Job:
        weight = torch.empty(OUT, IN, dtype=torch.float16, device="meta")
        kept = torch.ops.bitsandbytes.quantize_4bit(weight, 64, "nf4", torch.uint8)
        del weight
        module = nn.Linear(1, 1)
        module.kept = kept
        return Job(module=module, optimizer=torch.optim.SGD(module.parameters(), lr=1.0), step=lambda: None)

    trace = record(build, 1, load=nn.Module, device=cuda((7, 5)), accum_steps=1, updates=1)
    assert [block.bytes for block in trace.blocks[:3]] == [whole, scales, packed]
    assert trace.events[:4] == (0, 1, 2, ~0)


def emptied(before: bool) -> Trace:
    def build(micro_batch: int, nothing: nn.Module) -> Job:
        large = torch.empty(50 * 2**20, dtype=torch.uint8, device="meta")
        del large
        if before:
            torch.cuda.empty_cache()
        module = nn.Linear(1, 1, device="meta")
        return Job(module=module, optimizer=torch.optim.SGD(module.parameters(), lr=1.0), step=lambda: None)

    return record(build, 1, load=nn.Module, device=cuda((7, 5)), accum_steps=1, updates=1)


def test_an_emptied_cache_is_empty_in_the_replay():
    kept, gone = emptied(False), emptied(True)
    assert (kept.emptied, gone.emptied) == ((), (2,))
    for trace, reserved in ((kept, 52 * 2**20), (gone, 2 * 2**20)):
        allocator = Allocator(None)
        peaks = replay(trace, allocator)
        assert (peaks.reserved, allocator.reserved) == (50 * 2**20 + (reserved == 52 * 2**20) * 2 * 2**20, reserved)
        assert replay(trace, Counter(1)).allocated == 50 * 2**20
    assert Trace.from_dict(gone.to_dict()) == gone
