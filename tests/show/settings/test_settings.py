"""Each setting is read back by the trainer's own rule, written here from its documentation: it gives the plan again."""

from __future__ import annotations

import ast
import json
import shlex
import tomllib
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from ruamel.yaml import YAML

import gradaccum
from gradaccum.show.settings import Setting, trainer_settings

Keys = dict[str, int]


def flat(nested: dict[str, Any]) -> Keys:
    found: Keys = {}
    for key, value in nested.items():
        found |= flat(value) if isinstance(value, dict) else {key: value}
    return found


def read(setting: Setting) -> Keys:
    """The keys and values of a text, by a reader of its language."""
    text = setting.text
    if setting.language == "json":
        return flat(json.loads(text))
    if setting.language == "toml":
        return flat(tomllib.loads(text))
    if setting.language == "yaml":
        return flat(YAML(typ="safe").load(text))
    if setting.language == "python":
        nodes = list(ast.walk(ast.parse(text)))
        calls = {each.arg: each.value for each in nodes if isinstance(each, ast.keyword)}
        names = {each.targets[0].id: each.value for each in nodes if isinstance(each, ast.Assign)}  # type: ignore[attr-defined]
        values = {**names, **calls}
        return {str(key): value.value for key, value in values.items() if isinstance(value, ast.Constant)}  # type: ignore[misc]
    words = shlex.split(text)
    pairs = [word.split("=") for word in words] if "=" in text else zip(words[::2], words[1::2], strict=True)
    return {key.removeprefix("--"): int(value) for key, value in pairs}


def exact(dividend: int, divisor: int) -> int:
    """A division that the trainer asserts to come out whole."""
    assert dividend % divisor == 0
    return dividend // divisor


# For each trainer, from its keys, the data-parallel size and the world size: (micro-batch, micro-steps, batch).
# World size and degrees as in the trainer's documentation; data-parallel size is GPUs / (tensor x pipeline x context).


def product(micro: str, steps: str) -> Any:
    """The trainer takes micro-batch and accumulation; the batch follows from the data-parallel size."""
    return lambda keys, data, world: (keys[micro], keys[steps], keys[micro] * keys[steps] * data)


def quotient(micro: str, batch: str) -> Any:
    """The trainer takes micro-batch and batch, and divides."""
    return lambda keys, data, world: (keys[micro], exact(keys[batch], keys[micro] * data), keys[batch])


def torchtitan(keys: Keys, data: int, world: int) -> tuple[int, int, int]:
    """With a pipeline the local batch is cut into pipeline micro-batches; without one it is the micro-batch."""
    local, batch = keys["local_batch_size"], keys["global_batch_size"]
    micro = keys.get("pipeline_parallel_microbatch_size", local)
    return micro, exact(local, micro) * exact(batch, local * data), batch


def torchtitan_tokens(keys: Keys, data: int, world: int) -> tuple[int, int, int]:
    micro, batch = (
        keys["training.num_tokens_per_microbatch_per_dp_rank"],
        keys["training.num_tokens_per_train_step"],
    )
    pipeline = keys.get("parallelism.num_pp_microbatches", 1)
    length = keys["training.max_context_length"]
    return exact(micro, length), pipeline * exact(batch, micro * pipeline * data), exact(batch, length)


def automodel(keys: Keys, data: int, world: int) -> tuple[int, int, int]:
    local, batch = keys["local_batch_size"], keys["global_batch_size"]
    micro = keys.get("pp_microbatch_size", local)
    return micro, exact(local, micro) * exact(batch, local * data), batch


def litgpt(keys: Keys, data: int, world: int) -> tuple[int, int, int]:
    """Floors twice; the batch that it really trains with is what is left."""
    gpus = keys["devices"] * keys.get("num_nodes", 1) if "devices" in keys else world
    micro = keys["train.micro_batch_size"]
    steps = keys["train.global_batch_size"] // gpus // micro
    return micro, steps, micro * steps * world


def nanotron(keys: Keys, data: int, world: int) -> tuple[int, int, int]:
    assert keys["dp"] * keys["tp"] * keys["pp"] * keys.get("context_parallel_size", 1) == world
    micro, steps = keys["micro_batch_size"], keys["batch_accumulation_per_replica"]
    return micro, steps, micro * steps * keys["dp"]


def composer(keys: Keys, data: int, world: int) -> tuple[int, int, int]:
    """Each GPU takes the same share, in micro-batches of which the last may be smaller."""
    micro, batch = keys["device_train_microbatch_size"], keys["global_train_batch_size"]
    return micro, -(-exact(batch, world) // micro), batch


def nano_gpt(keys: Keys, data: int, world: int) -> tuple[int, int, int]:
    micro, steps = keys["batch_size"], keys["gradient_accumulation_steps"]
    return micro, exact(steps, world), micro * steps


def nanochat(keys: Keys, data: int, world: int) -> tuple[int, int, int]:
    micro, tokens, length = keys["device-batch-size"], keys["total-batch-size"], keys["max-seq-len"]
    return micro, exact(tokens, micro * length * world), exact(tokens, length)


RULES: dict[str, Any] = {
    "Hugging Face Trainer": product("per_device_train_batch_size", "gradient_accumulation_steps"),
    "TRL": product("per_device_train_batch_size", "gradient_accumulation_steps"),
    "Accelerate": product("batch_size", "gradient_accumulation_steps"),
    "DeepSpeed": product("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    "Lightning": product("batch_size", "accumulate_grad_batches"),
    "Megatron-LM": quotient("micro-batch-size", "global-batch-size"),
    "torchtitan, to 0.3.0": torchtitan,
    "torchtitan, since August 2026": torchtitan_tokens,
    "Axolotl": product("micro_batch_size", "gradient_accumulation_steps"),
    "LLaMA-Factory": product("per_device_train_batch_size", "gradient_accumulation_steps"),
    "litgpt": litgpt,
    "nanotron": nanotron,
    "Composer, LLM Foundry": composer,
    "torchtune": product("batch_size", "gradient_accumulation_steps"),
    "NeMo 2": quotient("micro_batch_size", "global_batch_size"),
    "NeMo Automodel": automodel,
    "nanoGPT": nano_gpt,
    "nanochat": nanochat,
}
DEGREE_KEYS = {
    "Megatron-LM": ("tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size"),
    "torchtitan, to 0.3.0": ("tensor_parallel_degree", "pipeline_parallel_degree", "context_parallel_degree"),
    "torchtitan, since August 2026": (
        "parallelism.tensor_parallel_degree",
        "parallelism.pipeline_parallel_degree",
        "parallelism.context_parallel_degree",
    ),
    "Axolotl": ("tensor_parallel_size", "", "context_parallel_size"),
    "torchtune": ("tensor_parallel_dim", "", "context_parallel_dim"),
    "nanotron": ("tp", "pp", "context_parallel_size"),
    "NeMo 2": ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
    "NeMo Automodel": ("tp_size", "pp_size", "cp_size"),
}
LENGTH_KEYS = {
    "TRL": "max_length",
    "Megatron-LM": "seq-length",
    "torchtitan, to 0.3.0": "seq_len",
    "torchtitan, since August 2026": "training.max_context_length",
    "Axolotl": "sequence_len",
    "LLaMA-Factory": "cutoff_len",
    "litgpt": "train.max_seq_length",
    "nanotron": "sequence_length",
    "Composer, LLM Foundry": "max_seq_len",
    "torchtune": "tokenizer.max_seq_len",
    "NeMo 2": "seq_length",
    "nanoGPT": "block_size",
    "nanochat": "max-seq-len",
}


def check(plan: gradaccum.Plan) -> set[str]:
    """Every text of the plan says the plan; the names of the trainers that have one."""
    world, degrees = plan.num_gpus, (plan.tensor_parallel, plan.pipeline_parallel, plan.context_parallel)
    data = exact(world, degrees[0] * degrees[1] * degrees[2])
    written = set()
    for setting in trainer_settings(plan):
        if not setting.text:
            assert setting.note.startswith("No setting: ")
            continue
        written.add(setting.trainer)
        keys = read(setting)
        assert RULES[setting.trainer](keys, data, world) == (plan.micro_batch, plan.accum_steps, plan.effective_batch)
        for key, degree in zip(DEGREE_KEYS.get(setting.trainer, ()), degrees, strict=False):
            assert keys.get(key, 1) == degree
        if plan.sequence_length is not None and setting.trainer in LENGTH_KEYS:
            assert keys[LENGTH_KEYS[setting.trainer]] == plan.sequence_length
    return written


SMALL = st.integers(1, 40)
DEGREE = st.sampled_from([1, 1, 2, 4])


@given(SMALL, SMALL, SMALL, DEGREE, DEGREE, DEGREE, st.none() | st.integers(1, 10**6))
def test_each_text_gives_the_plan_by_the_trainers_own_rule(micro, ranks, steps, tensor, pipeline, context, length):
    plan = gradaccum.plan(
        micro_batch=micro,
        num_gpus=ranks * tensor * pipeline * context,
        accum_steps=steps,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        context_parallel=context,
        sequence_length=length,
    )
    written = check(plan)
    assert {"DeepSpeed", "Megatron-LM", "nanotron", "NeMo 2", "NeMo Automodel", "torchtitan, to 0.3.0"} <= written
    if tensor == pipeline == context == 1 and length:
        assert written == set(RULES)


@given(SMALL, SMALL, st.integers(1, 2000))
def test_an_exact_plan_is_written_only_where_it_can_be(micro, gpus, target):
    plan = gradaccum.plan(micro_batch=micro, num_gpus=gpus, target_batch=target, rounding="exact", sequence_length=8)
    assume(target % plan.device_batch)
    assert check(plan) == ({"Composer, LLM Foundry"} if target % gpus == 0 else set())


def setting_of(trainer: str, **inputs: Any) -> Setting:
    plan = gradaccum.plan(**{"micro_batch": 4, "num_gpus": 8, "target_batch": 512, **inputs})
    (found,) = (setting for setting in trainer_settings(plan) if setting.trainer == trainer)
    return found


def test_what_the_texts_look_like():
    assert (
        setting_of("Hugging Face Trainer").text
        == "TrainingArguments(per_device_train_batch_size=4, gradient_accumulation_steps=16)"
    )
    assert setting_of("Axolotl", sequence_length=2048).text == (
        "micro_batch_size: 4\ngradient_accumulation_steps: 16\nsequence_len: 2048"
    )
    assert setting_of("DeepSpeed").text == (
        '{\n  "train_micro_batch_size_per_gpu": 4,\n  "gradient_accumulation_steps": 16\n}'
    )
    assert setting_of("Lightning", num_gpus=64).text == (
        "trainer = Trainer(accumulate_grad_batches=2, devices=8, num_nodes=8)\n"
        "loader = DataLoader(dataset, batch_size=4)"
    )
    assert setting_of("nanochat", sequence_length=2048).text == (
        "--device-batch-size 4 --total-batch-size 1048576 --max-seq-len 2048"
    )
    assert setting_of("nanoGPT").text == "batch_size = 4\ngradient_accumulation_steps = 128"


@pytest.mark.parametrize(
    ("trainer", "inputs", "note"),
    [
        (
            "litgpt",
            {"tensor_parallel": 2, "pipeline_parallel": 2},
            "No setting: the batch arithmetic of litgpt knows no tensor or pipeline parallelism.",
        ),
        (
            "Megatron-LM",
            {"target_batch": 500, "rounding": "exact"},
            "No setting: it has no smaller last micro-step, which 500 needs. Nearest: 480 or 512.",
        ),
        (
            "nanoGPT",
            {"target_batch": 20, "rounding": "exact"},
            "No setting: it has no smaller last micro-step, which 20 needs. Nearest: 32.",
        ),
        (
            "Composer, LLM Foundry",
            {"target_batch": 500, "rounding": "exact"},
            "No setting: it gives every GPU the same share, and 8 GPUs do not divide 500.",
        ),
        ("nanochat", {}, "No setting: it counts in tokens. Give a sequence length."),
        (
            "nanoGPT",
            {},
            "Its gradient_accumulation_steps is the total over all GPUs: 16 on each of 8.",
        ),
    ],
)
def test_a_note_says_what_to_know(trainer: str, inputs: dict[str, Any], note: str):
    assert setting_of(trainer, **inputs).note == note


def test_every_trainer_names_a_public_source():
    for setting in trainer_settings(gradaccum.plan(micro_batch=1, num_gpus=1, target_batch=1)):
        assert setting.source.startswith("https://")
        assert setting.note
        assert "{" not in setting.note


def test_counts_of_any_size():
    huge = 10**99
    plan = gradaccum.plan(micro_batch=huge, num_gpus=1, target_batch=huge, sequence_length=1)
    assert check(plan) == set(RULES)
