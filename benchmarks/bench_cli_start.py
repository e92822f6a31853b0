"""How long `gradaccum plan` takes as a whole process, against bare Python and against comparable tools.

Every program runs from an environment of its own, installed from a wheel and compiled, and starts in its turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.common import CACHE, Spread, asked_runs, ratios, spread, table, take_turns, verdict, write_result
from benchmarks.environments import Environment, InstallError, own_environment, peer_environment, plain_environ

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WHAT = "the start of `gradaccum plan` as a whole process, in times of bare Python"
RUNS = 50
LIMIT = 5
"""`gradaccum plan` in times of `python -I -c pass`: the median of the pairs."""
LARGEST = 100 * 10**6
"""A peer that installs more bytes than this is no peer: its start is spent on what we do not do."""

SILENT = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
"""What becomes of a measured process's output."""

PLAN = "plan -m 4 -g 8 -t 500 -s 2048"
OURS, BARE = "gradaccum", "bare python"

MODEL = CACHE / "model.json"
MODEL_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    # llm-mem-planner reads the dimensions of latent attention, and needs them.
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
"""What the memory calculators are asked about: a model of 8 billion parameters, from a file, so without a network."""

TYPER_APP = CACHE / "typer_app.py"
TYPER_SOURCE = '''\
import typer


def plan(micro_batch: int, num_gpus: int, target_batch: int, sequence_length: int = 2048, rounding: str = "round"):
    """The accumulation steps of one update."""


typer.run(plan)
'''
"""The five inputs as a Typer application."""


@dataclass(frozen=True)
class Peer:
    """A tool to compare with. command: a program of its environment, and its arguments."""

    name: str
    licence: str
    does: str
    command: tuple[str, ...]


PEERS = (
    Peer(
        "vramcalc",
        "MIT",
        "memory of one training step, from a model's configuration",
        ("vramcalc", str(MODEL), "--train", "--batch", "4", "--seq", "2048"),
    ),
    Peer(
        "llm-mem-planner",
        "Apache-2.0",
        "memory per rank, from a model's configuration",
        ("llm-mem-planner", "--config", str(MODEL), *"--seq-len 2048 --batch 4 --tp 8 --dp 1 --sp 1 --ep 1".split()),
    ),
    Peer("typer", "MIT", "for orientation: the help of a Typer command", ("python", str(TYPER_APP), "--help")),
)


def main() -> None:
    """Install, run everything once to see that it works, then take turns."""
    runs = asked_runs(WHAT, RUNS)
    ours = own_environment(OURS)
    commands = {
        BARE: [ours.program("python"), "-I", "-c", "pass"],
        OURS: [ours.program("gradaccum"), *PLAN.split()],
    }
    peers, left_out = _peers()
    for peer, environment in peers.items():
        program, *arguments = peer.command
        commands[peer.name] = [environment.program(program), *arguments]
    environ = plain_environ()
    for command in commands.values():
        _check(command, environ)
    found = take_turns({name: partial(start, command, environ) for name, command in commands.items()}, runs)
    measured = {name: _measured(times, found[BARE]) for name, times in found.items()}

    header = ["process", "wall ms", "p5", "p95", "cpu ms", "wall / bare", "cpu / bare"]
    print(table(header, [_row(name, measured[name]) for name in commands]))
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    limit = verdict(
        f"`gradaccum {PLAN}` in times of `python -I -c pass`", measured[OURS]["wall_to_bare"]["median"], LIMIT
    )
    write_result(
        "cli_start",
        WHAT,
        runs,
        RUNS,
        {OURS: ours.version(OURS)} | {peer.name: where.version(peer.name) for peer, where in peers.items()},
        limit=limit,
        measured=measured,
        peers={
            peer.name: {"does": peer.does, "licence": peer.licence, "installed_mb": round(_megabytes(where), 2)}
            for peer, where in peers.items()
        },
        left_out=left_out,
    )


def start(command: list[str], environ: Mapping[str, str]) -> tuple[float, float]:
    """Seconds by the clock, and seconds of CPU time (user and system), from the start of a process to its end."""
    begun = time.perf_counter()
    process = os.posix_spawn(command[0], command, environ, file_actions=SILENT)
    _, status, usage = os.wait4(process, 0)
    wall = time.perf_counter() - begun
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{' '.join(command)} failed")
    return wall, usage.ru_utime + usage.ru_stime


def _measured(times: Sequence[tuple[float, float]], bare: Sequence[tuple[float, float]]) -> dict[str, Spread]:
    (wall, cpu), (bare_wall, bare_cpu) = zip(*times, strict=True), zip(*bare, strict=True)
    return {
        "wall_ms": spread(wall, 1000),
        "cpu_ms": spread(cpu, 1000),
        "wall_to_bare": spread(ratios(wall, bare_wall)),
        "cpu_to_bare": spread(ratios(cpu, bare_cpu)),
    }


def _row(name: str, found: Mapping[str, Spread]) -> list[str]:
    wall = [f"{found['wall_ms'][each]:.1f}" for each in ("median", "p5", "p95")]
    others = [("cpu_ms", ".1f"), ("wall_to_bare", ".2f"), ("cpu_to_bare", ".2f")]
    return [name, *wall, *[format(found[each]["median"], digits) for each, digits in others]]


def _megabytes(environment: Environment) -> float:
    return environment.installed_bytes() / 10**6


def _peers() -> tuple[dict[Peer, Environment], dict[str, str]]:
    """The peers that can be installed and are light; the others, and why they are left out."""
    CACHE.mkdir(parents=True, exist_ok=True)
    MODEL.write_text(json.dumps(MODEL_CONFIG), encoding="utf-8")
    TYPER_APP.write_text(TYPER_SOURCE, encoding="utf-8")
    found, left_out = {}, {}
    for peer in PEERS:
        try:
            environment = peer_environment(peer.name, peer.name)
        except InstallError as error:
            left_out[peer.name] = f"does not install: {error}"
            continue
        if environment.installed_bytes() > LARGEST:
            left_out[peer.name] = f"installs {_megabytes(environment):.0f} MB"
        else:
            found[peer] = environment
    return found, left_out


def _check(command: list[str], environ: dict[str, str]) -> None:
    """Run it once: it has to work, and afterwards its compiled files are there."""
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")


if __name__ == "__main__":
    main()
