"""The CUDA profile of a trace: each rule against what the named source allocates, with sizes worked out by hand."""

from __future__ import annotations

import pkgutil
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradaccum.torch.trace import Counter as Bytes
from gradaccum.torch.trace import Job, Trace, cpu, cuda, record, replay, trace_module
from gradaccum.torch.trace.attention import Request, choose
from tests.torch.cpu_steps import LENGTH, WIDTH, WORDS, Attention, Gated, Language, dense, words

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradaccum.torch.trace.events import Block

T4, A100, RTX3090, H100 = (7, 5), (8, 0), (8, 6), (9, 0)


class Call(nn.Module):
    """A linear layer, and a function of what it gives."""

    def __init__(self, function: Callable[[Any], Any], width: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(self.linear(x))


def once(
    function: Callable[[Any], Any],
    shape: tuple[int, ...] = (2, 3, 8),
    dtype: torch.dtype = torch.float32,
    capability: tuple[int, int] = A100,
    **options: Any,
) -> Trace:
    """One forward and backward through `Call(function)`."""
    module = Call(function, shape[-1]).to(dtype)
    options = {"accum_steps": 1, "updates": 1, "optimizer": "sgd", **options}
    x = torch.randn(shape, dtype=dtype)
    return trace_module(module, x, lambda y: y.float().sum(), device=cuda(capability), **options)


def made(trace: Trace, op: str, kind: str | None = None) -> list[int]:
    """The bytes of what an operator made, in order."""
    return [block.bytes for block in trace.blocks if block.op == op and kind in (None, block.kind)]


def ops(trace: Trace, phase: str) -> Counter[str]:
    return Counter(block.op for block in trace.blocks if block.phase == phase)


# Which kernel attention takes


def request(
    dtype: torch.dtype = torch.bfloat16, heads: tuple[int, int] = (8, 8), width: int = 64, **more: Any
) -> Request:
    tensor = partial(torch.empty, device="meta", dtype=dtype, requires_grad=True)
    query, key = tensor(2, heads[0], 128, width), tensor(2, heads[1], 128, width)
    options = {"mask": None, "dropout_p": 0.0, "is_causal": True, "enable_gqa": False, **more}
    return Request(query=query, key=key, value=key, **options)


@pytest.mark.parametrize(
    ("capability", "asked", "kernel"),
    [
        (T4, request(torch.float16), "efficient"),
        (T4, request(torch.bfloat16), "math"),
        (T4, request(torch.float32), "efficient"),
        (A100, request(), "flash"),
        (A100, request(torch.float32), "efficient"),
        (A100, request(torch.float64), "math"),
        (A100, request(mask=torch.empty(128, 128, device="meta"), is_causal=False), "efficient"),
        (A100, request(width=320), "efficient"),
        (A100, request(width=36), "flash"),
        (A100, request(width=36, mask=torch.empty(128, 128, device="meta")), "math"),
        (A100, request(heads=(8, 2)), "math"),
        (A100, request(heads=(8, 2), enable_gqa=True), "flash"),
        (T4, request(torch.float16, heads=(8, 2), enable_gqa=True), "math"),
        (RTX3090, request(width=224), "efficient"),
        (RTX3090, request(width=192), "flash"),
        (A100, request(width=224), "flash"),
        (H100, request(), "cudnn"),
        (H100, request(width=256), "flash"),
        (H100, request(dropout_p=0.1), "flash"),
        (H100, request(torch.float32), "efficient"),
    ],
)
def test_attention_takes_the_kernel_of_the_card(capability: tuple[int, int], asked: Request, kernel: str):
    assert choose(asked, capability) == kernel


def test_attention_keeps_to_what_the_person_allows():
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        assert choose(request(), H100) == "efficient"
    with sdpa_kernel(SDPBackend.MATH):
        assert choose(request(), A100) == "math"
    # sdp_utils.cpp:select_sdp_backend: "No available kernel. Aborting execution."
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION), pytest.raises(RuntimeError, match="no kernel that is allowed"):
        choose(request(heads=(8, 2), enable_gqa=True), H100)


def attended(x: Any, heads: int = 2, mask: Any = None, **options: Any) -> Any:
    q = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return functional.scaled_dot_product_attention(q, q, q, attn_mask=mask, **options).transpose(1, 2).flatten(2)


def test_flash_attention_keeps_no_scores_and_its_backward_accumulates_in_fp32():
    trace = once(attended, (1, 200, 128), torch.bfloat16)
    # 2 heads of 64: rows up to 256, widths up to 64.
    assert made(trace, "aten._scaled_dot_product_flash_attention_backward", "kernel buffer") == [
        4 * 2 * 256,
        4 * 2 * 256 * 64,
    ]
    scores = 2 * 200 * 200 * 2
    assert all(block.bytes < scores for block in trace.blocks if block.kind == "activation")


def test_grouped_heads_get_gradients_for_all_query_heads():
    def grouped(x: Any) -> Any:
        q = x.unflatten(-1, (4, -1)).transpose(1, 2)
        return functional.scaled_dot_product_attention(q, q[:, :2], q[:, :2], enable_gqa=True)

    trace = once(grouped, (1, 128, 128), torch.bfloat16)
    buffers = made(trace, "aten._scaled_dot_product_flash_attention_backward", "kernel buffer")
    assert buffers[-2:] == 2 * [128 * 4 * 32 * 2]


def test_efficient_attention_has_a_workspace_in_backward():
    trace = once(attended, (1, 100, 128), torch.float16, T4)
    tiles = 2 * 2
    assert made(trace, "aten._scaled_dot_product_efficient_attention_backward", "kernel buffer") == [
        4 * 2 * 100,
        tiles * (64 * 64 * 4 + 16),
    ]


def test_wide_heads_stage_keys_and_values_by_splits():
    trace = once(attended, (1, 128, 256), torch.float16, T4)
    buffers = made(trace, "aten._scaled_dot_product_efficient_attention_backward", "kernel buffer")
    staged = 4 * 2 * 2 * 64 * (128 + 128)
    assert buffers[-1] == 2 * 2 * 2 * (64 * 64 * 4 + 16) + staged


@pytest.mark.parametrize("capability", [A100, H100])
def test_a_padding_mask_becomes_a_bias(capability: tuple[int, int]):
    mask = torch.ones(1, 1, 100, 100, dtype=torch.bool, device="meta")
    trace = once(partial(attended, mask=mask), (1, 100, 128), torch.bfloat16, capability)
    assert made(trace, "aten.where") == [100 * 100 * 2]


def test_the_mathematics_keep_the_scores():
    trace = once(attended, (1, 128, 128), torch.float64)
    assert 2 * 128 * 128 * 8 in made(trace, "aten.softmax")
    # A card without bfloat16 in its kernels: scores in fp32, and the weights once more in 16 bits.
    trace = once(attended, (1, 128, 128), torch.bfloat16, T4)
    assert made(trace, "aten.softmax") == [2 * 128 * 128 * 4]
    assert 2 * 128 * 128 * 2 in made(trace, "aten._to_copy")


def test_a_width_that_is_no_multiple_of_8_is_padded():
    trace = once(attended, (1, 128, 72), torch.bfloat16)
    assert made(trace, "aten.constant_pad_nd")[:3] == 3 * [128 * 2 * 40 * 2]


# Operators that CUDA does in one kernel, or with a buffer


def test_softmax_of_fp16_in_fp32_is_one_kernel():
    half, bfloat = (
        once(lambda y: functional.softmax(y, -1, dtype=torch.float32), (4, 8), dtype)
        for dtype in (torch.float16, torch.bfloat16)
    )
    assert ops(half, "forward")["aten._to_copy"] == 0
    assert ops(bfloat, "forward")["aten._to_copy"] == 1


def test_softmax_backward_has_a_product():
    trace = once(lambda y: y.softmax(-1), (4, 8))
    assert made(trace, "aten._softmax_backward_data", "kernel buffer") == [4 * 8 * 4]
    trace = once(lambda y: y.log_softmax(-1).pow(2), (4, 8))
    assert made(trace, "aten._log_softmax_backward_data", "kernel buffer") == []
    # The gradient of a sum is one number, expanded; the kernel makes it contiguous.
    expanded = once(lambda y: y.log_softmax(-1), (4, 8))
    assert made(expanded, "aten._log_softmax_backward_data", "kernel buffer") == [4 * 8 * 4]


def test_dropout_keeps_a_mask_of_bytes():
    trace = once(lambda y: functional.dropout(y, 0.1), (4, 8))
    assert made(trace, "aten.native_dropout") == [4 * 8 * 4, 4 * 8]
    none = once(lambda y: functional.dropout(y, 0.0), (4, 8))
    assert "aten.native_dropout" not in ops(none, "forward")
    all_of_it = once(lambda y: functional.dropout(y, 1.0), (4, 8))
    assert "aten.native_dropout" not in ops(all_of_it, "forward")


def test_rms_norm_is_one_kernel_where_the_weight_has_the_same_type():
    step = partial(functional.rms_norm, normalized_shape=(8,), weight=torch.ones(8, device="meta", requires_grad=True))
    same = once(step, (4, 8))
    assert ops(same, "forward")["aten.rsqrt"] == 0
    other = once(step, (4, 8), torch.bfloat16)
    assert ops(other, "forward")["aten.rsqrt"] == 1


def test_many_indices_are_sorted_in_the_backward_of_an_embedding():
    def build(micro_batch: int) -> Job:
        table = nn.Embedding(100, 32)
        batch = torch.zeros(micro_batch, 1024, dtype=torch.int64)
        return Job(
            module=table, optimizer=torch.optim.SGD(table.parameters()), step=lambda: table(batch).sum().backward()
        )

    few, many = (record(build, size, device=cuda(A100), accum_steps=1, updates=1) for size in (1, 4))
    assert made(few, "aten.embedding_dense_backward", "kernel buffer") == [1024 * 32 * 4]
    copy, keys, places, *_ = made(many, "aten.embedding_dense_backward", "kernel buffer")
    assert (copy, keys, places) == (4096 * 32 * 4, 2 * 4096 * 8, 2 * 4096 * 8)


def test_a_loss_of_elements_has_a_buffer_and_a_wide_scalar():
    trace = once(lambda y: functional.mse_loss(y, torch.zeros_like(y)), (4, 8))
    assert made(trace, "aten.mse_loss") == [4 * 8 * 4, 4 * 8 * 4]
    each = once(lambda y: functional.mse_loss(y, torch.zeros_like(y), reduction="none"), (4, 8))
    assert made(each, "aten.mse_loss") == [4 * 8 * 4]


# Workspaces


def test_each_thread_gets_a_workspace_after_its_first_product():
    trace = record(dense(Gated), 2, device=cuda(T4))
    found = [(block.name, block.bytes) for block in trace.blocks if block.kind == "workspace"]
    assert found == [
        ("cuBLASLt of the forward thread", 2**20),
        ("cuBLAS of the forward thread", 8_519_680),
        ("cuBLAS of the backward thread", 8_519_680),
    ]
    place = trace.events.index(next(i for i, block in enumerate(trace.blocks) if block.kind == "workspace"))
    before = trace.blocks[trace.events[place - 1]]
    assert (before.op, before.kind) == ("aten.addmm", "activation")


def test_a_workspace_is_larger_on_hopper_and_can_be_set():
    def cublas(device: Any) -> int:
        trace = record(dense(Gated), 2, device=device, accum_steps=1, updates=1)
        return next(block.bytes for block in trace.blocks if block.name == "cuBLAS of the forward thread")

    assert cublas(cuda(H100)) == 32 * 2**20
    assert cublas(cuda(H100, cublas_workspace=4096)) == 4096


# Optimizers


@pytest.mark.parametrize(
    ("options", "temporaries"),
    [({}, {"aten._foreach_sqrt": 2}), ({"foreach": False}, {"aten.sqrt": 2, "aten.div": 2}), ({"fused": True}, {})],
)
def test_adamw_takes_many_tensors_at_once_by_default(options: dict[str, bool], temporaries: dict[str, int]):
    build = dense(lambda: nn.Linear(WIDTH, WIDTH), optimizer=partial(torch.optim.AdamW, **options))
    trace = record(build, 2, device=cuda(A100), updates=1)
    born = Counter(b.op for b in trace.blocks if b.phase == "optimizer" and b.kind == "temporary" and b.bytes > 4)
    assert born == temporaries


def test_the_state_of_an_optimizer_comes_with_the_first_update():
    trace = record(words(Language), 2, device=cuda(A100))
    weights = sum(block.bytes for block in trace.persistent if block.kind == "weight")
    states = [block for block in trace.blocks if block.kind == "optimizer state"]
    assert sum(block.bytes for block in states) == 2 * weights
    assert {block.phase for block in states} == {"optimizer"}
    assert "blocks.0.gated.up.weight" in {block.name for block in states}


def test_accumulation_keeps_gradients_at_the_peak_of_the_loss():
    one, two, four = (
        replay(record(words(partial(Language, blocks=6)), 1, device=cpu(), accum_steps=steps), Bytes(1))
        for steps in (1, 2, 4)
    )
    gradients = next(line.bytes for line in two.ledger if line.kind == "gradient")
    assert two.by_phase["loss"] - one.by_phase["loss"] == gradients
    assert four.allocated == two.allocated


# Autocast


def test_autocast_casts_as_written_by_hand():
    """The same step with every cast written out allocates the same."""

    def by_autocast(y: Any, weight: Any) -> Any:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return functional.softmax(functional.linear(y, weight), -1)

    def by_hand(y: Any, weight: Any) -> Any:
        product = functional.linear(y.to(torch.bfloat16), weight.to(torch.bfloat16))
        return functional.softmax(product, -1, dtype=torch.float32)

    def sizes(step: Callable[[Any, Any], Any]) -> list[tuple[str, int]]:
        weight = torch.empty(8, 8, device="meta", requires_grad=True)
        trace = once(lambda y: step(y, weight), (4, 8))
        return [(block.op, block.bytes) for block in trace.blocks]

    assert sizes(by_autocast) == sizes(by_hand)


def test_autocast_casts_a_weight_once_and_lets_it_go():
    def twice(y: Any, weight: Any) -> Any:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return functional.linear(functional.linear(y, weight), weight)

    trace = once(partial(twice, weight=torch.empty(64, 64, device="meta", requires_grad=True)), (2, 64))
    casts = [block for block in trace.blocks if block.op == "aten._to_copy" and block.phase == "forward"]
    assert [block.bytes for block in casts] == [2 * 64 * 2, 64 * 64 * 2]


def test_autocast_off_changes_nothing():
    def off(y: Any) -> Any:
        with torch.autocast("cuda", dtype=torch.bfloat16), torch.autocast("meta", enabled=False):
            return functional.linear(y, y)

    assert ops(once(off, (4, 8)), "forward")["aten._to_copy"] == 0


@pytest.mark.parametrize("keep", ["checkpoint", "reentrant"])
def test_autocast_holds_in_recomputation(keep: str):
    def build(micro_batch: int) -> Job:
        module = Language(keep=keep)
        batch = torch.zeros(micro_batch, LENGTH, dtype=torch.int64)
        made = torch.optim.SGD(module.parameters())

        def step() -> None:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = module(batch).float().mean()
            loss.backward()

        return Job(module=module, optimizer=made, step=step, batch=batch)

    trace = record(build, 2, device=cuda(A100), accum_steps=1, updates=1)
    assert ops(trace, "recompute")["aten._scaled_dot_product_flash_attention"] > 0
    assert ops(trace, "recompute")["aten._to_copy"] > 0


def test_grad_scaler_is_on_and_steps():
    def build(micro_batch: int) -> Job:
        module, batch = Gated(), torch.randn(micro_batch, WIDTH)
        made, scaler = torch.optim.AdamW(module.parameters()), torch.amp.GradScaler("cuda")

        def step() -> None:
            with torch.autocast("cuda"):
                loss = module(batch).sum()
            scaler.scale(loss).backward()

        def update() -> None:
            scaler.unscale_(made)
            scaler.step(made)
            scaler.update()
            made.zero_grad()

        return Job(module=module, optimizer=made, step=step, update=update, batch=batch)

    trace = record(build, 2, device=cuda(A100))
    assert [block.op for block in trace.blocks if block.kind == "optimizer state"]
    assert not torch.is_autocast_enabled("cuda")


def test_nothing_of_torch_is_changed_afterwards():
    names = (
        "torch:clear_autocast_cache",
        "torch:is_autocast_enabled",
        "torch.amp.autocast_mode:autocast.__init__",
        "torch.optim.optimizer:_get_foreach_kernels_supported_devices",
    )

    def now() -> list[Any]:
        return [pkgutil.resolve_name(name) for name in names]

    before = now()
    record(dense(Gated), 1, device=cuda(A100), accum_steps=1, updates=1)
    assert now() == before
    x = torch.empty(2, 2, device="meta", dtype=torch.float16)
    assert torch.softmax(x, -1, dtype=torch.float32).dtype is torch.float32
    with pytest.raises(RuntimeError):
        torch.is_autocast_enabled("meta")


# Which way the blocks point


def by_module(trace: Trace, module: str) -> set[str]:
    return {block.phase for block in trace.blocks if block.module == module}


def test_a_block_knows_its_module_in_backward_and_in_recomputation():
    trace = record(words(partial(Language, keep="checkpoint")), 2, device=cuda(A100))
    assert {"forward", "recompute", "backward"} <= by_module(trace, "blocks.1.gated.up")


def biggest(blocks: tuple[Block, ...]) -> Block:
    return max(blocks, key=lambda block: block.bytes)


def test_attention_is_chosen_in_recomputation_too():
    trace = record(words(partial(Language, keep="checkpoint")), 2, device=cuda(A100))
    efficient = "aten._scaled_dot_product_efficient_attention"
    assert ops(trace, "recompute")[efficient] == ops(trace, "forward")[efficient] > 0


def test_unknown_kernels_are_named():
    trace = trace_module(nn.Sequential(nn.Conv1d(3, 4, 3)), torch.randn(2, 3, 8), lambda y: y.sum(), device=cuda(A100))
    assert trace.unknown_ops() == {"aten.convolution": 1, "aten.convolution_backward": 1}
    assert {guess.module for guess in trace.unknown} == {"0"}
    recurrent = trace_module(nn.LSTM(4, 4), torch.randn(2, 3, 4), lambda y: y[0].sum(), device=cuda(A100))
    assert "aten._cudnn_rnn" in recurrent.unknown_ops()
    assert trace_module(Attention("sdpa"), torch.randn(2, 4, WIDTH), lambda y: y.sum()).unknown == ()


def test_the_largest_block_of_a_language_model_is_its_logits():
    trace = record(words(partial(Language, blocks=1)), 8, device=cuda(A100))
    assert biggest(trace.blocks).bytes in (8 * LENGTH * WORDS * 4, 8_519_680)
