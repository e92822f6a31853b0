"""Finding the micro-batch: this package beside Accelerate's and Lightning's finders, on one task under one limit.

The task is a small transformer on the CPU, and memory runs out where the live tensors of the process pass the limit:
the same counter and the same error for all three. Truth is trying every micro-batch. Each finder has a process of its
own. Accelerate wraps a function that trains two updates; Lightning has its Tuner, with its usual three steps for each
trial, in both modes; this package tries a live model, as they do, and apart in fresh processes, as it is meant to.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks.common import asked_runs, table, write_result
from benchmarks.environments import InstallError, library_environment, source_environ

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.environments import Environment

PEERS = ("accelerate==1.15.0", "lightning==2.6.6")

TARGET = 64
LIMIT = 16 * 2**20
"""Bytes of live tensors; about 27 sequences of the task fit."""

WIDTH, LENGTH, WORDS, BLOCKS = 64, 32, 200, 2

FINDERS = {
    "gradaccum, apart": "apart",
    "gradaccum, live": "live",
    "Accelerate find_executable_batch_size": "accelerate",
    "Lightning, power": "lightning_power",
    "Lightning, binsearch": "lightning_binsearch",
}


def main() -> None:
    """Measure, print and write `results/finder.json`."""
    runs = asked_runs(__doc__.splitlines()[0], 3)
    try:
        environment = library_environment("finders", *PEERS)
    except InstallError as error:
        raise SystemExit(f"the peers cannot be installed, so there is nothing to measure: {error}") from None
    truth = _in_process(environment, "truth")
    measured = {name: [_in_process(environment, how) for _ in range(runs)] for name, how in FINDERS.items()}
    rows, results = [], []
    for name, found in measured.items():
        middle = sorted(found, key=lambda each: each["seconds"])[len(found) // 2]
        kept = middle["micro_batch"] * middle["accum_steps"] == TARGET
        results.append(
            {"finder": name, **middle, "keeps_target": kept, "seconds_of_all": [e["seconds"] for e in found]}
        )
        rows.append([
            name, str(middle["largest"]), str(middle["trials"]), str(middle["ooms"]), f"{middle['seconds']:.1f}",
            f"{middle['micro_batch']} x {middle['accum_steps']}", "yes" if kept else "no",
        ])  # fmt: skip
    print(f"\nlargest that fits, tried one by one: {truth['largest']}; target batch {TARGET}\n")
    print(table(["finder", "largest", "trials", "out of memory", "seconds", "pair", "keeps 64"], rows))
    versions = {name: environment.version(name) for name in ("torch", "accelerate", "lightning")}
    write_result(
        "finder", __doc__.splitlines()[0], runs, 3, versions, truth=truth["largest"], limit_bytes=LIMIT, finders=results
    )


def _in_process(environment: Environment, how: str) -> dict[str, Any]:
    command = [environment.program("python"), "-W", "ignore", "-m", "benchmarks.bench_finder", "--only", how]
    done = subprocess.run(command, env=source_environ(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{how} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{how}: {found}", flush=True)
    return found


# In the measured process


def build(micro_batch: int) -> Any:
    """The task: model, batch and loss."""
    return model(), batch_of(micro_batch), _loss


def model() -> Any:
    """A small transformer that predicts words."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True)
    encoder = nn.TransformerEncoder(block, BLOCKS, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(WORDS, WIDTH), encoder, nn.Linear(WIDTH, WORDS))


def batch_of(micro_batch: int) -> Any:
    """Random words."""
    import torch

    return torch.randint(0, WORDS, (micro_batch, LENGTH))


def _loss(result: Any) -> Any:
    return result.flatten(0, 1).logsumexp(-1).mean()


class Tried:
    """The micro-batches that a peer tried, in order, and how often memory ran out, with the limit that it ran into."""

    def __init__(self) -> None:
        from gradaccum.torch.probe.meter import HostMeter

        self.sizes: list[int] = []
        self.ooms = 0
        self.meter = HostMeter(LIMIT)
        self.meter.counter.error = self._error

    def step(self, module: Any, batch: Any) -> Any:
        """The loss."""
        if not self.sizes or self.sizes[-1] != len(batch):
            self.sizes.append(len(batch))
        return _loss(module(batch))

    def _error(self, said: str) -> RuntimeError:
        """As PyTorch's allocator of the CPU words it, which both peers know."""
        self.ooms += 1
        return RuntimeError(f"DefaultCPUAllocator: can't allocate memory: {said}")

    def answer(self, largest: int, begun: float) -> None:
        """Print it."""
        answer(largest, len(self.sizes), self.ooms, (largest, TARGET // largest), begun)


def answer(largest: int, trials: int, ooms: int, pair: tuple[int | None, int | None], begun: float) -> None:
    """Print what was found; seconds are from the call to the answer, without importing the libraries."""
    seconds = round(time.perf_counter() - begun, 2)
    found = {"largest": largest, "trials": trials, "ooms": ooms, "micro_batch": pair[0], "accum_steps": pair[1]}
    print(json.dumps({**found, "seconds": seconds}))


def truth() -> None:
    """Every micro-batch from 1 on, until one does not fit."""
    from gradaccum.torch.build import as_job
    from gradaccum.torch.probe.meter import HostMeter
    from gradaccum.torch.probe.trial import run_trial

    begun, size = time.perf_counter(), 0
    while size < TARGET:
        make = functools.partial(lambda tried: as_job(build(tried)), size + 1)
        if not run_trial(make, HostMeter(LIMIT), size + 1, timed=False).ok:
            break
        size += 1
    answer(size, size + 1, 1, (size, 1), begun)


def apart() -> None:
    """This package, a fresh process for each trial."""
    from gradaccum.torch import find_micro_batch

    begun = time.perf_counter()
    found = find_micro_batch(build, target_batch=TARGET, memory_limit=LIMIT, device="cpu")
    answer(found.max_micro_batch, len(found.trials), found.ooms, (found.micro_batch, found.accum_steps), begun)


def live() -> None:
    """This package, with the model that is there."""
    import torch

    from gradaccum.torch import find_micro_batch

    module = model()
    optimizer = torch.optim.AdamW(module.parameters())

    def step(micro_batch: int) -> None:
        _loss(module(batch_of(micro_batch))).backward()

    begun = time.perf_counter()
    found = find_micro_batch(model=module, optimizer=optimizer, step=step, target_batch=TARGET, memory_limit=LIMIT)
    answer(found.max_micro_batch, len(found.trials), found.ooms, (found.micro_batch, found.accum_steps), begun)


def accelerate() -> None:
    """A function that trains two updates, begun anew with a tenth less after each error."""
    import torch
    from accelerate.utils import find_executable_batch_size

    tried = Tried()

    def train(batch_size: int) -> int:
        with tried.meter:
            module = model()
            optimizer = torch.optim.AdamW(module.parameters())
            for _ in range(2):
                for _ in range(2):
                    tried.step(module, batch_of(batch_size)).backward()
                optimizer.step()
                optimizer.zero_grad()
        return batch_size

    begun = time.perf_counter()
    tried.answer(find_executable_batch_size(train, starting_batch_size=TARGET)(), begun)


def lightning(mode: str) -> None:
    """The Tuner of a module with a `batch_size`, from its usual 2 on."""
    import lightning
    import torch
    from lightning.pytorch.tuner import Tuner

    tried, data = Tried(), batch_of(4 * TARGET)

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.batch_size = model(), 2

        def training_step(self, batch: Any) -> Any:
            return tried.step(self.model, batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(data, self.batch_size)

    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(accelerator="cpu", accumulate_grad_batches=2, **options)
    steps = trainer.fit_loop.epoch_loop.automatic_optimization
    run = steps.run

    def limited(*arguments: Any) -> Any:
        """Only steps: what the Tuner saves and restores between them would be on the host if there were a GPU."""
        with tried.meter:
            return run(*arguments)

    steps.run = limited
    begun = time.perf_counter()
    tried.answer(Tuner(trainer).scale_batch_size(Module(), mode=mode), begun)


ONE: dict[str, Callable[[], None]] = {
    "truth": truth,
    "apart": apart,
    "live": live,
    "accelerate": accelerate,
    "lightning_power": lambda: lightning("power"),
    "lightning_binsearch": lambda: lightning("binsearch"),
}

if __name__ == "__main__":
    if "--only" in sys.argv:
        ONE[sys.argv[-1]]()
    else:
        main()
