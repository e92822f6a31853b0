"""What sharding and DDP allocate beside their shards, measured: `python -m benchmarks.measure_sharding FILE`.

A small model, an embedding, equal layers and a head, is trained for one update of two micro-steps of one token, so that
weights, gradients and buffers are all there is. Every allocation of PyTorch's own is counted by its profiler, in
each phase. What only a CPU allocates is left out: the process group is PyTorch's fake one, which moves no data, since
gloo keeps copies of its own, and two operations are written without the copies in another type that they make on a
CPU, and on a GPU do not. The tests read what this wrote.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard import _fsdp_collectives
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile, record_function
from torch.testing._internal.distributed.fake_pg import FakeStore

HIDDEN, LAYERS, VOCAB = 256, 4, 3072
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PRECISIONS = (("fp32", "bf16", "fp32"), ("fp32", "bf16", "bf16"), ("bf16", "bf16", "bf16"))
"""Types of the sharded weights, of what a layer computes with, and of what is reduced."""


class Layer(nn.Module):  # type: ignore[misc]
    """Two matrices, as an MLP has."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(HIDDEN, 4 * HIDDEN, bias=False)
        self.down = nn.Linear(4 * HIDDEN, HIDDEN, bias=False)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        """The residual stream, with the layer's part added."""
        done: torch.Tensor = stream + self.down(torch.relu(self.up(stream)))
        return done


class Small(nn.Module):  # type: ignore[misc]
    """A language model without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits."""
        stream = self.embedding(tokens)
        for layer in self.layers:
            stream = layer(stream)
        logits: torch.Tensor = self.head(stream)
        return logits


def cases() -> list[dict[str, Any]]:
    """What is measured."""
    found: list[dict[str, Any]] = []
    for world, (stored, computed, reduced), reshard, reduce in itertools.product(
        (2, 8), PRECISIONS, (True, False), ("every", "last")
    ):
        found.append(
            {
                "strategy": "fsdp2", "world": world, "shard_size": world, "stored": stored, "computed": computed,
                "reduced": reduced, "reshard_after_forward": reshard, "reduce": reduce,
            }
        )  # fmt: skip
    for (stored, computed, reduced), reduce in itertools.product(PRECISIONS, ("every", "last")):
        found.append(
            {
                "strategy": "hsdp", "world": 8, "shard_size": 4, "stored": stored, "computed": computed,
                "reduced": reduced, "reshard_after_forward": True, "reduce": reduce,
            }
        )  # fmt: skip
    for stored, view, reduce in itertools.product(("fp32", "bf16"), (False, True), ("every", "last")):
        found.append(
            {"strategy": "ddp", "world": 2, "stored": stored, "gradient_as_bucket_view": view, "reduce": reduce}
        )
    return found


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """The case, and in each phase the bytes live at its start and the most that are live during it.

    They count from the start of an update, when weights and optimizer states are there: these are `held`.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=case["world"])
    torch.manual_seed(0)
    stored = DTYPES[case["stored"]]
    model = _wrapped(Small().to(stored), case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    tokens = torch.zeros(1, 1, dtype=torch.int64)

    def update() -> None:
        for step in (1, 2):
            last = step == 2 or case["reduce"] == "every"
            if case["strategy"] != "ddp":
                model.set_requires_gradient_sync(last)
            else:
                model.require_backward_grad_sync = last
            with record_function(f"forward {step}"):
                loss = model(tokens).float().sum()
            with record_function(f"backward {step}"):
                loss.backward()
            del loss
        with record_function("optimizer step"):
            optimizer.step()
        optimizer.zero_grad()

    update()  # makes the optimizer's states
    update()  # and DDP's buckets in the order of the first backward pass
    held = {"weights": 0, "states": 0}
    for parameter in model.parameters():
        held["weights"] += _bytes(parameter)
        held["states"] += sum(_bytes(each) for each in optimizer.state[parameter].values() if each.dim())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        update()
    dist.destroy_process_group()
    return {**case, "held": held, "phases": phases_of(profiler)}


def _wrapped(model: nn.Module, case: dict[str, Any]) -> Any:
    if case["strategy"] == "ddp":
        replica = DistributedDataParallel(model, gradient_as_bucket_view=case["gradient_as_bucket_view"])
        replica.register_comm_hook(None, noop_hook)  # DDP's own reduction waits for a result that the fake group lacks
        return replica
    policy = MixedPrecisionPolicy(param_dtype=DTYPES[case["computed"]], reduce_dtype=DTYPES[case["reduced"]])
    shape, names = (case["world"],), ("shard",)
    if case["strategy"] == "hsdp":
        shape, names = (case["world"] // case["shard_size"], case["shard_size"]), ("replicate", "shard")  # type: ignore[assignment]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=case["reshard_after_forward"])
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def _bytes(tensor: torch.Tensor) -> int:
    local = getattr(tensor, "_local_tensor", tensor)
    return int(local.untyped_storage().nbytes())


def phases_of(profiler: Any) -> dict[str, dict[str, int]]:
    """Of each phase that was recorded by name: bytes live at its start, and the most during it."""
    events = profiler.profiler.kineto_results.events()
    phases = ("forward ", "backward ", "optimizer step")
    timed = [(each.start_ns(), 0, each.name()) for each in events if each.name().startswith(phases)]
    timed += [(each.start_ns(), 1, each.nbytes()) for each in events if each.name() == "[memory]"]
    live, name, found = 0, "", {}
    for _, is_memory, value in sorted(timed, key=lambda each: each[:2]):
        if not is_memory:
            name = value
            found[name] = {"start": live, "peak": live}
            continue
        live += value
        if name:
            found[name]["peak"] = max(found[name]["peak"], live)
    return found


def _as_a_gpu_does() -> None:
    """On a GPU _chunk_cat (aten/src/ATen/native/cuda/TensorShape.cu) and an addition convert as they go."""

    def copy_in(gradients: list[torch.Tensor], flat: torch.Tensor, world: int) -> None:
        at, rows = 0, flat.view(world, -1)
        for gradient in gradients:
            parts = gradient.view(world, -1)
            rows[:, at : at + parts.shape[1]].copy_(parts)
            at += parts.shape[1]

    def accumulate(parameter: Any) -> None:
        total, new = parameter.unsharded_accumulated_grad, parameter.unsharded_param.grad
        if total is not None and new is not None:
            for part, added in zip(total.split(1), new.split(1), strict=True):
                part += added
            parameter.unsharded_param.grad = None

    _fsdp_collectives.foreach_reduce_scatter_copy_in = copy_in
    FSDPParam.accumulate_unsharded_grad_if_needed = accumulate


def main() -> None:
    """Measure every case and write the file."""
    _as_a_gpu_does()
    torch.backends.mkldnn.enabled = False  # its matrix products have scratch space that a GPU's do not have
    rows = [measure(case) for case in cases()]
    write(Path(sys.argv[1]), {"torch": torch.__version__}, rows)


def write(path: Path, versions: dict[str, str], rows: list[dict[str, Any]]) -> None:
    """The rows as JSON, one a line, under what they have in common."""
    head = {**versions, "hidden": HIDDEN, "layers": LAYERS, "vocab": VOCAB}
    path.write_text(json.dumps(head)[:-1] + ',\n"rows": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n")


if __name__ == "__main__":
    main()
