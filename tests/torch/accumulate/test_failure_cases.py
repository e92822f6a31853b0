"""Known failure cases of accumulating loops, by their names on the developers' list, with the right result.

`docs/correctness.md` has what other libraries give, and where each was found. A1, A3, A10, A11, A14, A16, A17, A22 and
A37 are among the rules in test_rules.py, A27 and A29 in test_cached.py. What is no matter of a loop is elsewhere: A30,
the search, in test_probe_search.py; A33 and A34, planning, in tests/core. A24 to A26 are DeepSpeed's and the pipelines'
own, A36 is of CUDA graphs.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from gradaccum.torch import AccumulationError, Accumulator, Ramp, ResumableBatches
from tests.torchrun import torchrun

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parent / "failure_worker.py"
POWERS = [torch.tensor([[10.0**i]], dtype=torch.float64) for i in range(6)]
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = LlamaConfig(vocab_size=32, pad_token_id=0, num_labels=3, **SHAPE)


def scalar():
    """One weight of 0, whose gradient is the mean of what it is multiplied with."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


class Moves:
    """By how much one weight has moved since it was asked last."""

    def __init__(self, model):
        self.model, self.before = model, 0.0

    def __call__(self):
        now = self.model.weight.item()
        self.before, moved = now, self.before - now
        return pytest.approx(moved, rel=1e-9)


@pytest.fixture
def two_ranks():
    """A process group of two of which only this one is there: its collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def test_on_two_ranks_a2_a12_a13_a18_a28(tmp_path):
    torchrun(2, str(WORKER), str(tmp_path))
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["a2"] == {"moved": [8.0], "weight": 4.0}
        assert found["a12"] == {"moved": [3.0] * 4, "weight": 5.0}
        assert found["a13"] == {"moved": [3.5], "weight": 6.0}
        assert found["a18"] == {"moved": [11.0], "weight": 4.0}
        assert found["a28"]["apart"] < 1e-12


@pytest.mark.parametrize("policy", ["step", "discard"])
def test_a4_an_epoch_that_is_left_does_not_reach_into_the_next(policy):
    model, optimizer = scalar()
    accumulator = Accumulator(model, optimizer, accum_steps=4)
    moved, moves = Moves(model), []
    for group in accumulator.groups(POWERS[:4]):
        for number, x in enumerate(group):
            group.backward(model(x).sum(), 1)
            if number == 2:
                break
        if policy == "step":
            group.step()
            moves.append(moved())
        else:
            accumulator.discard()
        break
    for group in accumulator.groups(POWERS[:4]):
        for x in group:
            group.backward(model(x).sum(), 1)
        group.step()
        moves.append(moved())
    assert moves == ([37.0, 277.75] if policy == "step" else [277.75])


def test_a5_two_models_are_stepped_with_every_group():
    (first, one), (second, other) = scalar(), scalar()
    moves, moved = [], (Moves(first), Moves(second))
    for group in Accumulator([first, second], [one, other], accum_steps=4).groups([*POWERS[:4], *POWERS[:4]]):
        for x in group:
            group.backward(first(x).sum() + 2 * second(x).sum(), 1)
        group.step()
        moves.append([each() for each in moved])
    assert moves == [[277.75, 555.5]] * 2


def differences(model, batches, answer):
    """Of one group of these batches against one batch of all: relative, in the 2-norm."""
    start = [each.detach().clone() for each in model.parameters()]
    for group in Accumulator(model, torch.optim.SGD(model.parameters(), lr=1.0), accum_steps=len(batches)).groups(
        batches
    ):
        for batch in group:
            answer(group, batch)
        update = group.step()
    moved = torch.cat([(a - b.detach()).flatten() for a, b in zip(start, model.parameters(), strict=True)])
    with torch.no_grad():
        for each, before in zip(model.parameters(), start, strict=True):
            each.copy_(before)
    whole = {key: torch.cat([each[key] for each in batches]) for key in batches[0]}
    model(**whole).loss.backward()
    right = torch.cat([each.grad.flatten() for each in model.parameters()])
    return float((moved - right).norm() / right.norm()), update


def test_a6_a_head_that_ignores_the_count_is_divided_once():
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(CONFIG).double()
    batches = [{"input_ids": torch.randint(1, 32, (2, 8)), "labels": torch.randint(3, (2,))} for _ in range(4)]
    apart, _ = differences(model, batches, lambda group, batch: group.backward_mean(model(**batch).loss, 2))
    assert apart < 1e-9


def test_a7_a_causal_model_has_as_many_targets_as_are_left_when_labels_are_shifted():
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).double()
    batches = [{"input_ids": each, "labels": each} for each in torch.randint(1, 32, (2, 1, 8))]
    batches[1] = {**batches[1], "labels": batches[1]["labels"].where(torch.arange(8) > 4, -100)}

    def answer(group, batch):
        group.backward_mean(model(**batch).loss, (batch["labels"][:, 1:] != -100).sum())

    apart, update = differences(model, batches, answer)
    assert apart < 1e-6  # the model takes its loss in fp32
    assert update.weight == 7 + 3


def test_a8_a9_one_place_divides_a_mean_and_a_sum_alike():
    tokens = [torch.full((1, 1), 2.0).double(), torch.full((3, 1), 10.0).double()]
    for sums in (True, False):
        model, optimizer = scalar()
        for group in Accumulator(model, optimizer, accum_steps=2).groups(tokens):
            for x in group:
                if sums:
                    group.backward(model(x).sum(), len(x))
                else:
                    group.backward_mean(model(x).mean(), len(x))
            group.step()
        assert -model.weight.item() == pytest.approx(8, rel=1e-12)


def test_a15_after_a_nan_the_next_group_is_as_if_it_had_not_been():
    model, optimizer = scalar()
    updates = []
    for group in Accumulator(model, optimizer, accum_steps=2, grad_norm=True).groups(
        [torch.full((1, 1), each).double() for each in (1.0, float("nan"), 1.0, 3.0)]
    ):
        for x in group:
            group.backward(model(x).sum(), 1)
        updates.append(group.step())
    assert [each.reason for each in updates] == ["non-finite gradient", ""]
    assert -model.weight.item() == 2


def test_a19_a20_flags_of_a_sharded_model_are_found_and_put_back_also_after_an_exception(two_ranks, monkeypatch):
    model = fully_shard(nn.Linear(1, 1), mesh=init_device_mesh("cpu", (2,)))
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters()), accum_steps=2, reduce="last")
    monkeypatch.setattr(accumulator.sync, "gather", lambda value, device: [value, value])
    (params,) = accumulator.sync._param_groups
    seen = []

    def break_down():
        for group in accumulator.groups([torch.ones(1, 1)] * 2):
            for x in group:
                seen.append(params.reduce_grads)
                group.backward(model(x).sum(), 1)
                if len(seen) == 2:
                    raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        break_down()
    assert seen == [False, True]
    assert (params.reduce_grads, params.all_reduce_grads) == (True, True)


def test_a21_a_static_graph_is_refused_before_anything_has_run(two_ranks):
    model = DistributedDataParallel(nn.Linear(1, 1), static_graph=True)
    with pytest.raises(AccumulationError, match="wrap without static_graph, or use reduce='every'"):
        Accumulator(model, torch.optim.SGD(model.parameters()), accum_steps=2)


@pytest.mark.parametrize("reduce", ["every", "last"])
def test_a23_a_sharded_model_in_bf16_sums_in_its_reduce_type(tmp_path, reduce):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)), mp_policy=policy)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for group in Accumulator(model, optimizer, accum_steps=1024, reduce=reduce).groups([torch.ones(1, 1)] * 1024):
            for x in group:
                group.backward(model(x).float().sum(), 1 / 1024)
            group.step()
        assert -model.weight.full_tensor().item() == 1024
    finally:
        dist.destroy_process_group()


def test_a31_another_count_begins_with_a_group_of_its_own():
    model, optimizer = scalar()
    sizes = []
    for group in Accumulator(model, optimizer, accum_steps=Ramp([(0, 4), (12, 5)])).groups([POWERS[0]] * 22):
        for x in group:
            group.backward(model(x).sum(), 1)
        sizes.append(group.step().micro_batches)
    assert sizes == [4, 4, 4, 5, 5]


@pytest.mark.parametrize("accum_steps", [2, 8])
def test_a32_after_four_updates_of_four_the_next_sample_is_the_sixteenth(accum_steps):
    model, optimizer = scalar()
    accumulator = Accumulator(model, optimizer, accum_steps=4)
    batches = ResumableBatches(40, 1, shuffle=False)
    for group in accumulator.groups(batches, count=len):
        for _ in group:
            group.backward(model(POWERS[0]).sum(), 1)
        group.step()
        if accumulator.progress.updates == 4:
            saved = accumulator.state_dict()
            break
    other = Accumulator(model, optimizer, accum_steps=accum_steps)
    other.load_state_dict(saved, group=False)
    again = ResumableBatches(40, 1, shuffle=False)
    again.resume(other)
    assert next(iter(again)) == [16]


def test_a35_what_is_done_every_few_updates_is_done_once_for_each():
    model, optimizer = scalar()
    accumulator = Accumulator(model, optimizer, accum_steps=8)
    validated = []
    for group in accumulator.groups([POWERS[0]] * 48):
        for x in group:
            group.backward(model(x).sum(), 1)
        if group.step().applied and accumulator.progress.updates % 2 == 0:
            validated.append(accumulator.progress.samples)
    assert validated == [16, 32, 48]
