"""The loop over micro-batches: one GPU, DDP or FSDP2, with tensor and context parallelism where the plan has them."""

from __future__ import annotations

from gradaccum.show.loop.head import constants, deferred_bytes, imports, mesh, opening, rank_names
from gradaccum.show.loop.template import fill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.show.loop.form import Form

LOOP = '''\
{opening}
{imports}

{constants}

{set_up}
{micro_batches}

def train_epoch(model, {group_argument}loader, {loss_name}, optimizer, scheduler):
    """Train on one pass over the loader; returns the loss of each update, as tensors.

    {loader_help}
    {loader_ends}
    {part}
    {loss_help}
    """
    device = next(model.parameters()).device
    batches, losses = iter(loader), []
    model.train()
    {next_group}
        {count}
        micro_losses = []
        for {item} in {items}:
            inputs = inputs.to(device, non_blocking=True)
            targets = targets.to(device, non_blocking=True)
            {backward}
            micro_losses.append(loss.detach())

        clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

        {log}
    return losses
'''

SET_UP = '''
def set_up(model{set_up_arguments}):
    """Start the process group and {wrap_word} the model; build the optimizer afterwards.{set_up_help}"""
    {mesh}
    {parallelize}
    {wrap}
    return model{also_returned}
'''

WRAP = {
    "single": "model = model.to(device_type)",
    "ddp": "model = DistributedDataParallel(model.to(device_type){ddp_group})",
    "fsdp2": """\
# For bf16 add mp_policy=MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32).
for module in (*blocks, model):
    fully_shard(module, mesh={shard_mesh})""",
}

LOADER_HELP = {
    "one rank": "loader: (inputs, targets) of MICRO_BATCH {unit}, a sized loader or a stream.",
    "ranks": """\
loader: (inputs, targets) of MICRO_BATCH {unit}, a sized loader or a stream; as many on every
    rank, as {sampler} deals them.""",
    "uneven": "loader: {micro_batches_call}.",
}

LOSS_HELP = {
    "mean": "loss_mean(outputs, targets): the mean over the samples of a micro-batch.",
    "tokens": """\
loss_sum(outputs, targets): the sum over the tokens that count, not their mean. Targets are
    already shifted, and IGNORE where a token carries no loss.""",
}

# What becomes of the short last group: an update of its own, or none.
NEXT_GROUP = {
    "step": "while group := list(islice(batches, ACCUM_STEPS)):  # the last group of an epoch may be short",
    "drop": "while len(group := list(islice(batches, ACCUM_STEPS))) == ACCUM_STEPS:  # a short last group is left out",
    "carry": "while len(group := list(islice(batches, ACCUM_STEPS))) == ACCUM_STEPS:  # groups span epochs",
}
LOADER_ENDS = {
    "step": "",
    "drop": "With drop_last=True, so that every group is whole.",
    "carry": "All epochs one after another, with drop_last=True.",
}

# The ways to weigh a micro-batch. "shares": its weight comes with it, from `micro_batches`.
COUNT = {
    "mean": "samples = sum(len(targets) for _, targets in group)",
    "tokens": """\
tokens = sum((targets != IGNORE).sum() for _, targets in group).to(device)
dist.all_reduce(tokens{group})  # all micro-batches of all ranks
tokens = tokens.item()  # the one wait for the GPU in an update
if tokens == 0:  # the same on every rank: no update
    continue""",
    "shares": "",
    "tokens on one rank": """\
tokens = sum((targets != IGNORE).sum().item() for _, targets in group)
if tokens == 0:  # no update, rather than 0 / 0
    continue""",
}

LOSS = {
    "mean": """\
# Its share of the samples really in the group: 1 / len(group) where all are equal.
loss = loss_mean(model(inputs), targets) * (len(targets) / samples)""",
    "tokens": """\
# The ranks average their gradients, the update wants the sum: hence {replicas}.
loss = loss_sum(model(inputs), targets) * ({replicas} / tokens)""",
    "shares": """\
# The ranks average their gradients, the weights add up to 1: hence {data_ranks}.
loss = loss_mean(model(inputs), targets) * ({data_ranks} * weight)""",
    "tokens on one rank": "loss = loss_sum(model(inputs), targets) / tokens",
}

BACKWARD = {
    "single": """\
{loss}
loss.backward()""",
    "ddp": """\
# Reduce in the last backward alone: no_sync spans forward AND backward of the others.
with nullcontext() if micro_step == len(group) else model.no_sync():
    {loss}
    loss.backward()""",
    "fsdp2": """\
{loss}
# Every backward reduces, so that a GPU keeps its shard of the gradient alone. To reduce
# in the last one only (model.set_requires_gradient_sync) keeps it unsharded meanwhile:
# {deferred_bytes}.
loss.backward()""",
    "fsdp2-deferred": """\
# Reduce in the last backward alone. Until then the gradient stays unsharded:
# {deferred_bytes}.
model.set_requires_gradient_sync(micro_step == len(group))
{loss}
loss.backward()""",
}

LOG = """\
update_loss = torch.stack(micro_losses).sum()
dist.all_reduce(update_loss{group})
losses.append(update_loss / {replicas})"""

MICRO_BATCHES_OF_ONE = '''
def micro_batches(dataset, epoch):
    """The loader of one shuffled epoch; the last micro-batch of each update is smaller."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(epoch))
    updates = order.split(TARGET_BATCH)  # the last one of an epoch may be short
    {drop_short}
    indices = [part.tolist() for update in updates for part in update.split(MICRO_BATCH)]
    return DataLoader(dataset, batch_sampler=indices)
'''

# `tensor_split` gives the first parts one more, which is how the shares of an uneven micro-step are dealt.
MICRO_BATCHES = '''
def micro_batches(dataset, rank, epoch):
    """The loader of one rank for one shuffled epoch: {yielded_help}.

    The last micro-step of an update is smaller. Its samples are shared out, one more to the first
    ranks; a rank without a share runs a repeated sample {without_loss}.
    """
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(epoch))
    indices, {marks} = [], []
    updates = order.split(TARGET_BATCH)  # the last one of an epoch may be short
    {drop_short}
    for update in updates:
        for micro_step in update.split(MICRO_BATCH * {data_ranks}):
            share = micro_step.tensor_split({data_ranks})[rank]
            indices.append((share if len(share) else micro_step[:1]).tolist())
            {mark}
    for (inputs, targets), {marked} in zip(DataLoader(dataset, batch_sampler=indices), {marks}):
        yield {yielded}
'''

DROP_SHORT = "updates = [update for update in updates if len(update) == TARGET_BATCH]  # it is left out"

SHARES = {
    "mean": {
        "yielded_help": "(inputs, targets, share of the update)",
        "without_loss": "with weight 0",
        "marks": "weights",
        "mark": "weights.append(len(share) / len(update))",
        "marked": "weight",
        "yielded": "inputs, targets, weight",
    },
    "tokens": {
        "yielded_help": "(inputs, targets)",
        "without_loss": "whose targets are IGNORE",
        "marks": "repeats",
        "mark": "repeats.append(len(share) == 0)",
        "marked": "repeated",
        "yielded": "inputs, torch.full_like(targets, IGNORE) if repeated else targets",
    },
}


def text(form: Form) -> str:
    """The loop for a form without pipeline parallelism."""
    weighting = _weighting(form)
    fragments = {
        "opening": opening(form),
        "imports": imports(_modules(form)),
        "constants": constants(form),
        "set_up": SET_UP if form.plan.num_gpus > 1 else "",
        "group_argument": "replicas, " if form.has_mesh and form.reduces else "",
        "loss_name": "loss_sum" if form.weighting == "tokens" else "loss_mean",
        "loss_help": LOSS_HELP[form.weighting],
        "count": COUNT[weighting],
        "loss": LOSS[weighting],
        "backward": BACKWARD[form.strategy],
        "deferred_bytes": deferred_bytes(form.plan),
        "next_group": NEXT_GROUP["step" if form.is_uneven else form.last_group],
        "loader_ends": "" if form.is_uneven else LOADER_ENDS[form.last_group] and "    " + LOADER_ENDS[form.last_group],
        "drop_short": "" if form.last_group == "step" else DROP_SHORT,
        "log": LOG if form.reduces else "losses.append(torch.stack(micro_losses).sum())",
        "group": ", group=replicas" if form.has_mesh else "",
    }
    fragments.update(_set_up(form))
    fragments.update(_loader(form))
    fragments.update(_items(form, weighting))
    fragments.update(rank_names(form))
    return fill(LOOP, fragments)


def _weighting(form: Form) -> str:
    """Which of the ways to weigh a micro-batch, by their names in COUNT and LOSS."""
    if form.weighting == "tokens":
        return "tokens" if form.reduces else "tokens on one rank"
    return "shares" if _is_dealt(form) else "mean"


def _is_dealt(form: Form) -> bool:
    """Whether an uneven last micro-step has to be shared out over several ranks."""
    return form.is_uneven and form.plan.data_parallel > 1


def _modules(form: Form) -> list[str]:
    """The import lines that the text needs."""
    lines = ["from itertools import islice", "import torch", "from torch.nn.utils import clip_grad_norm_"]
    if form.plan.num_gpus > 1:
        lines.append("import os")
        lines.append("import torch.distributed as dist")
        lines.append("from torch.distributed.device_mesh import init_device_mesh")
    if form.strategy == "ddp":
        lines.append("from contextlib import nullcontext")
        lines.append("from torch.nn.parallel import DistributedDataParallel")
    if form.is_sharded:
        lines.append("from torch.distributed.fsdp import fully_shard")
    if form.is_uneven:
        lines.append("from torch.utils.data import DataLoader")
    return lines


def _set_up(form: Form) -> dict[str, str]:
    """The parts of `set_up`: what comes in, how the model is wrapped, what goes out."""
    arguments, also_returned, lines = "", "", []
    if form.is_sharded:
        arguments += ", blocks"
        lines.append("blocks: the repeated layers (model.layers); each is gathered and freed on its own.")
    if form.has_mesh:
        arguments += ", parallelize"
        lines.append("parallelize(model, mesh): applies your tensor and context parallelism.")
        also_returned = ", mesh, replicas.get_group()" if form.reduces else ", mesh"
    return {
        "wrap_word": {"single": "place", "ddp": "wrap"}.get(form.strategy, "shard"),
        "set_up_arguments": arguments,
        "set_up_help": "\n\n    " + "\n    ".join(lines) + "\n    " if lines else "",
        "mesh": mesh(form),
        "parallelize": "parallelize(model, mesh)" if form.has_mesh else "",
        "wrap": WRAP["fsdp2" if form.is_sharded else form.strategy],
        "ddp_group": ", process_group=replicas.get_group()" if form.has_mesh else "",
        "shard_mesh": "replicas" if form.has_mesh else "mesh",
        "also_returned": also_returned,
    }


def _loader(form: Form) -> dict[str, str]:
    """What feeds the loop: any loader, or for an uneven update the function that deals its samples."""
    dealt = _is_dealt(form)
    kind = "uneven" if form.is_uneven else "ranks" if form.plan.num_gpus > 1 else "one rank"
    sampler = "DistributedSampler(dataset, DATA_PARALLEL, {rank})" if form.has_mesh else "DistributedSampler"
    parts = {
        "micro_batches": "" if not form.is_uneven else MICRO_BATCHES if dealt else MICRO_BATCHES_OF_ONE,
        "micro_batches_call": "micro_batches(dataset, {rank}, epoch)" if dealt else "micro_batches(dataset, epoch)",
        "loader_help": LOADER_HELP[kind],
        "sampler": sampler,
    }
    parts.update(SHARES[form.weighting])
    return parts


def _items(form: Form, weighting: str) -> dict[str, str]:
    """What the inner loop runs over. Strategies that reduce once per update have to know the last micro-step."""
    item = "inputs, targets, weight" if weighting == "shares" else "inputs, targets"
    if form.strategy in ("ddp", "fsdp2-deferred"):
        return {"item": f"micro_step, ({item})", "items": "enumerate(group, 1)"}
    return {"item": item, "items": "group"}
