"""What other estimators say of a measured run: each a function of a case, in bytes, or a reason why it cannot say.

Formulas are written from their documentation or source as named; FitCheck and llm-analysis are asked themselves, in
environments of their own: `python -m benchmarks.memory_peers fitcheck` answers one JSON question per line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from benchmarks.common import ROOT
from benchmarks.environments import InstallError, peer_environment, source_environ

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Question = dict[str, Any]
"""A case as plain data: shapes of the model, and the fields of a Setup that its row says."""

Answer = int | str
"""Bytes of one GPU, or why there is no answer."""

NO_LORA = "knows no adapters and no quantised weights"
PACKAGES = {
    "fitcheck": ("fitcheck-llm==0.3.1",),
    "llm-analysis": ("llm-analysis==0.2.2", "--no-binary", "fire"),
}


def question(model: Any, how: Mapping[str, Any]) -> Question:
    """What is handed to a peer."""
    shapes = "params layers hidden heads kv_heads head_dim ffn vocab tied gated positions family".split()
    usual = {"num_gpus": 1, "strategy": "single", "lora_rank": 0, "quantization": ""}
    return {**usual, **how, **{name: getattr(model, name) for name in shapes}}


# Formulas


def accelerate(asked: Question) -> Answer:
    """huggingface/accelerate:src/accelerate/commands/estimate.py:estimate_training_usage, the largest of its stages.

    With 16 bits of mixed precision: weights of 4 bytes, then gradients of 6, then Adam's states of 8.
    """
    if asked["lora_rank"] or asked["num_gpus"] > 1:
        return NO_LORA if asked["lora_rank"] else "knows one GPU"
    return int((16 if asked["dtype"] == "fp32" else 8) * asked["params"])


def deepspeed(asked: Question) -> Answer:
    """deepspeedai/DeepSpeed:docs/code-docs/source/memory.rst: model states alone, in mixed precision.

    ZeRO-2, and a single GPU: 4 P + 16 P / N; ZeRO-3: 18 P / N and four bytes for each parameter of the largest layer.
    """
    if asked["lora_rank"]:
        return NO_LORA
    if asked.get("tensor_parallel", 1) > 1:
        return "knows no tensor and pipeline parallelism"
    params, gpus = asked["params"], asked["num_gpus"]
    if asked["strategy"] in ("zero3", "fsdp2"):
        return int(4 * asked["vocab"] * asked["hidden"] + 18 * params // gpus)
    return int(4 * params + 16 * params // gpus)


def eleuther(asked: Question) -> Answer:
    """EleutherAI/cookbook:calc/calc_transformer_mem.py@069ae2e, with its defaults: mixed precision, ZeRO-1."""
    if asked["lora_rank"]:
        return NO_LORA
    h, layers, vocab, length = (asked[name] for name in ("hidden", "layers", "vocab", "sequence_length"))
    gpus, tp, pp = asked["num_gpus"], asked.get("tensor_parallel", 1), asked.get("pipeline_parallel", 1)
    linears = 3 if asked["gated"] else 2
    params = (
        2 * vocab * h + h * length + 8 * h * layers + 2 * h + 4 * layers * h * h + linears * layers * h * asked["ffn"]
    )
    stage = {"zero3": 3, "fsdp2": 3, "zero2": 2}.get(asked["strategy"], 1)
    model = 2 * params / (tp * pp) / (gpus if stage == 3 else 1)
    gradients = 4 * params / (gpus if stage >= 2 else 1)
    states = 12 * params / gpus
    buffers = (5e8 * 2 + (1e9 * 2 if stage == 3 else 0)) if gpus > 1 else 0
    scores = 0 if asked["checkpointing"] == "full" else 5 * asked["heads"] * length / h
    kept = length * asked["micro_batch"] * h * layers * (34 + scores)
    return int(model + gradients + states + buffers + kept)


def mem_tracker(asked: Question) -> Answer:
    """torch/distributed/_tools/mem_tracker.py of PyTorch 2.13, which follows a step that is run.

    It hooks the gradient of every parameter, which raises for those that are frozen.
    """
    if asked["lora_rank"]:
        return "hooks every parameter, and refuses those that are frozen"
    return "follows a step, and these rows name no versions to run one with"


FORMULAS: dict[str, Callable[[Question], Answer]] = {
    "accelerate estimate-memory": accelerate,
    "DeepSpeed's formulas": deepspeed,
    "EleutherAI's calculator": eleuther,
    "torch's MemTracker": mem_tracker,
}


# Packages, in environments of their own


def fitcheck(asked: Question) -> Answer:
    """fitcheck-llm: fitted closed forms. Its total is of the whole process."""
    from fitcheck.config_parser import ModelConfig
    from fitcheck.estimator import TrainingConfig, estimate
    from fitcheck.gpu_db import get_gpu

    if asked["num_gpus"] > 1:
        return "knows one GPU"
    names = {"num_params": "params", "hidden_size": "hidden", "num_layers": "layers", "num_attention_heads": "heads"}
    names |= {"num_kv_heads": "kv_heads", "intermediate_size": "ffn", "vocab_size": "vocab", "head_dim": "head_dim"}
    model = ModelConfig(
        name="", tie_word_embeddings=asked["tied"], **{name: asked[ours] for name, ours in names.items()}
    )
    targets = {"attention": "q_proj k_proj v_proj o_proj", "default": "q_proj v_proj"}.get(
        asked.get("lora_targets", ""), "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
    )
    training = TrainingConfig(
        precision=asked["dtype"].partition("-")[0],
        quantization="nf4" if asked["quantization"] else "none",
        double_quant="double" in asked["quantization"],
        batch_size=asked["micro_batch"],
        seq_len=asked["sequence_length"],
        lora_rank=asked["lora_rank"] or None,
        lora_targets=targets.split(),
        grad_checkpoint=asked["checkpointing"] == "full",
        flash_attn=asked["attention"] != "eager",
    )
    return int(estimate(model, training, get_gpu(asked["gpu"])).total_mib * 2**20)


def llm_analysis(asked: Question) -> Answer:
    """llm-analysis: weights, states, gradients and activations; a lower bound, its README says."""
    from llm_analysis.analysis import ActivationRecomputation, DSZeRO, LLMAnalysis
    from llm_analysis.config import DtypeConfig, GPUConfig, ModelConfig, ParallelismConfig

    if asked["lora_rank"]:
        return NO_LORA
    tp, pp = asked.get("tensor_parallel", 1), asked.get("pipeline_parallel", 1)
    analysis = LLMAnalysis(
        ModelConfig(
            name="asked",
            num_layers=asked["layers"],
            n_head=asked["heads"],
            hidden_dim=asked["hidden"],
            vocab_size=asked["vocab"],
            max_seq_len=asked["positions"],
            num_key_value_heads=asked["kv_heads"],
            ffn_embed_dim=asked["ffn"],
            expansion_ratio=asked["ffn"] / asked["hidden"],
            model_type=asked["family"],
        ),
        # More than there is, for it stops where a run does not fit; speeds do not enter the memory.
        GPUConfig("asked", 100_000, 2000, 600, 8e-6, 312),
        DtypeConfig(),
        ParallelismConfig(tp_size=tp, pp_size=pp, dp_size=asked["num_gpus"] // (tp * pp)),
        flops_efficiency=0.5,
    )
    found = analysis.training(
        batch_size_per_gpu=asked["micro_batch"],
        gradient_accumulation_steps=1,
        seq_len=asked["sequence_length"],
        activation_recomputation=ActivationRecomputation(2 if asked["checkpointing"] == "full" else 0),
        ds_zero=DSZeRO(3 if asked["strategy"] in ("zero3", "fsdp2") else 0),
        flash_attn=asked["attention"] != "eager",
        mlp_gated_linear_units=asked["gated"],
    )
    return int(found["(weight+op_state+grad+act)_memory_per_gpu"])


ASKED = {"fitcheck": fitcheck, "llm-analysis": llm_analysis}


def answers(questions: Sequence[Question]) -> dict[str, list[Answer]]:
    """What each peer says to each question. One that cannot be installed says so to all of them."""
    found: dict[str, list[Answer]] = {name: [ask(each) for each in questions] for name, ask in FORMULAS.items()}
    for name, wanted in PACKAGES.items():
        try:
            python = peer_environment(name, *wanted).program("python")
        except InstallError as error:
            found[name] = [f"not installed: {error}"] * len(questions)
            continue
        done = subprocess.run(
            [python, "-m", "benchmarks.memory_peers", name],
            input="".join(json.dumps(each) + "\n" for each in questions),
            env=source_environ(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found[name] = [json.loads(line) for line in done.stdout.splitlines()]
    return found


def main() -> None:
    """Answer the questions on standard input for the package that is named."""
    ask = ASKED[sys.argv[1]]
    answers_to = sys.stdout
    sys.stdout = sys.stderr  # some print while they calculate
    for line in sys.stdin:
        try:
            answer = ask(json.loads(line))
        except Exception as error:  # whatever a peer raises is its answer
            answer = f"{type(error).__name__}: {error}".partition("\n")[0]
        print(json.dumps(answer), file=answers_to, flush=True)


if __name__ == "__main__":
    main()
