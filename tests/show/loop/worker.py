"""Runs the cases on several processes: torchrun ... worker.py CASES RESULTS.

CASES are names of lists in `cases`, with commas between. Every rank writes RESULTS/<rank>.json: for each case what
was wrong, "" where nothing was.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
import warnings
from collections import OrderedDict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import gradaccum
from gradaccum.show.loop import training_loop
from tests.show.loop import cases as all_cases
from tests.show.loop.bench import Recorder, differences, expected_updates, loss_function, make_dataset, make_model
from tests.show.loop.cases import Case

TIMEOUT = timedelta(seconds=30)


REDUCE_SCATTER = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
"""What FSDP2 reduces a gradient with; PyTorch renamed it."""


class Reductions:
    """Counts the gradient reductions of each update: DDP's buckets and FSDP's reduce-scatters."""

    def __init__(self, recorder: Recorder) -> None:
        self.of_update: list[int] = []
        self._count = 0
        recorder.optimizer.register_step_pre_hook(self._close)
        self._reduce_scatter = getattr(dist, REDUCE_SCATTER)

    def _close(self, *_: Any) -> None:
        self.of_update.append(self._count)
        self._count = 0

    def watch_ddp(self, model: DistributedDataParallel) -> None:
        def hook(state, bucket):  # DDP reads annotations, and wants types there, not text
            self._count += 1
            return allreduce_hook(state, bucket)

        model.register_comm_hook(model.process_group, hook)

    def __enter__(self) -> Reductions:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            self._count += 1
            return self._reduce_scatter(*arguments, **keywords)

        setattr(dist, REDUCE_SCATTER, counted)
        return self

    def __exit__(self, *_: object) -> None:
        setattr(dist, REDUCE_SCATTER, self._reduce_scatter)


def loop_text(case: Case) -> str:
    """Exactly the text that is shown; with the mistake in it, where the case plants one."""
    text = training_loop(gradaccum.plan(**case.plan), case.strategy, case.weighting)
    if case.mutation is None:
        return text
    right, wrong = case.mutation
    assert text.count(right) == 1, f"the text has {right!r} {text.count(right)} times"
    return text.replace(right, wrong)


def execute(text: str, scaled: bool) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "train"}
    exec(compile(text, "train.py", "exec"), namespace)
    if not scaled:
        namespace["CLIP_NORM"] = math.inf  # the person's number to choose; the clipped cases run it as it is
    return namespace


def parallelize(model: nn.Module, mesh: DeviceMesh) -> None:
    """Tensor parallelism over every parameter; context parallelism needs nothing, since positions are independent."""
    if "tp" in (mesh.mesh_dim_names or ()):
        block = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        layers: dict[str, Any] = {"block0": block, "block1": block}
        layers["embed"] = RowwiseParallel(input_layouts=Replicate())
        layers["head"] = ColwiseParallel(output_layouts=Replicate())
        for name, layer in model.named_children():
            parallelize_module(layer, mesh["tp"], layers[name])


def this_ranks_part(dataset: TensorDataset, mesh: DeviceMesh | None) -> TensorDataset:
    """The tokens of this rank: under context parallelism a part of each sequence."""
    if mesh is None or "cp" not in (mesh.mesh_dim_names or ()):
        return dataset
    cp = mesh["cp"]
    return TensorDataset(*[each.tensor_split(cp.size(), dim=1)[cp.get_local_rank()] for each in dataset.tensors])


def dealt(dataset: TensorDataset, batch: int, ranks: int, rank: int, stream: bool, drop_last: bool) -> Any:
    """The loader that the text asks for, unshuffled: rank r of n gets the samples r, r + n, r + 2n, ..."""
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, ranks, rank, shuffle=False)
    loader = DataLoader(dataset, batch_size=batch, sampler=sampler, drop_last=drop_last)
    return (each for each in loader) if stream else loader


def run_data_parallel(case: Case, plan: gradaccum.Plan) -> list[str]:
    namespace = execute(loop_text(case), case.scaled)
    dataset = make_dataset(case.samples, case.ignored, plan.effective_batch)
    model: Any = make_model()
    arguments: list[Any] = [[model.block0, model.block1]] if case.strategy.startswith("fsdp2") else []
    mesh, groups = None, []
    if plan.num_gpus == 1:
        pass  # the text has no set-up: the person puts the model where it is to run
    elif plan.data_parallel < plan.num_gpus:
        model, mesh, *groups = namespace["set_up"](model, *arguments, parallelize)
    else:
        model = namespace["set_up"](model, *arguments)
    rank = mesh.get_local_rank("dp") if mesh else dist.get_rank() if plan.num_gpus > 1 else 0

    part = this_ranks_part(dataset, mesh)
    order = torch.arange(case.samples)
    stepped = plan.request.last_group == "step"
    if "micro_batches" in namespace:
        order = torch.randperm(case.samples, generator=torch.Generator().manual_seed(3))
        loader = namespace["micro_batches"](part, *([rank] if plan.data_parallel > 1 else []), 3)
    else:
        loader = dealt(part, plan.micro_batch, plan.data_parallel, rank, case.stream, not stepped)

    recorder = Recorder({name.removeprefix("module."): each for name, each in model.named_parameters()})
    with Reductions(recorder) as reductions:
        if isinstance(model, DistributedDataParallel):
            reductions.watch_ddp(model)
        loss = loss_function(case.weighting, case.scaled)
        losses = namespace["train_epoch"](model, *groups, loader, loss, recorder.optimizer, recorder.scheduler)

    updates = [each for each in order.split(plan.effective_batch) if stepped or len(each) == plan.effective_batch]
    expected = expected_updates(dataset, updates, case.weighting, case.scaled, namespace["CLIP_NORM"])
    wrong = list(differences(recorder, losses, expected))
    micro_steps = [-(-len(update) // plan.device_batch) for update in updates]
    units = 3 if case.strategy.startswith("fsdp2") else 1 if case.strategy == "ddp" else 0  # two blocks and the rest
    wanted = [units * (steps if case.strategy == "fsdp2" else 1) for steps in micro_steps]
    if case.ignored == "group":
        del wanted[1]
    if reductions.of_update != wanted:
        wrong.append(f"reductions of each update: {reductions.of_update} instead of {wanted}")
    return wrong


def run_pipeline(case: Case, plan: gradaccum.Plan) -> list[str]:
    namespace = execute(loop_text(case), case.scaled)
    dataset = make_dataset(case.samples, case.ignored, plan.effective_batch)

    def build_stage(index: int, num_stages: int, mesh: DeviceMesh | None = None) -> nn.Module:
        layers = list(make_model().named_children())
        size = len(layers) // num_stages
        stage = nn.Sequential(OrderedDict(layers[index * size : (index + 1) * size]))
        if mesh is not None:
            parallelize(stage, mesh)
        return stage

    loss = loss_function(case.weighting, case.scaled)
    schedule, stages, mesh, *groups = namespace["set_up"](build_stage, loss)
    rank = mesh.get_local_rank("dp")
    part, update = this_ranks_part(dataset, mesh), plan.micro_batch * plan.accum_steps
    loader = dealt(part, update, plan.data_parallel, rank, case.stream, drop_last=False)

    recorder = Recorder({name: each for stage in stages for name, each in stage.submod.named_parameters()})
    epoch = (schedule, stages, mesh, *groups, loader, recorder.optimizer, recorder.scheduler)
    with Reductions(recorder) as reductions:
        losses = namespace["train_epoch"](*epoch)

    whole = case.samples // plan.effective_batch
    updates = torch.arange(whole * plan.effective_batch).reshape(whole, plan.effective_batch)
    expected = expected_updates(dataset, updates, case.weighting, case.scaled, namespace["CLIP_NORM"])
    is_last = any(stage.is_last for stage in stages)
    wrong = list(differences(recorder, losses if is_last else None, expected))
    if not is_last and losses:
        wrong.append("losses on a rank without the last stage")
    wanted = [len(stages) if groups else 0] * len(expected)
    if reductions.of_update != wanted:
        wrong.append(f"reductions of each update: {reductions.of_update} instead of {wanted}")
    return wrong


def run(case: Case) -> str:
    plan = gradaccum.plan(**case.plan)
    try:
        wrong = run_pipeline(case, plan) if plan.pipeline_parallel > 1 else run_data_parallel(case, plan)
    except Exception:
        return traceback.format_exc()
    return "\n".join(wrong)


def main() -> None:
    cases = [case for name in sys.argv[1].split(",") for case in getattr(all_cases, name)]
    results = Path(sys.argv[2])
    warnings.simplefilter("error")
    # FSDP2 says so of every model whose last layer is linear; the loop does nothing in place on the outputs.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    found = {case.name: run(case) for case in cases}
    (results / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
