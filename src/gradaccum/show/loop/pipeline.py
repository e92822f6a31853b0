"""The loop around a pipeline schedule, which runs the micro-batches of an update itself."""

from __future__ import annotations

from gradaccum.show.loop.head import constants, deferred_bytes, imports, mesh, opening, rank_names
from gradaccum.show.loop.template import fill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.plan import Plan
    from gradaccum.show.loop.form import Form

LOOP = '''\
{opening}
{imports}

{constants}


def set_up(build_stage, {loss_name}):
    """Start the process group and build the stages of this rank; build the optimizer afterwards.

    build_stage(index, num_stages{mesh_argument}): the module of a stage{parallelized}.
    {loss_help}
    """
    {mesh}
    num_stages = {num_stages}
    stages = []
    for index in range(mesh.get_local_rank("pp"), num_stages, PIPELINE_PARALLEL):
        module = build_stage(index, num_stages{mesh_argument}).to(device_type)
        {shard}
        device = next(module.parameters()).device
        stages.append(PipelineStage(module, index, num_stages, device, group=mesh.get_group("pp")))
    {why_schedule}
    schedule = {schedule}({stages}, ACCUM_STEPS, loss_fn={loss_name}{scale_grads})
    return schedule, stages, mesh{replicas_returned}


def train_epoch(schedule, stages, mesh, {replicas_argument}loader, optimizer, scheduler):
    """Train on one pass over the loader; returns the loss of each update, on the last stage alone.

    loader: (inputs, targets) of an update, MICRO_BATCH * ACCUM_STEPS {unit}, the same on every
        stage: DistributedSampler(dataset, DATA_PARALLEL, {rank}).
    {part}
    """
    device, losses = stages[0].device, []
    parameters = [each for stage in stages for each in stage.submod.parameters()]
    for inputs, targets in loader:
        if len(targets) < MICRO_BATCH * ACCUM_STEPS:
            break  # the schedule wants full micro-batches: the rest of the epoch is left out
        targets = targets.to(device, non_blocking=True)
        {count}
        first = [inputs.to(device, non_blocking=True)] if stages[0].is_first else []
        micro_losses = []
        schedule.step(*first, target=targets, losses=micro_losses, return_outputs=False)

        gradients = [each.grad for each in parameters if each.grad is not None]
        {scale}
        # The norm over all stages: clip_grad_norm_ would see the stages of this rank alone.
        squares = get_total_norm(gradients){full_norm} ** 2
        dist.all_reduce(squares, group=mesh.get_group("pp"))
        clip_grads_with_norm_(parameters, CLIP_NORM, squares.sqrt())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

        if micro_losses:
            update_loss = torch.stack(micro_losses).detach().sum()
            {reduce_loss}
            losses.append(update_loss / {loss_divisor})
    return losses
'''

LOSS_HELP = {
    "mean": "loss_mean(outputs, targets): the mean over the samples of a micro-batch. The schedule averages.",
    "tokens": """\
loss_sum(outputs, targets): the sum over the tokens that count, not their mean. Targets are
    already shifted, and IGNORE where a token carries no loss.""",
}

COUNT = """\
tokens = (targets != IGNORE).sum()
{reduce_tokens}
tokens = tokens.item()  # the one wait for the GPU in an update
if tokens == 0:  # the same on every rank: no update
    continue"""

SCALE = """\
for gradient in gradients:
    gradient.mul_({scale_factor})  # {why_scale}"""

SHARD = """\
# The schedule reduces once per update. Until then the gradient stays unsharded:
# {deferred_bytes}.
fully_shard(module, mesh=replicas, reshard_after_forward=False)"""


def text(form: Form) -> str:
    """The loop for a form with pipeline parallelism: full micro-batches, reduced once per update by the schedule."""
    plan = form.plan
    by_tokens, interleaved = form.weighting == "tokens", plan.virtual_pipeline > 1
    shares_layers = plan.tensor_parallel * plan.context_parallel > 1
    schedule, why = _schedule(plan)
    fragments = {
        "opening": opening(form),
        "imports": imports(_modules(form, schedule)),
        "constants": constants(form),
        "loss_name": "loss_sum" if by_tokens else "loss_mean",
        "loss_help": LOSS_HELP[form.weighting],
        "mesh": mesh(form),
        "mesh_argument": ", mesh" if shares_layers else "",
        "parallelized": ", tensor and context parallel" if shares_layers else "",
        "num_stages": "PIPELINE_PARALLEL * VIRTUAL_PIPELINE" if interleaved else "PIPELINE_PARALLEL",
        "shard": SHARD if form.reduces else "",
        "deferred_bytes": deferred_bytes(plan),
        "why_schedule": why,
        "schedule": schedule,
        "stages": "stages" if interleaved else "stages[0]",
        "scale_grads": ", scale_grads=False" if by_tokens else "",
        "replicas_returned": ", replicas.get_group()" if form.reduces else "",
        "replicas_argument": "replicas, " if form.reduces else "",
        "count": COUNT if by_tokens else "",
        "reduce_tokens": "dist.all_reduce(tokens, group=replicas)" if form.reduces else "",
        "scale": SCALE if by_tokens else "",
        "scale_factor": "{replicas} / tokens" if form.reduces else "1 / tokens",
        "why_scale": "FSDP averaged over the ranks" if form.reduces else "the mean over the update's tokens",
        "full_norm": ".full_tensor()" if form.reduces or plan.tensor_parallel > 1 else "",
        "reduce_loss": "dist.all_reduce(update_loss, group=replicas)" if form.reduces else "",
        "loss_divisor": "tokens" if by_tokens else "(ACCUM_STEPS * {replicas})" if form.reduces else "ACCUM_STEPS",
    }
    fragments.update(rank_names(form))
    return fill(LOOP, fragments)


def _schedule(plan: Plan) -> tuple[str, str]:
    """The schedule that takes this many micro-batches, and a comment where it is not the usual one.

    torch.distributed.pipelining: Schedule1F1B refuses fewer micro-batches than stages, ScheduleInterleaved1F1B a
    count that is not a multiple of max(1, count // ranks).
    """
    count, ranks = plan.accum_steps, plan.pipeline_parallel
    if plan.virtual_pipeline == 1:
        if count >= ranks:
            return "Schedule1F1B", ""
        return "ScheduleGPipe", "# Schedule1F1B refuses fewer micro-batches than stages."
    if count % max(1, count // ranks) == 0:
        return "ScheduleInterleaved1F1B", ""
    return "ScheduleLoopedBFS", "# ScheduleInterleaved1F1B refuses this count of micro-batches."


def _modules(form: Form, schedule: str) -> list[str]:
    """The import lines that the text needs."""
    lines = [
        "import os",
        "import torch",
        "import torch.distributed as dist",
        "from torch.distributed.device_mesh import init_device_mesh",
        f"from torch.distributed.pipelining import PipelineStage, {schedule}",
        "from torch.nn.utils import clip_grads_with_norm_, get_total_norm",
    ]
    if form.reduces:
        lines.append("from torch.distributed.fsdp import fully_shard")
    return lines
