"""The shown loops as text: readable, self-contained, with the person's numbers, and refused where none is right."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import gradaccum
from gradaccum import InputError
from gradaccum.show.loop import STRATEGIES, WEIGHTINGS, training_loop

if TYPE_CHECKING:
    from pathlib import Path


def plan_of(**inputs: Any) -> gradaccum.Plan:
    return gradaccum.plan(**{"micro_batch": 4, "num_gpus": 8, "target_batch": 500, **inputs})


def every_text() -> dict[str, str]:
    texts = {}
    for gpus, tp, pp, cp, vp, rounding, params in itertools.product(
        (1, 8, 64), (1, 2), (1, 2), (1, 2), (1, 2), ("round", "exact"), (None, "7B")
    ):
        if gpus % (tp * pp * cp) == 0 and (vp == 1 or pp > 1):
            degrees = {"tensor_parallel": tp, "pipeline_parallel": pp, "context_parallel": cp, "virtual_pipeline": vp}
            plan = plan_of(num_gpus=gpus, rounding=rounding, params=params, sequence_length=2048, **degrees)
            for strategy, weighting in itertools.product(STRATEGIES, WEIGHTINGS):
                name = f"{gpus}_{tp}{pp}{cp}{vp}_{rounding}_{params}_{strategy}_{weighting}.py".replace("-", "_")
                try:
                    texts[name] = training_loop(plan, strategy, weighting)
                except InputError:
                    continue
    return texts


def test_every_text_reads_as_if_a_person_had_linted_and_formatted_it(tmp_path: Path):
    texts = every_text()
    assert len(texts) > 200
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "--select=F,I,E,W,B,N,SIM", "--ignore=B905", "--quiet"], ["format", "--diff"]):
        done = subprocess.run(
            [*ruff, *command, "--isolated", "--no-cache", "--line-length=105", "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_every_text_is_short_and_needs_pytorch_alone():
    for name, text in every_text().items():
        assert text.count("\n") <= 105, name
        assert "{" not in text, name
        roots = {
            (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert roots <= {"torch", "os", "itertools", "contextlib"}, name


def test_the_usual_texts_fit_on_a_page():
    for gpus in (1, 8):
        for strategy in ("auto",) if gpus == 1 else ("ddp", "fsdp2", "fsdp2-deferred"):
            for weighting in WEIGHTINGS:
                assert training_loop(plan_of(num_gpus=gpus), strategy, weighting).count("\n") <= 75


@pytest.mark.parametrize(
    ("inputs", "opening"),
    [
        (
            {"num_gpus": 1},
            "# One update: 4 samples x 125 micro-steps = 500 samples.\n# Start it with: python train.py\n",
        ),
        (
            {"sequence_length": 2048},
            "# One update: 4 sequences x 8 GPUs x 16 micro-steps = 512 sequences (500 wanted).\n"
            "# 512 sequences x 2,048 tokens = 1,048,576 tokens.\n"
            "# Start it with: torchrun --nproc-per-node=8 train.py\n",
        ),
        (
            {"target_batch": None, "target_tokens": 10**6, "sequence_length": 2048},
            "# One update: 4 sequences x 8 GPUs x 15 micro-steps = 480 sequences.\n"
            "# 480 sequences x 2,048 tokens = 983,040 tokens (1,000,000 wanted).\n",
        ),
        (
            {"rounding": "exact"},
            "# One update: 4 samples x 8 GPUs x 15 micro-steps + 20 in one more = 500 samples.\n",
        ),
        (
            {"rounding": "exact", "target_batch": 20},
            "# One update: 20 samples in one micro-step = 20 samples.\n",
        ),
        (
            {"num_gpus": 64, "tensor_parallel": 4, "context_parallel": 2},
            "# One update: 4 samples x 8 data-parallel ranks x 16 micro-steps = 512 samples (500 wanted).\n"
            "# 64 GPUs: 8 data x 2 context x 4 tensor parallel.\n"
            "# Start it on every node with: torchrun --nnodes=8 --nproc-per-node=8 \\\n",
        ),
        (
            {"num_gpus": 12},
            "# One update: 4 samples x 12 GPUs x 10 micro-steps = 480 samples (500 wanted).\n"
            "# Start it on every node with: torchrun --nnodes=NODES --nproc-per-node=GPUS_PER_NODE \\\n",
        ),
    ],
)
def test_the_first_lines_have_the_persons_numbers(inputs: dict[str, Any], opening: str):
    assert training_loop(plan_of(**inputs)).startswith(opening)


def test_constants_come_from_the_plan():
    text = training_loop(plan_of(num_gpus=64, tensor_parallel=2, pipeline_parallel=4, virtual_pipeline=2))
    namespace = {}
    exec(text, namespace)
    wanted = {"PIPELINE_PARALLEL": 4, "VIRTUAL_PIPELINE": 2, "DATA_PARALLEL": 8, "TENSOR_PARALLEL": 2}
    wanted |= {"MICRO_BATCH": 4, "ACCUM_STEPS": 16}
    assert {name: namespace[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("inputs", "strategy", "weighting"),
    [
        ({"num_gpus": 1}, "single", "mean"),
        ({}, "ddp", "mean"),
        ({"sequence_length": 2048}, "ddp", "tokens"),
        ({"context_parallel": 2}, "ddp", "mean"),
        ({"tensor_parallel": 2}, "fsdp2", "mean"),
        ({"tensor_parallel": 8}, "single", "mean"),
        ({"pipeline_parallel": 2}, "fsdp2-deferred", "mean"),
        ({"pipeline_parallel": 8, "sequence_length": 2048}, "single", "tokens"),
    ],
)
def test_auto_is_what_fits(inputs: dict[str, Any], strategy: str, weighting: str):
    plan = plan_of(**inputs)
    assert training_loop(plan) == training_loop(plan, strategy, weighting)


def test_a_deferred_reduction_says_what_it_holds():
    # 4 bytes for each parameter: 28 GB, which is 26.1 GiB; a quarter of it on each of 4 tensor-parallel GPUs.
    assert "# 26.1 GiB on every GPU" in training_loop(plan_of(params="7B"), "fsdp2-deferred")
    assert "# 26.1 GiB on every GPU" in training_loop(plan_of(params="7B"), "fsdp2")
    assert "# 6.52 GiB on every GPU" in training_loop(plan_of(params="7B", tensor_parallel=4), "fsdp2")
    assert "# 4 bytes for each parameter on every GPU" in training_loop(plan_of(), "fsdp2-deferred")


@pytest.mark.parametrize(
    ("virtual", "accum_steps", "schedule"),
    [
        (1, 4, "Schedule1F1B"),
        (1, 3, "ScheduleGPipe"),
        (2, 8, "ScheduleInterleaved1F1B"),
        (2, 10, "ScheduleInterleaved1F1B"),  # two rounds of 5, more than the 4 ranks
        (2, 9, "ScheduleLoopedBFS"),
    ],
)
def test_the_schedule_takes_the_count_of_micro_batches(virtual: int, accum_steps: int, schedule: str):
    plan = gradaccum.plan(
        micro_batch=2, num_gpus=4, accum_steps=accum_steps, pipeline_parallel=4, virtual_pipeline=virtual
    )
    assert f"schedule = {schedule}(" in training_loop(plan)


@pytest.mark.parametrize(
    ("inputs", "strategy", "weighting", "message", "nearest"),
    [
        ({}, "dpp", "auto", "knows no strategy 'dpp'", ("ddp", "fsdp2", "fsdp2-deferred")),
        ({}, "auto", "token", "is one of mean, tokens, not 'token'", ("mean", "tokens")),
        (
            {},
            "single",
            "auto",
            "cannot be single, which reduces no gradients, and 8 ranks of the plan must",
            ("ddp", "fsdp2", "fsdp2-deferred"),
        ),
        ({"num_gpus": 1}, "ddp", "auto", "cannot be ddp, which has nothing to reduce", ("single",)),
        (
            {"tensor_parallel": 2},
            "ddp",
            "auto",
            "cannot be ddp, which hides the sharded parameters",
            ("fsdp2", "fsdp2-deferred"),
        ),
        (
            {"pipeline_parallel": 2},
            "fsdp2",
            "auto",
            "cannot be fsdp2, which does not do under a pipeline",
            ("fsdp2-deferred",),
        ),
        (
            {"pipeline_parallel": 2, "rounding": "exact"},
            "auto",
            "auto",
            "a pipeline runs micro-batches of one size, 16 samples over its data-parallel ranks",
            ("target_batch 496", "target_batch 512"),
        ),
        (
            {"rounding": "exact", "last_group": "carry"},
            "auto",
            "auto",
            "a group cannot span two epochs",
            ("last_group step", "last_group drop"),
        ),
    ],
)
def test_what_cannot_be_is_refused(
    inputs: dict[str, Any], strategy: str, weighting: str, message: str, nearest: tuple[str, ...]
):
    with pytest.raises(InputError) as refused:
        training_loop(plan_of(**inputs), strategy, weighting)
    (problem,) = refused.value.problems
    assert problem.field == ("weighting" if weighting == "token" else "loop")
    assert message in problem.message
    assert problem.nearest == nearest


def test_every_fault_is_named_at_once():
    with pytest.raises(InputError) as refused:
        training_loop(plan_of(), "no", "neither")
    assert len(refused.value.problems) == 2


def test_an_exact_plan_that_comes_out_even_is_like_any_other():
    even = {"target_batch": 512}
    assert training_loop(plan_of(**even, rounding="exact")) == training_loop(plan_of(**even))
    assert training_loop(plan_of(**even, rounding="exact", pipeline_parallel=2)).count("ACCUM_STEPS = 32") == 1
