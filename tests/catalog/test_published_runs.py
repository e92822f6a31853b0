"""The rows of published_runs.json: complete, sourced, at one with themselves and with the publications."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from gradaccum.catalog import PublishedRun, find_run, published_runs

RUNS = published_runs()
COUNTS = (
    "params",
    "sequence_length",
    "target_batch",
    "tokens_per_step",
    "micro_batch",
    "micro_batch_tokens",
    "accum_steps",
    "data_parallel",
    "num_gpus",
    "tensor_parallel",
    "pipeline_parallel",
    "context_parallel",
    "token_budget",
)


def test_every_row_is_there():
    assert len(RUNS) == 147


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.id)
def test_a_row_is_sourced_and_well_formed(run: PublishedRun):
    assert run.name
    assert run.source
    assert re.fullmatch(
        r"https://(github\.com/[\w.-]+/[\w.-]+(/blob/HEAD/[\w./-]+)?|arxiv\.org/abs/\d{4}\.\d{5}|huggingface\.co/\S+)",
        run.url,
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", run.checked)
    for name in (run.id, *run.aliases):
        assert re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", name)
        assert len(name) <= 40
    for name in COUNTS:
        value = getattr(run, name)
        assert value is None or (type(value) is int and value >= 1), name
    assert run.peak_learning_rate is None or 0 < run.peak_learning_rate < 30
    assert run.beta2 is None or isinstance(run.beta2, str) or 0.9 <= run.beta2 < 1
    assert run.unit in ("sequences", "images", "tokens")
    assert (run.unit == "tokens") == (run.micro_batch_tokens is not None)
    assert set(run.derived) <= {name for name in COUNTS if getattr(run, name) is not None}
    assert run.recalled == bool(run.notes and run.notes.startswith("recalled"))
    # "step" alone is no word of ours: a micro-step and an update are two things.
    assert not re.search(r"(?<!accumulation )\bsteps?\b", f"{run.warmup} {run.notes}")


@pytest.mark.parametrize("run", [run for run in RUNS if "github.com" in run.url], ids=lambda run: run.id)
def test_the_link_goes_to_the_repository_that_the_source_names(run: PublishedRun):
    repository = run.url.split("/")[4]
    assert run.recalled or repository.lower() in run.source.lower()


def test_names_are_unique_however_they_are_spelled():
    spelled = [re.sub("[-_ ]", "", name.lower()) for run in RUNS for name in (run.id, *run.aliases)]
    assert sorted(spelled) == sorted(set(spelled))
    assert len({run.name for run in RUNS}) == len(RUNS)


# The identities. Each test says how many rows it holds for, so that none can become empty.


def rows_with(*names: str) -> list[tuple[str, list[int]]]:
    """(id, values) of every row that gives all of these counts."""
    rows = [(run.id, [getattr(run, name) for name in names]) for run in RUNS]
    return [(run, values) for run, values in rows if None not in values]


def test_batch_is_micro_batch_times_ranks_times_steps():
    rows = rows_with("target_batch", "micro_batch", "data_parallel", "accum_steps")
    assert len(rows) == 43
    for run, (batch, *factors) in rows:
        assert batch == math.prod(factors), run


def test_batches_counted_in_tokens_keep_the_same_identity():
    rows = rows_with("tokens_per_step", "micro_batch_tokens", "data_parallel", "accum_steps")
    assert len(rows) == 2
    for run, (tokens, *factors) in rows:
        assert tokens == math.prod(factors), run


def test_gpus_are_ranks_times_the_model_parallel_degrees():
    rows = rows_with("num_gpus", "data_parallel")
    assert len(rows) == 46
    for run, (num_gpus, ranks) in rows:
        row = find_run(run)
        degrees = (row.tensor_parallel or 1) * (row.pipeline_parallel or 1) * (row.context_parallel or 1)
        assert num_gpus == ranks * degrees, run
    # So a plan may take num_gpus alone.
    assert [run.id for run in RUNS if run.data_parallel and not run.num_gpus] == []


def test_tokens_of_an_update_are_batch_times_sequence_length():
    rows = rows_with("tokens_per_step", "target_batch", "sequence_length")
    assert len(rows) == 101
    for run, (tokens, *factors) in rows:
        assert tokens == math.prod(factors), run


def test_a_round_number_of_tokens_is_never_turned_into_sequences():
    """Figures such as "0.5M" and "4M tokens" are no whole number of sequences."""
    round_figures = {run.id for run in RUNS if run.tokens_per_step and run.tokens_per_step % 10_000 == 0}
    families = ("gpt3-", "llama-1-", "llama-2-", "llama-3-405b", "gopher-", "chinchilla-", "mt-nlg-")
    assert round_figures == {run.id for run in RUNS if run.id.startswith(families)}
    assert all(find_run(name).target_batch is None for name in round_figures)


def test_rows_whose_source_states_batch_micro_batch_ranks_and_steps():
    """Independent checks of the arithmetic; in the other rows one of the four was computed from the rest."""
    stated = {
        run.id
        for run in RUNS
        if run.accum_steps
        and run.num_gpus
        and (run.target_batch or run.micro_batch_tokens)
        and not set(run.derived) & {"target_batch", "tokens_per_step", "micro_batch", "accum_steps"}
    }
    assert stated == {
        "pythia-31m",
        "pythia-1.4b",
        "pythia-2.8b",
        "bloom-176b-gbs784",
        "cerebras-gpt-256m",
        "smollm1-135m",
        "smollm1-1.7b",
        "smollm3-3b",
        "tinyllama-1.1b",
        "roberta-base",
        "bert-large-phase1-32xdgx-a100",
        "bert-large-phase2-32xdgx-a100",
        "resnet50-imagenet-8k",
        "mask-rcnn-1gpu",
        "mask-rcnn-2gpu",
        "mask-rcnn-8gpu",
        "resnet50-tensorpack-4k",
        "resnet50-tensorpack-8k",
    }


# The facts themselves, typed from the publications and not from the file.

PUBLISHED: dict[str, dict[str, Any]] = {
    # scripts/run_gpt2_774M.sh: -b 32 -t 1024 -d 524288 -l 0.00025 -u 700, 8 processes
    "llm.c-gpt2-774m": {
        "micro_batch": 32,
        "sequence_length": 1024,
        "tokens_per_step": 524_288,
        "num_gpus": 8,
        "peak_learning_rate": 2.5e-4,
        "warmup": "700 updates",
    },
    # models/1.4B/pythia-1.4b.yml: "trained on 64 gpus"; README: "kept at 1024"
    "pythia-1.4b": {"micro_batch": 16, "num_gpus": 64, "accum_steps": 1, "target_batch": 1024, "beta2": 0.95},
    # Brown et al. 2020, Table 2.1
    "gpt3-175b": {"tokens_per_step": 3_200_000, "peak_learning_rate": 0.6e-4, "sequence_length": 2048},
    # tr11-176B-ml/README.md: GPUs = 384, TP=4, PP=12, DP=8, MBS=2, GBS=2048
    "bloom-176b": {
        "num_gpus": 384,
        "tensor_parallel": 4,
        "pipeline_parallel": 12,
        "data_parallel": 8,
        "micro_batch": 2,
        "target_batch": 2048,
        "peak_learning_rate": 6e-5,
    },
    # Llama 2 model card: 70B, 4k, 2.0T tokens, 1.5e-4, "global batch-size of 4M tokens"
    "llama-2-70b": {
        "tokens_per_step": 4_000_000,
        "sequence_length": 4096,
        "token_budget": 2 * 10**12,
        "peak_learning_rate": 1.5e-4,
        "micro_batch": None,
        "num_gpus": None,
    },
    # configs/20B.yml: "assuming 96 GPUs", micro-batch 4, gradient_accumulation_steps 32, lr 0.97e-4
    "gpt-neox-20b": {
        "num_gpus": 96,
        "micro_batch": 4,
        "accum_steps": 32,
        "pipeline_parallel": 4,
        "tensor_parallel": 2,
        "peak_learning_rate": 0.97e-4,
    },
    # OLMo2-7B-stage1.yaml
    "olmo2-7b": {"target_batch": 1024, "micro_batch": 2, "sequence_length": 4096, "peak_learning_rate": 3e-4},
    # DeepSeek-LLM README: "batch size of 4608 and a learning rate of 3.2e-4"
    "deepseek-llm-67b": {"target_batch": 4608, "peak_learning_rate": 3.2e-4, "warmup": "2000 updates"},
    # Falcon-40B model card: TP=8, PP=4, DP=12 on 384 A100, batch 1152
    "falcon-40b": {
        "num_gpus": 384,
        "tensor_parallel": 8,
        "pipeline_parallel": 4,
        "data_parallel": 12,
        "target_batch": 1152,
        "micro_batch": None,
    },
    # long_context_4k_to_32k.yaml: dp 12, tp 2, context_parallel_size 4, accumulation 6, micro-batch 1
    "smollm3-3b-32k": {
        "data_parallel": 12,
        "tensor_parallel": 2,
        "context_parallel": 4,
        "num_gpus": 96,
        "accum_steps": 6,
        "sequence_length": 32_768,
    },
    # TinyLlama README: "2 million tokens (2048 * 1024)", 16 A100-40G
    "tinyllama-1.1b": {"target_batch": 1024, "sequence_length": 2048, "num_gpus": 16, "micro_batch": 8},
    # fairseq README.pretraining.md: 8 GPUs, 16 sequences, 16x, 2048 in all
    "roberta-base": {"num_gpus": 8, "micro_batch": 16, "accum_steps": 16, "target_batch": 2048},
    # scaling_nmt README: --max-tokens 3584, --update-freq 16, 8 GPUs, 0.001
    "transformer-big-wmt16-big-batch": {
        "micro_batch_tokens": 3584,
        "micro_batch": None,
        "accum_steps": 16,
        "num_gpus": 8,
        "peak_learning_rate": 1e-3,
    },
    # NVIDIA BERT README, 32 x DGX A100: batch per GPU 256 and 32, accumulation 1 and 4
    "bert-large-phase2-32xdgx-a100": {
        "num_gpus": 256,
        "micro_batch": 32,
        "accum_steps": 4,
        "target_batch": 32_768,
        "sequence_length": 512,
    },
    # Goyal et al. 2017: 256 GPUs, 32 images each, 0.1 * 8192/256
    "resnet50-imagenet-8k": {
        "num_gpus": 256,
        "micro_batch": 32,
        "target_batch": 8192,
        "peak_learning_rate": 3.2,
        "unit": "images",
    },
    # gpt3xl_optimizer_comp.sh: batch_size 1, num_tp_devices 4, peak_lr 0.000067, b2 0.9999
    "marek-gpt3-1.3b-bs1-half-life": {
        "target_batch": 1,
        "tensor_parallel": 4,
        "peak_learning_rate": 6.7e-5,
        "beta2": 0.9999,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_says_what_was_published(name: str):
    run = find_run(name)
    assert {field: getattr(run, field) for field in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "updates"),
    [
        ("llm.c-gpt2-774m", 286_102),
        ("llm.c-gpt3-125m", 572_204),
        ("pythia-31m", 143_000),
        ("pythia-2.8b", 143_000),
        ("gpt-neox-20b", 150_000),
        ("mpt-125m-recipe", 4_800),
        ("mpt-70b-recipe", 333_800),
        ("mosaicbert-base", 70_000),
        ("cerebras-gpt-256m", 9_468),
        ("cerebras-gpt-13b", 57_000),
        ("smollm1-135m", 600_000),
        ("smollm2-1.7b", 5_240_000),
        ("smollm3-3b", 4_720_000),
        ("tinyllama-1.1b", 2 * 715_256),
        ("roberta-base", 125_000),
        ("bert-large-phase1-dgx2", 7_038),
        ("bert-large-phase2-dgx2", 1_563),
        ("stablelm-3b-4e1t", 955_000),
        ("mistral-gpt2-small", 400_000),
    ],
)
def test_the_token_budget_is_the_published_updates_times_their_tokens(name: str, updates: int):
    run: Any = find_run(name)
    assert run.token_budget == updates * run.tokens_per_step


def test_published_learning_rate_rules_hold():
    linear, llama, deepseek = "linear rule 0.1 x batch / 256", "mlperf-llama-3.1-405b", "mlperf-deepseek-v3"
    seen = []
    for run in RUNS:
        batch = run.target_batch or 0
        if linear in str(run.notes):
            rate = 0.1 * batch / 256
        elif run.id.startswith(llama):
            rate = 8e-5 * batch / 1152
        elif run.id.startswith(deepseek):
            rate = round(2.4e-5 * math.sqrt(batch / 16_384), 9)
        else:
            continue
        seen.append(run.id)
        assert run.peak_learning_rate == pytest.approx(rate), run.id
    assert len(seen) == 7 + 3 + 3


def test_what_the_publications_contradict_is_noted():
    assert '"16 and 18"' in str(find_run("bert-large-phase1-4xdgx-a100").notes)
    assert find_run("bert-large-phase1-4xdgx-a100").accum_steps == 2048 // 256
    assert "mpt-13b.yaml says ~270B" in str(find_run("mpt-7b-recipe").notes)
    assert round(124_000 * 1024 * 2048 / 1e9, 1) == 260.0
    assert "1538 contexts" in str(find_run("gpt-neox-20b").notes)
