"""Traps of two ranks, each beside what goes wrong by hand, and what may happen inside a loop without changing it.

Each check returns what is not as it should be.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel

from gradaccum.torch.accumulate import AccumulationError, Accumulator
from tests.torch.accumulate.cases import Case, loss_of, make_model, make_optimizer, micro_batch, truth
from tests.torch.accumulate.runs import differences, wrapped
from tests.torch.accumulate.traffic import Held, Traffic

MINE = {0: (1.0, 10.0), 1: (3.0, 30.0)}
"""What each rank's one weight is multiplied with: the sums are 11 and 33, their mean over the ranks 22."""


def scalar() -> tuple[nn.Module, list[torch.Tensor]]:
    """A model of one weight under DDP, and this rank's micro-batches."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    return DistributedDataParallel(model), [torch.tensor([[each]]).double() for each in MINE[dist.get_rank()]]


def by_accumulator(model, batches, **options) -> float:
    """The gradient, where the weights of all four micro-batches sum to the number of ranks."""
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters(), lr=1.0), accum_steps=2, **options)
    for group in accumulator.groups(batches):
        for x in group:
            group.backward(model(x).sum(), 0.5)
        group.step()
    return -model.module.weight.item()


def expect(**pairs) -> list[str]:
    """name=(found, right)."""
    return [f"{name} is {found}, not {right}" for name, (found, right) in pairs.items() if found != right]


def the_flag_is_set_before_ddps_forward() -> list[str]:
    """The last forward pass inside no_sync and its backward outside: nothing is reduced."""
    model, batches = scalar()
    for number, x in enumerate(batches):
        with model.no_sync():
            loss = model(x).sum()
            with nullcontext() if number else model.no_sync():
                loss.backward() if not number else None
        if number:
            loss.backward()
    by_hand = model.module.weight.grad.item()
    found = by_accumulator(*scalar())
    return expect(by_hand=(by_hand, sum(MINE[dist.get_rank()])), found=(found, 22.0))


def a_summing_hook_adds_earlier_sums_again() -> list[str]:
    """With a reduction in every pass; one that averages does not, and in the last pass alone goes with any."""

    def sums(state, bucket):
        work = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return work.then(lambda done: done.value()[0])

    model, batches = scalar()
    model.register_comm_hook(None, sums)
    for x in batches:
        model(x).sum().backward()
    by_hand = model.module.weight.grad.item()
    refused = ""
    try:
        by_accumulator(model, batches, reduce="every")
    except AccumulationError as error:
        refused = str(error)
    model, batches = scalar()
    model.register_comm_hook(None, allreduce_hook)
    averaged = by_accumulator(model, batches)
    every = by_accumulator(*scalar(), reduce="every")
    return expect(
        by_hand=(by_hand, 2 * (1 + 3) + 10 + 30),  # and 44 is right
        refused=("reduce='last'" in refused, True),
        averaged=(averaged, 22.0),
        every=(every, 22.0),
    )


def a_fused_optimizer_on_shards() -> list[str]:
    """PyTorch's fused SGD takes no DTensor with a grad_scale, so that ours divides before."""
    case = Case(wrap="fsdp2", optimizer="adamw fused", dtype=torch.float32, lengths=(4,))
    model = fully_shard(make_model(torch.float32), mesh=init_device_mesh("cpu", (2,)))
    optimizer = make_optimizer(Case(optimizer="sgd fused"), model)
    loss_of(model, micro_batch(case, 0, 0, 0))[0].backward()
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    refused = ""
    try:
        optimizer.step()
    except Exception as error:
        refused = str(error)
    return [*expect(refused=("_fused_sgd_" in refused, True)), *differences(case)]


def a_cached_loss_over_the_representations_of_all_ranks() -> list[str]:
    """Each rank has the loss of its own queries against every rank's keys; one reduction."""
    generator = torch.Generator().manual_seed(9)
    pairs = torch.randn(2, 4, 3, 2, 6, generator=generator, dtype=torch.float64)  # ranks, micro-batches, samples

    def tower():
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()

    def info_nce(queries, keys, first):
        targets = torch.arange(first, first + len(queries))
        return nn.functional.cross_entropy(queries @ keys.T / 0.1, targets, reduction="sum")

    bare = tower()
    model = DistributedDataParallel(bare)
    rank = dist.get_rank()
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters(), lr=1.0), accum_steps=4)

    def encode(batch):
        found = model(batch.flatten(0, 1)).view(len(batch), 2, 4)
        return found[:, 0], found[:, 1]

    def loss(found):
        queries, keys = found
        return info_nce(queries, torch.cat(all_gather(keys)), rank * len(queries)), len(queries)

    groups = accumulator.groups(list(pairs[rank]))
    group = next(groups)
    with Traffic() as traffic:
        group.cached(encode, loss)
        update = group.step()
    right = tower()
    whole = right(pairs.flatten(0, 2).flatten(0, 1)).view(24, 2, 4)
    (info_nce(whole[:, 0], whole[:, 1], 0) / 24).backward()
    found = expect(samples=(update.effective_batch, 24), reductions=(traffic.of("allreduce").count(_bytes(bare)), 1))
    for ours, start, each in zip(bare.parameters(), tower().parameters(), right.parameters(), strict=True):
        off = float((start - ours - each.grad).detach().norm() / each.grad.norm())
        found += [] if off < 1e-9 else [f"a gradient of shape {tuple(each.shape)} is off by {off:.1e}"]
    return found


def two_models_of_a_group_reduce_together() -> list[str]:
    """Both in the last micro-batch, with one clipping norm; by one concatenated batch on one process."""
    case, rank = Case(accum_steps=4), dist.get_rank()

    def losses(models, batch):
        first, second = (loss_of(each, batch) for each in models)
        return first[0] + 2 * second[0], first[1]

    def pair(wrap):
        bare = [make_model(torch.float64), make_model(torch.float64)]
        nn.init.ones_(bare[1][0].bias)
        return [wrap(each) for each in bare]

    models = pair(DistributedDataParallel)
    optimizers = [torch.optim.SGD(each.parameters(), lr=1.0) for each in models]
    for group in Accumulator(models, optimizers, accum_steps=4, clip_norm=0.05).groups(
        [micro_batch(case, rank, 0, index) for index in range(4)]
    ):
        for batch in group:
            group.backward(*losses(models, batch))
        group.step()
    right = pair(lambda bare: bare)
    every = [micro_batch(case, one, 0, index) for one in range(2) for index in range(4)]
    loss, weight = losses(right, together(every))
    (loss / weight).backward()
    parameters = [parameter for each in right for parameter in each.parameters()]
    nn.utils.clip_grad_norm_(parameters, 0.05)
    ours = [parameter for each in models for parameter in each.parameters()]
    off = [float((one - (each - each.grad)).detach().norm()) for one, each in zip(ours, parameters, strict=True)]
    return [f"a parameter is off by {each:.1e}" for each in off if not each < 1e-9]


def what_happens_inside_a_loop_changes_nothing() -> list[str]:
    """An evaluation, another accumulator with a model of its own, and slices of batches, in the middle of groups."""
    case, rank = Case(wrap="ddp", accum_steps=4, lengths=(8,), weights="ragged", clip_norm=0.05), dist.get_rank()
    models = [DistributedDataParallel(make_model(torch.float64)) for _ in range(2)]
    outer, inner = (
        Accumulator(each, make_optimizer(case, each), accum_steps=steps, clip_norm=0.05)
        for each, steps in zip(models, (4, 2), strict=True)
    )
    batches = [micro_batch(case, rank, 0, index) for index in range(8)]
    for group in outer.groups(batches):
        for number, batch in enumerate(group):
            with torch.no_grad():
                models[0].eval()(batch["x"][:1])
                models[0].train()
            group.backward(*loss_of(models[0], batch))
            if number == 1:
                for other in inner.groups(batches[:2]):
                    for each in other:
                        other.backward(*loss_of(models[1], each))
                    other.step()
        group.step()
    right, _ = truth(case, 2)
    seen_twice = [micro_batch(case, one, 0, index) for one in range(2) for index in range(2)]
    alone = make_model(torch.float64)
    optimizer = make_optimizer(case, alone)
    for _ in range(2):
        loss, weight = loss_of(alone, together(seen_twice))
        (loss / weight).backward()
        nn.utils.clip_grad_norm_(alone.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
    return [
        f"the {name} loop is another one"
        for name, model, exact in (("outer", models[0], right), ("inner", models[1], alone.parameters()))
        if not all(torch.allclose(*each, rtol=1e-9, atol=1e-12) for each in zip(model.parameters(), exact, strict=True))
    ]


def together(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One big batch."""
    return {name: torch.cat([each[name] for each in batches]) for name in batches[0]}


def reductions_and_bytes_are_those_of_the_loop_by_hand() -> list[str]:
    """Each update: the reductions of its way and 56 bytes; `after` asks besides which gradients there are."""
    case, found = Case(dtype=torch.float32), []
    for wrap, reduce, times in (
        *(("ddp", "last", 1), ("ddp", "every", 4), ("ddp", "after", 1)),
        *(("fsdp2", "every", 4), ("fsdp2", "last", 1)),
    ):
        model = wrapped(replace(case, wrap=wrap), make_model(torch.float32), init_device_mesh("cpu", (2,)))
        accumulator = Accumulator(model, make_optimizer(case, model), accum_steps=4, grad_norm=True, reduce=reduce)
        for number, group in enumerate(accumulator.groups([micro_batch(case, 0, 0, index) for index in range(12)])):
            with Traffic() as traffic:
                for batch in group:
                    group.backward(*loss_of(model, batch))
                group.step()
            if number < 2:
                continue  # DDP's buckets and the first expected weight are made once
            sizes = traffic.of("allreduce")
            if wrap == "ddp":
                whole = [_bytes(model)] * times
                flags = [4 * len(list(model.parameters()))] if reduce == "after" else []
                found += expect(**{f"{wrap}_{reduce}": (sorted(sizes), sorted([56, *flags, *whole]))})
            else:
                scattered = traffic.of("reduce_scatter")
                found += expect(**{f"{wrap}_{reduce}": ((len(scattered), sorted(sizes)[-1]), (3 * times, 56))})
    return found


def memory_is_flat_in_the_number_of_micro_batches() -> list[str]:
    """The most bytes of tensors that a group holds, of 2 micro-batches and of 16."""
    found = []
    for wrap, reduce in (("plain", "auto"), ("ddp", "last"), ("ddp", "after"), ("fsdp2", "every"), ("fsdp2", "last")):
        case, peaks = Case(wrap=wrap, dtype=torch.float32), []
        for steps in (2, 16):
            model = wrapped(case, make_model(torch.float32), init_device_mesh("cpu", (2,)))
            group_of_plain = dist.group.WORLD if wrap == "plain" else None
            accumulator = Accumulator(
                model, make_optimizer(case, model), accum_steps=steps, reduce=reduce, process_group=group_of_plain
            )
            batch = micro_batch(case, 0, 0, 0)
            most = []
            for group in accumulator.groups([batch] * 5 * steps):
                with Held() as held:
                    for each in group:
                        group.backward(*loss_of(model, each))
                    group.step()
                most.append(held.most)
            peaks.append(min(most[2:]))  # a reduction's own thread may hold a tensor for longer, now and then
        found += expect(**{f"{wrap}_{reduce}": (max(peaks), peaks[0])})
    return found


def _bytes(model: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in model.parameters())


def cases():
    """All of them."""
    return [
        the_flag_is_set_before_ddps_forward,
        a_summing_hook_adds_earlier_sums_again,
        a_fused_optimizer_on_shards,
        a_cached_loss_over_the_representations_of_all_ranks,
        two_models_of_a_group_reduce_together,
        what_happens_inside_a_loop_changes_nothing,
        reductions_and_bytes_are_those_of_the_loop_by_hand,
        memory_is_flat_in_the_number_of_micro_batches,
    ]
