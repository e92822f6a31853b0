"""Plans reproduce published training runs: the accumulation follows from the other numbers, with drift 0."""

from __future__ import annotations

from typing import Any

import pytest

from gradaccum import Plan, plan
from gradaccum.catalog import PublishedRun, published_runs

# Every row of the catalog that publishes batch, micro-batch, ranks and steps.

COMPLETE = [run for run in published_runs() if run.accum_steps and not run.missing]


def test_the_catalog_has_as_many_complete_rows_as_it_should():
    assert len(COMPLETE) == 45


@pytest.mark.parametrize("run", COMPLETE, ids=lambda run: run.id)
def test_a_catalog_row_is_reproduced(run: PublishedRun):
    inputs: dict[str, Any] = run.inputs()
    made = plan(**inputs)
    assert (made.accum_steps, made.drift, made.drift_percent) == (run.accum_steps, 0, "0.00")
    assert made.data_parallel == run.data_parallel
    assert made.effective_batch == (run.target_batch or run.tokens_per_step)
    if run.tokens_per_step:
        assert made.tokens_per_step == run.tokens_per_step


@pytest.mark.parametrize("run", [run for run in COMPLETE if run.tokens_per_step], ids=lambda run: run.id)
def test_a_catalog_row_is_reproduced_from_its_tokens_too(run: PublishedRun):
    inputs: dict[str, Any] = run.inputs()
    del inputs["target_batch"]
    made = plan(**inputs, target_tokens=run.tokens_per_step)
    assert (made.accum_steps, made.drift_tokens) == (run.accum_steps, 0)


@pytest.mark.parametrize("run", COMPLETE, ids=lambda run: run.id)
def test_a_catalog_row_gives_its_batch_back_from_its_steps(run: PublishedRun):
    inputs: dict[str, Any] = run.inputs()
    wanted = inputs.pop("target_batch")
    assert plan(**inputs, accum_steps=run.accum_steps).effective_batch == wanted


def test_a_preset_is_the_row_and_own_inputs_override_it():
    assert plan(preset="bloom-176b-gbs784").accum_steps == 49
    # Twice the ranks: 784 / (2 * 16) = 24.5, and the tie goes up.
    assert plan(preset="BLOOM 176B GBS784", num_gpus=768).accum_steps == 25


# Numbers typed from the publications, where they print the result of the same arithmetic.


def made(**inputs: Any) -> Plan:
    """A plan that fits the published batch exactly."""
    result = plan(**inputs)
    assert result.is_exact
    return result


def test_nanogpt_gpt2_124m():
    """karpathy/nanoGPT, config/train_gpt2.py: "12 batch size * 1024 block size * 5 gradaccum * 8 GPUs"."""
    run = made(micro_batch=12, num_gpus=8, target_tokens=491_520, sequence_length=1024)
    assert (run.accum_steps, run.tokens_per_step, run.effective_batch) == (5, 491_520, 480)


@pytest.mark.parametrize(
    ("script", "micro_batch", "tokens", "steps"),
    [
        ("run_gpt2_124M.sh", 64, 524_288, 1),
        ("run_gpt2_350M.sh", 64, 524_288, 1),
        ("run_gpt2_1558M.sh", 16, 1_048_576, 8),
    ],
)
def test_llm_c_scripts(script: str, micro_batch: int, tokens: int, steps: int):
    """karpathy/llm.c, scripts/: -b and -d at -t 1024 on 8 GPUs."""
    run = made(micro_batch=micro_batch, num_gpus=8, target_tokens=tokens, sequence_length=1024)
    assert run.accum_steps == steps


@pytest.mark.parametrize(("sequence_length", "budget", "updates"), [(1024, 150, 286_102), (2048, 300, 572_204)])
def test_llm_c_updates_of_a_budget_in_billions(sequence_length: int, budget: int, updates: int):
    """karpathy/llm.c, run_gpt2_774M.sh and run_gpt3_125M.sh: "286,102 steps" and "572,204 steps"."""
    run = plan(
        micro_batch=32,
        num_gpus=8,
        target_tokens=524_288,
        sequence_length=sequence_length,
        token_budget=budget * 10**9,
    )
    assert run.training.updates == updates


def test_pythia_12b():
    """EleutherAI/pythia, pythia-12b.yml: 256 GPUs, tensor 4, micro-batch 8, accumulation 2, 143,000 updates.

    The README gives 2,097,152 tokens per update and 299,892,736,000 tokens in all.
    """
    run = made(
        micro_batch=8,
        num_gpus=256,
        tensor_parallel=4,
        target_tokens=2_097_152,
        sequence_length=2048,
        token_budget=299_892_736_000,
    )
    assert (run.data_parallel, run.accum_steps, run.effective_batch) == (64, 2, 1024)
    assert (run.training.updates, run.training.leftover_tokens) == (143_000, 0)


@pytest.mark.parametrize(("batch", "micro_batches"), [(784, 49), (2048, 128)])
def test_bloom_176b(batch: int, micro_batches: int):
    """bigscience tr11-176B-ml, chronicles: "With MBS=2 each replica has 784/(2*8) = 49 microbatches"."""
    run = made(micro_batch=2, num_gpus=384, tensor_parallel=4, pipeline_parallel=12, target_batch=batch)
    assert (run.data_parallel, run.accum_steps) == (8, micro_batches)


def test_bloom_176b_ramp_moves_in_whole_micro_steps():
    """bigscience tr11-176B-ml, README: "with MBS=2 (8*2) can do GBS increments of 16"."""
    for steps in range(1, 129):
        run = made(micro_batch=2, num_gpus=384, tensor_parallel=4, pipeline_parallel=12, target_batch=16 * steps)
        assert run.accum_steps == steps


def test_tinyllama():
    """jzhang38/TinyLlama, README: 16 A100-40G, "2 million tokens (2048 * 1024)", 1430k updates."""
    run = made(micro_batch=8, num_gpus=16, target_batch=1024, sequence_length=2048, token_budget=3 * 10**12)
    assert (run.accum_steps, run.tokens_per_step) == (8, 2_097_152)
    # pretrain/tinyllama.py trains 715256 * 2 of them, which is just above 3 trillion tokens.
    assert run.training.updates == 1_430_511


def test_fairseq_roberta():
    """fairseq, README.pretraining.md: 8 GPUs, 16 sequences each, accumulated 16x, 2048 in all."""
    assert made(micro_batch=16, num_gpus=8, target_batch=2048).accum_steps == 16


def test_fairseq_update_freq_stands_for_more_gpus():
    """fairseq, scaling_nmt/README.md: --update-freq 16 "to simulate training on 8x16=128 GPUs"; in tokens."""
    accumulated = made(micro_batch=3584, num_gpus=8, target_batch=3584 * 128)
    wide = made(micro_batch=3584, num_gpus=128, target_batch=3584 * 128)
    assert (accumulated.accum_steps, wide.accum_steps) == (16, 1)


def test_goyal_imagenet_in_one_hour():
    """Goyal et al. 2017, arXiv:1706.02677: 256 GPUs of 32 images make the batch of 8192 at once."""
    assert made(micro_batch=32, num_gpus=256, target_batch=8192).accum_steps == 1
    # The same batch on one server, as they simulated the larger ones.
    assert made(micro_batch=32, num_gpus=8, target_batch=8192).accum_steps == 32


def test_opt_warm_up():
    """facebookresearch/metaseq, opt_baselines.py: int(TOTAL_WARMUP_TOKENS) // size.batch_size."""
    for tokens, updates in [(2**19, 715), (2**20, 357), (2**22, 89)]:
        run = plan(num_gpus=8, micro_batch=1, target_tokens=tokens, sequence_length=2048, warmup_tokens=375_000_000)
        assert run.training.warmup_updates == updates


def test_cerebras_gpt_111m():
    """Cerebras/modelzoo, 111m.yaml: "120 global = (120 micro)*(1 csx)*(1 grad accum step)", warm-up 1525."""
    run = made(
        micro_batch=120,
        num_gpus=1,
        target_batch=120,
        sequence_length=2048,
        token_budget=9037 * 120 * 2048,
        warmup_tokens=375_000_000,
        params=111_000_000,
    )
    assert (run.accum_steps, run.training.updates, run.training.warmup_updates) == (1, 9037, 1525)
    assert run.training.tokens == pytest.approx(2.22e9, rel=1e-3)


# NVIDIA/DeepLearningExamples, PyTorch/LanguageModeling/BERT/README.md: a global batch of 65536 in phase 1 and
# 32768 in phase 2. Its table "Multi-node Scaling" gives batch per GPU and accumulation steps for TF32 and FP16,
# by nodes of 8 GPUs. Two cells differ from the arithmetic and from the rows around them: the TF32 batch is
# printed 126 where 128 is meant, and the FP16 steps of 4 nodes are printed 18 where 8 is.
BERT_DGX_A100 = {
    (65_536, 128): {1: 64, 2: 32, 4: 16, 8: 8, 16: 4, 32: 2},
    (65_536, 256): {1: 32, 2: 16, 4: 8, 8: 4, 16: 2, 32: 1},
    (32_768, 16): {1: 256, 2: 128, 4: 64, 8: 32, 16: 16, 32: 8},
    (32_768, 32): {1: 128, 2: 64, 4: 32, 8: 16, 16: 8, 32: 4},
}
# The same README, for V100: GPUs, accumulated batch of one GPU, accumulation steps, global batch.
BERT_V100 = [
    (8, 8192, 128, 65_536),  # run_pretraining.sh as it stands, DGX-1 32G
    (8, 4096, 512, 32_768),
    (8, 8192, 512, 65_536),  # DGX-1 16G
    (8, 4096, 1024, 32_768),
    (16, 4096, 64, 65_536),  # DGX-2 32G
    (16, 2048, 256, 32_768),
    (32, 2048, 128, 65_536),  # four DGX-1
    (32, 1024, 256, 32_768),
]


@pytest.mark.parametrize(("batch", "micro_batch"), BERT_DGX_A100)
def test_nvidia_bert_on_dgx_a100(batch: int, micro_batch: int):
    for nodes, steps in BERT_DGX_A100[batch, micro_batch].items():
        assert made(micro_batch=micro_batch, num_gpus=8 * nodes, target_batch=batch).accum_steps == steps


@pytest.mark.parametrize(("num_gpus", "accumulated", "steps", "batch"), BERT_V100)
def test_nvidia_bert_on_v100(num_gpus: int, accumulated: int, steps: int, batch: int):
    run = made(micro_batch=accumulated // steps, num_gpus=num_gpus, target_batch=batch)
    assert run.accum_steps == steps
    # The other way round: steps and batch give the micro-batch.
    assert plan(accum_steps=steps, num_gpus=num_gpus, target_batch=batch).micro_batch == accumulated // steps


def test_a_printed_step_count_that_the_arithmetic_refutes():
    """That README prints "16 and 18" for 4 nodes: 18 would make a batch of 147456, not 65536."""
    assert plan(micro_batch=256, num_gpus=32, accum_steps=18).effective_batch == 147_456


def test_smollm3_long_context_keeps_the_tokens_of_an_update():
    """huggingface/smollm, stage1_8T.yaml and long_context_4k_to_32k.yaml; README: 384 GPUs, 2.36M tokens."""
    short = made(micro_batch=3, num_gpus=384, tensor_parallel=2, target_batch=576, sequence_length=4096)
    long = made(
        micro_batch=1,
        num_gpus=96,
        tensor_parallel=2,
        context_parallel=4,
        target_batch=72,
        sequence_length=32_768,
    )
    assert (short.data_parallel, short.accum_steps) == (192, 1)
    assert (long.data_parallel, long.accum_steps) == (12, 6)
    assert short.tokens_per_step == long.tokens_per_step == 2_359_296


def test_a_batch_that_trainers_floor_in_silence_is_seen():
    """stanford-crfm/mistral: 512 // (10 * 12) micro-steps. Lightning-AI/litgpt: 125 // 2 // 5."""
    mistral = plan(micro_batch=10, num_gpus=12, target_batch=512, rounding="floor")
    assert (mistral.effective_batch, mistral.drift) == (480, -32)
    litgpt = plan(micro_batch=5, num_gpus=2, target_batch=125, rounding="floor")
    assert (litgpt.effective_batch, litgpt.drift) == (120, -5)
